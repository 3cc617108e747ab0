"""Whether a training step fits on many devices, and what it communicates.

  python launch/plan.py --config configs/imagenet_vit_b16.py:figs --devices 64
    --chip tpu:v5e --config.mesh.fsdp=8 --config.model.scan=True
  python launch/plan.py --config configs/glue_t5_base.py:figs --devices 256
    --chip gpu:h100 --config.variant=v1_1-xxl --config.mesh.fsdp=32
    --config.model.scan=True --config.model.remat=True --vocabulary_size 32100

The step is compiled ahead of time; no weights are allocated. Bytes of
parameters, masks and moments are exact. With libtpu (extra tpu) the program is
that of a TPU, also on a machine without one. Otherwise it is one for virtual
devices of the CPU, and temporary bytes and collectives are estimates. If the
step does not fit, changes are planned until one does.
"""

import json
import os
import re
import sys

from absl import flags
from ml_collections import config_flags

# XLA's remarks on a slow compilation; set before it is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from figs_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "File with get_config(arg), and the name of the recipe as its argument, such"
  " as configs/digits_vit.py:figs. --config.FIELD=VALUE sets a field.",
  lock_config=True,
)
_DEVICES = flags.DEFINE_integer(
  "devices", None, "Number of devices.", lower_bound=1, upper_bound=4096
)
_CHIP = flags.DEFINE_string(
  "chip", None, "Chip whose memory counts, as in tpu:v5e or gpu:h100."
)
_VOCABULARY_SIZE = flags.DEFINE_integer(
  "vocabulary_size",
  None,
  "Number of tokens of a text data set, which is then not read.",
  lower_bound=128,
  upper_bound=2**24,
)
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "Format of the printed plan."
)
_COUNT = "--xla_force_host_platform_device_count"


def main() -> None:
  cli.quiet()
  config = cli.config_of(_CONFIG)
  devices, chip = _DEVICES.value, _CHIP.value
  if devices is None:
    cli.fail("--devices is missing: set it to the number of devices")
  if chip is None:
    cli.fail("--chip is missing: name one, as in tpu:v5e or gpu:h100")
  # Before JAX looks for devices.
  others = re.sub(rf"{_COUNT}=\S*", "", os.environ.get("XLA_FLAGS", ""))
  os.environ["XLA_FLAGS"] = f"{others} {_COUNT}={devices}".strip()
  import jax

  jax.config.update("jax_platforms", "cpu")
  from figs_jax.data import DataError
  from figs_jax.train.plan import plan_with_fix

  try:
    plan = plan_with_fix(
      config,
      devices,
      chip,
      vocabulary_size=_VOCABULARY_SIZE.value,
    )
  except DataError as error:
    cli.fail(f"{error}; or give the tokens of a text set as --vocabulary_size")
  except ValueError as error:
    cli.fail(str(error))
  if _FORMAT.value == "json":
    cli.say(json.dumps(plan.as_dict()))
    return
  cli.say(*_lines(plan))


def _lines(plan) -> list[str]:
  mesh = " x ".join(f"{name}={size}" for name, size in plan.mesh.items())
  lines = [
    f"{plan.parameters / 1e6:,.1f} M parameters on {plan.devices} devices:"
    f" {mesh}",
    f"compiled for: {plan.compiled_for}"
    + (f" ({plan.reason})" if plan.reason else ""),
    "",
    "Bytes per device",
  ]
  rows = {
    "parameters": plan.params_bytes,
    "masks": plan.masks_bytes,
    "moments": plan.moments_bytes,
    "other state": plan.other_bytes,
    "batch": plan.batch_bytes,
    "temporary" + " (estimate)" * plan.is_estimate: plan.temp_bytes,
    "total": plan.total_bytes,
    f"memory of {plan.chip}": plan.memory_bytes,
  }
  lines += [f"  {name:24} {_mib(size):>12}" for name, size in rows.items()]
  lines += ["", "Collectives of a step, by kind and mesh axis"]
  table: dict[tuple[str, str], list[int]] = {}
  for one in plan.collectives:
    entry = table.setdefault((one.kind, one.axis), [0, 0, 0])
    entry[0] += one.count
    entry[1] += one.total
    entry[2] += one.counted_once
  lines += [
    f"  {kind:20} {axis:18} {count:6} runs {_mib(size):>14}"
    + f" ({once} in loops of unknown length, counted once)" * bool(once)
    for (kind, axis), (count, size, once) in table.items()
  ] or ["  none"]
  sent = plan.mask_update_bytes
  lines += [f"of the mask update: {_mib(sent) if sent else 'none'}"]
  if gather := plan.largest_all_gather:
    lines += [
      f"largest all-gather: {_mib(gather.bytes)} over {gather.axis},"
      f" {gather.shape}, {gather.operation or 'without a name'}"
    ]
  return [*lines, "", *_modelled(plan), "", plan.verdict]


def _modelled(plan) -> list[str]:
  """The engine's estimate for the same placement."""
  one = plan.modelled
  if isinstance(one, str):
    return [f"No estimate of the cluster: {one}"]
  parts = ", ".join(
    f"{name.replace('_', ' ')} {ns / 1e6:,.1f}"
    for name, ns in one.times.items()
    if ns
  )
  held = ", ".join(
    f"{name} {_mib(size)}" for name, size in one.bytes.items() if size
  )
  return [
    f"Modelled by the engine, not measured: {one.ns / 1e6:,.1f} ms a step"
    f" ({parts})",
    f"and {_mib(one.memory)} per device ({held})",
  ]


def _mib(size: int) -> str:
  return f"{size / 2**20:,.2f} MiB"


if __name__ == "__main__":
  cli.run(main)
elif __name__ == "__mp_main__":  # the process that compiles for TPUs
  cli.run_own_files(sys.argv)
