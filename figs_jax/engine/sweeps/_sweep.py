"""Sweeps: every combination of sizes, patterns and designs, never stored.

A sweep is a product of named axes (`figs_jax.engine.sweeps.text` is their
language) on one engine or several. It is evaluated in blocks on the devices,
exactly, and reduced there: the best designs under constraints, the front of two
aims, the range and mean of a field, or columns, chunk by chunk. Memory is
bounded whatever the number of points, and that everything fits int64 is shown
before anything runs.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from figs_jax.engine._cost import operands
from figs_jax.engine.area import Area
from figs_jax.engine.energy import Energy
from figs_jax.engine.int64 import Singles, fastest
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, nearest, text_of
from figs_jax.engine.spec_text import parse
from figs_jax.engine.sweeps.axes import (
  SIZES,
  Axes,
  as_axes,
  choices_of,
  design,
  own_axes,
  parts_of,
  workloads_of,
)
from figs_jax.engine.sweeps.device import Walker
from figs_jax.engine.sweeps.files import write_csv, write_npz
from figs_jax.engine.sweeps.points import Machine, Points, overflow_check
from figs_jax.engine.sweeps.reductions import (
  By,
  Columns,
  Moments,
  Smallest,
  Undominated,
  Where,
  allowed,
  condition_names,
  quantity_names,
  value,
  worst,
)

# Relative error of a float32 sweep of GEMMs, for sizes up to 2^22; each further
# layer of a sum adds 2^-24.
FLOAT32_ERROR = 2.0**-18
_STEPS = 256  # blocks that a device reduces before the host looks
_RIVALS = 16  # points of a front that devices compare with
_SAMPLE = 4096  # points from everywhere that start a front
_BATCH = 2**18  # points that the host evaluates at a time
_ABSENT = -1  # the value of an axis that an engine lacks


def sweep(
  engine: Engine | str | Sequence[Engine | str],
  axes: Axes | str | Sequence[str],
  layers: Layers
  | Iterable[Mapping[str, Any]]
  | Mapping[str, Layers]
  | None = None,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  precision: str = "exact",
  devices: Sequence[jax.Device] | None = None,
  area: Area | None = None,
  *,
  dtype: str | None = None,
) -> Sweep:
  """Every combination of the axes on one engine or several.

  Args:
    engine: Engine or its spec, or several. Its fields hold where no axis varies
      them, and an engine that lacks an axis stands still along it.
    axes: Name -> values, or text, as in "rows=8,16,...,256; pattern=1:2,1:4";
      the values of one axis may be text too. Names are the engine's numeric
      fields and choices (`overlap`), "pattern" ("1:8", `NM` or "dense") and,
      without layers, "M", "N" and "K"; "rows,cols" is an axis of pairs. The
      last axis turns fastest, and choices turn slowest.
    layers: Table, or its rows, or a table for each of several workloads by
      label. Fields are then sums over the layers, each as often as it counts,
      and ratios are means weighted by the cycles. A pattern axis replaces the
      patterns of the layers that are sparse.
    itemsize: Bytes per value of every operand off chip; see `cost`.
    energy: Picojoules per operation; see `cost`.
    precision: "exact", or "float32" for devices on which int64 and float64 are
      slow; see `Sweep`.
    devices: Devices to split the points over. Defaults to all local devices.
    area: Square micrometres per part.
    dtype: Data type of the operands; see `cost`.

  Raises:
    ValueError: If an axis is bad, no point is possible with a value of an axis,
      or something would not fit int64. Points that are impossible beside
      possible ones (rows that beta does not divide) are left out.

  >>> gemm = {"M": [196], "N": [3072], "K": [768], "pattern": "1:2,1:8"}
  >>> made = sweep("figs", gemm | {"rows": [16, 32], "cols": "16,32,...,64"})
  >>> len(made)
  16
  >>> best = made.smallest("cycles", where="cols<64")
  >>> [best[name].tolist() for name in ("pattern", "design", "cycles")]
  [['1:8'], ['figs:32x48'], [53568]]
  """
  several = not isinstance(engine, str | Engine)
  engines = [parse(one) for one in (engine if several else [engine])]
  axes, kinds = as_axes(axes), ("exact", "float32")
  if precision not in kinds:
    raise ValueError(
      f"sweep precision={precision!r}: {nearest(precision, kinds)}"
    )
  _check_engines(engines)
  tables: dict[str, Any] = {"": None}
  if layers is not None:
    tables = workloads_of(layers)
    for table in tables.values():
      if table.v is not None and table.v.any():
        raise ValueError(
          f"sweep: expected n:m, got {table.pattern(int(table.v.argmax()))};"
          " V:N:M is for cost and report"
        )
  parts = []
  fixed = () if layers is None else SIZES
  devices = jax.local_devices() if devices is None else devices
  for one, names in zip(engines, own_axes(engines, axes, fixed)):
    # Choices change what is compiled; numbers only what it reads.
    static = choices_of(one)
    chosen = [name for name in names if static & {*parts_of(name)}]
    varied = {name: axes[name] for name in names if name not in chosen}
    for point in itertools.product(*(axes[name] for name in chosen)):
      choices = dict(zip(chosen, point))
      given = operands(design(one, choices), itemsize, energy, dtype)
      machine = Machine(*given, area or Area())
      for label, table in tables.items():
        labels = {"workload": label} if tables.keys() != {""} else {}
        labels |= {"engine": str(one)} if several else {}
        for name, choice in choices.items():
          fields = parts_of(name)
          values = choice if len(fields) > 1 else [choice]
          labels |= zip(fields, map(text_of, values))
        parts.append((labels, Points.of(machine, varied, table)))
  return Sweep(parts, precision, devices)


class Part(NamedTuple):
  """The points of one engine and workload, and what is equal at all of them."""

  labels: dict[str, Any]
  points: Points
  walker: Walker


class Sweep:
  """Products of axes, evaluated where it is asked; made by `sweep`.

  Results are columns, NumPy arrays by name: the spec of the `design`, the axes
  (-1 where an engine lacks one), the fields, and products that were asked for.
  A quantity `by` and conditions `where` are text ("cycles", "-utilisation",
  "rows*cols"; "rows*cols<=1024; m<=8") or functions. Functions take a mapping
  from names to floating arrays (float64, exact up to 2^53), are compiled with
  the sweep, and must be pure.

  With precision "float32" and sizes up to 2^22, the relative error of a field
  is below `FLOAT32_ERROR` = 2^-18 (and 2^-24 for each further layer of a sum);
  the error of a part of the cycles is, over the cycles.
  What `smallest` and `pareto` return is evaluated exactly even then, but a
  point that is better by less than the error may be missed.

  Attributes:
    axes: Names of the axes' columns; a pattern is "n" and "m".
    parts: Points of each engine, choice and workload.
    results: Names of the fields that are evaluated.
    fields: Axes, then results. A quantity or condition may also name any number
      of the engine.
  """

  def __init__(
    self,
    parts: Sequence[tuple[dict[str, Any], Points]],
    precision: str,
    devices: Sequence[Any],
  ):
    self._rough = precision == "float32"
    self.parts: list[Part] = []
    self._ratios: set[str] = set()  # results of a true division
    shared: list[set[str]] = []
    every = dict.fromkeys(itertools.chain(*(own for own, _ in parts)), "")
    for labels, points in parts:
      bounds = overflow_check(points)
      kind = fastest(itertools.chain(*bounds.values()))
      kind = Singles if self._rough else kind
      walker = Walker(points, kind, (*points.axes, *sorted(bounds)), devices)
      self.parts.append(Part(every | labels, points, walker))
      self._ratios |= {
        x for x in bounds if isinstance(bounds[x][0].most, float)
      }
      shared.append(set(bounds))
    columns = dict.fromkeys(
      itertools.chain(*(part.points.varied for part in self.parts))
    )
    self.axes = tuple(columns)
    self.results = tuple(sorted(set.intersection(*shared)))
    self.fields = (*self.axes, *self.results)

  def __len__(self) -> int:
    """The number of points, impossible ones included."""
    return sum(part.points.count for part in self.parts)

  def smallest(
    self, by: By, k: int = 1, *, where: Where = None, steps: int = _STEPS
  ) -> dict[str, np.ndarray]:
    """The k points of the smallest value, in order; of equal ones the first.

    Args:
      by: Quantity to be small.
      k: Number of points; fewer are returned where fewer are allowed.
      where: Conditions on the points.
      steps: Blocks that a device evaluates at a time.

    Raises:
      ValueError: If a field is unknown, or k is not an integer from 1.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
      raise ValueError(f"sweep k={k!r}: expected an integer from 1")
    self._check((*quantity_names(by), *condition_names(where)))
    picks = [_smallest(part, by, k, where, steps) for part in self.parts]
    values = np.concatenate([values for _, values in picks])
    order = np.argsort(values, kind="stable")[:k]
    columns = self._columns([numbers for numbers, _ in picks], order)
    return columns | _asked({by: values[order]}, columns)

  def pareto(
    self, x: By, y: By, *, where: Where = None, steps: int = _STEPS // 16
  ) -> dict[str, np.ndarray]:
    """The points that none beats in x and y, both to be small, by x.

    A point beats those that are as large or larger in both and larger in one,
    or equal in both and after it.

    Args:
      x: Quantity to be small.
      y: The other quantity to be small.
      where: Conditions on the points.
      steps: Blocks that a device evaluates at a time.

    Raises:
      ValueError: If a field is unknown.
    """
    self._check((*quantity_names(x), *quantity_names(y)))
    self._check(condition_names(where))
    fronts = [_front(part, x, y, where, steps) for part in self.parts]
    xs, ys = (np.concatenate([front[i] for front in fronts]) for i in (1, 2))
    order = _undominated(np.arange(len(xs)), xs, ys)
    columns = self._columns([numbers for numbers, _, _ in fronts], order)
    return columns | _asked({x: xs[order], y: ys[order]}, columns)

  def sample(
    self, names: Sequence[By], count: int, *, where: Where = None, seed: int = 0
  ) -> dict[By, np.ndarray]:
    """Quantities of at most `count` random points, as for a picture.

    Args:
      names: Quantities, or "engine" where there are several.
      count: Number of points to draw; those that are impossible, not allowed or
        drawn twice are left out.
      where: Conditions on the points.
      seed: Seed of the draw.

    Raises:
      ValueError: If a field is unknown.
    """
    labels = {*self.parts[0].labels}
    quantities = [name for name in names if name not in labels]
    fields = (x for name in quantities for x in quantity_names(name))
    self._check((*fields, *condition_names(where)))
    draw = np.random.default_rng(seed)
    each = []
    for part in self.parts:
      size = part.points.count
      number = np.arange(size)
      if len(self) > count:
        number = draw.integers(0, size, round(count * size / len(self)))
      number, fields = _allowed(part, number, where)
      columns = _labelled(part, fields, labels)
      each.append(columns | {by: _value(by, fields) for by in quantities})
    return {x: np.concatenate([columns[x] for columns in each]) for x in names}

  def summary(
    self, by: By, *, where: Where = None, steps: int = _STEPS
  ) -> dict[str, Any]:
    """The `count` of allowed points, and `min`, `max` and `mean` of a value.

    Raises:
      ValueError: If a field is unknown, or no point is allowed.
    """
    count, least, most, total = 0, [], [], 0.0
    reduction = Moments(by, where)
    for part in self.parts:
      for _, (state, _) in part.walker.walks(reduction, steps):
        some = state[0] > 0
        if some.any():
          count += int(state[0].sum())
          least.append(state[1][some].min())
          most.append(state[2][some].max())
          total += float(state[3].sum(dtype=np.float64))
    if not count:
      raise ValueError("sweep: no point is allowed; check where=")
    ends = min(least).item(), max(most).item()
    name = by.removeprefix("-") if isinstance(by, str) else ""
    if name in self.fields and name not in self._ratios and not self._rough:
      ends = tuple(map(int, ends))
    return {"count": count, "min": ends[0], "max": ends[1]} | {
      "mean": total / count
    }

  def chunks(
    self, names: Sequence[str], *, where: Where = None, chunk: int = 2**20
  ) -> Iterator[dict[str, np.ndarray]]:
    """Columns of the allowed points in their order, chunk by chunk.

    Integers are int64; with precision "float32" all fields are float32.

    Args:
      names: Fields, axes among them, "pattern", choices that are axes, and
        "engine" and "workload" where there are several.
      where: Conditions on the points.
      chunk: Number of points to evaluate at a time, about.

    Raises:
      ValueError: If a field is unknown, or chunk is not an integer from 1.
    """
    self._check((*names, *condition_names(where)), self.columns)
    if not isinstance(chunk, int) or chunk < 1:
      raise ValueError(f"chunk={chunk!r}: expected an integer from 1")
    for part in self.parts:
      walker = part.walker
      read = {n for name in names for n in _UNDERLYING.get(name, (name,))}
      read = read & set(walker.fields) or {walker.fields[0]}
      whole = () if self._rough else read - self._ratios
      reduction = Columns(tuple(sorted(read)), tuple(sorted(whole)), where)
      steps = max(chunk // (walker.grid.slots * walker.devices), 1)
      for _, (_, (real, columns)) in walker.walks(reduction, steps):
        every = real.all()
        columns = {
          name: x.reshape(-1) if every else x[real]
          for name, x in columns.items()
        }
        yield _labelled(part, columns, names)

  def write(
    self,
    path: str | os.PathLike,
    names: Sequence[str],
    *,
    where: Where = None,
    overwrite: bool = False,
  ) -> int:
    """Writes columns to a .csv, or to a .npz as arrays "name.chunk".

    The file appears when it is whole.

    Args:
      path: Path of the file.
      names: Columns, as in `chunks`.
      where: Conditions on the points.
      overwrite: Whether to replace a file.

    Returns:
      The number of points written.

    Raises:
      ValueError: If a field is unknown or none is given, the file exists, or
        its kind is another.
    """
    path, count = pathlib.Path(path), 0
    if isinstance(names, str) or not len(names):
      raise ValueError(f"sweep fields {names!r}: give a list of names")
    self._check((*names, *condition_names(where)), self.columns)
    writers = {".csv": write_csv, ".npz": write_npz}
    if path.suffix not in writers:
      raise ValueError(f"sweep file {str(path)!r}: end it in .csv or .npz")
    if path.exists() and not (overwrite and path.is_file()):
      raise ValueError(
        f"sweep file {str(path)!r} exists; name another, or replace a file with"
        " overwrite=True"
      )
    part = path.with_name(f"{path.name}.part")
    try:
      with writers[path.suffix](part, names) as put:
        for columns in self.chunks(names, where=where):
          put(columns)
          count += len(columns[names[0]])
      part.replace(path)
    finally:
      part.unlink(missing_ok=True)
    return count

  @property
  def columns(self) -> tuple[str, ...]:
    """Everything that `chunks` and `write` can give."""
    pattern = ("pattern",) if "m" in self.axes else ()
    return (*self.parts[0].labels, *pattern, *self.fields)

  def _check(self, names: Iterable[Any], more: Iterable[str] = ()) -> None:
    """Raises ValueError for a name that not all engines have."""
    shared = [set(part.walker.fields) for part in self.parts]
    known = set.intersection(*shared) | set(more)
    for name in names:
      if isinstance(name, str) and name not in known:
        raise ValueError(f"sweep field {name!r}: {nearest(name, known)}")

  def _columns(
    self, numbers: Sequence[np.ndarray], order: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Columns of the points of each part, all of them put in an order."""
    each = []
    for part, number in zip(self.parts, numbers):
      fields = _at(part, number)
      columns = _labelled(part, fields, self.columns)
      each.append({"design": _specs(part, fields, len(number))} | columns)
    return {
      name: np.concatenate([columns[name] for columns in each])[order]
      for name in ("design", *self.columns)
    }


def _asked(
  values: Mapping[By, np.ndarray], columns: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The quantities as text that are not columns already."""
  return {
    by: x
    for by, x in values.items()
    if isinstance(by, str) and by not in columns
  }


_UNDERLYING = {"pattern": ("n", "m")}


def _check_engines(engines: Sequence[Engine]) -> None:
  if not engines:
    raise ValueError("sweep: no engines; give at least one, as in 'ws:32x16'")
  for engine in engines:
    for field in engine.numeric():
      if np.ndim(getattr(engine, field.name)):
        raise ValueError(
          f"sweep: {field.name} of {engine} is an array; give it as an axis"
        )
    if engine.unit != engines[0].unit:
      raise ValueError(
        f"sweep: {engines[0]} counts {engines[0].unit} and {engine}"
        f" {engine.unit}, which do not compare; sweep them apart"
      )


def _smallest(
  part: Part, by: By, k: int, where: Where, steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """The numbers and values of the k points of the smallest value, in order."""
  number, walker = part.walker.grid.number, part.walker
  best, values = np.zeros(0, np.int64), np.zeros(0)
  for blocks, ((least, turn), _) in walker.walks(Smallest(by, where), steps):
    full = len(values) == k
    device, slot = np.nonzero(
      least < (values[-1] if full else worst(least.dtype))
    )
    if not len(slot):
      continue
    least, turn = least[device, slot], turn[device, slot]
    # Of k slots the minima come before those of all others, so that the k
    # points are among theirs.
    order = np.lexsort((number(blocks[device, turn], slot), least))[:k]
    new = number(blocks[device[order]], slot[order, None])
    best, fields = _allowed(part, np.concatenate([best, *new]), where)
    values = _value(by, fields)
    order = np.lexsort((best, values))[:k]
    best, values = best[order], values[order]
  return best, values


def _front(
  part: Part, x: By, y: By, where: Where, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The numbers, x and y of the points that none beats, by x."""

  def reduced(number):
    number, fields = _allowed(part, number, where)
    xs, ys = _value(x, fields), _value(y, fields)
    order = _undominated(number, xs, ys)
    return number[order], xs[order], ys[order]

  walker, seen = part.walker, 0
  sample = np.random.default_rng(0).integers(0, part.points.count, _SAMPLE)
  front = reduced(sample)

  def rivals():
    number, *values = front
    index = np.linspace(0, max(len(number) - 1, 0), _RIVALS).astype(int)
    index = index[: len(number) * _RIVALS]
    # Integers as they are compared: int64 would wrap where it is not on.
    dtype = None if walker.in_integers else np.float64
    xs, ys = (np.asarray(v[index], dtype) for v in values)
    return xs, ys, number[index] < seen

  for blocks, (stays, _) in walker.walks(
    Undominated(x, y, where), steps, rivals
  ):
    device, slot = np.nonzero(stays)
    at_once = max(_BATCH // blocks.shape[1], 1)
    for start in range(0, len(slot), at_once):
      some = slice(start, start + at_once)
      new = walker.grid.number(blocks[device[some]], slot[some, None])
      front = reduced(np.concatenate([front[0], new.ravel()]))
    seen = walker.grid.number(blocks, np.zeros_like(blocks)).max() + 1
  return front


def _undominated(
  number: np.ndarray, xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
  """The places of the points that none beats, sorted by x."""
  order = np.lexsort((number, ys, xs))
  ys = ys[order]
  stays = np.ones(len(ys), bool)
  stays[1:] = ys[1:] < np.minimum.accumulate(ys)[:-1]
  return order[stays]


def _at(part: Part, number: np.ndarray) -> dict[str, np.ndarray]:
  none = dict.fromkeys(part.walker.fields, np.zeros(0))
  return part.points.at(number) if len(number) else none


def _allowed(
  part: Part, number: np.ndarray, where: Where
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Which points are allowed, once and in order, and their fields."""
  number = np.unique(number[number >= 0])
  number = number[part.points.allowed(number)]
  fields = _at(part, number)
  with jax.enable_x64(True):
    real = np.asarray(allowed(where, fields, np.ones(len(number), bool)))
  return number[real], {name: x[real] for name, x in fields.items()}


def _value(by: By, fields: Mapping[str, Any]) -> np.ndarray:
  with jax.enable_x64(True):
    return np.asarray(value(by, fields))


def _labelled(
  part: Part, fields: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, np.ndarray]:
  """Columns by name, those of labels and absent axes filled in."""
  length = len(next(iter(fields.values())))
  columns = {}
  for name in names:
    if name == "pattern":
      columns[name] = _patterns(fields["n"], fields["m"])
    elif name in fields:
      columns[name] = fields[name]
    else:
      columns[name] = np.full(length, part.labels.get(name, _ABSENT))
  return columns


def _patterns(n: np.ndarray, m: np.ndarray) -> np.ndarray:
  """Patterns as text."""
  n, m = n.astype(np.int64), m.astype(np.int64)
  keys, place = np.unique((n << 32) + m, return_inverse=True)
  pairs = [divmod(key, 2**32) for key in keys.tolist()]
  texts = ["dense" if n == m else f"{n}:{m}" for n, m in pairs]
  return np.array(texts, "U")[place]


def _specs(
  part: Part, fields: Mapping[str, np.ndarray], length: int
) -> np.ndarray:
  """The spec of the engine at each point."""
  engine = part.points.machine.engine
  names = [name for name in part.points.varied if name in engine.limits()]
  chosen = {x: getattr(engine, x) for x in choices_of(engine) & {*part.labels}}
  rows = list(zip(*(fields[name].astype(int).tolist() for name in names)))
  rows = rows or [()] * length
  points = {row: dict(zip(names, row)) | chosen for row in set(rows)}
  known = {row: str(design(engine, point)) for row, point in points.items()}
  return np.array([known[row] for row in rows], "U")
