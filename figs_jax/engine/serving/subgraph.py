"""SubGraph Stationary serving: part of a nested model stays on chip.

A nested N:M model is served at points, of which each keeps n of m and contains
the one before. Its file holds the weights in rank order, so that the point i of
a layer is a prefix of slices,

  W_l(i) = s_l(0) + ... + s_l(i)  bytes.                                    (1)

A persistent buffer of B bytes keeps the first d_l slices of each layer l from
one query to the next. A query at point i then moves

  b_l = A_l(i) + W_l(i) - W_l(min(d_l - 1, i))                              (2)

bytes off chip, A_l those of inputs and outputs, and takes

  c_l = max(on-chip_l(i), ceil(b_l / bandwidth)) + launch                   (3)

cycles of the engine. With d = 0 this is `engine.cost`; where
all slices are cached, no byte of a weight moves.

Behnam et al., "SubGraph Stationary Hardware-Software Inference Co-design",
MLSys 2023 (arXiv 2306.17266), who cache kernels and layers of a
convolutional supernet in an FPGA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine._cost import cost, operands
from figs_jax.engine.blocks import index_bits
from figs_jax.engine.energy import Energy
from figs_jax.engine.int64 import ceil_div, exact, larger
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse

# Products of two activations, by the last part of their names.
ACTIVATION_PRODUCTS = ("qk", "av", "matmul")
_MOST_ROWS = 1_000_000


class QueryCost(NamedTuple):
  """What queries cost; the points are the last axis.

  Attributes:
    cycles: Cycles of the engine (ns on a roofline), int64.
    dram_bytes: Bytes moved off chip, int64.
    energy_pj: Picojoules, float64.
  """

  cycles: np.ndarray
  dram_bytes: np.ndarray
  energy_pj: np.ndarray


class ChangeCost(NamedTuple):
  """What changing the cached sub-graph costs.

  Attributes:
    cycles: Cycles of the engine, int64.
    dram_bytes: Bytes read into the buffer, int64.
    energy_pj: Picojoules, float64.
  """

  cycles: np.ndarray
  dram_bytes: np.ndarray
  energy_pj: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class NestedModel:
  """A nested model on an engine: P points of L layers, from `nested_model`.

  Attributes:
    points: Patterns, the sparsest first.
    engine: Engine that serves it.
    names: Names of the layers.
    on_chip: Cycles of a layer without waiting for the memory, int64 [P, L].
    launch: Cycles before a layer starts, int64 [P, L].
    activations: Bytes of inputs and outputs, A of (2), int64 [P, L].
    weights: Bytes of the first slices, 0 of none: W of (1), int64 [P + 1, L];
      those of products of activations are part of `activations`.
    count: Number of equal products of a layer, int64 [L].
    energy_pj: Picojoules of a query with nothing cached, float64 [P].
    dram_byte: Picojoules of a byte off chip.
  """

  points: tuple[str, ...]
  engine: Engine
  names: tuple[str, ...]
  on_chip: np.ndarray
  launch: np.ndarray
  activations: np.ndarray
  weights: np.ndarray
  count: np.ndarray
  energy_pj: np.ndarray
  dram_byte: float

  @property
  def slices(self) -> np.ndarray:
    """Bytes of each slice, s of (1), int64 [P, L]."""
    return np.diff(self.weights, axis=0)

  @property
  def weight_bytes(self) -> np.ndarray:
    """Bytes of all weights at each point, int64 [P]."""
    return self.weights[1:].sum(1)

  @property
  def nothing(self) -> np.ndarray:
    """The empty sub-graph, int64 [L]."""
    return np.zeros(len(self.names), np.int64)

  def cached_bytes(self, cached: np.ndarray) -> Any:
    """Bytes that a sub-graph takes in the buffer, int64 [...].

    Args:
      cached: Slices of each layer that are kept, integers [..., L].
    """
    return self._prefix(_read_subgraph(self, cached)).sum(-1)

  def query(
    self, cached: np.ndarray | None = None, bandwidth: Any = None
  ) -> QueryCost:
    """The cost of a query at every point, (2) and (3): arrays [..., P].

    Args:
      cached: Slices of each layer that are on chip, integers [..., L]; nothing
        by default.
      bandwidth: Bytes per cycle off chip, integers [...] that broadcast with
        the sub-graphs. Defaults to the engine's.

    Raises:
      ValueError: If a layer has fewer slices, a bandwidth is below 1, or a
        result does not fit int64.

    >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
    >>> model = nested_model(rows, "ws:8x8:dram_bw=1", "1:4,2:4,4:4")
    >>> model.query().dram_bytes.tolist()
    [2560, 4864, 9472]
    >>> model.query(np.array([2])).dram_bytes.tolist()
    [256, 256, 4864]
    """
    depth = _read_subgraph(self, self.nothing if cached is None else cached)
    points = np.arange(1, len(self.points) + 1)[:, None]
    hit = self._prefix(np.minimum(depth[..., None, :], points))
    moved = self.activations + self.weights[1:] - hit
    if bandwidth is None:
      bandwidth = self.engine.memory_bandwidth
    bandwidth = np.asarray(bandwidth)[..., None, None]
    sizes = self.on_chip, self.launch, moved, self.count, bandwidth
    sums = _query(self.engine, *sizes)
    saved = (hit * self.count).sum(-1) * self.dram_byte
    return QueryCost(sums["cycles"], sums["dram_bytes"], self.energy_pj - saved)

  def change(
    self, old: np.ndarray, new: np.ndarray, bandwidth: Any = None
  ) -> ChangeCost:
    """The cost of reading what `new` has and `old` has not: arrays [...].

    Leaving slices out costs nothing, as weights are never written back.

    Args:
      old: Slices of each layer that are on chip, integers [..., L].
      new: Slices that are kept next, integers [..., L].
      bandwidth: Bytes per cycle off chip; the engine's by default.

    Raises:
      ValueError: If a layer has fewer slices, or a bandwidth is below 1.

    >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
    >>> model = nested_model(rows, "ws:8x8:dram_bw=2", "1:4,2:4,4:4")
    >>> int(model.change(np.array([1]), np.array([2])).cycles)
    1152
    """
    before, after = (self._prefix(_read_subgraph(self, x)) for x in (old, new))
    moved = np.maximum(after - before, 0).sum(-1)
    if bandwidth is None:
      bandwidth = self.engine.memory_bandwidth
    cycles = _transfer(self.engine, moved, bandwidth)["cycles"]
    return ChangeCost(cycles, moved, moved * self.dram_byte)

  def nanoseconds(self, cycles: Any) -> Any:
    """The duration of cycles in whole nanoseconds, rounded up, int64."""
    return np.int64(np.ceil(self.engine.nanoseconds(cycles)))

  def _prefix(self, depth: np.ndarray) -> np.ndarray:
    return self.weights[depth, np.arange(len(self.names))]


def nested_model(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  patterns: str | Sequence[str | NM],
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  dtype: str | None = None,
) -> NestedModel:
  """Puts every point of a nested model through an engine.

  The sparse layers of the table take each pattern, or all that have a weight if
  none is sparse. A layer of `count` products becomes as many layers, each with
  slices of its own. Its products alone are counted, not what lies beside them.

  A file with several points is in rank order, so that dense weights too need
  the ceil(log2 m) bits of their places, where the engine reads indices at all;
  one with a single point is as the plain engine reads it.

  Args:
    layers: A table of one query, or its rows.
    engine: A single design, or its spec.
    patterns: Points, "1:8,2:8,8:8" or a sequence; all of one m, n = m is dense.
    itemsize: Bytes per value; see `figs_jax.engine.cost`.
    energy: Picojoules per operation; see `figs_jax.engine.cost`.
    dtype: Data type of the operands; see `figs_jax.engine.cost`.

  Raises:
    ValueError: If the patterns are not ascending n of one m, the engine is not
      a single design, a denser point has fewer bytes, or as
      `figs_jax.engine.cost`.

  >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
  >>> nested_model(rows, "ws:8x8", "1:4,4:4").slices.tolist()
  [[2304], [6912]]
  >>> nested_model(rows, "ws:8x8", "4:4").slices.tolist()
  [[8192]]
  """
  points = read_points(patterns)
  engine, itemsize, energy = operands(parse(engine), itemsize, energy, dtype)
  table = _instances(Layers.of(layers))
  has_weight = weighted(table.names)
  sparse = (table.n < table.m) & has_weight
  chosen = sparse if sparse.any() else has_weight
  tables = [_at(table, point, chosen) for point in points]
  costs = [cost(each, engine, itemsize, energy) for each in tables]
  if costs[0].cycles.shape != (len(table),):
    raise ValueError(f"{engine}: expected a single design, got several")
  dense = np.stack([each.n == each.m for each in tables])
  indexed = (len(points) > 1) & chosen & (costs[0].metadata_bytes > 0)
  places = ceil_div(table.K * table.N * index_bits(1, points[-1].m), 8)
  more = places - np.stack([each.metadata_bytes for each in costs])
  more = np.where(dense & indexed, np.maximum(more, 0), 0)
  moved = np.stack([each.dram_bytes for each in costs]) + more
  gemms = [each.gemm for each in tables]
  others = [engine.activation_bytes(gemm, itemsize) for gemm in gemms]
  weights = np.zeros((len(points) + 1, len(table)), np.int64)
  weights[1:] = (moved - np.stack(others)) * has_weight
  if (np.diff(weights, axis=0) < 0).any():
    raise ValueError(
      f"{engine}: expected more bytes of weights at a denser point, got"
      f" {weights[1:].sum(1).tolist()} for {', '.join(map(str, points))}"
    )
  busy = engine.with_unlimited_memory()
  on_chip = [cost(each, busy, itemsize, energy) for each in tables]
  energies = [each.total("energy_pj") for each in costs]
  return NestedModel(
    points=tuple(map(str, points)),
    engine=engine,
    names=table.names,
    on_chip=np.stack([x.cycles - x.stall_dram - x.launch for x in on_chip]),
    launch=np.stack([x.launch for x in costs]),
    activations=moved - weights[1:],
    weights=weights,
    count=table.count,
    energy_pj=np.array(energies) + more.sum(1) * energy.dram_byte,
    dram_byte=energy.dram_byte,
  )


def read_points(patterns: str | Sequence[str | NM]) -> list[NM]:
  """The points of a nested model, the sparsest first.

  Args:
    patterns: Text such as "1:8,2:8,8:8", or a sequence of patterns.

  Raises:
    ValueError: If a pattern cannot be read, or they are not ascending n of one
      m.

  >>> read_points("1:8,2:8")
  [NM(n=1, m=8), NM(n=2, m=8)]
  """
  parts = patterns.split(",") if isinstance(patterns, str) else patterns
  points = [NM.parse(part) for part in parts]
  ns = [point.n for point in points]
  if len({x.m for x in points}) != 1 or ns != sorted({*ns}):
    raise ValueError(
      "patterns: expected ascending n of one m, as in '1:8,2:8,8:8', got"
      f" {','.join(map(str, points))!r}"
    )
  return points


def _instances(table: Layers) -> Layers:
  """The table with one row for each of several equal weights, without masks."""
  has_weight = weighted(table.names)
  times = np.where(has_weight, table.count, 1)
  if times.sum() > _MOST_ROWS:
    raise ValueError(
      f"layers: expected at most {_MOST_ROWS:,} weights, got"
      f" {int(times.sum()):,}; write a smaller count"
    )
  rows = np.repeat(np.arange(len(table)), times)
  columns = {x: getattr(table, x)[rows] for x in ("M", "N", "K", "n", "m")}
  return Layers(
    tuple(table.names[i] for i in rows),
    count=np.where(has_weight, 1, table.count)[rows],
    **columns,
  )


def weighted(names: Sequence[str]) -> np.ndarray:
  """Whether products have a weight, Bool [L].

  >>> weighted(["attn/q", "attn/qk"]).tolist()
  [True, False]
  """
  return np.array(
    [name.rsplit("/", 1)[-1] not in ACTIVATION_PRODUCTS for name in names]
  )


def _at(table: Layers, point: NM, chosen: np.ndarray) -> Layers:
  """The table with a point's pattern in the chosen layers."""
  n = np.where(chosen, point.n, table.n)
  m = np.where(chosen, point.m, table.m)
  return dataclasses.replace(table, n=n, m=m)


def _read_subgraph(model: NestedModel, cached: Any) -> np.ndarray:
  """A sub-graph as int64 [..., L].

  Raises:
    ValueError: If it has another number of layers, or a layer another number
      of slices than 0 to P.
  """
  depth = np.asarray(cached)
  layers, most = len(model.names), len(model.points)
  if depth.dtype.kind not in "iu" or depth.shape[-1:] != (layers,):
    raise ValueError(
      f"cached: expected integers of shape (..., {layers}), one per layer, got"
      f" {depth.dtype} of shape {depth.shape}"
    )
  if depth.size and not (depth.min() >= 0 and depth.max() <= most):
    raise ValueError(
      f"cached: expected from 0 to {most} slices of each layer, got"
      f" {depth.min()} to {depth.max()}"
    )
  return depth.astype(np.int64)


def _summed(engine, on_chip, launch, moved, count, bandwidth):
  busy = larger(on_chip, engine.memory_cycles(moved, bandwidth))  # (3)
  return {
    "cycles": ((busy + launch) * count).sum(-1),
    "dram_bytes": (moved * count).sum(-1),
  }


def _moved(engine, moved, bandwidth):
  return {"cycles": engine.memory_cycles(moved, bandwidth)}


_LIMITS = {"bandwidth": (1, 2**63 - 1)}
_query = exact(_summed, _LIMITS, least=0, elementwise=False)
_transfer = exact(_moved, _LIMITS, least=0)
