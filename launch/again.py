"""Repeats a run from its config.json; any field can be overridden.

Command:   python launch/train.py --workdir runs/b \\
             --config launch/again.py:runs/a/config.json
Hardware:  as for that run.
Hours:     as for that run.
Expected:  the same numbers, on the same machine and versions.

If the run used a recipe or a model class of your own, give its file again as
--recipe_file or --model_file: no file that a run names is executed without
being asked for. From a config.json that others can write, neither the data
directory nor leave to download is taken.
"""

import json
import sys
from pathlib import Path

from flax import traverse_util

from figs_jax.train.config import ConfigError, default_of
from figs_jax.train.workdir import is_own, saved_files


def get_config(arg: str = ""):
  """The configuration saved in the file `arg`."""
  if not arg:
    raise ConfigError(
      "launch/again.py: name the config.json of a run, as in"
      " launch/again.py:runs/a/config.json"
    )
  try:
    saved = json.loads(Path(arg).read_text())
    if not isinstance(saved, dict):
      raise ValueError("no fields")
    try:
      config = default_of(saved)
    except ConfigError as error:
      raise ConfigError(f"{arg}: {error}") from error
    fields = {
      # JSON has no tuples.
      name: tuple(value) if isinstance(value, list) else value
      for name, value in _fields(saved).items()
    }
    unknown = set(fields) - set(_fields(config.to_dict()))
    if unknown:
      raise ValueError(f"unknown field {min(unknown)!r}")
    config.update_from_flattened_dict(fields)
    if not is_own(arg):
      _keep_own_paths(arg, config)
  except ConfigError:
    raise
  except (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
  ) as error:  # fmt: skip
    raise ConfigError(
      f"{arg}: expected the config.json of a run's workdir"
      f" ({type(error).__name__}: {error})"
    ) from error
  return config


def _keep_own_paths(arg, config):
  """Drops or refuses what would choose a path on this machine."""
  read = {"init_from": config.init_from} | saved_files(config)
  for name, path in read.items():
    if path:
      raise ConfigError(
        f"{arg}: others can write this file, so its {name} {path!r} is not"
        " used; copy the file into a directory that only you can write"
      )
  if config.data.data_dir is not None or config.data.download:
    print(  # before the programs configure their logging
      f"{arg}: others can write this file, so its data.data_dir"
      f" {config.data.data_dir!r} and data.download={config.data.download} are"
      " not used; give yours as --config.data.data_dir=",
      file=sys.stderr,
    )
  config.data.data_dir, config.data.download = None, False


def _fields(tree):
  return traverse_util.flatten_dict(tree, sep=".")
