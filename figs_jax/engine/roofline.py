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

from typing import Any

from figs_jax.engine.chips import CHIPS, Chip
from figs_jax.engine.int64 import ceil_div, smaller
from figs_jax.engine.spec import Engine, Gemm, nearest
from figs_jax.engine.timing import PARTS, bounded


class Processor(Engine):
  """Base class of the engines whose specs name a chip.

  Their cycles are nanoseconds. The fields `peak` and `hbm`, and what else a
  subclass reads from the chip, default to the chip's values.
  """

  LABELS = ("name", "chip")
  unit = "ns"
  is_array = False

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    chip = chip_of(kind, size)
    return {"chip": size, "peak": chip.peak, "hbm": chip.hbm}

  def defaults(self) -> dict[str, Any]:
    values = super().defaults()
    try:
      preset = self.read_prefix(*self.prefix().split(":", 1))
    except ValueError:  # a chip of the caller's own
      return values
    return values | {k: v for k, v in preset.items() if k in values}


class Roofline(Processor):
  """A processor whose calls take (1).

  Operands of one byte run at `int8` times the peak, all others at the peak
  itself. Its counts also hold `flops`, those that run, padding included;
  on-chip accesses are not modelled and 0.

  Attributes:
    kind: "tpu" or "gpu".
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) of 16-bit operands.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its matrix unit; M, N and K are padded to multiples of it.
    int8: Rate of operands of one byte, as a multiple of the peak.
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
  int8: Any = 1
  overhead: Any = 0

  KINDS = ("tpu", "gpu")
  PREFIX = ("kind", "chip")
  CHOICES = {"kind": KINDS}
  FROM_ZERO = ("overhead",)

  @property
  def memory_bandwidth(self) -> Any:
    return self.hbm

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    chip = chip_of(kind, size)
    fields = {"kind": kind, "side": chip.side, "int8": chip.int8}
    return fields | super().read_prefix(kind, size)

  def prefix(self) -> str:
    return f"{self.kind}:{self.chip}"

  def formula(self, gemm: Gemm, run: Any, *, itemsize: int) -> dict[str, Any]:
    del run
    M, N, K, side = gemm.M, gemm.N, gemm.K, self.side
    rate = self.peak * self.int8 if itemsize == 1 else self.peak
    padded = [ceil_div(size, side) * side for size in (M, N, K)]
    flops = 2 * padded[0] * padded[1] * padded[2]
    dram_bytes = itemsize * (M * K + K * N + M * N)
    parts = bounded(arithmetic(ceil_div(flops, rate)), dram_bytes, self.hbm)
    cycles = parts["cycles"] + self.overhead
    # Ratios that cannot pass 1; the last one could by rounding alone.
    useful = M / padded[0] * (N / padded[1]) * (gemm.kept / padded[2])
    useful = useful * smaller(flops / parts["compute"] * (1 / rate), 1.0)
    return parts | {
      "fill": parts["fill"] + self.overhead,
      "cycles": cycles,
      "flops": flops,
      "metadata_bytes": 0 * M,
      "dram_bytes": dram_bytes,
      "utilisation": useful * (parts["compute"] / cycles),
      **no_accesses(M),
    }


def arithmetic(compute: Any) -> dict[str, Any]:
  """The parts of a schedule in which nothing but arithmetic takes time."""
  return {"compute": compute} | dict.fromkeys(PARTS[1:-1], 0 * compute)


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


def chip_of(kind: str, name: str | None) -> Chip:
  """The chip of a spec.

  Raises:
    ValueError: If the kind of engine knows no chip of this name.

  >>> chip_of("tpu", "v5e").peak
  197000
  """
  chips = CHIPS[kind]
  if name is None:
    raise ValueError(
      f"expected a chip, as in '{kind}:{min(chips)}'; {nearest('', chips)}"
    )
  if name not in chips:
    raise ValueError(f"unknown chip {name!r}, {nearest(name, chips)}")
  return chips[name]
