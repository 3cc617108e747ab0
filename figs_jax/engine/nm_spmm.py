"""A bound for N:M kernels on units without sparsity; cycles are nanoseconds.

  t = overhead + max(2 M N K_kept / peak, bytes / bandwidth)                (1)

NM-SpMM (arXiv 2503.01253) packs the activations that a tile of outputs needs
into shared memory and multiplies them densely, so that any N:M approaches m / n
times the dense product. Vectors of 32 outputs share a mask, whose indices take
4 bytes for each kept row of a vector. Its kernels compute in float32 on CUDA
cores: over cuBLAS on the 100 shapes that come with its code, they reach
(geometric mean) 1.83, 2.38, 3.45 and 6.31 of 2, 2.67, 4 and 8 times on an A100,
and 1.45, 1.88, 2.71 and 4.32 on an RTX 4090. In other data types, at the rates
of tensor cores, (1) is a prediction that no kernel has shown.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from figs_jax.engine.int64 import ceil_div, smaller
from figs_jax.engine.roofline import Processor, Weight, call, scaled
from figs_jax.engine.spec import Engine, Gemm


class NmSpmm(Processor):
  """A processor that runs any N:M at its dense rate, bound by (1).

  Its counts also hold `flops`; on-chip accesses are not modelled and 0.

  Attributes:
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of a tile; M and N are padded to multiples of it.
    overhead: Nanoseconds of every call.
    vector: Outputs that share a mask.
    index_bytes: Bytes per index.

  >>> from figs_jax.engine import cost
  >>> cube = {"name": "cube", "M": 4096, "N": 4096, "K": 4096}
  >>> rows = [cube | {"pattern": x} for x in ("dense", "16:32", "4:32")]
  >>> time = cost(rows, "nm-spmm:a100", dtype="float32").cycles
  >>> (time[0] / time).round(2).tolist()
  [1.0, 2.0, 8.0]
  """

  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  overhead: Any = 0
  vector: Any = 32
  index_bytes: Any = 4

  KINDS = ("nm-spmm",)
  PREFIX = ("chip",)
  roofs = Engine.roofs  # every pattern has its own
  FROM_ZERO = ("overhead", "index_bytes")

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    fields = super().read_prefix(kind, size)
    return fields | {"side": 1}

  def prefix(self) -> str:
    return f"nm-spmm:{self.chip}"

  def note(self, sparse: int, known: int) -> str:
    del known
    if not sparse:
      return ""
    return (
      f"{self} is a prediction: what a kernel that packs N:M could reach where"
      " vectors of outputs share a mask. Published kernels compute in float32"
      " on CUDA cores and reach 0.79 to 0.91 of it on an A100."
    )

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    del run
    sparse = smaller(gemm.m - gemm.n, 1)
    vectors = ceil_div(gemm.N, self.vector)
    metadata = sparse * self.index_bytes * gemm.kept * vectors
    weight = Weight(gemm.kept, gemm.kept, metadata)
    rate = scaled(self.peak, self.multiple(itemsize))
    return call(self, gemm, weight, rate, itemsize)
