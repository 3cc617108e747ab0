"""A sweep on devices: blocks of points evaluated and reduced under one jit.

Only what a reduction keeps ever leaves a block, and the compiler drops the
fields that it does not read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from figs_jax.engine.spec import nearest
from figs_jax.engine.sweeps.grid import Grid
from figs_jax.engine.sweeps.points import MEANS, Machine, Points
from figs_jax.engine.sweeps.reductions import Reduction
from figs_jax.engine.whole import Longs, Singles, Whole


@dataclasses.dataclass(frozen=True)
class Program:
  """What to compute at a point, from open tables by name.

  Attributes:
    machine: maps values to fields.
    grid: the blocks of points.
    kind: the numbers to compute in; None for int64 as it is.
    fields: those that are read, axes among them.
    axes: the columns of the axes.
    layers: how many to sum over, each as often as it counts; 0 for a single
      GEMM per point.
  """

  machine: Machine
  grid: Grid
  kind: type[Whole] | None
  fields: tuple[str, ...]
  axes: tuple[str, ...]
  layers: int

  def read(self, tables: Mapping[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """A function from a block's number to the fields of its points, (slots,).

    Args:
      tables: filled, with the layers as a last dimension.
    """
    grid, full = self.grid, (self.grid.slots,)
    still = {
      name: grid.place(table[..., 0], jnp.int32(0))
      for name, table in tables.items()
      if table.shape[-1] == 1 and grid.stays(table[..., 0])
    }

    def see(name, block, layer):
      if name in still:
        return still[name]
      table = tables[name]
      table = lax.dynamic_index_in_dim(
        table, layer if table.shape[-1] > 1 else 0, table.ndim - 1, False
      )
      return grid.place(table, block)

    def fields(block):
      def gemm(layer):
        return self._gemm({name: see(name, block, layer) for name in tables})

      found = self._total(gemm) if self.layers else gemm(0)
      found |= {name: see(label(name), block, 0) for name in self.axes}
      return {name: jnp.broadcast_to(found[name], full) for name in self.fields}

    return fields

  def _gemm(self, values: dict[str, Any]) -> dict[str, Any]:
    numbers = values
    if self.kind is not None:
      numbers = {name: self.kind(x) for name, x in values.items()}
    found = self.machine(numbers) | {"count": numbers["count"]}
    return {
      name: x.x if isinstance(x, Whole) else jnp.asarray(x)
      for name, x in found.items()
    }

  def _total(self, gemm: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Sums over the layers; means are weighed by the cycles."""
    own = set(self.fields) - set(self.axes)

    def add(layer, sums):
      found = gemm(layer)
      count = found["count"]
      time = (count * found["cycles"]).astype(float)
      terms = {
        name: time * found[name]
        if name in MEANS
        else count.astype(found[name].dtype) * found[name]
        for name in own
      } | {"time": time}
      return {name: sums[name] + terms[name] for name in sums}

    like = jax.eval_shape(gemm, 0)
    sums = {name: jnp.zeros(self.grid.slots, like[name].dtype) for name in own}
    sums["time"] = jnp.zeros(self.grid.slots)
    sums = lax.fori_loop(0, self.layers, add, sums)
    return {
      name: x / sums["time"] if name in MEANS else x for name, x in sums.items()
    }


def label(name: str) -> str:
  """The table of an axis's own column, whatever the layers make of it."""
  return f"axis {name}"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def walk(
  program: Program,
  reduce: Reduction,
  mesh: Mesh,
  steps: int,
  first: Any,
  tables: Mapping[str, Any],
  possible: tuple[Any, ...],
  given: Any,
) -> Any:
  """Visits `steps` successive blocks on each device of a mesh, all at once.

  Args:
    program: what to compute.
    reduce: what to keep.
    mesh: of one axis.
    steps: blocks per device.
    first: the number of the first block, int32; each device takes the next.
    tables: filled, the layers as a last dimension.
    possible: filled masks; all of them hold at a point that is possible.
    given: what the reduction knows from earlier walks.

  Returns:
    The reduction's state after the last block and its stacked outs, both with a
    leading dimension for the devices.
  """
  grid = program.grid
  (name,) = mesh.axis_names

  def on_one(first, tables, possible, given):
    first = first + lax.axis_index(name) * steps
    read = program.read(tables)

    def step(state, turn):
      block = first + turn
      fields = read(block)
      real = grid.real(block)
      for mask in possible:
        real = real & grid.place(mask, block)
      real = jnp.broadcast_to(real, (grid.slots,))
      return reduce.visit(state, turn, fields, real, given)

    like = jax.eval_shape(read, first)
    turns = jnp.arange(steps, dtype=jnp.int32)
    kept = lax.scan(step, reduce.start(like), turns)
    return jax.tree.map(lambda x: x[None], kept)

  spread = jax.shard_map(
    on_one, mesh=mesh, in_specs=P(), out_specs=P(name), check_vma=False
  )
  return spread(first, tables, possible, given)


class Walker:
  """Points on devices, ready to be walked.

  Attributes:
    fields: the fields that can be read.
  """

  def __init__(
    self,
    points: Points,
    kind: type[Whole] | None,
    fields: Sequence[str],
    devices: Sequence[Any],
  ):
    self.fields, self.grid = tuple(fields), Grid.of(points.sizes)
    self._points, self._kind = points, kind
    self._mesh = Mesh(np.asarray(devices), ("points",))
    dtype = np.int64 if kind is None else kind.dtype
    labels = {label(name): x[..., None] for name, x in points.axes.items()}
    tables = {
      name: self.grid.filled(x).astype(dtype)
      for name, x in (points.values | labels).items()
    }
    possible = tuple(map(self.grid.filled, points.possible))
    with self._x64():
      self._tables = jax.device_put(
        (tables, possible), NamedSharding(self._mesh, P())
      )

  @property
  def devices(self) -> int:
    return self._mesh.size

  @property
  def in_integers(self) -> bool:
    """Whether whole numbers come as int64, not as floats."""
    return self._kind in (None, Longs)

  def walks(
    self, reduction: Reduction, steps: int, given: Callable[[], Any] = tuple
  ) -> Iterator[tuple[np.ndarray, Any]]:
    """The blocks of successive walks, (devices, steps), and what was kept.

    Args:
      reduction: what to keep.
      steps: blocks per device and walk, at most.
      given: what the reduction is to know; asked before every walk.

    Raises:
      ValueError: no block at a time, or an unknown field.
    """
    if steps < 1:
      raise ValueError(f"sweep steps={steps}: give 1 or more")
    devices, grid, points = self.devices, self.grid, self._points
    steps = min(steps, math.ceil(grid.blocks / devices))
    with self._x64():
      fields = self._read(reduction.reads())
    axes = tuple(points.axes)
    program = Program(
      points.machine, grid, self._kind, fields, axes, points.layers
    )
    turns = np.arange(devices * steps).reshape(devices, steps)
    for first in range(0, grid.blocks, devices * steps):
      with self._x64():
        here = np.int32(first), *self._tables, given()
        kept = walk(program, reduction, self._mesh, steps, *here)
        kept = jax.device_get(kept)
      yield first + turns, kept

  def check(self, names: Iterable[str]) -> None:
    """Raises ValueError for a name of no field."""
    for name in names:
      if name not in self.fields:
        raise ValueError(f"sweep field {name!r}: {nearest(name, self.fields)}")

  def _x64(self) -> Any:
    return jax.enable_x64(self._kind is not Singles)

  def _read(self, reads: Iterable[Any]) -> tuple[str, ...]:
    """The fields that names and functions read."""
    found: set[str] = set()
    one = jax.ShapeDtypeStruct((), jnp.result_type(float))
    like = dict.fromkeys(self.fields, one)
    for read in reads:
      if isinstance(read, str):
        found.add(read.removeprefix("-"))
      elif read is not None:
        jax.eval_shape(lambda x, read=read: read(_Log(found, x)), like)
    self.check(found)
    return tuple(sorted(found))


class _Log(dict):
  """Fields that note which of them are asked for."""

  def __init__(self, asked: set[str], fields: dict[str, Any]):
    super().__init__(fields)
    self._asked = asked

  def __getitem__(self, name: str) -> Any:
    self._asked.add(name)
    return super().__getitem__(name) if name in self else jnp.zeros(())
