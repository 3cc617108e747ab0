"""Trains a model: `python launch/train.py --config FILE[:RECIPE] --workdir D`.

Resumes if the workdir holds a checkpoint. SIGTERM and SIGUSR1 save and exit
with 0. Any field of the configuration can be overridden, such as
--config.batch_size=64.
With --distributed, several processes are one run; docs/launching.md explains
how to start them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from figs_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "File with get_config(arg), and the name of the recipe as its argument, such"
  " as configs/digits_vit.py:figs. --config.FIELD=VALUE sets a field.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; created if it does not exist."
)
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "Format of the printed result."
)
_DISTRIBUTED = flags.DEFINE_boolean(
  "distributed",
  False,
  "Whether this process is one of several, started by SLURM, a TPU pod,"
  " Kubernetes or launch/local.sh; use it with --config.mesh.data=-1.",
)
_STOPPED_CODE = flags.DEFINE_integer(
  "stopped_code",
  0,
  "Exit code after a signal; a launcher can tell a run that is saved from one"
  " that is finished if it is not 0.",
  lower_bound=0,
  upper_bound=255,
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  "heartbeat_seconds",
  100,
  "Seconds without a heartbeat after which one of several processes counts as"
  " dead, and the others abort.",
  lower_bound=1,
)
_WATCHDOG_SECONDS = flags.DEFINE_integer(
  "watchdog_seconds",
  None,
  "Seconds without a step or a batch of an evaluation after which a process"
  " shows the stacks of its threads and ends with 142; more than compilation or"
  " a save takes. 0 is off. Defaults to 1800 with --distributed, else to 0.",
  lower_bound=0,
)


def main() -> None:
  cli.quiet()
  config = cli.config_of(_CONFIG)
  if not _WORKDIR.value:
    cli.fail("--workdir is missing: set it to the directory of the run")
  if _RECIPE_FILE.value:  # run before the configuration was read
    config.recipe_file = str(Path(_RECIPE_FILE.value).absolute())
  if _MODEL_FILE.value and not config.model_file:
    cli.fail(
      f"--model_file {_MODEL_FILE.value[0]}: expected a configuration for a"
      f" class of your own, got one for the family {config.family}; start from"
      f" --config=launch/own_model.py:{config.recipe.name}"
    )
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.train import distributed, exit_codes, watchdog
  from figs_jax.train.checkpoint import SaveError
  from figs_jax.train.config import recipe_sha256
  from figs_jax.train.loop import Diverged, train
  from figs_jax.train.workdir_lock import LockLostError

  compilation_cache.enable()
  seconds = _WATCHDOG_SECONDS.value
  if seconds is None:
    seconds = 1800 if _DISTRIBUTED.value else 0
  try:
    watchdog.start(seconds)
    if _DISTRIBUTED.value:
      distributed.initialize(_HEARTBEAT_SECONDS.value)
    if _RECIPE_FILE.value:
      config.recipe_sha256 = recipe_sha256(config.recipe.name)
    result = train(config, _WORKDIR.value)
  except (ValueError, DataError) as error:
    if distributed.may_be_of_peer(error):
      raise
    cli.fail(str(error))
  except distributed.JoinError as error:
    cli.fail(str(error), code=_STOPPED_CODE.value or exit_codes.ERROR)
  except (Diverged, LockLostError) as error:
    cli.fail(str(error), code=exit_codes.ERROR)
  except SaveError as error:
    try:
      cli.fail(str(error), code=exit_codes.ERROR)
    finally:
      # tensorboardX would write again at exit, with a traceback.
      os._exit(exit_codes.ERROR)
  if distributed.is_first():
    _print(result)
  if not result["finished"]:
    sys.exit(_STOPPED_CODE.value)


def _print(result: dict[str, Any]) -> None:
  if _FORMAT.value == "json":
    cli.say(json.dumps(result))
    return
  cli.say(*(f"{name:20} {value}" for name, value in result.items()))


def more_help() -> str:
  """Lists the fields of --config (or of the default), and the recipes."""
  from figs_jax.recipes import listing
  from figs_jax.train import field_help
  from figs_jax.train.config import default_config

  config = _CONFIG.value or default_config()
  return f"{field_help.field_list(config)}\n\n{listing.catalogue()}"


if __name__ == "__main__":
  cli.run(main, more_help=more_help)
