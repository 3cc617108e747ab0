"""Tensor cores that multiply 2 of every 4 weights; cycles are nanoseconds.

The silicon runs 2:4 at twice the dense peak. Calls do not. With P the dense
peak, T tiles of 128 x 128 outputs on S multiprocessors, and every operand moved
once,

  dense  t = max(2 M N K / (r_d P), mem(bytes))                             (1)
  2:4    t = max(128^2 T (K + ramp) / (r_s P), l, mem(bytes))               (2)
  l      = latency K itemsize (ceil(T / S) + 3) / 4                         (3)
  mem(b) = max(b / hbm, min(b / stream, lag + b / hbm))                     (4)

A 2:4 kernel loses `ramp` rows of K on each tile, which short contractions feel.
A tile takes `latency` per byte of K on an A100 as on an H100, and a
multiprocessor works on four at once: few rows of activations make few tiles,
which a higher peak does not speed up. A short call streams its operands at
`stream` GB/s, a long one loses `lag` to the data sheet. r_d, r_s, `ramp` and
`stream` are fitted to measured calls, `latency` follows from r_s
(`figs_jax.engine.studies.sparse24`); `lag` is published, four is assumed.
Measured were A100s and H100s. A chip with quicker multiprocessors than an H100
is taken to lose the same shares of its calls: its `latency` and `lag` are
shorter and its `stream` higher in the ratio of their bf16 rates.

The host's time per call is not in them: in a model it hides behind the calls
before, and a batch of products is one call. `overhead` and `sparse_overhead`
add it. With `ideal`, both rates are 1 and nothing else is left of (2) to (4):
a roofline (`figs_jax.engine.roofline`) with twice the peak. A FLOP per
nanosecond is a GFLOP/s and a byte per nanosecond a GB/s.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

from figs_jax.engine.blocks import index_bits
from figs_jax.engine.int64 import ceil_div, larger, smaller
from figs_jax.engine.roofline import (
  Processor,
  arithmetic,
  no_accesses,
  scaled,
)
from figs_jax.engine.spec import UNLIMITED, Gemm
from figs_jax.engine.timing import bytes_of

_KEPT, _BLOCK = 2, 4  # of tensor cores
TILE = 128  # outputs of a kernel's tile, in each direction
IN_FLIGHT = 4  # tiles that a multiprocessor works on at once: an assumption
# Multiprocessors (compute units of AMD's); Blackwell's as devices report them.
UNITS = {
  "a100": 108,
  "h100": 132,
  "h200": 132,
  "b200": 148,
  "gb200": 148,
  "b300": 148,
  "l40s": 142,
  "rtx4090": 128,
  "rtx5090": 170,
  "mi300x": 304,
  "mi355x": 256,
}
_MEASURED = ("a100", "h100", "h200")  # an H200 is an H100 with more memory
# Dense GFLOP/s in bf16 of one of the A100's multiprocessors, whose tiles set
# the latency of all chips.
_A100_UNIT = 312_000 / UNITS["a100"]
_H100_UNIT = 989_000 / UNITS["h100"]


def latency_of(sparse_rate: Any) -> Any:
  """Picoseconds per byte of K in which an A100 at that rate runs a tile.

  >>> round(latency_of(600))
  4726
  """
  return 1000 * TILE**2 / 2 / (sparse_rate / 1000 * _A100_UNIT)


class TensorCore(Processor):
  """A GPU with units for 2:4, whose calls take (1) or (2).

  A layer is sparse to the engine if no block of 4 keeps more than 2 and the
  chip runs 2:4 in the operands' data type. V:N:M runs as 2:4 on 4 columns of
  each group (`Gemm.narrow`), whose indices are read once for V outputs; all
  activations are read. Its counts also hold `flops`, those that run, padding
  included; on-chip accesses are not modelled and 0.

  Attributes:
    chip: Name of the chip.
    peak: Dense GFLOP/s (FLOP per ns) in bf16; see `Processor`.
    hbm: GB/s (bytes per ns) of its memory.
    side: Side of its matrix unit; M, N and K are padded to multiples of it.
    overhead: Further nanoseconds of every call.
    sparse_overhead: Further nanoseconds of every call with a 2:4 operand.
    fallback: Whether a layer runs dense where that is faster, as a runtime that
      has both kernels would choose.
    ideal: Whether calls run at the silicon's rates: the dense peak, twice that
      for 2:4, and nothing lost.
    units: Multiprocessors, S.
    dense_rate: Thousandths of the peak that dense calls reach, r_d.
    sparse_rate: Thousandths of twice the peak that 2:4 calls reach, r_s.
    ramp: Rows of K that a tile of a 2:4 call loses.
    stream: GB/s at which a short call streams its operands.
    lag: Nanoseconds that a long call's operands take beyond the data sheet's.
    latency: Picoseconds per byte of K of a tile of a 2:4 call.

  >>> chip = TensorCore("mine", peak=989_000, hbm=4800)
  >>> cubes = [Gemm(8192, 8192, 8192, n, 4) for n in (4, 2)]
  >>> [int(chip.counts(cube)["cycles"]) for cube in cubes]
  [1579178, 965765]
  >>> silicon = chip.silicon()
  >>> [int(silicon.counts(cube)["cycles"]) for cube in cubes]
  [1111741, 555871]
  """

  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  overhead: Any = 0
  sparse_overhead: Any = 0
  fallback: bool = False
  ideal: bool = False
  units: Any = UNITS["h100"]
  # Fitted by benchmarks/fit_sparse24.py to 16 measured pairs of five sources on
  # A100 and H100. Behind them, the range of the fits that leave a source out.
  dense_rate: Any = 704  # 693 to 711
  sparse_rate: Any = 593  # 572 to 622
  ramp: Any = 248  # 208 to 303
  stream: Any = 1401  # 1119 to 1524
  # A dense product of 64 x 64 on an A100: LLMCompass (ISCA 2024), figure 5.
  lag: Any = 29_600
  latency: Any = round(latency_of(593))

  KINDS = ("tensorcore",)
  PREFIX = ("chip",)
  FROM_ZERO = ("overhead", "sparse_overhead", "ramp", "lag", "latency")
  NARROWS = True
  BLOCK = _BLOCK

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    fields = super().read_prefix(kind, size)
    units = UNITS.get(fields["chip"])
    if units is None:
      return fields
    quicker = max(fields["peak"] / units / _H100_UNIT, 1)
    return fields | {
      "units": units,
      "stream": round(cls.stream * quicker),
      "lag": round(cls.lag / quicker),
      "latency": round(cls.latency / quicker),
    }

  def prefix(self) -> str:
    return f"tensorcore:{self.chip}"

  def silicon(self) -> TensorCore | None:
    if self.ideal:
      return None
    return dataclasses.replace(self, ideal=True, name=f"{self.name}:ideal=true")

  def memory_cycles(self, dram_bytes: Any, bandwidth: Any) -> Any:
    sheet = ceil_div(dram_bytes, bandwidth)  # (4)
    if self.ideal:
      return sheet
    short = ceil_div(dram_bytes, self.stream)
    return larger(sheet, smaller(short, self.lag + sheet))

  def with_unlimited_memory(self) -> TensorCore:
    return dataclasses.replace(self, hbm=UNLIMITED, stream=UNLIMITED)

  def note(self, sparse: int, known: int) -> str:
    if not sparse or self.ideal:
      return ""
    where = "" if self.chip in _MEASURED else f" and not the {self.chip}"
    note = (
      f"{self} expects of 2:4 what kernels reach (measured on A100 and H100"
      f"{where}; off by a factor of 1.2 on average); ideal_speedup is the"
      " silicon's (:ideal=true)"
    )
    if self.fallback:
      return f"{note}."
    return f"{note}; :fallback=true runs a layer dense where that is faster."

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    # 1 where no block keeps more than 2 of its 4, else 0.
    sparse = smaller(larger(_KEPT + 1 - run, 0), 1)
    if self.multiple(itemsize, sparse=True) == 0:
      sparse = 0 * sparse
    if self.fallback:
      dense, fast = (
        self._call(gemm, which, itemsize)["cycles"] for which in (0, 1)
      )
      sparse = sparse * smaller(larger(dense - fast, 0), 1)
    call = self._call(gemm, sparse, itemsize)
    # Useful MACs x 2 / (ns x FLOP per ns), which rounding alone could lift
    # above 1.
    kept = smaller(gemm.kept, call.pop("stored"))
    rate = scaled(self.peak, self.multiple(itemsize))
    useful = gemm.M / 1 * (gemm.N / 1) * (kept / call["cycles"]) * (2 / rate)
    return call | {
      "utilisation": smaller(useful, 1.0),
      **no_accesses(gemm.M),
    }

  def _call(
    self, gemm: Gemm, sparse: Any, itemsize: int | Fraction
  ) -> dict[str, Any]:
    """The parts and bytes of one call; `sparse` is 1 for 2:4, else 0."""

    def either(dense: Any, halved: Any) -> Any:
      return dense + sparse * (halved - dense)

    M, N, K, side = gemm.M, gemm.N, gemm.K, self.side
    kernel = _Kernel(side) if self.ideal else _measured(self)
    tile = kernel.tile
    rows, cols = ceil_div(M, tile), ceil_div(N, tile)
    thin = gemm.narrow().K
    deep, narrow = (ceil_div(size, side) * side for size in (K, thin))
    depth = either(deep, _halved(narrow))
    outputs = either(ceil_div(M, side) * side, rows * tile) * either(
      ceil_div(N, side) * side, cols * tile
    )
    flops = 2 * outputs * depth
    # 2 of every 4 rows run, at the dense peak.
    peak = scaled(self.peak, self.multiple(itemsize))
    rate = either(
      larger(peak * kernel.dense_rate // 1000, 1),
      larger(peak * kernel.sparse_rate // 1000, 1),
    )
    # (1), (2)
    compute = ceil_div(flops + outputs * sparse * kernel.ramp, rate)
    stored = either(K, _halved(thin))
    metadata = ceil_div(stored * N * sparse * index_bits(_KEPT, _BLOCK), 8)
    metadata = metadata + sparse * _column_bytes(gemm, thin)
    dram_bytes = bytes_of(M * K + stored * N + M * N, itemsize) + metadata
    moved = self.memory_cycles(dram_bytes, self.hbm)
    # (3), from picoseconds.
    waves = ceil_div(rows * cols, self.units) + IN_FLIGHT - 1
    tiles = sparse * waves * bytes_of(thin, itemsize)
    exposed = ceil_div(tiles * kernel.latency, 1000 * IN_FLIGHT)
    busy = larger(compute, moved)
    cycles = larger(busy, exposed)
    overhead = self.overhead + sparse * self.sparse_overhead
    return arithmetic(compute) | {
      "stall_dram": busy - compute,
      "fill": cycles - busy,
      "launch": overhead,
      "cycles": cycles + overhead,
      "flops": flops,
      "stored": stored,
      "metadata_bytes": metadata,
      "dram_bytes": dram_bytes,
    }


class _Kernel(NamedTuple):
  """What (1) to (4) say of a kernel; by default that of the silicon."""

  tile: Any
  dense_rate: Any = 1000
  sparse_rate: Any = 1000
  ramp: Any = 0
  latency: Any = 0


def _measured(engine: TensorCore) -> _Kernel:
  names = _Kernel._fields[1:]
  return _Kernel(TILE, *(getattr(engine, name) for name in names))


def _column_bytes(gemm: Gemm, thin: Any) -> Any:
  """Indices of the columns that V outputs share, ceil(log2 m) bits each."""
  if isinstance(gemm.v, int) and not gemm.v:
    return 0
  vectors = ceil_div(gemm.N, larger(gemm.v, 1)) * smaller(gemm.v, 1)
  return ceil_div(vectors * thin * index_bits(gemm.n, gemm.m), 8)


def _halved(depth: Any) -> Any:
  """2 of every 4, the last block padded."""
  return ceil_div(depth, _BLOCK) * _KEPT
