"""Processors known by peak and memory alone; cycles are nanoseconds.

  t = overhead + max(2 M N K / peak, bytes / bandwidth)                     (1)

with M, N and K padded to the side of the matrix unit and every operand moved
once. Most calls take longer, for all that a kernel loses. It is a model and no
strict bound: a kernel may pad less, or find an operand in a cache. A FLOP per
nanosecond is a GFLOP/s and a byte per nanosecond a GB/s, so that the formulas
stay in integers.

Tensor cores multiply 2 of every 4 weights, twice the dense rate, and read
those and their indices, 2 bits each. What a call of a sparse operand costs on
top, `sparse_overhead`, is calibrated (see `calibrated_overhead`). No TPU runs
N:M weights: on "tpu" and "gpu" a sparse layer runs dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from figs_jax.engine import chips
from figs_jax.engine.blocks import index_bits
from figs_jax.engine.chips import DTYPES, SPARSE_OVERHEAD, Chip, itemsize_of
from figs_jax.engine.int64 import ceil_div, larger, smaller
from figs_jax.engine.spec import (
  Engine,
  Gemm,
  check_itemsize,
  is_default,
  nearest,
)
from figs_jax.engine.timing import PARTS, bounded, bytes_of

_KEPT, _BLOCK = 2, 4  # of tensor cores
# Data types of operands of a size, the preferred one first.
_OF_SIZE: dict[Any, tuple[str, ...]] = {
  4: ("float32",),
  2: ("bf16",),
  1: ("int8", "fp8"),
  itemsize_of("fp4"): ("fp4",),
}


class Processor(Engine):
  """Base class of the engines whose specs name a chip.

  Their cycles are nanoseconds. The fields `peak` and `hbm`, and what else a
  subclass reads from the chip, default to the chip's values. A spec that gives
  both may name a chip that `figs_jax.engine.chips` lacks.

  Attributes:
    peak: Dense GFLOP/s in bf16. The other data types run at the same multiple
      of it as on the chip's data sheet; on a chip without one, at `peak`.
    dtype: Data type of the operands; "" leaves it to the caller.
  """

  dtype: str = dataclasses.field(default="", kw_only=True)

  CHOICES = {"dtype": ("", *DTYPES)}
  unit = "ns"
  is_array = False

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    if size is None:
      known = chips.names(kind)
      raise ValueError(
        f"expected a chip, as in '{kind}:{known[0]}'; {nearest('', known)}"
      )
    pair = chips.find(kind, size)
    if pair is None:
      return {"chip": size}
    name, chip = pair
    return {"chip": name, "peak": chip.peak, "hbm": chip.hbm}

  @classmethod
  def missing(cls, kind: str, size: str | None, keys: Sequence[str]) -> str:
    del keys
    hint = nearest(size, chips.names(kind))
    return f"unknown chip {size!r}, {hint}; or give your own :peak= and :hbm="

  def sheet(self) -> Chip | None:
    """The chip's data sheet, or None for a chip of the caller's own."""
    kind, _, name = self.prefix().partition(":")
    pair = chips.find(kind, name or kind)
    return pair and pair[1]

  def defaults(self) -> dict[str, Any]:
    values = super().defaults()
    kind, _, name = self.prefix().partition(":")
    preset = self.read_prefix(kind, name or None)
    return values | {k: v for k, v in preset.items() if k in values}

  @property
  def itemsize(self) -> int | Fraction:
    return itemsize_of(self.dtype or "bf16")

  def at(self, dtype: str) -> Processor:
    if self.dtype not in ("", dtype):
      raise ValueError(
        f"{self}: expected its own dtype={self.dtype}, got dtype {dtype}; give"
        " one of them"
      )
    made = dataclasses.replace(self, dtype=dtype)
    made.dtype_of(itemsize_of(dtype))
    return made

  def dtype_of(self, itemsize: int | Fraction) -> str:
    """The data type of operands of a size.

    That is `dtype` if it is set. If not, 4 bytes are float32, 2 are bf16, and 1
    is int8, or fp8 on a chip without it.

    Raises:
      ValueError: If the chip lacks the type, or `dtype` has another size.
    """
    own, sheet = self.dtype, self.sheet()
    if own and itemsize_of(own) != itemsize:
      raise ValueError(
        f"{self.prefix()}: dtype {own} takes {itemsize_of(own)} bytes per"
        f" value, got itemsize {itemsize}; give one of them"
      )
    have = DTYPES if sheet is None else sheet.peaks
    asked = (own,) if own else _OF_SIZE.get(itemsize, ())
    for dtype in asked:
      if dtype in have:
        return dtype
    what = " or ".join(asked) or f"itemsize {itemsize}"
    raise ValueError(
      f"{self.prefix()}: expected a data type that the chip has,"
      f" {', '.join(have)}, got {what}"
    )

  def multiple(
    self, itemsize: int | Fraction, sparse: bool = False
  ) -> Fraction:
    """The rate of operands of a size, as a multiple of `peak`.

    Args:
      itemsize: Bytes per value.
      sparse: Whether the units for sparse weights run, whose rate counts the
        weights that are left out. The multiple is 0 if there are none for the
        data type, and 2 on a chip of the caller's own.

    Raises:
      ValueError: If the chip lacks the data type.
    """
    sheet = self.sheet()
    if sheet is None:
      return Fraction(1 + sparse)
    peaks = sheet.sparse if sparse else sheet.peaks
    return Fraction(peaks.get(self.dtype_of(itemsize), 0), sheet.peak)


def scaled(peak: Any, multiple: Fraction) -> Any:
  """A multiple of GFLOP/s, rounded down.

  >>> scaled(312_000, Fraction(1, 16))
  19500
  """
  if multiple.denominator == 1:
    return multiple.numerator * peak
  return multiple.numerator * peak // multiple.denominator


class Roofline(Processor):
  """A processor whose calls take (1).

  A layer is sparse to the engine if no block of 4 keeps more than 2. Its
  counts also hold `flops`, those that run, padding included; on-chip accesses
  are not modelled and 0.

  Attributes:
    kind: "tpu", "gpu", or "tensorcore", which runs 2:4 operands at twice the
      peak.
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its matrix unit; M, N and K are padded to multiples of it.
    overhead: Nanoseconds of every call.
    sparse_overhead: Further nanoseconds of every call with a 2:4 operand.
    fallback: Whether a layer runs dense where that is faster, as a runtime that
      has both kernels would choose.

  >>> chip = Roofline("tensorcore", "mine", peak=989_000, hbm=4800)
  >>> cubes = (Gemm(8192, 8192, 8192, n, 4) for n in (4, 2))
  >>> [int(chip.counts(cube)["cycles"]) for cube in cubes]
  [1111741, 555871]
  """

  kind: str
  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  overhead: Any = 0
  sparse_overhead: Any = 0
  fallback: bool = False

  KINDS = ("tpu", "gpu", "tensorcore")
  PREFIX = ("kind", "chip")
  CHOICES = Processor.CHOICES | {"kind": KINDS}
  FROM_ZERO = ("overhead", "sparse_overhead")
  BLOCK = _BLOCK

  @property
  def memory_bandwidth(self) -> Any:
    return self.hbm

  @property
  def sparse(self) -> bool:
    """Whether it has units for 2:4."""
    return self.kind == "tensorcore"

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    fields = {"kind": kind} | super().read_prefix(kind, size)
    pair = chips.find(kind, fields["chip"])
    if pair is not None:
      fields["side"] = pair[1].side
    if kind == "tensorcore":
      fields["sparse_overhead"] = SPARSE_OVERHEAD
    return fields

  def prefix(self) -> str:
    return f"{self.kind}:{self.chip}"

  def note(self, sparse: int, known: int) -> str:
    if not (sparse and self.sparse) or is_default(self.sparse_overhead, 0):
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
  padded = [ceil_div(size, chip.side) * chip.side for size in (M, N, K)]
  depth = padded[2] + sparse * (_halved(padded[2]) - padded[2])
  stored = K + sparse * (_halved(K) - K)
  flops = 2 * padded[0] * padded[1] * depth
  bits = sparse * index_bits(_KEPT, _BLOCK)
  metadata = ceil_div(stored * N * bits, 8)
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


def _halved(depth):
  """2 of every 4, the last block padded."""
  return ceil_div(depth, _BLOCK) * _KEPT


def arithmetic(compute: Any) -> dict[str, Any]:
  """The parts of a schedule in which nothing but arithmetic takes time."""
  return {"compute": compute} | dict.fromkeys(PARTS[1:-1], 0 * compute)


def no_accesses(size: Any) -> dict[str, Any]:
  """On-chip accesses of a processor, which are not modelled."""
  names = ("ifmap_reads", "filter_reads", "ofmap_writes")
  return dict.fromkeys(names, 0 * size)


def calibrated_overhead(
  ratio: float,
  M: int,
  N: int,
  K: int,
  engine: Roofline,
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


def amdahl(fraction: Any, gain: Any) -> Any:
  """Speed-up of a whole of which a fraction runs `gain` times as fast.

  >>> round(amdahl(0.714, 2), 2)  # RetinaNet on Orin: 15.66 -> 10.07 ms
  1.56
  """
  return 1 / (1 - fraction + fraction / gain)
