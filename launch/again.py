"""A run once more, from its own config.json, with anything overridden.

Command:   python launch/train.py --workdir runs/b \\
             --config launch/again.py:runs/a/config.json
Hardware:  as for that run.
Hours:     as for that run.
Expected:  on the same machine and versions, the same numbers.

A recipe of one's own is known again by its file, given as --recipe_file:
nothing that a run names is executed unasked.
"""

import json
from pathlib import Path

from flax import traverse_util

from figs_jax.train.config import ConfigError, default_of


def get_config(arg: str = ""):
  """The experiment that was saved in the file `arg`."""
  if not arg:
    raise ConfigError(
      "launch/again.py: name the config.json of a run, as in"
      " launch/again.py:runs/a/config.json"
    )
  try:
    saved = dict(json.loads(Path(arg).read_text()))
    config = default_of(saved)
    fields = {
      # JSON knows no tuples.
      name: tuple(value) if isinstance(value, list) else value
      for name, value in _fields(saved).items()
    }
    unknown = set(fields) - set(_fields(config.to_dict()))
    if unknown:
      raise ValueError(f"no such field {min(unknown)!r}")
    config.update_from_flattened_dict(fields)
  except ConfigError:
    raise
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"{arg}: not the configuration of a run ({type(error).__name__}:"
      f" {error}); name the config.json of its workdir"
    ) from error
  return config


def _fields(tree):
  return traverse_util.flatten_dict(tree, sep=".")
