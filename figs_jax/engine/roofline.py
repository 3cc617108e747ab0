"""Processors known by peak and memory alone; cycles are nanoseconds.

  t = overhead + max(2 M N K / peak, bytes / bandwidth)

with M, N and K padded to the side of the matrix unit and every operand moved
once. Most calls take longer, for all that a kernel loses. It is a model and no
strict bound: a kernel may pad less, or find an operand in a cache. A FLOP per
nanosecond is a GFLOP/s and a byte per nanosecond a GB/s, so that the formulas
stay whole numbers.

Tensor cores multiply 2 of every 4 weights, twice the dense rate, and read
those and their indices, 2 bits each. What a call of a sparse operand costs on
top, `sparse_overhead`, is calibrated (see `calibrated_overhead`). No TPU runs
N:M weights: on "tpu" and "gpu" a sparse layer runs dense.
"""

from __future__ import annotations

import dataclasses
from typing import Any

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
from figs_jax.engine.spec import Csr, Roofline
from figs_jax.engine.timing import bounded

_KEPT, BLOCK = 2, 4  # of tensor cores


def counts(
  M: Size,
  N: Size,
  K: Size,
  engine: Roofline,
  n: Size = 1,
  m: Size = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`.

  A layer is sparse to the engine if no block of 4 keeps more than 2. Operands
  of one byte run at `int8` times the peak, all others at the peak itself.
  Nothing is said of on-chip accesses, which are 0.

  Returns:
    As `systolic.counts`, in nanoseconds, and int64 `flops`: those that run,
    padding included.

  Raises:
    ValueError: as `systolic.counts`, or neither 4 divides m nor m divides 4
      (engines with sparse tensor cores).

  >>> from figs_jax.engine.spec_text import parse
  >>> bound = parse("tensorcore:h200:sparse_overhead=0")
  >>> [int(counts(8192, 8192, 8192, bound, n, 4)["cycles"]) for n in (4, 2)]
  [1111741, 555871]
  """
  check_pattern(n, m)
  check_itemsize(itemsize)
  run = fit(n, m, BLOCK, masks) if engine.sparse else BLOCK
  return _exact_counts(
    *(M, N, K, n, m, run, *engine.leaves),
    fallback=engine.fallback,
    itemsize=itemsize,
  )


def _counts(
  M, N, K, n, m, run, peak, hbm, side, int8, overhead, sparse_overhead,
  *, fallback, itemsize,
):  # fmt: skip
  rate = peak * int8 if itemsize == 1 else peak
  machine = (rate, hbm, side, overhead, sparse_overhead)
  # 1 where no block keeps more than 2 of its 4, 0 elsewhere.
  sparse = smaller(larger(_KEPT + 1 - run, 0), 1)
  if fallback:
    dense, fast = (
      _call(M, N, K, which, *machine, itemsize=itemsize)["cycles"]
      for which in (0, 1)
    )
    sparse = sparse * smaller(larger(dense - fast, 0), 1)
  found = _call(M, N, K, sparse, *machine, itemsize=itemsize)
  depth = found.pop("depth")
  kept = smaller(kept_depth(K, n, m), depth)
  # Ratios that cannot pass 1; the fourth could by rounding alone.
  useful = M / (ceil_div(M, side) * side) * (N / (ceil_div(N, side) * side))
  busy = smaller(found["flops"] / found["compute"] * (1 / rate), 1.0)
  useful = useful * (kept / depth) * busy
  return found | {
    "utilisation": useful * (found["compute"] / found["cycles"]),
    "ifmap_reads": 0 * M,
    "filter_reads": 0 * M,
    "ofmap_writes": 0 * M,
  }


def _call(
  M, N, K, sparse, rate, hbm, side, overhead, sparse_overhead, *, itemsize
):
  """One call's parts and bytes; `sparse` is 1 for a 2:4 operand, else 0."""
  padded = [ceil_div(size, side) * side for size in (M, N, K)]
  depth = padded[2] + sparse * (_halved(padded[2]) - padded[2])
  stored = K + sparse * (_halved(K) - K)
  flops = 2 * padded[0] * padded[1] * depth
  bits = sparse * index_bits(_KEPT, BLOCK)
  metadata = ceil_div(stored * N * bits, 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  parts = bounded(_only(ceil_div(flops, rate)), dram_bytes, hbm)
  call = overhead + sparse * sparse_overhead
  return parts | {
    "fill": parts["fill"] + call,
    "cycles": parts["cycles"] + call,
    "flops": flops,
    "depth": depth,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def _halved(depth):
  """2 of every 4, the last block padded."""
  return ceil_div(depth, BLOCK) * _KEPT


def _only(compute):
  """The parts of a schedule in which nothing but arithmetic takes time."""
  names = ("fill", "stall_weights", "stall_exchange", "stall_in", "stall_out")
  return {"compute": compute} | dict.fromkeys(names, 0 * compute)


def calibrated_overhead(
  ratio: float, M: int, N: int, K: int, engine: Roofline, itemsize: int = 2
) -> int:
  """The `sparse_overhead` that makes 2:4 `ratio` times as fast as dense.

  Args:
    ratio: measured time of the dense call / time of the 2:4 call.
    M: rows of the activations.
    N: columns of the weight.
    K: the contraction.
    engine: tensor cores; their own sparse_overhead does not count.
    itemsize: bytes per value.

  Returns:
    Nanoseconds, rounded.

  Raises:
    ValueError: the ratio is above what the engine could reach.

  >>> from figs_jax.engine.spec_text import parse
  >>> cube = (4096, 4096, 4096)
  >>> calibrated_overhead(1.11, *cube, parse("tensorcore:a100"))
  176601
  """
  bound = dataclasses.replace(engine, sparse_overhead=0, fallback=False)
  dense, sparse = (
    int(counts(M, N, K, bound, n, BLOCK, itemsize)["cycles"])
    for n in (BLOCK, _KEPT)
  )
  overhead = round(dense / ratio) - sparse
  if overhead < 0:
    raise ValueError(
      f"ratio {ratio}: {engine} reaches {dense / sparse:.3f} at most at {M} x"
      f" {K} x {N}; give a ratio from 0 to that"
    )
  return overhead


def amdahl(fraction: Any, gain: Any) -> Any:
  """Speed-up of a whole of which a fraction runs `gain` times as fast.

  >>> round(amdahl(0.714, 2), 2)  # RetinaNet on Orin: 15.66 -> 10.07 ms
  1.56
  """
  return 1 / (1 - fraction + fraction / gain)


def csr_counts(
  M: Size,
  N: Size,
  K: Size,
  engine: Csr,
  n: Size = 1,
  m: Size = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs in CSR; see `figs_jax.engine.systolic.counts`.

  The N rows of the CSR matrix are the outputs, mu kept weights each; the M
  activation rows are its dense columns. The bytes are those of `intensity`,
  whose `value_bytes` count, not `itemsize`; a pattern of any m will do.

  >>> from figs_jax.engine.spec_text import parse
  >>> found = csr_counts(64, 256, 1024, parse("csr:h200"), 1, 8)
  >>> int(found["flops"]), int(found["dram_bytes"])
  (4194304, 8717312)
  """
  check_pattern(n, m)
  check_itemsize(itemsize)
  return _csr_exact(M, N, K, n, m, *engine.leaves, reuse=engine.reuse)


def _csr_counts(
  M, N, K, n, m, peak, hbm, value_bytes, index_bytes, pointer_bytes, *, reuse
):
  kept = kept_depth(K, n, m)
  metadata = N * (index_bytes * kept + pointer_bytes)
  matrix = N * value_bytes * kept + metadata
  dram_bytes = (1 if reuse else M) * matrix + M * N * value_bytes * (kept + 1)
  flops = 2 * M * N * kept
  parts = bounded(_only(ceil_div(flops, peak)), dram_bytes, hbm)
  return parts | {
    "flops": flops,
    # At most 1, but for rounding.
    "utilisation": smaller(flops / parts["cycles"] * (1 / peak), 1.0),
    "ifmap_reads": 0 * M,
    "filter_reads": 0 * M,
    "ofmap_writes": 0 * M,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def intensity(
  kept: Any,
  columns: Any = 1,
  value_bytes: Any = 4,
  index_bytes: Any = 4,
  pointer_bytes: Any = 4,
) -> Any:
  """FLOPs per byte of sparse (CSR) times dense, the sparse row kept.

    2 mu n / ((B_T + B_I) mu + B_T n (mu + 1) + delta)

  A row of mu values is read once while n dense columns stream: each gives mu
  values and takes one result. At n = 1 nothing is used twice, and the
  intensity tends to 2 / (2 B_T + B_I) for long rows, 1/6 at 4 bytes each.

  Args:
    kept: mu, non-zeros per row.
    columns: n, dense columns that stream past a row.
    value_bytes: B_T.
    index_bytes: B_I.
    pointer_bytes: delta, of the row pointer, per row.

  >>> round(intensity(100_000), 3)
  0.167
  >>> round(intensity(100, columns=10_000), 3)
  0.495
  """
  moved = (value_bytes + index_bytes) * kept + pointer_bytes
  return (
    2 * kept * columns / (moved + value_bytes * columns * (kept + 1))
  )  # fmt: skip


_exact_counts = exact(
  _counts, LIMITS | limits_of(Roofline) | {"run": (0, BLOCK)}
)
_csr_exact = exact(_csr_counts, LIMITS | limits_of(Csr))
