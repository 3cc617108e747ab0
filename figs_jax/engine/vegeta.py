"""VEGETA in closed form (HPCA'23, arXiv 2302.08687).

K_c x M_c multipliers in PEs of alpha PUs of beta MACs; blocks of 4, of which an
S engine runs 1, 2 or 4, so that K_c multipliers hold K_c 4 / n rows of weights:

  F    = ceil(K / (K_c 4 / n)) ceil(N / M_c)
  WL   = K_c / beta
  mode = K_c / beta + T + M_c / alpha + 1
  one tile = WL + mode + 2
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.exact import ceil_div, exact
from figs_jax.engine.occupancy import Masks, fit
from figs_jax.engine.schedule import bounded, schedule
from figs_jax.engine.spec import VEGETA_BLOCK, Vegeta, limits_of
from figs_jax.engine.storage import index_bits, kept_depth
from figs_jax.engine.workload import LIMITS


def counts(
  M: ArrayLike,
  N: ArrayLike,
  K: ArrayLike,
  engine: Vegeta,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`."""
  run = fit(n, m, VEGETA_BLOCK, masks) if engine.sparse else VEGETA_BLOCK
  run = np.where(np.asarray(run) == 3, 4, run)
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
  depth = rows * (VEGETA_BLOCK // run)
  folds = ceil_div(K, depth) * ceil_div(N, cols)
  stored = kept_depth(K, n, m) if sparse else K
  metadata = int(sparse) * ceil_div(stored * N * index_bits(n, m), 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  load = rows // beta
  parts = schedule(
    *(folds, M, load, load + cols // alpha + 3, overlap),
    ports_in=ceil_div(rows * (VEGETA_BLOCK if sparse else 1), bw_in),
    ports_out=ceil_div(cols, bw_out),
  )
  parts = bounded(parts, dram_bytes, dram_bw)
  macs = M * N * kept_depth(K, n, m)
  return parts | {
    "utilisation": macs / (parts["cycles"] * (rows * cols)),
    "ifmap_reads": ceil_div(N, cols) * M * K,
    "filter_reads": stored * N,
    "ofmap_writes": ceil_div(K, depth) * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


_exact_counts = exact(
  _counts, LIMITS | limits_of(Vegeta) | {"run": LIMITS["n"]}
)
