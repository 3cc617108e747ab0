"""A model class of your own on images, in the default configuration.

Command:   python launch/train.py --workdir runs/mine \\
             --config launch/own_model.py:figs --model_file mine.py:Net \\
             --config.data.name=folder:photos --config.data.image_size=32
Hardware:  what your model needs.
Hours:     what your model needs; `total_steps` is 1000.
Expected:  what your model reaches.

Arguments of the class are fields, such as --config.model.width=64. Rules name
kernels by a regex of the whole path, and `hidden` is every kernel but the first
and the last: --config.pattern="hidden: 2:4". The data are scikit-learn's digits
unless --config.data.name says other ones.
"""

from figs_jax.models import own_model
from figs_jax.train.config import default_config


def get_config(recipe: str = "figs"):
  """The configuration of the class of --model_file."""
  config = default_config(recipe, own_model.newest())
  config.total_steps = 1000
  config.batch_size = 64
  return config
