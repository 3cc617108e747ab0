"""The FIGS array in closed form: swap registers, blocks, packed outputs.

R rows of swap registers hold the contraction in blocks of B rows; C columns of
PEs of beta MACs take one value per row per cycle. Of every block an output
keeps n, so that s = floor(B / n) outputs share a slot:

  F    = ceil(K / R) ceil(N / (C beta s))             R rounded down to B
  WL   = ceil(R / w)
  fill = 1 + (R / B - 1) + (C - 1)(1 + sigma)
  II   = max(1, kappa, ceil(R / bw_in), ceil(C beta s / bw_out))

put through `figs_jax.engine.schedule`. kappa is 1 where multiplexers exchange
and the largest multiplicity of an index in a block where registers swap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.exact import ceil_div, exact, smaller
from figs_jax.engine.occupancy import Masks, fit
from figs_jax.engine.schedule import bounded, schedule
from figs_jax.engine.spec import Figs, limits_of
from figs_jax.engine.storage import index_bits, kept_depth
from figs_jax.engine.workload import LIMITS


def counts(
  M: ArrayLike,
  N: ArrayLike,
  K: ArrayLike,
  engine: Figs,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`."""
  n, m = np.asarray(n), np.asarray(m)
  own = np.where(n == m, 1, np.minimum(m, np.asarray(engine.alpha) + 1))
  block = np.where(np.asarray(engine.block) == 0, own, engine.block)
  run = fit(n, m, block, masks)
  return _exact_counts(
    *(M, N, K, n, m, run, block, *engine.leaves),
    exchange=engine.exchange,
    overlap=engine.overlap,
    itemsize=itemsize,
  )


def _counts(
  M, N, K, n, m, run, size, rows, cols, alpha, beta, block, mask_group, sigma,
  load, bw_in, bw_out, dram_bw, *, exchange, overlap, itemsize,
):  # fmt: skip
  packed = size // run
  used = rows // size * size
  slots = cols * beta * packed
  folds = ceil_div(K, used) * ceil_div(N, slots)
  stored = kept_depth(K, n, m)
  metadata = ceil_div(stored * N * index_bits(n, m), 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  parts = schedule(
    *(folds, M, ceil_div(used, load)),
    used // size + (cols - 1) * (1 + sigma),
    overlap,
    exchange=packed if exchange == "swap" else 1,
    ports_in=ceil_div(used, bw_in),
    ports_out=ceil_div(slots, bw_out),
  )
  parts = bounded(parts, dram_bytes, dram_bw)
  macs = M * N * stored
  return parts | {
    "utilisation": macs / (parts["cycles"] * (rows * cols * beta)),
    "ifmap_reads": ceil_div(N, slots) * M * K,
    "filter_reads": smaller(stored, stored) * N,
    "ofmap_writes": ceil_div(K, used) * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


_exact_counts = exact(
  _counts,
  LIMITS | limits_of(Figs) | {"run": LIMITS["n"], "size": LIMITS["m"]},
)
