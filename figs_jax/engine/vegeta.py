"""VEGETA in closed form (HPCA'23, arXiv 2302.08687).

K_c x M_c multipliers, in PEs of alpha PUs of beta MACs, hold weights with the
contraction down the rows. An S engine runs 1, 2 or 4 of every 4 weights, so
that K_c rows hold K_eff = K_c {4, 2, 1} of the contraction; a D engine runs
every layer dense. Of a tile of T activation rows,

  WL   = K_c / beta                           loading its weights
  mode = K_c / beta + T + M_c / alpha + 1     first row in to last result out
  WL + mode + 2                               alone, nothing overlapped

are the cycles that the authors' RTL reports. A GEMM is

  F = ceil(K / K_eff) ceil(N / M_c)

such folds for each tile of M, put through `figs_jax.engine.timing`. Its
"full" starts a tile every II = max(WL, T) cycles, as if tiles never waited for
each other. Those that add to the same output do: with d outputs worked on in
turn, II = max(WL, T, mode / d), which is the paper's max(16, mode / d) at
T = WL = 16. `interleave` is d; see `_waits` for the exact sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.blocks import Masks, fit
from figs_jax.engine.description import limits_of
from figs_jax.engine.flops import (
  check_itemsize,
  check_pattern,
  index_bits,
  kept_depth,
)
from figs_jax.engine.int64 import Size, ceil_div, exact, larger, smaller
from figs_jax.engine.layers import LIMITS
from figs_jax.engine.spec import VEGETA_BLOCK, Vegeta
from figs_jax.engine.timing import bounded, schedule

# Of an SPMM tile: rows of A and columns of B, and the contraction at 4:4.
_TILE, _TILE_DEPTH = 16, 32
# The dense tile's speed-up, published: what the CPU's front end leaves.
DENSE_TILE_SPEEDUP = 1.09


def counts(
  M: Size,
  N: Size,
  K: Size,
  engine: Vegeta,
  n: Size = 1,
  m: Size = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`.

  An S engine runs n:m as the fullest block of 4 demands, 3 as 4, and stores
  that many of every 4 with 2 bits each. Its rows of PEs take 4 beta values per
  cycle whatever the pattern, so 4 K_c in all; a D engine takes K_c.

  Raises:
    ValueError: as `systolic.counts`, or neither 4 divides m nor m divides 4 (S
      engines).

  >>> engine = Vegeta(True, 16, 2, overlap="full")
  >>> [int(counts(512, 64, 1024, engine, n, 4)["cycles"]) for n in (4, 2, 1)]
  [65572, 32804, 16420]
  """
  check_pattern(n, m)
  check_itemsize(itemsize)
  run = fit(n, m, VEGETA_BLOCK, masks) if engine.sparse else VEGETA_BLOCK
  return _exact_counts(
    *(M, N, K, n, m, run, *engine.leaves),
    sparse=engine.sparse,
    overlap=engine.overlap,
    itemsize=itemsize,
  )


def _counts(
  M, N, K, n, m, run, alpha, beta, rows, cols, tile, interleave, bw_in, bw_out,
  dram_bw, *, sparse, overlap, itemsize,
):  # fmt: skip
  held = held_of(run, rows)
  depth = larger(rows, rows // held * VEGETA_BLOCK)
  down, across = ceil_div(K, depth), ceil_div(N, cols)
  stored = kept_depth(K, held, VEGETA_BLOCK)
  bits = index_bits(held, VEGETA_BLOCK)
  metadata = ceil_div(stored * N * bits, 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  enter = ceil_div(rows * (VEGETA_BLOCK if sparse else 1), bw_in)
  leave = ceil_div(cols, bw_out)
  parts = _tiled(
    *(M, down, across, tile, interleave),
    *(rows // beta, cols // alpha, overlap, enter, leave),
  )
  parts = bounded(parts, dram_bytes, dram_bw)
  # A mask may hold less than its pattern allows.
  kept = smaller(kept_depth(K, n, m), kept_depth(K, _lanes(run), VEGETA_BLOCK))
  # Ratios that cannot pass 1, so that rounding cannot lift their product.
  utilisation = kept / (down * rows) * (N / (across * cols))
  return parts | {
    "utilisation": utilisation * (down * across * M / parts["cycles"]),
    "ifmap_reads": across * M * K,
    "filter_reads": ceil_div(M, tile) * stored * N,
    "ofmap_writes": down * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def held_of(run: Any, rows: Any) -> Any:
  """How many weights of each block of 4 take rows: 1, 2, or 4, which is dense.

  A single row has no place for a block's two, so that it runs them dense.

  Args:
    run: the most that a block keeps; 3 run as 4, and 0 as 1.
    rows: K_c.

  >>> [int(held_of(run, 32)) for run in (0, 1, 2, 3, 4)]
  [1, 1, 2, 4, 4]
  >>> int(held_of(2, 1))
  4
  """
  held = _lanes(run)
  fits = smaller(rows // held, 1)
  return fits * held + (1 - fits) * VEGETA_BLOCK


def _lanes(run):
  return VEGETA_BLOCK // (VEGETA_BLOCK // larger(run, 1))


def _tiled(
  M, down, across, tile, interleave, load, hops, overlap, enter, leave
):
  """The parts of the cycles of the whole tiles of M and of what remains."""
  T = smaller(tile, M)
  tiles, rest = M // T, M % T
  fill = load + hops + 3
  ports = {"ports_in": enter, "ports_out": leave}
  folds = down * across
  whole = schedule(folds * tiles, T, load, fill, overlap, **ports)
  last = schedule(folds * smaller(rest, 1), rest, load, fill, overlap, **ports)
  # What a schedule charges even without a fold, hence twice.
  once = schedule(0 * folds, T, load, fill, overlap, **ports)
  parts = {name: whole[name] + last[name] - once[name] for name in whole}
  if overlap == "full":
    interval = larger(enter, leave)
    waits = _waits(across * tiles, T * interval, load, hops, interleave)
    waits = waits + _waits(
      across * smaller(rest, 1), rest * interval, load, hops, interleave
    )
    parts["fill"] = parts["fill"] + (down - 1) * waits
  return parts


def _waits(outputs, stream, load, hops, interleave):
  """Cycles that one round over the outputs waits for the round before it.

  The outputs are worked on in groups of d, each group through all of K before
  the next. A tile starts max(WL, stream) cycles after its predecessor, and not
  before the same output's last sums have left, mode cycles after they started.

  Args:
    outputs: output tiles of this length.
    stream: cycles in which a tile streams, T if the ports keep up.
    load: WL.
    hops: M_c / alpha.
    interleave: d; 0 where sums are forwarded and nothing waits.
  """
  group = larger(smaller(interleave, outputs), 1)
  mode, step = load + stream + hops + 1, larger(load, stream)
  rest = outputs % group
  whole = outputs // group * larger(mode - group * step, 0)
  last = smaller(rest, 1) * larger(mode - rest * step, 0)
  return smaller(interleave, 1) * (whole + last)


_exact_counts = exact(
  _counts, LIMITS | limits_of(Vegeta) | {"run": (0, VEGETA_BLOCK)}
)


def tile_cycles(engine: Vegeta, T: ArrayLike = _TILE) -> dict[str, Any]:
  """Cycles of one tile of T activation rows, where its ports keep up.

  Returns:
    int64 `load` (WL), `mode`, and `alone` = WL + mode + 2; float64 `interval`,
    the II of tiles in a pipeline: max(WL, T), and with d = `interleave` outputs
    in turn max(WL, T, mode / d).

  >>> found = tile_cycles(Vegeta(True, 2, 2, interleave=2))
  >>> [int(found[name]) for name in ("load", "mode", "alone")]
  [16, 41, 59]
  >>> float(found["interval"])
  20.5
  """
  names = ("alpha", "beta", "rows", "cols", "interleave")
  return _exact_tile(T, *(getattr(engine, name) for name in names))


def _tile_cycles(T, alpha, beta, rows, cols, interleave):
  load = rows // beta
  mode = load + T + cols // alpha + 1
  outputs = larger(interleave, 1)
  bound = smaller(interleave, 1) / 1 * (mode / outputs)
  return {
    "load": load,
    "mode": mode,
    "alone": load + mode + 2,
    "interval": larger(larger(load, T) / 1, bound),
  }


_exact_tile = exact(_tile_cycles, {"T": LIMITS["M"]} | limits_of(Vegeta))


def covered_rows(density: Any, n: int, blocks: int = 16) -> Any:
  """Chance that no block of a random row holds more than n of its 4 weights.

  F(n) = (sum over i <= n of C(4, i) p^i (1 - p)^(4 - i))^blocks

  Args:
    density: p, the chance of a weight to be kept, independently.
    n: kept of every 4.
    blocks: blocks of 4 in the row of a tile; VEGETA's tiles are 64 wide.

  >>> float(covered_rows(0.5, 4))
  1.0
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
  its blocks:

    1 / (F(1) / 4 + (F(2) - F(1)) / 2 + 1 - F(2))

  which is 2.36 and 3.28 at densities .10 and .05 in the paper.

  Args:
    density: as in `covered_rows`.
    blocks: as in `covered_rows`.

  >>> unstructured_speedup(np.array([0.10, 0.05])).round(3).tolist()
  [2.364, 3.285]
  """
  one, two = covered_rows(density, 1, blocks), covered_rows(density, 2, blocks)
  return 1 / (one / 4 + (two - one) / 2 + 1 - two)


def spmm_lines(n: int, line: int = 64, itemsize: int = 2) -> int:
  """Cache lines that an SPMM tile loads: A's values and metadata, and B.

  A is 16 x 32 values of n:4, B (32 * 4 / n) x 16; C stays in its register.

  Args:
    n: 1, 2 or 4 of every 4.
    line: bytes of a cache line.
    itemsize: bytes per value.

  >>> [spmm_lines(n) for n in (4, 2, 1)]
  [32, 50, 82]
  """
  values = _TILE * _TILE_DEPTH
  bits = int(index_bits(n, VEGETA_BLOCK))
  columns = _TILE_DEPTH * VEGETA_BLOCK // n * _TILE
  sizes = (values * itemsize, ceil_div(values * bits, 8), columns * itemsize)
  return sum(ceil_div(size, line) for size in sizes)


def spmm_speedup(
  n: int, dense: float = DENSE_TILE_SPEEDUP, clock: int = 4
) -> tuple[float, float]:
  """The bracket of an SPMM tile's speed-up over the paper's dense engine.

  The upper end is bound by compute, `dense` 4 / n. The lower one also loads one
  line per CPU cycle, and no faster than that: a tile computes for 16 cycles of
  the engine. The published 1.09 (4:4) is the calibration `dense`; 2.20 (2:4) is
  predicted, as both ends agree; 3.74 (1:4) lies in the bracket and is not
  predicted.

  Args:
    n: 1, 2 or 4 of every 4.
    dense: the measured speed-up at 4:4.
    clock: CPU cycles per cycle of the engine.

  >>> [tuple(round(x, 2) for x in spmm_speedup(n)) for n in (4, 2, 1)]
  [(1.09, 1.09), (2.18, 2.18), (3.4, 4.36)]
  """
  compute = dense * VEGETA_BLOCK / n
  starved = max(1.0, spmm_lines(n) / (_TILE * clock))
  return compute / starved, compute
