"""Processors known by peak and memory alone; cycles are nanoseconds.

  t = overhead + max(2 M K N / peak, bytes / bandwidth)

A FLOP per nanosecond is a GFLOP/s and a byte per nanosecond a GB/s, so that the
formulas stay whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.exact import ceil_div, exact
from figs_jax.engine.occupancy import Masks, fit
from figs_jax.engine.schedule import bounded
from figs_jax.engine.spec import Csr, Roofline, limits_of
from figs_jax.engine.storage import kept_depth
from figs_jax.engine.workload import LIMITS

_BLOCK = 4


def counts(
  M: ArrayLike,
  N: ArrayLike,
  K: ArrayLike,
  engine: Roofline,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`."""
  run = fit(n, m, _BLOCK, masks) if engine.sparse else _BLOCK
  twice = np.where(np.asarray(run) <= 2, 2, 1)
  return _exact_counts(
    *(M, N, K, n, m, twice, *engine.leaves), itemsize=itemsize
  )


def _counts(
  M, N, K, n, m, twice, peak, hbm, side, overhead, sparse_overhead, *, itemsize
):
  padded = [ceil_div(size, side) * side for size in (M, N, K)]
  flops = 2 * padded[0] * padded[1] * padded[2]
  stored = ceil_div(K, twice)
  metadata = (twice - 1) * ceil_div(stored * N, 4)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  zero = 0 * M
  parts = {
    "compute": ceil_div(flops, peak * twice),
    "fill": zero,
    "stall_weights": zero,
    "stall_exchange": zero,
    "stall_in": zero,
    "stall_out": zero,
  }
  parts = bounded(parts, dram_bytes, hbm)
  call = overhead + (twice - 1) * sparse_overhead
  parts |= {"fill": call, "cycles": parts["cycles"] + call}
  macs = 2 * M * N * kept_depth(K, n, m)
  return parts | {
    "utilisation": macs / (parts["cycles"] * peak * twice),
    "ifmap_reads": zero,
    "filter_reads": zero,
    "ofmap_writes": zero,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def csr_counts(
  M: ArrayLike,
  N: ArrayLike,
  K: ArrayLike,
  engine: Csr,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs in CSR; see `figs_jax.engine.systolic.counts`."""
  return _csr_exact(M, N, K, n, m, *engine.leaves, reuse=engine.reuse)


def _csr_counts(
  M, N, K, n, m, peak, hbm, value_bytes, index_bytes, pointer_bytes, *, reuse
):
  kept = kept_depth(K, n, m)
  matrix = N * ((value_bytes + index_bytes) * kept + pointer_bytes)
  dram_bytes = (1 if reuse else M) * matrix + M * N * value_bytes * (kept + 1)
  zero = 0 * M
  parts = {
    "compute": ceil_div(2 * M * N * kept, peak),
    "fill": zero,
    "stall_weights": zero,
    "stall_exchange": zero,
    "stall_in": zero,
    "stall_out": zero,
  }
  parts = bounded(parts, dram_bytes, hbm)
  return parts | {
    "utilisation": 2 * M * N * kept / (parts["cycles"] * peak),
    "ifmap_reads": zero,
    "filter_reads": zero,
    "ofmap_writes": zero,
    "metadata_bytes": N * (index_bytes * kept + pointer_bytes),
    "dram_bytes": dram_bytes,
  }


_exact_counts = exact(_counts, LIMITS | limits_of(Roofline) | {"twice": (1, 2)})
_csr_exact = exact(_csr_counts, LIMITS | limits_of(Csr))
