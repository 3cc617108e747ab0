"""Processors known by peak and memory alone; cycles are nanoseconds.

  t = overhead + max(2 M N K / peak, bytes / bandwidth)                     (1)

with M, N and K padded to the side of the matrix unit and every operand moved
once. Most calls take longer, for all that a kernel loses. It is a model and no
strict bound: a kernel may pad less, or find an operand in a cache. A FLOP per
nanosecond is a GFLOP/s and a byte per nanosecond a GB/s, so that the formulas
stay in integers. No TPU runs N:M weights: on "tpu" and "gpu" a sparse layer
runs dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

from figs_jax.engine import chips
from figs_jax.engine.chips import DTYPES, Chip, itemsize_of
from figs_jax.engine.int64 import ceil_div, larger, smaller
from figs_jax.engine.spec import (
  UNLIMITED,
  Engine,
  Gemm,
  nearest,
)
from figs_jax.engine.timing import ON_CHIP, bounded, bytes_of

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
    SPARSE: What the chip's units for sparse weights run.
  """

  dtype: str = dataclasses.field(default="", kw_only=True)

  CHOICES = {"dtype": ("", *DTYPES)}
  SPARSE: ClassVar[str] = "2:4"  # what the chip's units for sparse weights run
  unit = "ns"
  is_array = False

  @property
  def memory_bandwidth(self: Any) -> Any:
    return self.hbm

  def with_unlimited_memory(self: Any) -> Engine:
    return dataclasses.replace(self, hbm=UNLIMITED)

  def roofs(
    self: Any, itemsize: int | Fraction, patterns: Iterable[Gemm] = ()
  ) -> dict[str, float]:
    """The data sheet's rates, of sparse weights too if the chip has units."""
    del patterns
    sheet = self.sheet()
    peaks = {"dense": float(scaled(self.peak, self.multiple(itemsize)))}
    if sheet is not None and (fast := self.multiple(itemsize, sparse=True)):
      peaks[self.SPARSE] = float(scaled(self.peak, fast))
    return peaks

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
    fields = {"chip": name, "peak": chip.peak, "hbm": chip.hbm}
    has_side = "side" in {field.name for field in dataclasses.fields(cls)}
    return fields | ({"side": chip.side} if has_side else {})

  @classmethod
  def missing(cls, kind: str, size: str | None, keys: Sequence[str]) -> str:
    del keys
    known = chips.names(kind)
    hint = nearest(size, known)
    if any(chips.find(x, str(size)) for x in chips.CHIPS):
      others = " or ".join(map(repr, chips.specs(str(size))))
      hint = f"did you mean {others}? Known: {', '.join(sorted(known))}"
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
        f"{self.prefix()}: dtype {own} has itemsize {itemsize_of(own)}, got"
        f" itemsize {itemsize}; give one of them"
      )
    have = DTYPES if sheet is None else sheet.peaks
    asked = (own,) if own else _OF_SIZE.get(itemsize, ())
    for dtype in asked:
      if dtype in have:
        return dtype
    what = " or ".join(asked) or f"itemsize {itemsize}"
    raise ValueError(
      f"{self.prefix()} has no {what}; choose one of {', '.join(have)}"
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

  Its counts also hold `flops`, those that run, padding included; on-chip
  accesses are not modelled and 0.

  Attributes:
    kind: "tpu" or "gpu".
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its matrix unit; M, N and K are padded to multiples of it.
    overhead: Nanoseconds of every call.

  >>> chip = Roofline("gpu", "mine", peak=989_000, hbm=4800)
  >>> int(chip.counts(Gemm(8192, 8192, 8192))["cycles"])
  1111741
  """

  kind: str
  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  overhead: Any = 0

  KINDS = ("tpu", "gpu")
  PREFIX = ("kind", "chip")
  CHOICES = Processor.CHOICES | {"kind": KINDS}
  FROM_ZERO = ("overhead",)

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    return {"kind": kind} | super().read_prefix(kind, size)

  def prefix(self) -> str:
    return f"{self.kind}:{self.chip}"

  def note(self, sparse: int, known: int) -> str:
    del known
    if not sparse:
      return ""
    has_units = self.kind == "gpu" and chips.find("tensorcore", self.chip)
    instead = f"; tensorcore:{self.chip} runs 2:4" if has_units else ""
    return f"{self} runs patterns dense{instead}."

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    del run
    rate = scaled(self.peak, self.multiple(itemsize))
    depth = ceil_div(gemm.K, self.side) * self.side
    weight = Weight(depth, gemm.K, 0 * gemm.M)
    return call(self, gemm, weight, rate, itemsize)


class Weight(NamedTuple):
  """What a processor runs and reads of a weight.

  Attributes:
    depth: Rows that run along K, padding included.
    stored: Values read of each column.
    metadata: Bytes of all indices.
    least: Nanoseconds that the arithmetic takes at least.
  """

  depth: Any
  stored: Any
  metadata: Any
  least: Any = 0


def call(
  engine: Any, gemm: Gemm, weight: Weight, rate: Any, itemsize: int | Fraction
) -> dict[str, Any]:
  """What `Engine.formula` returns, for one call (1).

  Args:
    engine: Processor with the fields `side`, `hbm` and `overhead`.
    gemm: Sizes and pattern.
    weight: What is run and read of the weight.
    rate: GFLOP/s of the rows that run.
    itemsize: Bytes per value.
  """
  M, N, K, side = gemm.M, gemm.N, gemm.K, engine.side
  rows, cols = (ceil_div(size, side) * side for size in (M, N))
  flops = 2 * rows * cols * weight.depth
  moved = bytes_of(M * K + weight.stored * N + M * N, itemsize)
  dram_bytes = moved + weight.metadata
  compute = larger(ceil_div(flops, rate), weight.least)
  parts = bounded(arithmetic(compute), dram_bytes, engine.hbm, engine.overhead)
  # Ratios that cannot pass 1; the last one could by rounding alone.
  kept = smaller(gemm.kept, weight.depth)
  useful = M / rows * (N / cols) * (kept / weight.depth)
  useful = useful * smaller(flops / compute * (1 / rate), 1.0)
  return parts | {
    "flops": flops,
    "metadata_bytes": weight.metadata,
    "dram_bytes": dram_bytes,
    "utilisation": useful * (compute / parts["cycles"]),
    **no_accesses(M),
  }


def arithmetic(compute: Any) -> dict[str, Any]:
  """The parts of a schedule in which nothing but arithmetic takes time."""
  return {"compute": compute} | dict.fromkeys(ON_CHIP[1:], 0 * compute)


def no_accesses(size: Any) -> dict[str, Any]:
  """On-chip accesses of a processor, which are not modelled."""
  names = ("ifmap_reads", "filter_reads", "ofmap_writes")
  return dict.fromkeys(names, 0 * size)


def amdahl(fraction: Any, gain: Any) -> Any:
  """Speed-up of a whole of which a fraction runs `gain` times as fast.

  >>> round(amdahl(0.714, 2), 2)  # RetinaNet on Orin: 15.66 -> 10.07 ms
  1.56
  """
  return 1 / (1 - fraction + fraction / gain)
