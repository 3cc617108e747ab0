"""A small Swin-V2 on scikit-learn's digits: runs anywhere.

Command:   python launch/train.py --config configs/digits_swin_v2.py:figs \\
             --workdir runs/digits_swin_v2
Hardware:  two CPU cores.
Hours:     .01 a seed.
Expected:  3 seeds, % of 355 images (± s.e.): dense 96.2 ± .2; at 1:8 on the
           feed-forward mdgf_exp 96.4 ± .2, sr_ste 96.3 ± .2, figs 96.1 ± .4,
           step 95.8 ± .0; more in docs/results.md.

All recipes train densely for the first tenth of the run; STEP switches by
itself, not before the end of that phase.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "swin_v2")
  config.variant = "custom/2"  # maps of 4 x 4, then of 2 x 2
  config.model.width = 32
  config.model.depths = (2, 2)
  config.model.heads = 2
  config.model.window = 2  # shifted in the first stage
  config.pattern = "ff: 1:8"
  config.recipe.dense = 0.1
  config.total_steps = 600
  config.batch_size = 32
  config.optimizer.learning_rate = 5e-3
  config.optimizer.warmup_steps = 0.05
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.augment = "none"
  config.data.eval_batch_size = 355
  return config
