"""VEGETA in closed form (HPCA'23, arXiv 2302.08687).

K_c x M_c multipliers, in PEs of alpha PUs of beta MACs, hold weights with the
contraction down the rows. An S engine runs 1, 2 or 4 of every 4 weights, so
that K_c rows hold K_eff = K_c {4, 2, 1} of the contraction; a D engine runs
every layer dense. For a tile of T activation rows,

  WL   = K_c / beta                           loading its weights           (1)
  mode = K_c / beta + T + M_c / alpha + 1     first row in, last result out (2)
  WL + mode + 2                               alone, nothing overlapped     (3)

are the cycles that the authors' RTL reports. A GEMM is

  F = ceil(K / K_eff) ceil(N / M_c)                                         (4)

such folds for each tile of M, put through `figs_jax.engine.timing`. A last
block that K cuts takes the rows of a whole one, as tiles hold whole blocks; its
padding is neither read nor stored. Overlap "full" starts a tile every
II = max(WL, T) cycles, as if tiles never waited for each other. Those that add
to the same output do wait: with d outputs in turn,

  II = max(WL, T, mode / d)                                                 (5)

which is the paper's max(16, mode / d) at T = WL = 16. `interleave` is d; see
`_waits` for the exact sum.

With granularity "row", every output takes its own n:4 in every slice of 2 K_c
rows of the contraction, the least n of {1, 2, 4} that covers its blocks there.
Its n K_c / 2 values fill n / 2 columns, so that slice k of the outputs j takes

  F_k = ceil(sum_j n_kj / (2 M_c))                                          (8)

folds, F in all. This runs weights without any pattern: a dense engine's folds
over F tend to (7) for a random weight. A layer whose mask is not known, or that
takes no more folds under a single n:4, runs that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.area import Parts
from figs_jax.engine.blocks import (
  Masks,
  fit,
  index_bits,
  kept_depth,
  row_cover,
)
from figs_jax.engine.int64 import (
  array_dataclass,
  ceil_div,
  exact,
  is_traced,
  larger,
  smaller,
)
from figs_jax.engine.spec import (
  CLOCK,
  LIMITS,
  OVERLAPS,
  UNLIMITED,
  Engine,
  Gemm,
  indivisible,
  is_default,
  text_of,
  unboxed,
)
from figs_jax.engine.timing import Fold, bounded, bytes_of, schedule

_BLOCK = 4
# An SPMM tile: rows of A and columns of B, and the contraction at 4:4.
_TILE, _TILE_DEPTH = 16, 32
# Published speed-up of the dense tile: what the CPU's front end leaves.
DENSE_TILE_SPEEDUP = 1.09
GRANULARITIES = ("layer", "row")
_MOST_COVERS = 2**22  # designs x layers whose rows are covered at once


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class RowCover:
  """What a weight takes on an array whose rows have their own n:4.

  Attributes:
    slices: Slices of the contraction, each of which writes its sums.
    folds: Folds of the array for each tile of M, sum of (8).
    entered: Rows of the contraction that enter, summed over the folds.
    stored: Weights stored.
    index_bits: Bits of their places, and 2 bits for the n of each row.
    useful: Weights kept.
  """

  slices: Any
  folds: Any
  entered: Any
  stored: Any
  index_bits: Any
  useful: Any


class Vegeta(Engine):
  """VEGETA: PEs of alpha PUs of beta MACs each.

  An S engine runs n:m as its fullest block of 4 demands, 3 as 4, and stores
  that many of every 4 with 2 bits each. Its rows of PEs take 4 beta values per
  cycle whatever the pattern, so 4 K_c in all; a D engine takes K_c.

  Attributes:
    sparse: Whether it is an S engine, with a 4:1 multiplexer before each
      multiplier, or a dense D engine.
    alpha: PUs that share the inputs of a PE.
    beta: MACs that reduce into one output.
    rows: Multipliers along the contraction, K_c; rows / beta rows of PEs.
    cols: Multipliers along the outputs, M_c; cols / alpha columns of PEs.
    overlap: Work hidden behind the streaming of another tile, as in `Systolic`.
    granularity: "layer", one n:4 for a whole weight, or "row", one for each
      row of a tile (8); known masks then need no pattern.
    tile: Rows of activations that stream through a tile of weights.
    interleave: Output tiles worked on in turn, d, if overlap is "full"; a tile
      waits for the last sums of its output to leave. 0 forwards sums, so that
      no tile waits for another.
    bw_in: Values that may enter per cycle; a full S engine takes 4 rows.
    bw_out: Values that may leave per cycle; a full array gives cols.
    dram_bw: Bytes per cycle between chip and memory.
    clock: Clock in MHz.

  Raises:
    ValueError: If beta does not divide rows, alpha does not divide cols, a
      number is out of range, or granularity is "row" on a D engine, with odd
      rows or with `interleave`.

  >>> engine = Vegeta(True, 16, 2, overlap="full")
  >>> str(engine)
  'vegeta-s-16-2:overlap=full'
  >>> [int(engine.counts(Gemm(512, 64, 1024, n, 4))["cycles"]) for n in (4, 1)]
  [65572, 16420]
  """

  sparse: bool
  alpha: Any
  beta: Any
  rows: Any = 32
  cols: Any = 16
  overlap: str = "none"
  granularity: str = "layer"
  tile: Any = UNLIMITED
  interleave: Any = 0
  bw_in: Any = UNLIMITED
  bw_out: Any = UNLIMITED
  dram_bw: Any = UNLIMITED
  clock: Any = CLOCK

  KINDS = ("vegeta", "vegeta-")
  PREFIX = ("sparse", "alpha", "beta", "rows", "cols")
  CHOICES = {"overlap": OVERLAPS, "granularity": GRANULARITIES}
  FROM_ZERO = ("interleave",)
  BLOCK = _BLOCK

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    word = "vegeta-s-16-2" if kind == "vegeta" else kind
    match = re.fullmatch(r"vegeta-([ds])-(\d+)-(\d+)", word)
    if match is None:
      raise ValueError(
        "expected vegeta-d-ALPHA-BETA or vegeta-s-ALPHA-BETA, as in"
        f" 'vegeta-s-16-2', got {kind!r}"
      )
    letter, alpha, beta = match.groups()
    shape = {"sparse": letter == "s", "alpha": int(alpha), "beta": int(beta)}
    return shape | super().read_prefix(kind, size)

  def prefix(self) -> str:
    letter = "s" if self.sparse else "d"
    prefix = f"vegeta-{letter}-{text_of(self.alpha)}-{text_of(self.beta)}"
    is_preset = is_default(self.rows, 32) and is_default(self.cols, 16)
    return prefix if is_preset else f"{prefix}:{self.sides()}"

  def invalid(self) -> Iterator[tuple[Any, str]]:
    yield from indivisible(self, "rows", "beta")
    yield from indivisible(self, "cols", "alpha")
    if self.granularity == "row" and not is_traced(self.rows, self.interleave):
      why = (
        "granularity='row': expected an S engine, even rows and interleave=0"
      )
      odd = np.asarray(self.rows) % 2
      yield (
        (not self.sparse) | (odd > 0) | (np.asarray(self.interleave) > 0),
        why,
      )

  def occupancy(
    self, gemm: Gemm, masks: Masks | None = None, *, check: bool = True
  ) -> Any:
    """See `Engine.occupancy`; a `RowCover` if rows have patterns and masks."""
    run = super().occupancy(gemm, masks, check=check)
    if self.granularity == "layer" or masks is None:
      return run
    if is_traced(gemm.N, gemm.K, self.rows, self.cols):
      return run
    return _row_covers(gemm, run, self, masks)

  def occupied(
    self, gemm: Gemm, run: Any, itemsize: int | Fraction | None = None
  ) -> dict[str, Any]:
    if not isinstance(run, RowCover):
      return super().occupied(gemm, run, itemsize)
    size = self.itemsize if itemsize is None else itemsize
    return _exact_row_wise(gemm, self, run, itemsize=size)

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    M, N, K, rows, cols = gemm.M, gemm.N, gemm.K, self.rows, self.cols
    held = held_of(run, rows)
    depth = larger(rows, rows // held * _BLOCK)  # K_eff
    down, across = ceil_div(K, depth), ceil_div(N, cols)  # (4)
    stored = kept_depth(K, held, _BLOCK)
    metadata = ceil_div(stored * N * index_bits(held, _BLOCK), 8)
    dram_bytes = bytes_of(M * K + stored * N + M * N, itemsize) + metadata
    parts = bounded(_tiled(M, down, across, self), dram_bytes, self.dram_bw)
    # A mask may hold less than its pattern allows.
    kept = smaller(gemm.kept, kept_depth(K, _lanes(run), _BLOCK))
    # Ratios that cannot pass 1, so that rounding cannot lift their product.
    utilisation = kept / (down * rows) * (N / (across * cols))
    return parts | {
      "utilisation": utilisation * (down * across * M / parts["cycles"]),
      "ifmap_reads": across * M * K,
      "filter_reads": ceil_div(M, self.tile) * stored * N,
      "ofmap_writes": down * M * N,
      "metadata_bytes": metadata,
      "dram_bytes": dram_bytes,
    }

  @property
  def input_width(self) -> Any:
    wide = _BLOCK if self.sparse else 1
    return smaller(self.rows * wide, self.bw_in)

  def parts(self) -> Parts:
    """See `Engine.parts`.

    The alpha PUs of a PE share its input registers, beta values or 4 beta in an
    S engine, and the beta MACs of a PU share a sum. Before each multiplier of
    an S engine stands a 4:1 multiplexer, steered by 2 bits.

    >>> Vegeta(True, 16, 2).parts()[2:]
    (640, 256, 1536, 1024)
    """
    size = self.rows * self.cols
    held = 1 if self.overlap == "none" else 2
    wide = _BLOCK if self.sparse else 1
    inputs = self.rows * (self.cols // self.alpha) * wide
    sums = self.rows // self.beta * self.cols
    muxes = (wide - 1) * size
    bits = int(self.sparse) * 2 * held * size
    return Parts(size, size, held * size + inputs, sums, muxes, bits)

  def port_values(self, n: Any = 1, m: Any = 1) -> dict[str, Any]:
    """See `Engine.port_values`.

    The wires carry 4 values to each row of multipliers whatever the pattern;
    values that two or four rows share count once.
    """
    run = fit(n, m, _BLOCK) if self.sparse else _BLOCK
    rows = np.asarray(self.rows)
    inputs = np.maximum(rows, rows // held_of(run, rows) * _BLOCK)
    if self.granularity == "row":
      inputs = 2 * rows
    return {"inputs": inputs, "outputs": np.asarray(self.cols)}

  @property
  def stream_values(self) -> Any:
    """See `Engine.stream_values`; a row of an S engine takes 4 values."""
    ports = np.asarray(self.rows) * (_BLOCK if self.sparse else 1)
    return np.minimum(ports, self.bw_in)


def held_of(run: Any, rows: Any) -> Any:
  """Weights of each block that take rows: 1, 2, or 4, which is dense.

  A block that keeps 3 runs as 4. A single row cannot hold two weights of a
  block, so that it runs them dense.

  >>> [int(held_of(run, 32)) for run in (1, 2, 3, 4)], int(held_of(2, rows=1))
  ([1, 2, 4, 4], 4)
  """
  held = _lanes(run)
  fits = smaller(rows // held, 1)
  return fits * held + (1 - fits) * _BLOCK


def _lanes(run):
  return _BLOCK // (_BLOCK // larger(run, 1))


def _tiled(M, down, across, array):
  """The parts of the cycles of the whole tiles of M and of what remains."""
  load, hops = array.rows // array.beta, array.cols // array.alpha
  enter = ceil_div(array.rows * (_BLOCK if array.sparse else 1), array.bw_in)
  leave = ceil_div(array.cols, array.bw_out)

  def fold(T):  # WL + T + fill is (3)
    fill = load + hops + 3
    return Fold(T, load, fill, array.overlap, enter=enter, leave=leave)

  T = smaller(array.tile, M)
  tiles, rest = M // T, M % T
  folds = down * across
  whole = schedule(folds * tiles, fold(T))
  last = schedule(folds * smaller(rest, 1), fold(rest))
  # What `schedule` charges even without a fold, hence twice.
  once = schedule(0 * folds, fold(T))
  parts = {name: whole[name] + last[name] - once[name] for name in whole}
  if array.overlap == "full":
    interval = larger(enter, leave)
    d, short = array.interleave, smaller(rest, 1)
    waits = _waits(across * tiles, T * interval, load, hops, d)
    waits = waits + _waits(across * short, rest * interval, load, hops, d)
    parts["fill"] = parts["fill"] + (down - 1) * waits
  return parts


def _waits(outputs, stream, load, hops, interleave):
  """Cycles that one round over the output tiles waits for the round before it.

  The outputs are worked on in groups of d, each group through all of K before
  the next. A tile starts max(WL, stream) cycles after its predecessor, and not
  before the same output's last sums have left, mode (2) cycles after they
  started; a tile streams for T cycles if the ports keep up.
  """
  group = larger(smaller(interleave, outputs), 1)
  mode, step = load + stream + hops + 1, larger(load, stream)
  rest = outputs % group
  whole = outputs // group * larger(mode - group * step, 0)
  last = smaller(rest, 1) * larger(mode - rest * step, 0)
  return smaller(interleave, 1) * (whole + last)


def _layer_cover(gemm, run, rows, cols):
  """The cover of a weight that runs one n:4, as in `Vegeta.formula`."""
  N, K, n = gemm.N, gemm.K, held_of(run, rows)
  depth = larger(rows, rows // n * _BLOCK)
  down, across = ceil_div(K, depth), ceil_div(N, cols)
  stored = kept_depth(K, n, _BLOCK) * N
  kept = smaller(gemm.kept, kept_depth(K, _lanes(run), _BLOCK))
  bits = stored * index_bits(n, _BLOCK)
  return RowCover(down, down * across, across * K, stored, bits, kept * N)


def _row_covers(gemm, run, array, masks):
  """The covers of known masks, if they take fewer folds than the layer's."""
  size = np.empty(len(masks))
  fields = gemm.N, gemm.K, gemm.n, gemm.m, run, array.rows, array.cols
  N, K, n, m, run, rows, cols, _ = np.broadcast_arrays(*fields, size)
  if N.size > _MOST_COVERS:
    raise ValueError(
      f"granularity='row': real masks of {len(masks)} layers on"
      f" {N.size // len(masks):,} designs are too many; give at most"
      f" {_MOST_COVERS // len(masks):,} designs"
    )
  whole = _layer_cover(Gemm(1, N, K, n, m), run, rows, cols)
  names = [field.name for field in dataclasses.fields(RowCover)]
  columns = {x: np.array(getattr(whole, x), np.int64) for x in names}
  for layer, mask in enumerate(masks):
    if mask is None:
      continue
    for depth in np.unique(2 * rows[..., layer]).tolist():
      cover = row_cover(mask, depth)
      here = 2 * rows[..., layer] == depth
      wide = cols[..., layer][here]
      folds = ceil_div(cover.sum(1), 2 * wide[:, None])
      # The last slice and its last block may be cut short.
      lengths = np.minimum(depth, len(mask) - depth * np.arange(len(cover)))
      held = kept_depth(lengths[:, None], cover, _BLOCK)
      bits = 2 * (held * (cover < _BLOCK)).sum() + 2 * cover.size
      entered = (folds * lengths).sum(1)
      row = RowCover(
        len(cover), folds.sum(1), entered, held.sum(), bits, mask.sum()
      )
      fewer = row.folds < columns["folds"][..., layer][here]
      for name in names:
        column = columns[name][..., layer]
        column[here] = np.where(fewer, getattr(row, name), column[here])
  return RowCover(**columns)


def _row_wise(
  gemm: Gemm, array: Vegeta, cover: RowCover, *, itemsize: int | Fraction
) -> dict[str, Any]:
  """The counts of rows with patterns of their own."""
  M, N, K, folds = gemm.M, gemm.N, gemm.K, cover.folds
  metadata = ceil_div(cover.index_bits, 8)
  dram_bytes = bytes_of(M * K + cover.stored + M * N, itemsize) + metadata
  parts = bounded(_tiled(M, 1, folds, array), dram_bytes, array.dram_bw)
  # Ratios that cannot pass 1, so that rounding cannot lift their product.
  used = cover.useful / (folds * array.rows * array.cols)
  return parts | {
    "utilisation": used * (folds * M / parts["cycles"]),
    "macs": M * cover.useful,
    "ifmap_reads": cover.entered * M,
    "filter_reads": ceil_div(M, array.tile) * cover.stored,
    "ofmap_writes": cover.slices * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


_COVERED = dict.fromkeys(
  (field.name for field in dataclasses.fields(RowCover)), (0, 2**62)
)
_exact_row_wise = exact(_row_wise, LIMITS | Vegeta.limits() | _COVERED)


def tile_cycles(engine: Vegeta, T: ArrayLike = _TILE) -> dict[str, Any]:
  """Cycles of one tile of T activation rows, if its ports keep up.

  Returns:
    int64 `load`, `mode` and `alone`, (1) to (3); float64 `interval` (5), the
    cycles from tile to tile in a pipeline, max(WL, T) if `interleave` is 0.

  >>> cycles = tile_cycles(Vegeta(True, 2, 2, interleave=2))
  >>> [int(cycles[name]) for name in ("load", "mode", "alone")]
  [16, 41, 59]
  >>> float(cycles["interval"])
  20.5
  """
  return _exact_tile(T, engine)


def _tile_cycles(T: Any, array: Vegeta) -> dict[str, Any]:
  load = array.rows // array.beta
  mode = load + T + array.cols // array.alpha + 1
  outputs = larger(array.interleave, 1)
  bound = smaller(array.interleave, 1) / 1 * (mode / outputs)
  return {
    "load": load,
    "mode": mode,
    "alone": load + mode + 2,
    "interval": larger(larger(load, T) / 1, bound),
  }


_exact_tile = exact(_tile_cycles, {"T": LIMITS["M"]} | Vegeta.limits())


def covered_rows(density: Any, n: int, blocks: int = 16) -> Any:
  """Chance that no block of a random row holds more than n of its 4 weights.

  F(n) = (sum over i <= n of C(4, i) p^i (1 - p)^(4 - i))^blocks            (6)

  if each weight is kept with chance p = density. A row of VEGETA's tiles has 16
  blocks.

  >>> round(float(covered_rows(0.5, 1, blocks=1)), 4)  # (1 + 4) / 16
  0.3125
  """
  p = np.asarray(density, np.float64)
  ways = (1, 4, 6, 4, 1)
  return sum(
    ways[i] * p**i * (1 - p) ** (4 - i) for i in range(n + 1)
  ) ** blocks  # fmt: skip


def unstructured_speedup(density: Any, blocks: int = 16) -> Any:
  """Speed-up of a random unstructured weight, each row run as its own N:4.

  A row costs N / 4 of a dense one, N in {1, 2, 4} the least that covers all of
  its blocks. With F of (6) this gives

    1 / (F(1) / 4 + (F(2) - F(1)) / 2 + 1 - F(2))                           (7)

  which is 2.36 and 3.28 at densities .10 and .05 in the paper.

  Args:
    density: Chance of a weight to be kept.
    blocks: Blocks of 4 in the row of a tile.

  >>> unstructured_speedup(np.array([0.10, 0.05])).round(3).tolist()
  [2.364, 3.285]
  """
  one, two = covered_rows(density, 1, blocks), covered_rows(density, 2, blocks)
  return unboxed(1 / (one / 4 + (two - one) / 2 + 1 - two))


def spmm_lines(n: int, line: int = 64, itemsize: int = 2) -> int:
  """Cache lines that an SPMM tile of n:4 loads: A's values and metadata, and B.

  A is 16 x 32 values, B (32 * 4 / n) x 16; C stays in its register.

  >>> [spmm_lines(n) for n in (4, 2, 1)]
  [32, 50, 82]
  """
  values = _TILE * _TILE_DEPTH
  bits = int(index_bits(n, _BLOCK))
  columns = _TILE_DEPTH * _BLOCK // n * _TILE
  sizes = (values * itemsize, ceil_div(values * bits, 8), columns * itemsize)
  return sum(ceil_div(size, line) for size in sizes)


def spmm_speedup(
  n: int, dense: float = DENSE_TILE_SPEEDUP, clock: int = 4
) -> tuple[float, float]:
  """The bracket of an SPMM tile's speed-up over the paper's dense engine.

  The upper end is bound by compute, `dense` 4 / n. At the lower end the tile
  also loads its lines, one per CPU cycle, while it computes for 16 cycles of
  the engine. The published 1.09 (4:4) is the calibration `dense`; 2.20 (2:4) is
  predicted, as both ends agree; 3.74 (1:4) lies in the bracket and is not
  predicted.

  Args:
    n: Weights kept of every 4.
    dense: Measured speed-up at 4:4.
    clock: CPU cycles per cycle of the engine.

  >>> [tuple(round(x, 2) for x in spmm_speedup(n)) for n in (4, 2, 1)]
  [(1.09, 1.09), (2.18, 2.18), (3.4, 4.36)]
  """
  compute = dense * _BLOCK / n
  starved = max(1.0, spmm_lines(n) / (_TILE * clock))
  return compute / starved, compute
