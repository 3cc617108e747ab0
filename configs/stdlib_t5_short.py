"""A T5 that fills in bytes masked one by one; leaves the plateau of unigrams.

Command:   python launch/train.py --config configs/stdlib_t5_short.py:dense \\
             --workdir runs/stdlib_t5_short
Hardware:  two CPU cores.
Hours:     .03
Expected:  2.35 bits per byte of the validation split.

One block in the encoder and one in the decoder, 128 wide; segments of 15 bytes,
of which 4 are masked. configs/study_stdlib_text.py starts from this run. The
sizes come from docs/results/text_search.md.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "dense", "t5")
  config.variant = "custom"
  config.model.width = 128
  config.model.mlp_dim = 128
  config.model.depth = 1
  config.model.heads = 8
  config.model.head_dim = 8
  config.model.tied = False
  config.pattern = "ff: 1:8"
  config.seed = 100
  config.total_steps = 4000
  config.batch_size = 64
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 0.025
  config.optimizer.b2 = 0.98
  config.data.name = "stdlib_text"
  config.data.vocabulary = "bytes"
  config.data.input_length = 16
  config.data.density = 0.25
  config.data.mean_span = 1.0
  config.data.eval_split = "validation"
  config.data.eval_batch_size = 512
  config.log_every = 100
  config.diagnose_every = 0
  config.checkpoint_every = 4000
  return config
