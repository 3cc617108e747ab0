"""A small ViT on Fashion-MNIST; runs anywhere.

Command:   python launch/train.py --config configs/fashion_vit.py:figs \\
             --workdir runs/fashion
Data:      Debian's package dataset-fashion-mnist, or
             --config.data.source=DIR with the four idx files.
Hardware:  two CPU cores.
Hours:     .01 a seed.
Expected:  see docs/results.md for this model with patches of 14 in a study.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs")
  config.family = "vit"
  config.variant = "custom/7"
  config.model.width = 64
  config.model.depth = 2
  config.model.heads = 2
  config.model.mlp_dim = 128
  config.model.pool = "gap"
  config.model.pos = "sincos"
  config.pattern = "ff: 1:8"
  config.total_steps = 2000
  config.batch_size = 64
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 0.05
  config.checkpoint_every = 2000
  config.diagnose_every = 0
  config.data.name = "fashion_mnist"
  config.data.image_size = 28
  config.data.augment = "none"
  config.data.eval_batch_size = 1000
  return config
