"""Trains a model: `python launch/train.py --config FILE[:RECIPE] --workdir D`.

Resumes by itself when the workdir holds a checkpoint. SIGTERM saves and exits
0. Any field of the configuration can be overridden: --config.batch_size=64.
"""

import json

from absl import flags
from ml_collections import config_flags

from figs_jax.train import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "File with get_config(arg), as in configs/digits_vit.py:figs; the argument"
  " is the recipe. Fields: --config.FIELD=VALUE.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; made if it is missing."
)
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "How the result is printed."
)


def main() -> None:
  cli.quiet()
  config = cli.config_of(_CONFIG)
  if not _WORKDIR.value:
    cli.fail("--workdir is missing: name the directory of the run")
  from figs_jax.data import DataError
  from figs_jax.train.loop import Diverged, train

  try:
    result = train(config, _WORKDIR.value)
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  except Diverged as error:
    cli.fail(str(error), code=1)
  if _FORMAT.value == "json":
    print(json.dumps(result))
  else:
    for name, value in result.items():
      print(f"{name:20} {value}")


def recipes() -> str:
  from figs_jax.recipes.listing import catalogue

  return catalogue()


if __name__ == "__main__":
  cli.run(main, more_help=recipes)
