"""The devices that a plan is compiled for, none of which has to be there.

With libtpu a slice of TPUs is described to XLA, whose compiler for TPUs then
runs on this machine, in a process of its own, since libtpu may end the process.
Without it, virtual devices of the CPU stand in.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh

from figs_jax.train.config import ConfigError
from figs_jax.train.sharding import AXES

T = TypeVar("T")
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


class Ended(RuntimeError):
  """A process ended without an answer."""


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for. None is asked for before `mesh`.

  Attributes:
    count: Number of devices.
    platform: Platform of the compiler, as in "tpu v5e" or "cpu".
    reason: Why it is not that of the chip; "" if it is.
    sides: Sides of a slice of TPUs; () for virtual devices.
  """

  count: int
  platform: str
  reason: str
  sides: tuple[int, ...] = ()

  @property
  def options(self) -> dict[str, str | bool]:
    """Options of the compiler."""
    return {} if self.sides else _QUICKLY

  def mesh(self, sizes: dict[str, int]) -> Mesh:
    """The devices as a mesh. Loads libtpu for TPUs.

    Args:
      sizes: Size of each mesh axis.
    """
    return jax.make_mesh(
      tuple(sizes[axis] for axis in AXES),
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
      devices=self._slice() if self.sides else jax.devices("cpu")[: self.count],
    )

  def _slice(self) -> list[Any]:
    for variable, value in _LIBTPU.items():
      os.environ.setdefault(variable, value)
    from jax.experimental import topologies  # loads libtpu

    topology = topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{self.platform[4:]}:{'x'.join(map(str, self.sides))}",
      chips_per_host_bounds=(*(min(side, 2) for side in self.sides[:2]), 1),
    )
    return topology.devices


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
  return Target(devices, f"tpu {name}", "", slice_sides(devices, dims))


def virtual(devices: int, reason: str) -> Target:
  """Virtual devices of the CPU.

  Args:
    devices: Number of devices, of which JAX must have as many.
    reason: Why they stand in.

  Raises:
    figs_jax.train.ConfigError: If JAX has fewer.

  >>> target = virtual(1, "no TPU")
  >>> sizes = {"seed": 1, "data": 1, "fsdp": 1, "tensor": 1}
  >>> target.mesh(sizes).size, target.platform
  (1, 'cpu')
  """
  if devices > (count := len(jax.devices("cpu"))):
    raise ConfigError(
      f"--devices: expected at most {count}, the devices of JAX, got {devices}"
    )
  return Target(devices, "cpu", reason)


def in_child(function: Callable[..., T], *args: Any) -> T:
  """The result of a function that runs in a new process, on the CPU.

  Args:
    function: Function of a module; what it takes, returns and raises is
      pickled.
    *args: Its arguments.

  Raises:
    Ended: If the process ends without an answer. Its text has the signal or the
      code, as in "signal 11".
    Exception: What the function raises.

  >>> in_child(divmod, 7, 2)
  (3, 1)
  """
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe(duplex=False)
  child = context.Process(target=_answer, args=(there, function, args))
  child.start()
  there.close()
  try:
    error, result = here.recv()
  except EOFError:
    child.join()
    code = child.exitcode or 0
    what = f"signal {-code}" if code < 0 else f"code {code}"
    raise Ended(what) from None
  except BaseException:  # as an interrupt: nobody waits for the child
    child.kill()
    raise
  finally:
    here.close()
  child.join()
  if error is not None:
    raise error
  return result


def _answer(pipe: Connection, function: Callable[..., Any], args: Any) -> None:
  jax.config.update("jax_platforms", "cpu")  # a TPU may be in use
  try:
    answer = None, function(*args)
  except Exception as error:  # raised again where it is read
    answer = error, None
  pipe.send(answer)


def slice_sides(devices: int, dims: int) -> tuple[int, ...]:
  """Sides of the most even slice of a power of two of chips.

  >>> slice_sides(128, 2), slice_sides(256, 3), slice_sides(4, 3)
  ((8, 16), (4, 8, 8), (2, 2, 1))
  """
  power = int(math.log2(devices))
  sides = [2 ** ((power + i) // dims) for i in range(dims)]
  return tuple(sorted(sides, key=lambda side: (side == 1, side)))
