"""A sweep's points: axes and layers as open tables, evaluated by their numbers.

`figs_jax.engine.sweeps.device` says what an open table is. The dimensions are
the axes in the caller's order, and one more for the layers. `overflow_check`
shows from bounds, before anything runs, that all points fit int64.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from figs_jax.engine._cost import gemm_cost
from figs_jax.engine.area import AT_45_NM as AREA_AT_45_NM
from figs_jax.engine.area import Area
from figs_jax.engine.energy import Energy
from figs_jax.engine.int64 import INT64_MAX, Interval
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, Gemm
from figs_jax.engine.sweeps.axes import SIZES, parts_of, read_axis

GEMM = (*SIZES, "n", "m")
# Fields that are not sums over layers but means, weighted by cycles.
MEANS = ("utilisation", "mapping_efficiency")
# Fields of a design, whatever it runs.
OF_DESIGN = ("area_mm2",)
_JOINT = 2**24  # entries of a mask of all reasons for which points fail
_BOXES = 2000  # boxes that `overflow_check` looks into


class UnreadMasksError(ValueError):
  """Real masks decide more than a sweep of this engine can read."""


@dataclasses.dataclass(frozen=True)
class Machine:
  """What is evaluated at every point; numeric fields come from the tables.

  Attributes:
    engine: Engine whose other fields hold at every point.
    itemsize: Bytes per value.
    energy: Picojoules per operation.
    area: Square micrometres per part.
    occupancy: Structure of the `Engine.occupancy` under real masks, whose
      numbers are values "occupancy 0", ...; None without masks.
  """

  engine: Engine
  itemsize: int | Fraction
  energy: Energy
  area: Area = AREA_AT_45_NM
  occupancy: Any = None

  def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a GEMM on a design, in the numbers of its values.

    Beside the counts and `energy_pj`: `time_ns`, the cycles at the engine's
    clock, and `area_mm2` where the engine knows its parts.

    Args:
      values: M, N, K, n, m and every numeric field of the engine.
    """
    gemm = Gemm(*(values[name] for name in GEMM))
    engine = self.design(values)
    run = None
    if self.occupancy is not None:
      numbers = map(_occupancy_name, range(self.occupancy.num_leaves))
      run = jax.tree.unflatten(self.occupancy, [values[x] for x in numbers])
    options: Any = {"itemsize": self.itemsize, "energy": self.energy}
    fields = gemm_cost(gemm, engine, **options, run=run)
    fields["time_ns"] = engine.nanoseconds(fields["cycles"])
    parts = engine.parts()
    if parts is not None:
      each = self.area.square_millimetres(parts).values()
      fields["area_mm2"] = sum(each)
    return fields

  def design(self, values: Mapping[str, Any]) -> Engine:
    """The engine with these fields, unchecked: designs may be impossible."""
    engine = copy.copy(self.engine)
    for field in engine.numeric():
      object.__setattr__(engine, field.name, values[field.name])
    return engine


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """The points of a sweep of one engine.

  Attributes:
    machine: What is evaluated at each point.
    sizes: Lengths of the axes.
    axes: Columns of the axes and of the engine's other numbers, as open tables
      without layers.
    varied: Names of the axes' columns.
    values: What the machine takes, and `count`, as open tables, layers last.
    possible: Open masks without layers; a point is possible where all hold. It
      is impossible where its engine cannot be, or cannot run a layer's pattern.
    layers: Number of layers to sum over; 0 for a single GEMM per point.
  """

  machine: Machine
  sizes: tuple[int, ...]
  axes: dict[str, np.ndarray]
  varied: tuple[str, ...]
  values: dict[str, np.ndarray]
  possible: tuple[np.ndarray, ...]
  layers: int

  @classmethod
  def of(
    cls,
    machine: Machine,
    axes: Mapping[str, Sequence[Any]],
    layers: Layers | None,
  ) -> Points:
    """The product of the axes.

    Raises:
      ValueError: If an axis is illegal (`read_axis`), given twice or missing;
        no layer is sparse where patterns vary; or a value of an axis makes no
        point possible.
      UnreadMasksError: If the layers' real masks decide more than the engine's
        `occupancy`.
    """
    engine = machine.engine
    columns: dict[str, np.ndarray] = {}
    for position, (name, given) in enumerate(axes.items()):
      for part, column in read_axis(engine, name, given).items():
        if part in columns:
          raise ValueError(f"sweep axis {name!r}: {part} is an axis twice")
        shape = [-1 if d == position else 1 for d in range(len(axes))]
        columns[part] = column.reshape(shape)
    # Without any axis there is one point, on an axis of its own.
    one = np.ones([1] * (len(axes) or 1) + [1], np.int64)
    numbers = {
      field.name: one[..., 0] * getattr(engine, field.name)
      for field in engine.numeric()
      if field.name not in columns
    }
    varied, columns = tuple(columns), columns | numbers
    values = dict.fromkeys(("n", "m", "count"), one)
    values |= {name: column[..., None] for name, column in columns.items()}
    if layers is not None:
      own, occupancy = _of_layers(layers, values, "m" in columns, machine)
      values |= own
      machine = dataclasses.replace(machine, occupancy=occupancy)
    for name in GEMM:
      if name not in values:
        raise ValueError(
          f"sweep: {name!r} is missing; give it as an axis, or layers="
        )
    masks = _possible(machine.design(values), values["n"], values["m"])
    sizes = tuple(len(given) for given in axes.values()) or (1,)
    count = 0 if layers is None else values["count"].shape[-1]
    points = cls(machine, sizes, columns, varied, values, masks, count)
    points._refuse_barren(list(axes))
    return points

  @property
  def count(self) -> int:
    return math.prod(self.sizes)

  def pick(self, table: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Entries of an open table by the numbers of points."""
    index = np.unravel_index(number, self.sizes)
    here = (x if n > 1 else 0 * x for x, n in zip(index, table.shape))
    return table[tuple(here)]

  def labels(self, number: np.ndarray) -> dict[str, np.ndarray]:
    """The values of the axes, and the engine's other numbers, at points."""
    return {name: self.pick(x, number) for name, x in self.axes.items()}

  def allowed(self, number: np.ndarray) -> np.ndarray:
    """Which points are possible."""
    possible = np.ones(number.shape, bool)
    for mask in self.possible:
      possible &= self.pick(mask, number)
    return possible

  def at(self, number: np.ndarray) -> dict[str, np.ndarray]:
    """All fields of one or more possible points, exactly, and their axes."""
    values = {name: self.pick(x, number) for name, x in self.values.items()}
    shape = len(number), max(self.layers, 1)
    results = {
      name: np.broadcast_to(x, shape)
      for name, x in self.machine(values).items()
    }
    return self._total(results, values["count"]) | self.labels(number)

  def _total(
    self, results: Mapping[str, np.ndarray], count: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Sums over the layers, or means weighted by the cycles."""
    if not self.layers:
      return {name: x[:, 0] for name, x in results.items()}
    time = count[:1] * results["cycles"] / 1
    sums = {
      name: (x * time).sum(1) / time.sum(1)
      if name in MEANS
      else (x * count[:1]).sum(1)
      for name, x in results.items()
      if name not in OF_DESIGN
    }
    return {x: results[x][:, 0] for x in OF_DESIGN if x in results} | sums

  def _refuse_barren(self, names: list[str]) -> None:
    """Raises ValueError where a value of an axis is possible nowhere."""
    masks = list(self.possible)
    shape = np.broadcast_shapes(*(mask.shape for mask in masks))
    if math.prod(shape) <= _JOINT:
      masks.append(functools.reduce(np.logical_and, masks, np.ones(())))
    for mask, (axis, name) in itertools.product(
      masks, enumerate(names or [""])
    ):
      others = tuple(d for d in range(mask.ndim) if d != axis)
      barren = ~mask.any(others) if mask.ndim else np.zeros(1, bool)
      if barren.any():
        at = np.zeros(mask.ndim, int)
        at[axis] = barren.argmax()
        self._explain(name, tuple(at.tolist()))

  def _explain(self, name: str, at: tuple[int, ...]) -> None:
    number = np.array([np.ravel_multi_index(at, self.sizes)])
    here = {key: self.pick(x, number) for key, x in self.values.items()}
    try:
      engine = self.machine.design({key: x[0] for key, x in here.items()})
      dataclasses.replace(engine)  # checks it
      self.machine(here)
    except ValueError as error:
      if not self.varied:
        raise ValueError(f"sweep {self.machine.engine}: {error}") from error
      own = parts_of(name.replace("pattern", "n,m"))
      raise ValueError(
        f"sweep axis {name!r}: {self.text(number, own)} is possible with no"
        f" value of the other axes; {error}"
      ) from error

  def text(self, number: np.ndarray, names: Sequence[str] = ()) -> str:
    """One point as text: its axes, or some of their columns."""
    labels = self.labels(number)
    return ", ".join(
      f"{name}={labels[name][0]}" for name in names or self.varied
    )


def _of_layers(
  layers: Layers,
  values: Mapping[str, np.ndarray],
  varied: bool,
  machine: Machine,
) -> tuple[dict[str, np.ndarray], Any]:
  """Columns of the layers, equal ones as one; sparse ones take the pattern.

  Beside them, the structure of what real masks decide; see `Machine`.
  """
  count = np.asarray(layers.count, np.int64)
  table = np.stack(
    np.broadcast_arrays(*(getattr(layers, x) for x in GEMM), count)
  )
  shape = [1] * (values["n"].ndim - 1) + [-1]
  own = {
    name: np.ascontiguousarray(column).reshape(shape)
    for name, column in zip(GEMM, table)
  }
  sparse = own["n"] < own["m"]
  if varied and not sparse.any():
    raise ValueError(
      "sweep axis 'pattern': it replaces the patterns of sparse layers, and no"
      " layer is sparse"
    )
  chosen = own
  if varied:
    taken = {x: np.where(sparse, values[x], own[x]) for x in ("n", "m")}
    chosen = own | taken
  decided, structure = {}, None
  if layers.masks is not None:
    decided, structure = _decided(layers.masks, own, chosen, values, machine)
  keys = [table[:-1], *(x.reshape(-1, x.shape[-1]) for x in decided.values())]
  _, first, place = np.unique(
    np.concatenate(keys), axis=1, return_index=True, return_inverse=True
  )
  total = np.zeros(len(first), np.int64)
  np.add.at(total, place.reshape(-1), table[-1])
  columns = {name: x[..., first] for name, x in (chosen | decided).items()}
  return columns | {"count": total.reshape(shape)}, structure


def _decided(
  masks: Any,
  own: Mapping[str, np.ndarray],
  chosen: Mapping[str, np.ndarray],
  values: Mapping[str, np.ndarray],
  machine: Machine,
) -> tuple[dict[str, np.ndarray], Any]:
  """What the masks decide at every point, as open tables, and its structure.

  A mask is of its layer's own pattern; under another the worst is assumed.
  """
  if not machine.engine.sweeps_masks:
    raise UnreadMasksError(
      f"sweep {machine.engine}: the layers have real masks, which decide more"
      " than a sweep reads; to take patterns at their worst pass"
      " dataclasses.replace(layers, masks=None)"
    )
  engine, count = machine.design(values), len(masks)
  real, worst = (
    engine.occupancy(Gemm(*(x[name] for name in GEMM)), known, check=False)
    for x, known in ((own, masks), (chosen, (None,) * count))
  )
  same = (own["n"] == chosen["n"]) & (own["m"] == chosen["m"])
  leaves, structure = jax.tree.flatten(real)
  rank = own["n"].ndim
  decided = {}
  for i, pair in enumerate(zip(leaves, jax.tree.leaves(worst))):
    pair = [np.asarray(x, np.int64) for x in pair]
    table = np.where(same, *pair)
    table = table.reshape((1,) * (rank - table.ndim) + table.shape)
    decided[_occupancy_name(i)] = np.broadcast_to(
      table, (*table.shape[:-1], count)
    )
  return decided, structure


def _occupancy_name(index: int) -> str:
  return f"occupancy {index}"


def _possible(design: Engine, n: Any, m: Any) -> tuple[np.ndarray, ...]:
  """Masks of the points whose engine can be, and runs the layers' patterns."""
  masks = [np.asarray(bad) == 0 for bad, _ in design.invalid()]
  masks.append(design.runs(n, m))
  rank = np.ndim(n)
  masks = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in masks]
  return tuple(mask.all(-1) for mask in masks if not mask.all())


def overflow_check(points: Points) -> dict[str, list[Interval]]:
  """Bounds of every field, sums over the layers included, box by box.

  Bounds of the whole product may be wide, as they combine the extremes of all
  axes and of terms that depend on each other. Where they do not fit, the
  product is cut into ever smaller boxes until the bounds of each fit, or a
  single point does not.

  Raises:
    ValueError: If a result of a possible point, or an integer on the way to it,
      does not fit int64, or if there are too many boxes.
  """
  proven: dict[str, list[Interval]] = {}
  box = tuple((0, size) for size in points.sizes)
  boxes = [box]
  for _ in range(_BOXES):
    if not boxes:
      return proven
    box = boxes.pop()
    bounds = _bounds(points, box)
    lengths = [stop - start for start, stop in box]
    if all(bound.peak <= INT64_MAX for bound in bounds.values()):
      for name, bound in bounds.items():
        proven.setdefault(name, []).append(bound)
    elif math.prod(lengths) == 1:
      _refuse(points, box, bounds)
    else:
      axis = int(np.argmax(lengths))
      start, stop = box[axis]
      half = (start + stop) // 2
      boxes += [
        (*box[:axis], part, *box[axis + 1 :])
        for part in ((half, stop), (start, half))
      ]
  raise ValueError(
    f"sweep at about {points.text(_first(points, box))}: cannot show that all"
    " is below 2^63; sweep smaller sizes or fewer values at a time"
  )


def _bounds(points: Points, box: Any) -> dict[str, Interval]:
  """Bounds over the points of a box, possible or not."""
  part = [slice(*span) for span in box]
  values = {}
  for name, table in points.values.items():
    here = (x if n > 1 else slice(None) for x, n in zip(part, table.shape))
    values[name] = table[tuple(here)]
  of_layers = [
    _gemm(points, {k: x[..., i % x.shape[-1]] for k, x in values.items()})
    for i in range(max(points.layers, 1))
  ]
  if not points.layers:
    return of_layers[0]
  first, *rest = of_layers
  return {
    name: x
    if name in OF_DESIGN
    else functools.reduce(operator.add, (layer[name] for layer in rest), x)
    for name, x in first.items()
  }


def _gemm(points: Points, values: dict[str, np.ndarray]) -> dict[str, Interval]:
  """Bounds of one layer times its count; means weighted by time."""
  numbers = {name: Interval.of(x) for name, x in values.items()}
  fields = points.machine(numbers)
  count = numbers["count"]
  time = count * fields["cycles"]
  return {
    name: x
    if name in OF_DESIGN
    else x + 0 * time
    if name in MEANS
    else count * x
    for name, x in fields.items()
  }


def _first(points: Points, box: Any) -> np.ndarray:
  at = [start for start, _ in box]
  return np.array([np.ravel_multi_index(at, points.sizes)])


def _refuse(points: Points, box: Any, bounds: dict[str, Interval]) -> None:
  """Raises ValueError for a point, unless it is impossible."""
  number = _first(points, box)
  if not points.allowed(number)[0]:
    return
  for is_result in (True, False):
    for name, bound in bounds.items():
      if is_result and isinstance(bound.most, int) and bound.most > INT64_MAX:
        why = f"{name} = {bound.most} does not fit int64"
      elif not is_result and bound.peak > INT64_MAX:
        why = f"{name} needs {bound.peak} on the way, past int64"
      else:
        continue
      raise ValueError(
        f"sweep at {points.text(number)}: {why}; sweep smaller sizes"
      )
