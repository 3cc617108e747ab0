"""ViT-B/16 on ImageNet-1K with the hyper-parameters of arXiv 2402.04744.

Command:   python launch/train.py --config configs/imagenet_vit_b16.py:figs \\
             --workdir runs/imagenet_vit_b16 --config.mesh.data=-1
Data:      imagenet2012 prepared by tensorflow-datasets in
           --config.data.data_dir (its licence restricts downloading).
Hardware:  not run by us. The global batch of 4096 needs about 32 accelerators
           of 32 GB; with fewer, raise --config.grad_accum_steps.
Hours:     not measured.
Expected:  published single runs of ViT-Base (table 2 of that paper), top-1 %:
           dense 76.39; at 1:8 on the feed-forward SR-STE 77.87, MdGf-exp
           78.01, FiGS (SdGf-geometric) 78.18.
Sources:   the binary cross-entropy is from vit_base_training.yaml of the
           authors' code (abhibambhaniya/progressive_gradient_flow_nm_sparsity).
"""

from figs_jax.train.config import default_config

_TRAIN_IMAGES = 1_281_167
_EPOCHS = 350
_WARMUP_EPOCHS = 15


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs")
  config.family = "vit"
  config.variant = "B/16"
  config.model.dropout = 0.1
  config.model.drop_path = 0.1
  config.model.dtype = "bfloat16"
  config.model.remat = False
  config.pattern = "ff: 1:8"
  config.batch_size = 4096
  config.total_steps = _EPOCHS * _TRAIN_IMAGES // config.batch_size
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = _WARMUP_EPOCHS / _EPOCHS
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip = 1.0
  config.loss = "bce"
  config.mixup = 0.5
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.image_size = 224
  config.data.augment = "rand-m15-n2"
  config.data.eval_batch_size = 512
  config.log_every = 100
  config.diagnose_every = 1000
  config.checkpoint_every = 5000
  return config
