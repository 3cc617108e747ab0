"""The constants of 2:4 tensor cores, fitted to measured pairs of calls.

A pair is a dense call and a 2:4 call of one size on one chip. The fit minimises

  sum over both times of  sqrt(d^2 + e^2) - d,   e = log(modelled / measured)

with d = 0.1: a square for small errors, and no more than proportional for a
pair that no model of shapes can explain. `left_one_out` judges a fit by pairs
of sources that it has not seen, since those of one source share a library, a
machine and a way to measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine.spec import Gemm
from figs_jax.engine.spec_text import parse
from figs_jax.engine.tensorcore import latency_of

# What is fitted by default. `latency` follows from `sparse_rate`.
FITTED = ("dense_rate", "sparse_rate", "ramp", "stream")
# Fields of `TensorCore` -> least and largest value that a fit tries.
SEARCHED = {
  "dense_rate": (300, 1000),
  "sparse_rate": (300, 1000),
  "ramp": (50, 2000),
  "stream": (600, 2500),
  "lag": (1000, 100_000),
  "sparse_overhead": (1000, 300_000),
}
_D, _PULL = 0.1, 1e-2
_POINTS, _ZOOMS, _ZOOM = 5, 9, 0.6
_LINE, _ROUNDS = 1201, 2


class MeasuredPair(NamedTuple):
  """A dense and a 2:4 call, (M x K) times (K x N), measured.

  Attributes:
    source: Where the pair is published.
    chip: Name of a chip that `figs_jax.engine.TensorCore` knows.
    M: Rows of the activations.
    N: Columns of the weight.
    K: Length of the contraction.
    itemsize: Bytes per value.
    dense_us: Microseconds of the dense call.
    sparse_us: Microseconds of the 2:4 call.
  """

  source: str
  chip: str
  M: int
  N: int
  K: int
  itemsize: int
  dense_us: float
  sparse_us: float

  @classmethod
  def of(cls, row: Mapping[str, str]) -> MeasuredPair:
    """A row of a CSV file with these columns.

    >>> names = "source chip M N K itemsize dense_us sparse_us".split()
    >>> row = dict(zip(names, "mine h100 1 2 4 2 3.0 1.5".split()))
    >>> MeasuredPair.of(row).speedup
    2.0
    """
    sizes = (int(row[name]) for name in ("M", "N", "K", "itemsize"))
    times = (float(row[name]) for name in ("dense_us", "sparse_us"))
    return cls(row["source"], row["chip"], *sizes, *times)

  @property
  def speedup(self) -> float:
    """Time of the dense call over that of the 2:4 call."""
    return self.dense_us / self.sparse_us


def modelled(pairs: Sequence[MeasuredPair], **fields: Any) -> np.ndarray:
  """Microseconds of dense and 2:4 calls.

  Args:
    pairs: Calls; their measured times are not read.
    **fields: Fields of `TensorCore`, scalars or arrays of shape (designs,).

  Returns:
    Microseconds, (2, designs or 1, pairs): dense, then 2:4.

  >>> pair = MeasuredPair("mine", "a100", 4096, 4096, 4096, 2, 620.0, 390.0)
  >>> modelled([pair], ideal=True).round().tolist()
  [[[441.0]], [[220.0]]]
  """
  designs: dict[str, Any] = {
    name: np.asarray(value)[:, None] if np.ndim(value) else value
    for name, value in fields.items()
  }
  shape = np.broadcast_shapes((1, 1), *map(np.shape, designs.values()))
  times = np.empty((2, shape[0], len(pairs)))
  kinds = [(pair.chip, pair.itemsize) for pair in pairs]
  for kind in dict.fromkeys(kinds):
    chip, itemsize = kind
    here = [place for place, other in enumerate(kinds) if other == kind]
    M, N, K = np.array([pairs[place][2:5] for place in here] * 2).T
    kept = np.repeat([4, 2], len(here))
    engine = dataclasses.replace(parse(f"tensorcore:{chip}"), **designs)
    cycles = engine.counts(Gemm(M, N, K, kept, 4), itemsize)["cycles"]
    both = np.split(np.atleast_2d(cycles) / 1000, 2, axis=-1)
    times[..., here] = both
  return times


def fit_sparse24(
  pairs: Sequence[MeasuredPair],
  fitted: Iterable[str] = FITTED,
  **fixed: Any,
) -> dict[str, Any]:
  """The fields of `TensorCore` that fit measured pairs best.

  Deterministic: a grid of all fitted fields, in steps of equal ratio, closes in
  on its best point; then each field in turn takes the best of its whole range.
  A field that the calls leave undecided is drawn to the middle of that.

  Args:
    pairs: Measured calls.
    fitted: Fields that are fitted, of `SEARCHED`.
    **fixed: Values of other fields. `latency` is that of `sparse_rate` unless
      it is given.

  Returns:
    All these fields and their values, for `dataclasses.replace` or a spec.

  Raises:
    ValueError: If there are fewer calls than fields.

  >>> sizes = [(2**i, 4096, 4096) for i in (11, 12, 13)]
  >>> unknown = [MeasuredPair("me", "h100", *s, 2, 0, 0) for s in sizes]
  >>> times = modelled(unknown, dense_rate=800, sparse_rate=600)[:, 0]
  >>> pairs = [u._replace(dense_us=d, sparse_us=s)
  ...          for u, d, s in zip(unknown, *times)]
  >>> made = fit_sparse24(pairs, fitted=("dense_rate", "sparse_rate"))
  >>> abs(made["dense_rate"] - 800) < 4, abs(made["sparse_rate"] - 600) < 4
  (True, True)
  """
  names = list(fitted)
  if 2 * len(pairs) < len(names) or not pairs:
    raise ValueError(
      f"fit_sparse24: expected at least {max(len(names), 1)} calls, got"
      f" {2 * len(pairs)}; fit fewer fields"
    )
  measured = np.array(
    [[p.dense_us for p in pairs], [p.sparse_us for p in pairs]]
  )
  low, high = np.log([SEARCHED[name] for name in names]).T
  middle, half = (low + high) / 2, (high - low) / 2

  def best(points: np.ndarray) -> np.ndarray:
    fields = dict(zip(names, np.rint(np.exp(points)).astype(int).T))
    times = modelled(pairs, **_with_latency(fields, fixed))
    errors = np.log(times / measured[:, None])
    loss = (np.sqrt(_D**2 + errors**2) - _D).sum((0, 2))
    loss = loss + _PULL * np.square((points - middle) / half).sum(-1)
    return points[loss.argmin()]

  grid = [np.linspace(-1, 1, _POINTS)] * len(names)
  steps = np.stack(np.meshgrid(*grid), -1).reshape(-1, len(names))
  point = middle
  for zoom in range(_ZOOMS):
    reach = half * _ZOOM**zoom
    point = best(np.clip(point + reach * steps, low, high))
  # One field after another, over its whole range.
  lines = np.linspace(-1, 1, _LINE)[:, None, None] * np.diag(half)
  for _ in range(_ROUNDS):
    for line in lines.swapaxes(0, 1):
      along = np.where(line.any(0), middle + line, point)
      point = best(np.concatenate([point[None], along]))
  fields = dict(zip(names, np.rint(np.exp(point)).astype(int).tolist()))
  return _with_latency(fields, fixed)


def left_one_out(
  pairs: Sequence[MeasuredPair],
  fit: Callable[[Sequence[MeasuredPair]], dict[str, Any]] = fit_sparse24,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """The times of each source's calls by a fit of all other sources.

  Args:
    pairs: Measured calls. The first word of `source` tells sources apart.
    fit: Function from pairs to fields of `TensorCore`.

  Returns:
    Microseconds, (2, pairs): dense, then 2:4; and the fields of each fit.

  Raises:
    ValueError: If all calls are of one source.
  """
  sources = np.array([pair.source.partition(" ")[0] for pair in pairs])
  if len(set(sources)) < 2:
    raise ValueError("left_one_out: expected two sources or more, got one")
  times, fits = np.empty((2, len(pairs))), []
  for source in dict.fromkeys(sources):
    held = sources == source
    fields = fit([pair for pair, out in zip(pairs, held) if not out])
    own = [pair for pair, out in zip(pairs, held) if out]
    times[:, held] = modelled(own, **fields)[:, 0]
    fits.append(fields)
  return times, fits


def geometric_error(modelled_: Any, measured: Any) -> float:
  """The factor by which values are off, a geometric mean: 1 is exact.

  >>> geometric_error([2.0, 1.0], [1.0, 2.0])
  2.0
  """
  logs = np.abs(np.log(np.asarray(modelled_) / np.asarray(measured)))
  return float(np.exp(logs.mean()))


def _with_latency(
  fields: dict[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
  fields = {**fields, **fixed}
  if "latency" not in fields and "sparse_rate" in fields:
    picoseconds = np.rint(latency_of(fields["sparse_rate"])).astype(int)
    fields["latency"] = picoseconds if picoseconds.ndim else int(picoseconds)
  return fields
