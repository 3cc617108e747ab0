"""Evaluates a checkpoint: `python launch/evaluate.py --workdir D [--step N]`.

The restored model is finished to hard N:M first. Nothing is written.
"""

import json

from absl import flags

from figs_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_STEP = flags.DEFINE_integer(
  "step", None, "Step to restore; the newest good one by default."
)
_EMA = flags.DEFINE_bool("ema", False, "Evaluate the averaged weights.")
_ENGINE = flags.DEFINE_string(
  "engine", None, "Also report the speed-up on this engine, as in ws:32x32."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where the data is now, if not where training found it."
)
_RECIPE_FILE = cli.define_user_file("recipe")
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "How the result is printed."
)


def main() -> None:
  cli.quiet()
  if not _WORKDIR.value:
    cli.fail("--workdir is missing: name the directory of a run")
  from figs_jax.data import DataError
  from figs_jax.train._evaluate import evaluate

  cli.run_user_file(_RECIPE_FILE)

  try:
    result = evaluate(
      _WORKDIR.value,
      step=_STEP.value,
      ema=_EMA.value,
      engine_spec=_ENGINE.value,
      data_dir=_DATA_DIR.value,
    )
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  if _FORMAT.value == "json":
    cli.say(json.dumps(result))
    return
  layers = result.pop("layers")
  cli.say(
    *(f"{name:24} {value}" for name, value in result.items()),
    *(
      f"  {'exact' if exact else 'NOT N:M':8} {path}"
      for path, exact in layers.items()
    ),
  )


if __name__ == "__main__":
  cli.run(main)
