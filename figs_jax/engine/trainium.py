"""Trainium2 and Trainium3, which run N:M beyond 2:4; cycles are nanoseconds.

  t = overhead
    + max(2 M N K_kept / peak, 2 M N K / sparse peak, bytes / bandwidth)    (1)

AWS states two peaks, dense and "up to" with sparse weights, and seven patterns
(NeuronCore-v3 and v4 Architecture). It states no rate for each of them: here
the kept rows run at the dense rate, and no pattern passes the sparse peak. In
bf16 that makes 3.84 (Trainium2) or 3.75 times at a quarter of the weights, 3 at
4:12 and 2 at half of them. The kept values and their indices, ceil(log2 m) bits
each, are read. No measurement of sparse products is public.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from figs_jax.engine.blocks import index_bits, kept_depth
from figs_jax.engine.int64 import ceil_div, larger, smaller
from figs_jax.engine.roofline import Processor, Weight, call, scaled
from figs_jax.engine.spec import Gemm

# The patterns of the tensor engine, the fastest first; of equally fast ones the
# shortest, which takes the fewest bits.
PATTERNS = ((1, 4), (2, 8), (4, 16), (4, 12), (1, 2), (2, 4), (4, 8))


class Trainium(Processor):
  """A Trainium chip whose calls take (1).

  A pattern runs as the first of `PATTERNS` into whose groups it always fits: b
  divides m and min(n, b) <= a, or m divides b and n b / m <= a. One that fits
  none, and a data type without a sparse peak, run dense. Its counts also hold
  `flops`, those that run, padding included; on-chip accesses are not modelled
  and 0.

  Attributes:
    chip: "trainium2" or "trainium3".
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its systolic array; M, N and K are padded to multiples of it.
    overhead: Nanoseconds of every call.

  >>> from figs_jax.engine import cost
  >>> cube = {"name": "cube", "M": 8192, "N": 8192, "K": 8192}
  >>> rows = [cube | {"pattern": x} for x in ("dense", "2:4", "4:12", "1:4")]
  >>> time = cost(rows, "trainium2").cycles
  >>> (time[0] / time).round(2).tolist()
  [1.0, 2.0, 3.0, 3.84]
  """

  chip: str
  peak: Any
  hbm: Any
  side: Any = 128
  overhead: Any = 0

  KINDS = ("trainium2", "trainium3")
  PREFIX = ("chip",)
  FROM_ZERO = ("overhead",)
  SPARSE = "4:16 to 1:2"

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    if size is not None:
      raise ValueError(f"expected no size, as in '{kind}', got {size!r}")
    return super().read_prefix(kind, kind)

  def prefix(self) -> str:
    return self.chip

  def note(self, sparse: int, known: int) -> str:
    del known
    sheet, dtype = self.sheet(), self.dtype or "bf16"
    if not sparse or sheet is None:
      return ""
    if dtype not in sheet.sparse:
      return f"{self} runs patterns dense in {dtype}."
    peak, fp8 = sheet.sparse[dtype], sheet.peaks["fp8"]
    beside = "as much as" if peak == fp8 else f"{peak / fp8:.2f} times"
    return (
      f"{self} runs {', '.join(f'{n}:{m}' for n, m in PATTERNS)} and what fits"
      f" into them, as AWS states them, at up to {peak / 1000:,.0f} TFLOP/s in"
      f" {dtype}, {beside} its dense fp8; nothing sparse is measured."
    )

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    del run
    N, K, side = gemm.N, gemm.K, self.side
    rate = scaled(self.peak, self.multiple(itemsize))
    rows, cols, deep = (ceil_div(x, side) * side for x in (gemm.M, N, K))
    depth, stored, bits, least, taken = deep, K, 0 * gemm.M, 0 * gemm.M, 0
    most = self.multiple(itemsize, sparse=True)
    for n, m in PATTERNS if most else ():
      now = _fits(gemm, n, m) * (1 - taken)
      taken = taken + now
      depth = depth + now * (kept_depth(deep, n, m) - deep)
      stored = stored + now * (kept_depth(K, n, m) - K)
      bits = bits + now * index_bits(n, m)
    if most:
      whole = ceil_div(2 * rows * cols * deep, scaled(self.peak, most))
      least = taken * whole
    metadata = ceil_div(stored * N * bits, 8)
    weight = Weight(depth, stored, metadata, least)
    return call(self, gemm, weight, rate, itemsize)


def _fits(gemm: Gemm, n: int, m: int) -> Any:
  """1 where groups of m never hold more than n, and some weight is left out."""
  divides = 1 - smaller(gemm.m % m, 1)
  divided = 1 - smaller(m % gemm.m, 1)
  whole = divides * _at_most(smaller(gemm.n, m), n)
  parts = divided * _at_most(gemm.n * (m // gemm.m), n)
  return larger(whole, parts) * smaller(gemm.m - gemm.n, 1)


def _at_most(value: Any, bound: int) -> Any:
  """1 where value <= bound, else 0."""
  return smaller(larger(bound + 1 - value, 0), 1)
