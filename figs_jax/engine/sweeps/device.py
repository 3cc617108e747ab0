"""A sweep on devices: blocks of points evaluated and reduced under one jit.

Points are numbered as in `itertools.product`: the last axis turns fastest.
Every quantity is an open table, an array with one dimension per axis, of the
axis's length where the quantity depends on it and 1 elsewhere; nothing as long
as the product exists. A block holds the last axes entirely and a part of the
axis before them, so that all that changes within it is a dense vector (made
once if it stays the same from block to block) and the rest are scalars, which
are computed once per block. Only what a reduction keeps leaves a block, and the
compiler drops the fields that it does not read.
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

from figs_jax.engine.int64 import Longs, Singles, Whole
from figs_jax.engine.spec import nearest
from figs_jax.engine.sweeps.points import MEANS, OF_DESIGN, Machine, Points
from figs_jax.engine.sweeps.reductions import Reduction

# Points of a block: its vectors stay in a core's cache, and a loop over them is
# long enough for several cores to share.
BLOCK = 2**15
_MOST_BLOCKS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Grid:
  """How a product is cut into blocks.

  Attributes:
    sizes: Length of each axis.
    axis: Axis of which a block holds a part, `tile` values; it holds one value
      of the axes before and all values of those after.
    tile: Length of a part; a last one may be shorter, and is filled up.

  >>> grid = Grid.of((4, 10, 8), 32)
  >>> grid.axis, grid.tile, grid.slots, grid.blocks
  (1, 4, 32, 12)
  """

  sizes: tuple[int, ...]
  axis: int
  tile: int

  @classmethod
  def of(cls, sizes: Sequence[int], most: int = BLOCK) -> Grid:
    """Blocks of at most `most` points.

    Raises:
      ValueError: If there are too many.
    """
    axis, inner = len(sizes) - 1, 1
    while axis > 0 and inner * sizes[axis] <= most:
      inner *= sizes[axis]
      axis -= 1
    parts = math.ceil(sizes[axis] / max(most // inner, 1))
    grid = cls(tuple(sizes), axis, math.ceil(sizes[axis] / parts))
    if grid.blocks > _MOST_BLOCKS:
      raise ValueError(
        f"sweep: {grid.points} points are more than {_MOST_BLOCKS} blocks of"
        f" {grid.slots}; sweep fewer values at a time"
      )
    return grid

  @property
  def points(self) -> int:
    return math.prod(self.sizes)

  @property
  def inner(self) -> int:
    """Points per value of the divided axis."""
    return math.prod(self.sizes[self.axis + 1 :])

  @property
  def slots(self) -> int:
    """Points of a block, those that fill it up included."""
    return self.tile * self.inner

  @property
  def parts(self) -> int:
    return math.ceil(self.sizes[self.axis] / self.tile)

  @property
  def blocks(self) -> int:
    return math.prod(self.sizes[: self.axis]) * self.parts

  def number(self, block: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """The numbers of points, -1 for what only fills a block up."""
    before, part = np.divmod(block, self.parts)
    along = part * self.tile + slot // self.inner
    number = (before * self.sizes[self.axis] + along) * self.inner
    number = number + slot % self.inner
    real = (along < self.sizes[self.axis]) & (block < self.blocks)
    return np.where(real, number, -1)

  def filled(self, table: np.ndarray) -> np.ndarray:
    """The table with its divided axis filled up to whole blocks."""
    if table.shape[self.axis] == 1:
      return table
    more = self.parts * self.tile - table.shape[self.axis]
    pad = [(0, more if a == self.axis else 0) for a in range(table.ndim)]
    return np.pad(table, pad, mode="edge")

  def stays(self, table: Any) -> bool:
    """Whether all blocks see the same of a table."""
    outer = table.shape[: self.axis]
    return max(outer, default=1) == 1 and (
      self.parts == 1 or table.shape[self.axis] == 1
    )

  def place(self, table: Any, block: Any) -> Any:
    """The part of a filled table that a block sees: (slots,), or () for one.

    Args:
      table: Filled table.
      block: Number of the block, int32.
    """
    digits, rest = [], block // self.parts
    for size in reversed(self.sizes[: self.axis]):
      digits.append(rest % size)
      rest = rest // size
    starts = [*reversed(digits), block % self.parts * self.tile]
    starts += [0] * (len(self.sizes) - len(starts))
    lengths = [1] * self.axis + [self.tile, *self.sizes[self.axis + 1 :]]
    starts = [jnp.int32(s if n > 1 else 0) for s, n in zip(starts, table.shape)]
    taken = [min(a, b) for a, b in zip(lengths, table.shape)]
    seen = lax.dynamic_slice(table, starts, taken)
    if math.prod(taken) == 1:
      return seen.reshape(())
    return jnp.broadcast_to(seen, lengths).reshape(self.slots)

  def real(self, block: Any) -> Any:
    """Which slots are points, Bool (slots,) or ()."""
    inside = block < self.blocks
    if self.parts * self.tile == self.sizes[self.axis]:
      return inside
    along = jnp.arange(self.slots, dtype=jnp.int32) // self.inner
    along = along + block % self.parts * self.tile
    return inside & (along < self.sizes[self.axis])


@dataclasses.dataclass(frozen=True)
class Program:
  """The fields to compute at a point, from open tables by name.

  Attributes:
    machine: Function from values to fields.
    grid: Blocks of points.
    kind: Numbers to compute in; None for int64 as it is.
    fields: Names of the fields that are read, axes among them.
    axes: Names of the axes' columns.
    layers: Number of layers to sum over, each as often as it counts; 0 for a
      single GEMM per point.
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
      tables: Filled tables, with the layers as a last dimension.
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

      seen = self._total(gemm) if self.layers else gemm(0)
      seen |= {name: see(label(name), block, 0) for name in self.axes}
      return {name: jnp.broadcast_to(seen[name], full) for name in self.fields}

    return fields

  def _gemm(self, values: dict[str, Any]) -> dict[str, Any]:
    numbers = values
    if self.kind is not None:
      numbers = {name: self.kind(x) for name, x in values.items()}
    results = self.machine(numbers) | {"count": numbers["count"]}
    return {
      name: x.x if isinstance(x, Whole) else jnp.asarray(x)
      for name, x in results.items()
    }

  def _total(self, gemm: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Sums over the layers; means are weighted by the cycles."""
    own = set(self.fields) - set(self.axes)

    def add(layer, sums):
      results = gemm(layer)
      count = results["count"]
      time = (count * results["cycles"]).astype(float)
      terms = {
        name: results[name] - sums[name]  # of a design, equal in all layers
        if name in OF_DESIGN
        else time * results[name]
        if name in MEANS
        else count.astype(results[name].dtype) * results[name]
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
    program: Fields to compute.
    reduce: Reduction of the fields.
    mesh: Mesh of one axis.
    steps: Number of blocks per device.
    first: Number of the first block, int32; each device takes the next ones.
    tables: Filled tables, with the layers as a last dimension.
    possible: Filled masks; all of them hold at a point that is possible.
    given: Values that the reduction knows from earlier walks.

  Returns:
    The reduction's state after the last block and its stacked outputs, both
    with a leading dimension for the devices.
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
    fields: Names of the fields that can be read.
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
      reduction: Reduction of the fields.
      steps: Largest number of blocks per device and walk.
      given: Function that returns what the reduction is to know; called before
        every walk.

    Raises:
      ValueError: If steps is below 1, or a field is unknown.
    """
    if steps < 1:
      raise ValueError(f"sweep steps={steps}: expected an integer from 1")
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
    names: set[str] = set()
    one = jax.ShapeDtypeStruct((), jnp.result_type(float))
    like = dict.fromkeys(self.fields, one)
    for read in reads:
      if isinstance(read, str):
        names.add(read)
      else:
        jax.eval_shape(lambda x, read=read: read(_Log(names, x)), like)
    self.check(names)
    return tuple(sorted(names))


class _Log(dict):
  """Fields that note which of them are asked for."""

  def __init__(self, asked: set[str], fields: dict[str, Any]):
    super().__init__(fields)
    self._asked = asked

  def __getitem__(self, name: str) -> Any:
    self._asked.add(name)
    return super().__getitem__(name) if name in self else jnp.zeros(())
