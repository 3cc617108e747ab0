"""The devices that a plan is compiled for, none of which has to be there.

With libtpu a slice of TPUs is described to XLA, whose compiler for TPUs then
runs on this machine. Without it, virtual devices of the CPU stand in.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from figs_jax.train.config import ConfigError
from figs_jax.train.sharding import AXES

# Chips whose slices XLA describes with one device per chip: axes of the torus,
# and the most chips of a slice.
_SLICES = {"v5e": (2, 256), "v6e": (2, 256), "v5p": (3, 8192)}
# No TPU is touched: libtpu need not ask the metadata server for one, lock the
# machine for one process, or report what is missing.
_LIBTPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}
# Never run, so the machine code need not be good: memory and collectives are
# settled before that is made.
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    devices: Devices, described or virtual.
    platform: Platform of the compiler, as in "tpu v5e" or "cpu".
    reason: Why it is not that of the chip; "" if it is.
    options: Options of the compiler.
  """

  devices: Sequence[Any]
  platform: str
  reason: str
  options: dict[str, str | bool]

  def mesh(self, sizes: dict[str, int]) -> Mesh:
    """The devices as a mesh of these sizes."""
    return jax.make_mesh(
      tuple(sizes.values()),
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
      devices=self.devices,
    )


def target_of(chip: str, devices: int) -> Target:
  """The best target for a chip, as in "tpu:v5e".

  Args:
    chip: Kind and name of the chip.
    devices: Number of devices.

  Raises:
    figs_jax.train.ConfigError: If virtual devices are needed and JAX has fewer.

  >>> target = target_of("gpu:h100", 1)
  >>> target.platform, target.reason
  ('cpu', 'XLA compiles for a GPU on a GPU alone')
  """
  kind, _, name = chip.partition(":")
  if kind != "tpu":
    return virtual(devices, "XLA compiles for a GPU on a GPU alone")
  if importlib.util.find_spec("libtpu") is None:
    return virtual(devices, "libtpu is not installed (extra tpu)")
  dims, most = _SLICES.get(name, (0, 0))
  if not dims:
    return virtual(devices, f"XLA describes no slice of {name} chips")
  if devices > most or devices & (devices - 1):
    return virtual(
      devices,
      f"no slice has {devices} {name} chips: a power of 2 to {most} has",
    )
  for variable, value in _LIBTPU.items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies  # loads libtpu

  sides = slice_sides(devices, dims)
  host = (*(min(side, 2) for side in sides[:2]), 1)
  topology = topologies.get_topology_desc(
    platform="tpu",
    topology_name=f"{name}:{'x'.join(map(str, sides))}",
    chips_per_host_bounds=host,
  )
  return Target(topology.devices, f"tpu {name}", "", {})


def virtual(devices: int, reason: str) -> Target:
  """Virtual devices of the CPU.

  Args:
    devices: Number of devices, of which JAX must have as many.
    reason: Why they stand in.
  """
  if devices > (count := len(jax.devices("cpu"))):
    raise ConfigError(
      f"--devices: expected at most {count}, the devices of JAX, got {devices}"
    )
  return Target(jax.devices("cpu")[:devices], "cpu", reason, _QUICKLY)


def slice_sides(devices: int, dims: int) -> tuple[int, ...]:
  """Sides of the most even slice of a power of two of chips.

  >>> slice_sides(128, 2), slice_sides(256, 3), slice_sides(4, 3)
  ((8, 16), (4, 8, 8), (2, 2, 1))
  """
  power = int(math.log2(devices))
  sides = [2 ** ((power + i) // dims) for i in range(dims)]
  return tuple(sorted(sides, key=lambda side: (side == 1, side)))
