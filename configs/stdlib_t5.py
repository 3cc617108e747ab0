"""A tiny T5 on the text of Python's standard library; runs anywhere.

Command:   python launch/train.py --config configs/stdlib_t5.py:figs \\
             --workdir runs/stdlib_t5
Hardware:  two CPU cores.
Hours:     .05 a seed.
Expected:  3 seeds, bits per byte (± s.e.): dense 4.007 ± .004; at 1:8 on the
           feed-forward mdgf_exp 4.050 ± .004, step 4.062 ± .006, sr_ste 4.066 ±
           .005, figs 4.069 ± .004; more in docs/results.md.

The task is span corruption of bytes. All recipes train densely for the first
tenth of the run; STEP switches by itself, not before that.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "t5")
  config.variant = "custom"
  config.model.width = 64
  config.model.depth = 2
  config.model.heads = 4
  config.model.head_dim = 16
  config.model.mlp_dim = 256
  config.model.tied = False
  config.pattern = "ff: 1:8"
  config.recipe.dense = 0.1
  config.total_steps = 3000
  config.batch_size = 32
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 0.05
  config.optimizer.b2 = 0.98
  config.data.name = "stdlib_text"
  config.data.vocabulary = "bytes"
  config.data.input_length = 64
  config.data.eval_batch_size = 128
  config.log_every = 100
  config.diagnose_every = 0
  config.checkpoint_every = 1000
  return config
