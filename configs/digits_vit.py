"""A small ViT on scikit-learn's digits; runs anywhere.

Command:   python launch/train.py --config configs/digits_vit.py:figs \\
             --workdir runs/digits
Hardware:  two CPU cores.
Hours:     .01 a seed.
Expected:  4 seeds, % (± s.e.): dense 93.8 ± .5; at 1:16 on the feed-forward
           sr_ste 94.0 ± .5, mdgf_exp 94.3 ± .4, figs 93.7 ± .3, step 93.0 ± .5.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs")
  config.family = "vit"
  config.variant = "custom/2"
  config.model.width = 64
  config.model.depth = 4
  config.model.heads = 4
  config.model.mlp_dim = 256
  config.model.pool = "gap"
  config.model.pos = "sincos"  # learned positions need a longer run
  config.pattern = "ff: 1:16"
  config.total_steps = 600
  config.batch_size = 32
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 0.05
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.augment = "none"
  config.data.eval_batch_size = 355
  return config
