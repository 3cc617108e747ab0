"""Tensor cores that multiply 2 of every 4 weights; cycles are nanoseconds.

  t = overhead + max(2 M N K / peak, bytes / bandwidth)                     (1)

as on any GPU (`figs_jax.engine.roofline`). A 2:4 operand runs at twice the
dense rate; its kept values and their indices, 2 bits each, are read. What a
call of a sparse operand costs on top, `sparse_overhead`, is calibrated (see
`calibrated_overhead`).
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from figs_jax.engine.blocks import index_bits
from figs_jax.engine.chips import SPARSE_OVERHEAD
from figs_jax.engine.int64 import ceil_div, larger, smaller
from figs_jax.engine.roofline import (
  Processor,
  arithmetic,
  no_accesses,
  scaled,
)
from figs_jax.engine.spec import Gemm, check_itemsize, is_default
from figs_jax.engine.timing import bounded, bytes_of

_KEPT, _BLOCK = 2, 4  # of tensor cores


class TensorCore(Processor):
  """A GPU with units for 2:4, whose calls take (1).

  A layer is sparse to the engine if no block of 4 keeps more than 2. V:N:M runs
  as 2:4 on 4 columns of each group (`Gemm.narrow`), whose indices are read once
  for V outputs; all activations are read. Its
  counts also hold `flops`, those that run, padding included; on-chip accesses
  are not modelled and 0.

  Attributes:
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its matrix unit; M, N and K are padded to multiples of it.
    overhead: Nanoseconds of every call.
    sparse_overhead: Further nanoseconds of every call with a 2:4 operand.
    fallback: Whether a layer runs dense where that is faster, as a runtime that
      has both kernels would choose.

  >>> chip = TensorCore("mine", peak=989_000, hbm=4800)
  >>> cubes = (Gemm(8192, 8192, 8192, n, 4) for n in (4, 2))
  >>> [int(chip.counts(cube)["cycles"]) for cube in cubes]
  [1111741, 555871]
  """

  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  overhead: Any = 0
  sparse_overhead: Any = 0
  fallback: bool = False

  KINDS = ("tensorcore",)
  PREFIX = ("chip",)
  FROM_ZERO = ("overhead", "sparse_overhead")
  NARROWS = True
  BLOCK = _BLOCK

  @property
  def memory_bandwidth(self) -> Any:
    return self.hbm

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    fields = super().read_prefix(kind, size)
    return fields | {"sparse_overhead": SPARSE_OVERHEAD}

  def prefix(self) -> str:
    return f"tensorcore:{self.chip}"

  def note(self, sparse: int, known: int) -> str:
    if not sparse or is_default(self.sparse_overhead, 0):
      return ""
    note = (
      f"{self} adds an assumed {self.sparse_overhead:,} ns to each sparse call,"
      " which small layers do not earn back; :sparse_overhead=0 leaves it out"
    )
    if self.fallback:
      return f"{note}."
    return f"{note}, :fallback=true runs a layer dense where that is faster."

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    M, N, side = gemm.M, gemm.N, self.side
    rate = scaled(self.peak, self.multiple(itemsize))
    # 1 where no block keeps more than 2 of its 4, else 0.
    sparse = smaller(larger(_KEPT + 1 - run, 0), 1)
    if self.fallback:
      dense, fast = (
        _call(gemm, self, rate, which, itemsize)["cycles"] for which in (0, 1)
      )
      sparse = sparse * smaller(larger(dense - fast, 0), 1)
    call = _call(gemm, self, rate, sparse, itemsize)
    depth = call.pop("depth")
    kept = smaller(gemm.kept, depth)
    # Ratios that cannot pass 1; the fourth could by rounding alone.
    useful = M / (ceil_div(M, side) * side) * (N / (ceil_div(N, side) * side))
    busy = smaller(call["flops"] / call["compute"] * (1 / rate), 1.0)
    useful = useful * (kept / depth) * busy
    return call | {
      "utilisation": useful * (call["compute"] / call["cycles"]),
      **no_accesses(M),
    }


def _call(gemm, chip, rate, sparse, itemsize):
  """The parts and bytes of one call (1); `sparse` is 1 for 2:4, else 0."""
  M, N, K = gemm.M, gemm.N, gemm.K
  thin = gemm.narrow().K
  rows, cols, deep, narrow = (
    ceil_div(size, chip.side) * chip.side for size in (M, N, K, thin)
  )
  depth = deep + sparse * (_halved(narrow) - deep)
  stored = K + sparse * (_halved(thin) - K)
  flops = 2 * rows * cols * depth
  bits = sparse * index_bits(_KEPT, _BLOCK)
  metadata = ceil_div(stored * N * bits, 8)
  metadata = metadata + sparse * _column_bytes(gemm, thin)
  dram_bytes = bytes_of(M * K + stored * N + M * N, itemsize) + metadata
  parts = bounded(arithmetic(ceil_div(flops, rate)), dram_bytes, chip.hbm)
  overhead = chip.overhead + sparse * chip.sparse_overhead
  return parts | {
    "fill": parts["fill"] + overhead,
    "cycles": parts["cycles"] + overhead,
    "flops": flops,
    "depth": depth,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


def _column_bytes(gemm, thin):
  """Indices of the columns that V outputs share, ceil(log2 m) bits each."""
  if isinstance(gemm.v, int) and not gemm.v:
    return 0
  vectors = ceil_div(gemm.N, larger(gemm.v, 1)) * smaller(gemm.v, 1)
  return ceil_div(vectors * thin * index_bits(gemm.n, gemm.m), 8)


def _halved(depth):
  """2 of every 4, the last block padded."""
  return ceil_div(depth, _BLOCK) * _KEPT


def calibrated_overhead(
  ratio: float,
  M: int,
  N: int,
  K: int,
  engine: TensorCore,
  itemsize: int | Fraction = 2,
) -> int:
  """The `sparse_overhead` that makes 2:4 `ratio` times as fast as dense.

  Args:
    ratio: Measured time of the dense call / time of the 2:4 call.
    M: Rows of the activations.
    N: Columns of the weight.
    K: Length of the contraction.
    engine: Tensor cores; their own `sparse_overhead` is ignored.
    itemsize: Bytes per value.

  Returns:
    Nanoseconds, rounded.

  Raises:
    ValueError: If the ratio is above what the engine could reach.

  >>> from figs_jax.engine import parse
  >>> cube = (4096, 4096, 4096)
  >>> calibrated_overhead(1.11, *cube, parse("tensorcore:a100"))
  176601
  """
  check_itemsize(itemsize)
  bound = dataclasses.replace(engine, sparse_overhead=0, fallback=False)
  dense, sparse = (
    int(bound.counts(Gemm(M, N, K, n, _BLOCK), itemsize)["cycles"])
    for n in (_BLOCK, _KEPT)
  )
  overhead = round(dense / ratio) - sparse
  if overhead < 0:
    raise ValueError(
      f"ratio {ratio}: {engine} reaches {dense / sparse:.3f} at most at {M} x"
      f" {K} x {N}; give a ratio from 0 to that"
    )
  return overhead
