"""Sweeps: every combination of sizes, patterns and designs, never stored.

A sweep is a product of named axes. It is evaluated in blocks on the devices,
exactly, and reduced there: the best designs under constraints, the front of two
aims, the range and mean of a field, or columns, chunk by chunk. Memory is
bounded whatever the number of points, and that everything fits int64 is shown
before anything runs.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from figs_jax.engine._cost import AT_45_NM
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import parse
from figs_jax.engine.sweeps.device import Walker
from figs_jax.engine.sweeps.points import Machine, Points
from figs_jax.engine.sweeps.reach import reach
from figs_jax.engine.sweeps.reductions import (
  By,
  Columns,
  Moments,
  Smallest,
  Undominated,
  Where,
  allowed,
  value,
  worst,
)
from figs_jax.engine.whole import Singles, fastest

# Relative error of a float32 sweep of GEMMs, for sizes up to 2^22; each further
# layer of a sum adds 2^-24.
FLOAT32_ERROR = 2.0**-18
_STEPS = 256  # blocks that a device reduces before the host looks
_RIVALS = 16  # points of a front that devices compare with
_SAMPLE = 4096  # points from everywhere that start a front
_BATCH = 2**18  # points that the host evaluates at a time


def sweep(
  engine: Engine | str,
  axes: Mapping[str, Sequence[Any]],
  layers: Layers | Iterable[Mapping[str, Any]] | None = None,
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
  precision: str = "exact",
  devices: Sequence[jax.Device] | None = None,
) -> Sweep:
  """Every combination of the axes on one kind of engine.

  Args:
    engine: an engine, or its spec; its fields hold where no axis varies them.
    axes: name -> values. Names are those of the engine's numeric fields,
      "pattern" ("1:8", `NM` or "dense") and, without layers, "M", "N" and "K";
      "rows,cols" is an axis of pairs. The last axis turns fastest.
    layers: a table, or its rows; fields are then sums over the layers, each as
      often as it counts, and ratios are means weighed by the cycles. A pattern
      axis replaces the patterns of the layers that are sparse.
    itemsize: bytes per value, of every operand off chip.
    energy: picojoules per operation.
    precision: "exact", or "float32" for devices on which int64 and float64 are
      slow; see `Sweep`.
    devices: that share the points; by default all local ones.

  Raises:
    ValueError: a bad axis; a value of an axis with which no point is possible;
      or something that would not fit int64. Points that are impossible beside
      possible ones (rows that beta does not divide) are left out.

  >>> gemm = {"M": [196], "N": [3072], "K": [768], "pattern": ["1:2", "1:8"]}
  >>> designs = sweep("figs", gemm | {"rows": [16, 32], "cols": [16, 32, 64]})
  >>> len(designs)
  12
  >>> best = designs.smallest("cycles", where=lambda p: p["cols"] < 64)
  >>> [best[name].tolist() for name in ("pattern", "rows", "cols", "cycles")]
  [['1:8'], [32], [32], [75744]]
  """
  engine = parse(engine)
  table = None if layers is None else Layers.of(layers)
  for field in engine.numeric():
    if np.ndim(getattr(engine, field.name)):
      raise ValueError(
        f"sweep: {field.name} of {engine} is an array; give it as an axis"
      )
  kinds = ("exact", "float32")
  if precision not in kinds:
    raise ValueError(
      f"sweep precision={precision!r}: {nearest(precision, kinds)}"
    )
  if not isinstance(axes, Mapping) or not axes:
    raise ValueError("sweep: no axes; give at least one, or call cost()")
  points = Points.of(Machine(engine, itemsize, energy), axes, table)
  devices = jax.local_devices() if devices is None else devices
  return Sweep(points, precision, devices)


class Sweep:
  """A product of axes, evaluated where it is asked; made by `sweep`.

  Results are columns, NumPy arrays by name: the axes, then fields. A `by` is a
  field's name, with "-" before it for the opposite sign, or a function; a
  `where` is a function. Functions take a mapping from names to floating arrays
  (float64, exact up to 2^53), are compiled with the sweep, and must be pure.

  With precision "float32" and sizes up to 2^22, the relative error of a field
  is below `FLOAT32_ERROR` = 2^-18 (and 2^-24 for each further layer of a sum);
  the error of a part of the cycles is, over the cycles.
  What `smallest` and `pareto` return is evaluated exactly even then, but a
  point that is better by less than the error may be missed.

  Attributes:
    points: the axes, and what is evaluated.
    fields: the names that can be asked for.
  """

  def __init__(self, points: Points, precision: str, devices: Sequence[Any]):
    bounds = reach(points)
    kind = fastest(itertools.chain(*bounds.values()))
    self._rough = precision == "float32"
    kind = Singles if self._rough else kind
    self.points, self._fields = points, sorted(bounds)
    self.fields = (*points.axes, *self._fields)
    # Results of a true division.
    self._ratios = {x for x in bounds if isinstance(bounds[x][0].most, float)}
    self._walker = Walker(points, kind, self.fields, devices)

  def __len__(self) -> int:
    """How many points there are, impossible ones included."""
    return self.points.count

  def smallest(
    self, by: By, k: int = 1, *, where: Where = None, steps: int = _STEPS
  ) -> dict[str, np.ndarray]:
    """The k points of the smallest value, in order; of equals the first.

    Args:
      by: what is to be small.
      k: how many; fewer where fewer are allowed.
      where: which points are allowed.
      steps: blocks that a device evaluates at a time.

    Raises:
      ValueError: an unknown field, or no whole k from 1.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
      raise ValueError(f"sweep k={k!r}: give how many points, 1 or more")
    number, walker = self._walker.grid.number, self._walker
    best, found = np.zeros(0, np.int64), np.zeros(0)
    for blocks, ((least, turn), _) in walker.walks(Smallest(by, where), steps):
      full = len(found) == k
      device, slot = np.nonzero(
        least < (found[-1] if full else worst(least.dtype))
      )
      if not len(slot):
        continue
      least, turn = least[device, slot], turn[device, slot]
      # Of k slots the minima come before those of all others, so that the k
      # points are among theirs.
      order = np.lexsort((number(blocks[device, turn], slot), least))[:k]
      new = number(blocks[device[order]], slot[order, None])
      best, fields = self._allowed(np.concatenate([best, *new]), where)
      found = np.asarray(_value(by, fields))
      order = np.lexsort((best, found))[:k]
      best, found = best[order], found[order]
    return self._columns(best)

  def pareto(
    self, x: By, y: By, *, where: Where = None, steps: int = _STEPS // 16
  ) -> dict[str, np.ndarray]:
    """The points that none beats in x and y, both to be small, by x.

    A point beats those that are no smaller in either and larger in one, or
    equal in both and after it.

    Args:
      x: one aim.
      y: the other.
      where: which points are allowed.
      steps: blocks that a device evaluates at a time.

    Raises:
      ValueError: an unknown field.
    """
    walker, seen = self._walker, 0
    sample = np.random.default_rng(0).integers(0, len(self), _SAMPLE)
    front = self._front(sample, x, y, where)

    def rivals():
      number, *values = front
      index = np.linspace(0, max(len(number) - 1, 0), _RIVALS).astype(int)
      index = index[: len(number) * _RIVALS]
      # Integers as they are compared: int64 would wrap where it is not on.
      dtype = None if walker.in_integers else np.float64
      xs, ys = (np.asarray(v[index], dtype) for v in values)
      return xs, ys, number[index] < seen

    reduction = Undominated(x, y, where)
    for blocks, (stays, _) in walker.walks(reduction, steps, rivals):
      device, slot = np.nonzero(stays)
      at_once = max(_BATCH // blocks.shape[1], 1)
      for start in range(0, len(slot), at_once):
        part = slice(start, start + at_once)
        new = walker.grid.number(blocks[device[part]], slot[part, None])
        new = np.concatenate([front[0], new.ravel()])
        front = self._front(new, x, y, where)
      seen = walker.grid.number(blocks, np.zeros_like(blocks)).max() + 1
    return self._columns(front[0])

  def summary(
    self, by: By, *, where: Where = None, steps: int = _STEPS
  ) -> dict[str, Any]:
    """The `count` of allowed points, and `min`, `max` and `mean` of a value.

    Raises:
      ValueError: an unknown field, or no point is allowed.
    """
    count, least, most, total = 0, [], [], 0.0
    for _, (state, _) in self._walker.walks(Moments(by, where), steps):
      some = state[0] > 0
      if some.any():
        count += int(state[0].sum())
        least.append(state[1][some].min())
        most.append(state[2][some].max())
        total += float(state[3].sum(dtype=np.float64))
    if not count:
      raise ValueError("sweep: no point is allowed; check where=")
    ends = min(least).item(), max(most).item()
    whole = isinstance(by, str) and by.removeprefix("-") not in self._ratios
    if whole and not self._rough:
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
      names: fields, axes among them ("n" and "m" of a pattern).
      where: which points are allowed.
      chunk: how many points to evaluate at a time, about.

    Raises:
      ValueError: an unknown field, or a chunk that is no whole number from 1.
    """
    self._walker.check(names)
    if not isinstance(chunk, int) or chunk < 1:
      raise ValueError(f"chunk={chunk!r}: give a whole number from 1")
    whole = () if self._rough else set(names) - self._ratios
    reduction = Columns(tuple(names), tuple(sorted(whole)), where)
    steps = chunk // (self._walker.grid.slots * self._walker.devices)
    for _, (_, (real, columns)) in self._walker.walks(reduction, max(steps, 1)):
      everything = real.all()
      yield {
        name: x.reshape(-1) if everything else x[real]
        for name, x in columns.items()
      }

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
      path: the file.
      names: as of `chunks`.
      where: which points are allowed.
      overwrite: whether to replace a file.

    Returns:
      How many points were written.

    Raises:
      ValueError: no field or an unknown one, another kind of file, or one that
        is there.
    """
    path, count = pathlib.Path(path), 0
    if isinstance(names, str) or not len(names):
      raise ValueError(f"sweep fields {names!r}: give a list of names")
    self._walker.check(names)
    writers = {".csv": _write_csv, ".npz": _write_npz}
    if path.suffix not in writers:
      raise ValueError(f"sweep file {str(path)!r}: end it in .csv or .npz")
    if path.exists() and not (overwrite and path.is_file()):
      raise ValueError(
        f"sweep file {str(path)!r} is there; name another, or replace a file"
        " with overwrite=True"
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

  def _columns(self, number: np.ndarray) -> dict[str, np.ndarray]:
    """Axes, a pattern as text, then the fields."""
    labels, fields = self.points.labels(number), self._at(number)
    if "m" in labels:
      pairs = zip(labels.pop("n").tolist(), labels.pop("m").tolist())
      texts = ["dense" if n == m else f"{n}:{m}" for n, m in pairs]
      labels = {"pattern": np.array(texts, object)} | labels
    return labels | {name: fields[name] for name in self._fields}

  def _at(self, number: np.ndarray) -> dict[str, np.ndarray]:
    none = dict.fromkeys(self.fields, np.zeros(0))
    return self.points.at(number) if len(number) else none

  def _allowed(
    self, number: np.ndarray, where: Where
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which points are allowed, once and in order, and their fields."""
    number = np.unique(number[number >= 0])
    number = number[self.points.allowed(number)]
    fields = self._at(number)
    with jax.enable_x64(True):
      real = np.asarray(allowed(where, fields, np.ones(len(number), bool)))
    return number[real], {name: x[real] for name, x in fields.items()}

  def _front(
    self, number: np.ndarray, x: By, y: By, where: Where
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The undominated of some points: numbers, x and y, sorted by x."""
    number, fields = self._allowed(number, where)
    xs, ys = _value(x, fields), _value(y, fields)
    order = np.lexsort((number, ys, xs))
    number, xs, ys = number[order], xs[order], ys[order]
    stays = np.ones(len(ys), bool)
    stays[1:] = ys[1:] < np.minimum.accumulate(ys)[:-1]
    return number[stays], xs[stays], ys[stays]


def _value(by: By, fields: Mapping[str, Any]) -> np.ndarray:
  with jax.enable_x64(True):
    return np.asarray(value(by, fields))


@contextlib.contextmanager
def _write_csv(path: pathlib.Path, names: Sequence[str]) -> Iterator[Any]:
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names)
    yield lambda columns: writer.writerows(
      zip(*(columns[name].tolist() for name in names))
    )


@contextlib.contextmanager
def _write_npz(path: pathlib.Path, names: Sequence[str]) -> Iterator[Any]:
  chunk = itertools.count()
  with zipfile.ZipFile(path, "w") as archive:

    def put(columns):
      index = next(chunk)
      for name in names:
        with archive.open(f"{name}.{index}.npy", "w") as member:
          np.lib.format.write_array(member, columns[name])

    yield put
