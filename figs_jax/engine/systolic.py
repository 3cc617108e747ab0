"""Classical systolic arrays, exactly: R rows x C columns of multipliers.

The two sides hold two dimensions of a GEMM; the third is streamed, T steps of
it per fold:

  ws  K down, N across, T = M        WL = R cycles load the weights
  is  K down, M across, T = N        WL = R cycles load the inputs
  os  M down, N across, T = K        WL = 0

  F = ceil(down / R) ceil(across / C), fill = R + C - 2

folds, put through `figs_jax.engine.timing`: F (WL + T + R + C - 2) cycles
where nothing overlaps. A vector that enters takes R values ("os": R + C); one
that leaves, C. The R C sums of an "os" fold leave a row at a time.

With overlap "none" these are the cycles of SCALE-Sim v2 and v3 (which report
one less), and so are the on-chip accesses, but for its os outputs, to which it
adds F (R + C). An N:M weight is compressed layer-wise, K becoming
ceil(K / m) n. That agrees with SCALE-Sim v3 for ws; for is and os it is the
same formula, with nothing to compare it to.
"""

from __future__ import annotations

from typing import Any

from figs_jax.engine.blocks import Masks
from figs_jax.engine.description import limits_of
from figs_jax.engine.flops import (
  check_itemsize,
  check_pattern,
  index_bits,
  kept_depth,
)
from figs_jax.engine.int64 import Size, ceil_div, exact, smaller
from figs_jax.engine.layers import LIMITS
from figs_jax.engine.spec import Systolic
from figs_jax.engine.timing import bounded, schedule


def counts(
  M: Size,
  N: Size,
  K: Size,
  engine: Systolic,
  n: Size = 1,
  m: Size = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; sizes, patterns and the engine's sides broadcast.

  Args:
    M: rows of the activations.
    N: columns of the weight.
    K: the contraction.
    engine: the array.
    n: weights kept of every m along K; n = m is dense.
    m: group length.
    itemsize: bytes per value, of every operand off chip.
    masks: the layers' real masks; an array that compresses whole groups needs
      none of them.

  Returns:
    int64: `cycles` and the parts of `schedule.PARTS`, which add up to them;
    `ifmap_reads`, `filter_reads` and `ofmap_writes`, in words moved on chip;
    `metadata_bytes`; `dram_bytes`, every operand moved once.
    float64: `mapping_efficiency`, the share of multipliers that a fold
    occupies, averaged over the folds; `utilisation`, MACs / (cycles R C), where
    only the MACs of kept weights count. Concrete sizes give NumPy arrays.

  Raises:
    ValueError: a size below 1, n > m, or a result past int64. Values under
      jit are not known and go unchecked.

  >>> array = Systolic("ws", 32, 32)
  >>> int(counts(64, 64, 64, array)["cycles"])
  632
  >>> int(counts(64, 64, 64, array, n=2, m=4)["cycles"])
  316
  """
  check_pattern(n, m)
  check_itemsize(itemsize)
  return _exact_counts(
    *(M, N, K, n, m, *engine.leaves),
    dataflow=engine.dataflow,
    overlap=engine.overlap,
    sparse=engine.sparse,
    itemsize=itemsize,
  )


def _counts(
  M, N, K, n, m, rows, cols, bw_in, bw_out, dram_bw,
  *, dataflow, overlap, sparse, itemsize,
):  # fmt: skip
  kept = kept_depth(K, n, m)
  depth, stored, read = K, K, K
  if sparse:
    # Never above K, as ceil(K / m) n can be where m does not divide K.
    depth, stored = smaller(K, ceil_div(K, m) * n), kept
    # As SCALE-Sim counts: kept m / n activations, rounded up in a last part.
    read = K // m * m + ceil_div(smaller(K % m, n) * m, n)
  down, across, T = _mapped(dataflow, M, N, depth)
  down_folds, across_folds = ceil_div(down, rows), ceil_div(across, cols)
  folds = down_folds * across_folds
  metadata = ceil_div(int(sparse) * stored * N * index_bits(n, m), 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  parts = bounded(
    _parts(folds, T, rows, cols, bw_in, bw_out, dataflow, overlap),
    dram_bytes,
    dram_bw,
  )
  # Ratios that cannot pass 1, so that rounding cannot lift their product.
  used_down, used_across, used_T = _mapped(dataflow, M, N, stored)
  mapping = (
    used_down / (down_folds * rows) * (used_across / (across_folds * cols))
  )
  return parts | {
    "mapping_efficiency": mapping,
    # M N kept / (cycles R C)
    "utilisation": mapping
    * (kept / stored)
    * (folds * used_T / parts["cycles"]),
    # An operand is read again for each fold of the side that lacks it.
    "ifmap_reads": (1 if dataflow == "is" else across_folds) * M * read,
    "filter_reads": {"ws": 1, "is": across_folds, "os": down_folds}[dataflow]
    * (stored * N),
    "ofmap_writes": (1 if dataflow == "os" else down_folds) * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def _mapped(dataflow, M, N, K):
  """What lies down the rows, what across the columns, and the stream."""
  return {"ws": (K, N, M), "is": (K, M, N), "os": (M, N, K)}[dataflow]


def _parts(folds, T, rows, cols, bw_in, bw_out, dataflow, overlap):
  fill = rows + cols - 2
  leave = ceil_div(cols, bw_out)
  if dataflow != "os":
    enter = ceil_div(rows, bw_in)
    return schedule(
      folds, T, rows, fill, overlap, ports_in=enter, ports_out=leave
    )
  enter = ceil_div(rows + cols, bw_in)
  parts = schedule(folds, T, 0, fill, overlap, ports_in=enter)
  # `fill` holds one cycle for each row of sums; the rest is waiting.
  return parts | {"stall_out": folds * rows * (leave - 1)}


_exact_counts = exact(_counts, LIMITS | limits_of(Systolic))
