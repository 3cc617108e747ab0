"""A GPT-2 on the text of Python's own library, byte by byte.

Command:   python launch/train.py --config configs/stdlib_gpt2.py:figs \\
             --workdir runs/stdlib_gpt2
Hardware:  two CPU cores.
Hours:     .02
Expected:  3.0 bits per byte.

Two blocks, 64 wide, on rows of 64 bytes. `--config.family=llama` has other
options: copy the file and start from `default_config(arg, "llama")`.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "gpt2")
  config.variant = "custom"
  config.model.width = 64
  config.model.depth = 2
  config.model.heads = 4
  config.model.length = 64
  config.pattern = "ff: 1:8"
  config.total_steps = 600
  config.batch_size = 32
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 0.05
  config.data.name = "stdlib_text"
  config.data.vocabulary = "bytes"
  config.data.input_length = 64
  config.data.eval_batch_size = 256
  config.log_every = 50
  config.diagnose_every = 0
  config.checkpoint_every = 600
  return config
