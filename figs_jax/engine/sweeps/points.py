"""A sweep's points: axes and layers as open tables, evaluated by their numbers.

`figs_jax.engine.sweeps.grid` tells what an open table is. The dimensions are
the axes in the caller's order, and one more for the layers.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine._cost import evaluate
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import LIMITS, Engine, Gemm, nearest

GEMM = ("M", "N", "K", "n", "m")
# Fields that are no sums over layers but means, weighed by cycles.
MEANS = ("utilisation", "mapping_efficiency")
_JOINT = 2**24  # entries of a mask of all reasons for which points fail


@dataclasses.dataclass(frozen=True)
class Machine:
  """What is evaluated at every point; numeric fields come from the tables."""

  engine: Engine
  itemsize: int
  energy: Energy

  def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a GEMM on a design, in the numbers of its values.

    Args:
      values: M, N, K, n, m and every numeric field of the engine.
    """
    gemm = Gemm(*(values[name] for name in GEMM))
    return evaluate(gemm, self.design(values), self.itemsize, self.energy)

  def design(self, values: Mapping[str, Any]) -> Engine:
    """The engine with these fields, unchecked: designs may be impossible."""
    engine = copy.copy(self.engine)
    for field in engine.numeric():
      object.__setattr__(engine, field.name, values[field.name])
    return engine


def read_axis(
  engine: Engine, name: str, values: Sequence[Any], fixed: Sequence[str]
) -> dict[str, np.ndarray]:
  """The columns of an axis: one, or several that change together.

  Args:
    engine: whose fields may be axes.
    name: "rows"; "rows,cols" for pairs; "pattern" for "n:m", `NM` or "dense".
    values: of the axis.
    fixed: sizes that a table of layers gives.

  Raises:
    ValueError: an unknown name, no values, or an illegal one.
  """
  names = [part.strip() for part in name.split(",")]
  if isinstance(values, str) or not np.iterable(values):
    raise ValueError(
      f"sweep axis {name!r}: got {values!r}; give a list of values, as in"
      f" [{values!r}]"
    )
  if not len(values):
    raise ValueError(f"sweep axis {name!r}: no values; give at least one")
  if len(names) == 1:
    return _read_column(engine, name, values, fixed)
  found: dict[str, np.ndarray] = {}
  for row in values:
    if np.ndim(row) != 1 or len(row) != len(names):
      raise ValueError(f"sweep axis {name!r}: got {row!r}; give {name} each")
  for part, column in zip(names, zip(*values)):
    found |= _read_column(engine, part, column, fixed)
  return found


def _read_column(engine, name, column, fixed) -> dict[str, np.ndarray]:
  limits = {size: LIMITS[size] for size in GEMM[:3]} | engine.limits()
  if name in fixed:
    raise ValueError(f"sweep axis {name!r}: the layers have it; leave out one")
  if name == "pattern":
    try:
      patterns = [
        NM(1, 1) if x in (None, "dense") else NM.parse(x) for x in column
      ]
    except ValueError as error:
      raise ValueError(f"sweep axis {name!r}: {error}") from error
    return {
      "n": np.array([pattern.n for pattern in patterns], np.int64),
      "m": np.array([pattern.m for pattern in patterns], np.int64),
    }
  if name not in limits:
    known = nearest(name, {*limits, "pattern"} - set(fixed))
    raise ValueError(f"sweep axis {name!r} of {engine}: {known}")
  least, most = limits[name]
  array = np.asarray(column)
  whole = array.dtype.kind in "iu" and array.ndim == 1
  if not whole or array.min() < least or array.max() > most:
    wrong = array[(array < least) | (array > most)] if whole else array
    raise ValueError(
      f"sweep axis {name!r}: got {wrong.tolist()[0]!r}; give integers from"
      f" {least} to {most}"
    )
  return {name: array.astype(np.int64)}


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """The points of a sweep.

  Attributes:
    machine: what is evaluated at each.
    sizes: the lengths of the axes.
    axes: the columns of the axes, as open tables without layers.
    values: what the machine takes, and `count`, as open tables, layers last.
    possible: open masks without layers; a point is possible where all hold. It
      is not where its engine cannot be, or cannot run a layer's pattern.
    layers: how many there are to sum over; 0 for a single GEMM per point.
  """

  machine: Machine
  sizes: tuple[int, ...]
  axes: dict[str, np.ndarray]
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
      ValueError: as `read_axis`; an axis given twice or missing; layers whose
        real masks would go unused, or none of which is sparse where patterns
        vary; or a value of an axis with which no point is possible.
    """
    engine = machine.engine
    fixed = () if layers is None else GEMM[:3]
    columns: dict[str, np.ndarray] = {}
    for position, (name, given) in enumerate(axes.items()):
      for part, column in read_axis(engine, name, given, fixed).items():
        if part in columns:
          raise ValueError(f"sweep axis {name!r}: {part} is an axis twice")
        shape = [-1 if d == position else 1 for d in range(len(axes))]
        columns[part] = column.reshape(shape)
    one = np.ones([1] * (len(axes) + 1), np.int64)
    values = dict.fromkeys(("n", "m", "count"), one) | {
      field.name: one * getattr(engine, field.name)
      for field in engine.numeric()
    }
    values |= {name: column[..., None] for name, column in columns.items()}
    if layers is not None:
      values |= _of_layers(layers, values, "m" in columns)
    for name in GEMM:
      if name not in values:
        raise ValueError(
          f"sweep: {name!r} is missing; give it as an axis, or layers="
        )
    masks = _possible(machine.design(values), values["n"], values["m"])
    sizes = tuple(len(given) for given in axes.values())
    found = cls(machine, sizes, columns, values, masks, len(layers or ()))
    found._refuse_barren(list(axes))
    return found

  @property
  def count(self) -> int:
    return math.prod(self.sizes)

  def pick(self, table: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Entries of an open table by the numbers of points."""
    index = np.unravel_index(number, self.sizes)
    here = (x if n > 1 else 0 * x for x, n in zip(index, table.shape))
    return table[tuple(here)]

  def labels(self, number: np.ndarray) -> dict[str, np.ndarray]:
    """What the axes say of points."""
    return {name: self.pick(x, number) for name, x in self.axes.items()}

  def allowed(self, number: np.ndarray) -> np.ndarray:
    """Which points are possible."""
    found = np.ones(number.shape, bool)
    for mask in self.possible:
      found &= self.pick(mask, number)
    return found

  def at(self, number: np.ndarray) -> dict[str, np.ndarray]:
    """All fields of one or more possible points, exactly, and their axes."""
    # Powers of two, so that few lengths are ever compiled.
    length = max(1 << (len(number) - 1).bit_length(), 256)
    padded = np.resize(number, length)
    values = {name: self.pick(x, padded) for name, x in self.values.items()}
    found = self.machine(values)
    found = {
      name: np.broadcast_to(x, (length, max(self.layers, 1)))[: len(number)]
      for name, x in found.items()
    }
    return self._total(found, values["count"]) | self.labels(number)

  def _total(self, found, count) -> dict[str, np.ndarray]:
    if not self.layers:
      return {name: x[:, 0] for name, x in found.items()}
    time = count[:1] * found["cycles"] / 1
    return {
      name: (x * time).sum(1) / time.sum(1)
      if name in MEANS
      else (x * count[:1]).sum(1)
      for name, x in found.items()
    }

  def _refuse_barren(self, names: list[str]) -> None:
    """Raises ValueError where a value of an axis is possible nowhere."""
    masks = list(self.possible)
    shape = np.broadcast_shapes(*(mask.shape for mask in masks))
    if math.prod(shape) <= _JOINT:
      masks.append(functools.reduce(np.logical_and, masks, np.ones(())))
    for mask, (axis, name) in itertools.product(masks, enumerate(names)):
      others = tuple(d for d in range(mask.ndim) if d != axis)
      barren = ~mask.any(others) if mask.ndim else np.zeros(1, bool)
      if barren.any():
        at = np.zeros(len(names), int)
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
      own = name.replace("pattern", "n,m").replace(" ", "").split(",")
      raise ValueError(
        f"sweep axis {name!r}: {self.say(number, own)} is possible with no"
        f" value of the other axes; {error}"
      ) from error

  def say(self, number: np.ndarray, names: Sequence[str] = ()) -> str:
    """One point as text: its axes, or some of their columns."""
    labels = self.labels(number)
    return ", ".join(f"{name}={labels[name][0]}" for name in names or labels)


def _of_layers(layers, values, varied) -> dict[str, np.ndarray]:
  """Columns of the layers; a pattern axis is for those that are sparse."""
  if layers.masks is not None:
    raise ValueError(
      "sweep: the layers have real masks, which a sweep does not read; pass"
      " dataclasses.replace(layers, masks=None) to take patterns at their worst"
    )
  shape = [1] * (values["n"].ndim - 1) + [-1]
  own = {
    name: np.asarray(getattr(layers, name), np.int64).reshape(shape)
    for name in (*GEMM, "count")
  }
  if not varied:
    return own
  sparse = own["n"] < own["m"]
  if not sparse.any():
    raise ValueError(
      "sweep axis 'pattern': it replaces the patterns of sparse layers, and no"
      " layer is sparse"
    )
  own |= {x: np.where(sparse, values[x], own[x]) for x in ("n", "m")}
  return own


def _possible(design: Engine, n: Any, m: Any) -> tuple[np.ndarray, ...]:
  found = [np.asarray(bad) == 0 for bad, _ in design.invalid()]
  found.append(design.runs(n, m))
  rank = np.ndim(n)
  masks = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in found)
  return tuple(mask.all(-1) for mask in masks if not mask.all())
