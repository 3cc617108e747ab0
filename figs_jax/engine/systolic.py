"""Classical systolic arrays, exactly: R rows x C columns of multipliers.

The two sides hold two dimensions of a GEMM; the third is streamed, T steps of
it per fold:

  ws  K down, N across, T = M        WL = R cycles load the weights
  is  K down, M across, T = N        WL = R cycles load the inputs
  os  M down, N across, T = K        WL = 0

  F = ceil(down / R) ceil(across / C)                  folds
  cycles = F (WL + T + R + C - 2)                      overlap "none"
           WL + F (T + R + C - 2)                      "weights"
           WL + F max(T, WL) + R + C - 2               "full"

"full" charges a last load that no fold follows, so that for one short fold
(F = 1, T < WL) it exceeds "none".

With overlap "none" these are the cycles of SCALE-Sim v2 and v3 (which report
one less), and so are the on-chip accesses, but for its os outputs, to which it
adds F (R + C). An N:M weight is compressed layer-wise, K becoming
ceil(K / m) n. That agrees with SCALE-Sim v3 for ws; for is and os it is the
same formula, with nothing to compare it to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.exact import ceil_div, exact, is_traced, larger, smaller
from figs_jax.engine.spec import MAX_SIDE, Systolic
from figs_jax.engine.storage import index_bits, kept_depth
from figs_jax.engine.workload import LIMITS


def counts(
  M: ArrayLike,
  N: ArrayLike,
  K: ArrayLike,
  engine: Systolic,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  itemsize: int = 2,
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

  Returns:
    int64: `cycles`; `ifmap_reads`, `filter_reads` and `ofmap_writes`, in words
    moved on chip; `metadata_bits`; `dram_bytes`, every operand moved once.
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
  if not is_traced(n, m) and np.any(np.asarray(n) > np.asarray(m)):
    raise ValueError(f"pattern n={n}, m={m}: keep n of every m with n <= m")
  return _exact_counts(
    *(M, N, K, n, m, engine.rows, engine.cols),
    dataflow=engine.dataflow,
    overlap=engine.overlap,
    sparse=engine.sparse,
    itemsize=itemsize,
  )


def _counts(M, N, K, n, m, rows, cols, *, dataflow, overlap, sparse, itemsize):
  kept = kept_depth(K, n, m)
  depth = stored = read = K
  if sparse:
    # Never above K, as ceil(K / m) n can be where m does not divide K.
    depth, stored = smaller(K, ceil_div(K, m) * n), kept
    # As SCALE-Sim counts: kept m / n activations, rounded up in a last part.
    read = K // m * m + ceil_div(smaller(K % m, n) * m, n)
  down, across, T = _mapped(dataflow, M, N, depth)
  down_folds, across_folds = ceil_div(down, rows), ceil_div(across, cols)
  folds = down_folds * across_folds
  cycles = _cycles(folds, T, rows, cols, dataflow, overlap)
  metadata_bits = int(sparse) * stored * N * index_bits(n, m)
  # Ratios that cannot pass 1, so that rounding cannot lift their product.
  used_down, used_across, used_T = _mapped(dataflow, M, N, stored)
  mapping = (
    used_down / (down_folds * rows) * (used_across / (across_folds * cols))
  )
  return {
    "cycles": cycles,
    "mapping_efficiency": mapping,
    # M N kept / (cycles R C)
    "utilisation": mapping * (kept / stored) * (folds * used_T / cycles),
    # An operand is read again for each fold of the side that lacks it.
    "ifmap_reads": (1 if dataflow == "is" else across_folds) * M * read,
    "filter_reads": {"ws": 1, "is": across_folds, "os": down_folds}[dataflow]
    * (stored * N),
    "ofmap_writes": (1 if dataflow == "os" else down_folds) * M * N,
    "metadata_bits": metadata_bits,
    "dram_bytes": itemsize * (M * K + stored * N + M * N)
    + ceil_div(metadata_bits, 8),
  }


def _mapped(dataflow, M, N, K):
  """What lies down the rows, what across the columns, and the stream."""
  return {"ws": (K, N, M), "is": (K, M, N), "os": (M, N, K)}[dataflow]


def _cycles(folds, T, rows, cols, dataflow, overlap):
  load = 0 if dataflow == "os" else rows
  fill = rows + cols - 2
  if overlap == "none":
    return folds * (load + T + fill)
  if overlap == "weights":
    return load + folds * (T + fill)
  return load + folds * larger(T, load) + fill


_exact_counts = exact(_counts, LIMITS | {"rows": MAX_SIDE, "cols": MAX_SIDE})
