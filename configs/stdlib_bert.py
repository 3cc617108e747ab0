"""A small BERT on the documents of Python's standard library.

Command:   python launch/train.py --config configs/stdlib_bert.py:figs \\
             --workdir runs/stdlib_bert
Data:      stdlib_text, prepared on first use, as bytes; 15 % of them are masked
           as in BERT (arXiv 1810.04805).
Model:     4 blocks of width 128, 1:4 in the feed-forward layers.
Hardware:  two CPU cores.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  config = default_config(arg or "figs", "bert")
  config.variant = "custom"
  config.model.update({"width": 128, "depth": 4, "heads": 4, "length": 128})
  config.model.scan = True
  config.pattern = "ff: 1:4"
  config.total_steps = 2000
  config.batch_size = 32
  config.data.input_length = 128
  config.data.eval_split = "validation"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 0.1
  config.checkpoint_every = 500
  return config
