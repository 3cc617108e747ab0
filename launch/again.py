"""A run once more, from its own config.json, with anything overridden.

Command:   python launch/train.py --workdir runs/b \\
             --config launch/again.py:runs/a/config.json
Hardware:  as for that run.
Hours:     as for that run.
Expected:  on the same machine and versions, the same numbers.

A recipe of one's own is known again by its file, which is run from where it was
unless --recipe_file has another.
"""

import json
from pathlib import Path

from flax import traverse_util

from figs_jax import recipes
from figs_jax.train import recipe_file
from figs_jax.train.config import ConfigError, default_config


def get_config(arg: str = ""):
  """The experiment that was saved in the file `arg`."""
  if not arg:
    raise ConfigError(
      "launch/again.py: name the config.json of a run, as in"
      " launch/again.py:runs/a/config.json"
    )
  try:
    saved = json.loads(Path(arg).read_text())
    recipe = saved["recipe"]["name"]
    if recipe not in recipes.names() and saved.get("recipe_file"):
      _register(arg, saved["recipe_file"])
    config = default_config(recipe, saved["family"])
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


def _register(arg, path):
  try:
    recipe_file.run(path)
  except recipe_file.RecipeFileError as error:
    raise ConfigError(
      f"{arg}: its recipe is from a file that cannot be run, {error}; give the"
      " file as --recipe_file"
    ) from error


def _fields(tree):
  return traverse_util.flatten_dict(tree, sep=".")
