"""Evaluates a checkpoint: `python launch/evaluate.py --workdir D [--step N]`.

The model is finished to exact N:M first. Nothing is written.
"""

import json
from typing import Any

from absl import flags

from figs_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_STEP = flags.DEFINE_integer(
  "step", None, "Step to restore. Defaults to the newest valid one."
)
_EMA = flags.DEFINE_bool(
  "ema", False, "Whether to evaluate the averaged weights."
)
_DTYPE = flags.DEFINE_string(
  "dtype",
  None,
  "Dtype of the computation: float32, bfloat16 or float16; or int8, which"
  " rounds the kernels of all dense layers to 8 bits. Defaults to the run's"
  " model.dtype.",
)
_ENGINES = flags.DEFINE_string(
  "engines", None, "Spec of an engine to report the speed-up on, like ws:32x32."
)
_POINTS = flags.DEFINE_string(
  "points",
  None,
  "Patterns to cut the kernels to and evaluate, like 1:8,2:8,8:8. Defaults to"
  " the points of the recipe nested.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data, if it was moved after training."
)
_DOWNLOAD = flags.DEFINE_bool(
  "download", False, "Whether to download a missing data set."
)
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_ENGINE_FILE = cli.define_user_file("engine")
_DISTRIBUTED = flags.DEFINE_boolean(
  "distributed",
  False,
  "Whether this process is one of several, started as those of launch/train.py;"
  " each evaluates its share of the split.",
)
_FSDP = flags.DEFINE_integer(
  "mesh.fsdp", 1, "Number of devices to split kernels over."
)
_TENSOR = flags.DEFINE_integer(
  "mesh.tensor", 1, "Number of devices to split heads and layers over."
)
_SEED = flags.DEFINE_integer(
  "mesh.seed", 1, "Number of devices to split the seeds of a run over."
)
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "Format of the printed result."
)


def main() -> None:
  cli.quiet()
  if not _WORKDIR.value:
    cli.fail("--workdir is missing: name the directory of a run")
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.train import distributed
  from figs_jax.train._evaluate import evaluate
  from figs_jax.train.sharding import make_mesh

  cli.run_user_file(_RECIPE_FILE)
  cli.run_model_files(_MODEL_FILE)
  cli.run_user_file(_ENGINE_FILE)

  compilation_cache.enable()
  try:
    mesh = None
    if _DISTRIBUTED.value:
      distributed.initialize()
    sizes = _FSDP.value, _TENSOR.value, _SEED.value
    if _DISTRIBUTED.value or sizes != (1, 1, 1):
      mesh = make_mesh(-1, *sizes)
    result = evaluate(
      _WORKDIR.value,
      step=_STEP.value,
      ema=_EMA.value,
      dtype=_DTYPE.value,
      engine_spec=_ENGINES.value,
      points=_POINTS.value,
      data_dir=_DATA_DIR.value,
      download=_DOWNLOAD.value,
      mesh=mesh,
    )
  except (ValueError, DataError) as error:
    if distributed.may_be_of_peer(error):
      raise
    cli.fail(str(error).replace("--config.mesh.", "--mesh."))
  except distributed.JoinError as error:
    cli.fail(str(error), code=1)
  if not distributed.is_first():
    return
  if _FORMAT.value == "json":
    cli.say(json.dumps(result))
    return
  layers = result.pop("layers")
  points = result.pop("points", {})
  del result["config"]
  cli.say(
    *(f"{name:24} {value}" for name, value in result.items()),
    *(_point(name, values) for name, values in points.items()),
    *(
      f"  {'exact' if exact else 'NOT N:M':8} {path}"
      for path, exact in layers.items()
    ),
  )


def _point(name: str, values: dict[str, Any]) -> str:
  """A line with the accuracy and loss of a point."""
  exact = "exact" if values["exact_nm"] else "NOT N:M"
  error = values["accuracy_se"]
  spread = "" if error is None else f" ± {error:.4f} (s.e.)"
  return (
    f"point {name:18} accuracy {values['accuracy']}{spread}, loss"
    f" {values['loss']}, {exact}, {values['bytes_packed']} bytes packed"
  )


if __name__ == "__main__":
  cli.run(main)
