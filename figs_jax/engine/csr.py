"""Sparse times dense in CSR, bound by arithmetic intensity; in nanoseconds.

The N rows of the CSR matrix are the outputs, mu kept weights each; the M
activation rows are its dense columns. A row of mu values is read once while n
dense columns stream: each gives mu values and takes one result, which makes

  2 mu n / ((B_T + B_I) mu + B_T n (mu + 1) + delta)                        (1)

FLOPs per byte. At n = 1 nothing is used twice, and the intensity tends to
2 / (2 B_T + B_I) for long rows, 1/6 at 4 bytes each.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from figs_jax.engine.chips import itemsize_of
from figs_jax.engine.int64 import ceil_div, smaller
from figs_jax.engine.roofline import (
  Processor,
  arithmetic,
  no_accesses,
  scaled,
)
from figs_jax.engine.spec import Engine, Gemm
from figs_jax.engine.timing import bounded


class Csr(Processor):
  """A processor that multiplies a CSR matrix by dense columns.

  Every pattern runs. The bytes are those of (1), in which `value_bytes` counts
  and not `itemsize`. Without a data type it computes in float32, or in bf16 on
  chips without it. Its counts also hold `flops`; on-chip accesses are not
  modelled and 0.

  Attributes:
    chip: Name of the chip.
    peak: GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    value_bytes: Bytes per value, B_T; 0 stands for those of the data type.
    index_bytes: Bytes per column index, B_I.
    pointer_bytes: Bytes of row pointer per row, delta.
    reuse: Whether the sparse operand is kept while dense columns stream. If
      not, it is read again for each of them.

  >>> chip = Csr("mine", peak=989_000, hbm=4800)
  >>> found = chip.counts(Gemm(64, 256, 1024, 1, 8))
  >>> int(found["flops"]), int(found["dram_bytes"])
  (4194304, 8717312)
  """

  chip: str
  peak: Any
  hbm: Any
  value_bytes: Any = 0
  index_bytes: Any = 4
  pointer_bytes: Any = 4
  reuse: bool = True

  KINDS = ("csr",)
  PREFIX = ("chip",)
  roofs = Engine.roofs  # every pattern has its own
  FROM_ZERO = ("value_bytes",)

  @property
  def itemsize(self) -> int | Fraction:
    sheet = self.sheet()
    wide = sheet is None or "float32" in sheet.peaks
    return itemsize_of(self.dtype or ("float32" if wide else "bf16"))

  def at(self, dtype: str) -> Processor:
    if itemsize_of(dtype) < 1:
      raise ValueError(f"{self}: expected values of whole bytes, got {dtype}")
    return super().at(dtype)

  def prefix(self) -> str:
    return f"csr:{self.chip}"

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    M, N, kept = gemm.M, gemm.N, gemm.kept
    rate = scaled(self.peak, self.multiple(self.itemsize))
    width = self._width
    metadata = N * (self.index_bytes * kept + self.pointer_bytes)
    matrix = N * width * kept + metadata
    dense = self.activation_bytes(gemm, itemsize)
    dram_bytes = (1 if self.reuse else M) * matrix + dense
    flops = 2 * M * N * kept
    parts = arithmetic(ceil_div(flops, rate))
    parts = bounded(parts, dram_bytes, self.hbm)
    return parts | {
      "flops": flops,
      # At most 1, but for rounding.
      "utilisation": smaller(flops / parts["cycles"] * (1 / rate), 1.0),
      **no_accesses(M),
      "metadata_bytes": metadata,
      "dram_bytes": dram_bytes,
    }

  def activation_bytes(self, gemm: Gemm, itemsize: int | Fraction) -> Any:
    """Bytes of the dense values that each row gathers, and of the results."""
    del itemsize
    return gemm.M * gemm.N * self._width * (gemm.kept + 1)

  @property
  def _width(self) -> Any:
    """Bytes per value, B_T."""
    given = self.value_bytes
    return given + int(self.itemsize) * (1 - smaller(given, 1))


def intensity(
  kept: Any,
  columns: Any = 1,
  value_bytes: Any = 4,
  index_bytes: Any = 4,
  pointer_bytes: Any = 4,
) -> Any:
  """FLOPs per byte of sparse (CSR) times dense (1), the sparse row kept.

  Args:
    kept: Non-zeros per row, mu.
    columns: Dense columns that stream past a row, n.
    value_bytes: Bytes per value, B_T.
    index_bytes: Bytes per column index, B_I.
    pointer_bytes: Bytes of row pointer per row, delta.

  >>> round(intensity(100_000), 3)
  0.167
  >>> round(intensity(100, columns=10_000), 3)
  0.495
  """
  moved = (value_bytes + index_bytes) * kept + pointer_bytes
  return (
    2 * kept * columns / (moved + value_bytes * columns * (kept + 1))
  )  # fmt: skip
