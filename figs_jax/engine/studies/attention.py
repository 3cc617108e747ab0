"""Attention's two products, one after the other or fused as in FLAT.

softmax(Q K') V with L queries, S keys and head dimension D makes L S logits per
head. Unfused, an operator finishes before the next one begins, and logits that
do not fit on chip cross the pins in 4 passes: written and read for the softmax,
written and read again (2 if the softmax happens on the way). FLAT (arXiv
2107.06419) works on tiles of r rows of Q, whose logits never leave the chip:

  bytes on chip   b (r S + 2 r D + 2 D)      K and V pass by, row by row     (1)
                  b (r S + 2 r D + 2 S D)    K and V stay for all tiles      (2)
  bytes off chip  b (2 L D + ceil(L / r) 2 S D)                   with (1)   (3)
                  b (2 L D + 2 S D)                               with (2)   (4)
  cycles          max(compute + softmax, DRAM bytes / BW, SRAM bytes / BW)   (5)

An unfused operator takes such a maximum of its own; where memory is not hidden,
maxima become sums. Compute is what the engine needs for products of r rows. The
softmax waits for its rows, and the products wait for the softmax. Where a tile
does not fit, attention runs unfused, and `AttentionCost.fused` says so.

FLAT publishes means of 1.94x at the edge and 1.76x in the cloud over
accelerators without its dataflow, but neither the sequence lengths behind them
nor how its baseline overlaps memory with compute. Its platforms and models are
public in the artefact of FuseMax (arXiv 2406.10491, MIT licence), which
recomputed FLAT: 940 MHz, 16-bit values, batch 64, an edge array of 32 x 32 with
512 KiB and 50 GiB/s, a cloud array of 256 x 256 with 32 MiB and 400 GiB/s. The
bandwidths on chip, 1 and 8 TB/s, are those commonly quoted. With these, an
ideal machine brackets the edge figure but not the cloud figure, and the mean of
this model reaches neither (`flat_claims`).
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from figs_jax.engine._cost import AT_45_NM, gemm_cost
from figs_jax.engine.energy import Energy, picojoules
from figs_jax.engine.int64 import (
  array_dataclass,
  ceil_div,
  exact,
  larger,
  smaller,
)
from figs_jax.engine.spec import (
  UNLIMITED,
  Engine,
  Gemm,
  check_integers,
  check_itemsize,
  nearest,
)
from figs_jax.engine.spec_text import parse
from figs_jax.engine.systolic import Systolic

_SIZE = (1, 2**31 - 1)


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class AttentionShape:
  """Sizes of softmax(Q K') V for batch x heads; integers or integer arrays.

  Raises:
    ValueError: If a size is out of range.

  >>> AttentionShape(1, 12, 197, 197, 64).keys
  197
  """

  batch: Any
  heads: Any
  queries: Any
  keys: Any
  head_dim: Any

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      check_integers(f"AttentionShape {field.name}", value, *_SIZE)


@array_dataclass("unfused", "overlap")
@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory around an array; integers or integer arrays.

  Attributes:
    buffer: Bytes on chip.
    dram_bw: Bytes per cycle off chip.
    sram_bw: Bytes per cycle between buffer and array.
    tile_rows: Rows r of a fused tile. 0 takes as many as fit: beside K and V if
      these fill at most half of the buffer, else with K and V passing by.
    lanes: Logits whose softmax is done per cycle. 0 leaves the softmax out.
    logit_passes: Number of times that unfused logits cross the pins, 2 to 4.
    unfused: When the next operator begins: after the operator of one "head", so
      that its logits may stay on chip, or of all heads ("operator").
    overlap: "full" hides memory behind compute, with double buffers whose bytes
      are not counted; "none" adds it.

  Raises:
    ValueError: If `unfused` or `overlap` is unknown, or a number is out of
      range.
  """

  buffer: Any
  dram_bw: Any = UNLIMITED
  sram_bw: Any = UNLIMITED
  tile_rows: Any = 0
  lanes: Any = 0
  logit_passes: Any = 4
  unfused: str = "head"
  overlap: str = "full"

  CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
    "unfused": ("head", "operator"),
    "overlap": ("full", "none"),
  }
  LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
    "buffer": (1, 2**53),
    "dram_bw": _SIZE,
    "sram_bw": _SIZE,
    "tile_rows": (0, 2**31 - 1),
    "lanes": (0, 2**31 - 1),
    "logit_passes": (2, 4),
  }

  def __post_init__(self):
    for name, legal in self.CHOICES.items():
      value = getattr(self, name)
      if value not in legal:
        raise ValueError(
          f"Memory: unknown {name} {value!r}, {nearest(value, legal)}"
        )
    for name, limits in self.LIMITS.items():
      check_integers(f"Memory {name}", getattr(self, name), *limits)


@array_dataclass()
@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCost:
  """What attention costs, all heads of the batch; int64 except for the energy.

  Attributes:
    cycles: The sum of compute, softmax and stall.
    compute: Cycles of the engine for both products.
    softmax: Cycles of the softmax.
    stall: Cycles of waiting for memory, on chip or off.
    dram_bytes: Bytes to and from memory.
    sram_bytes: Bytes between buffer and array, and of the softmax.
    tile_rows: Rows of a tile; all queries if nothing is fused.
    fused: 1 if tiles are fused, else 0.
    resident: 1 if K and V of a head are read once, else 0.
    energy_pj: Energy in picojoules, float64.
  """

  cycles: Any
  compute: Any
  softmax: Any
  stall: Any
  dram_bytes: Any
  sram_bytes: Any
  tile_rows: Any
  fused: Any
  resident: Any
  energy_pj: Any


def attention_cost(
  attention: AttentionShape,
  engine: Engine | str,
  memory: Memory,
  fused: bool = True,
  itemsize: int | Fraction = 2,
  energy: Energy = AT_45_NM,
) -> AttentionCost:
  """What attention costs on an array; arguments broadcast, jit and vmap.

  Args:
    attention: Sizes.
    engine: Array, or its spec; its own `dram_bw` is ignored.
    memory: Buffer and bandwidths.
    fused: Whether to fuse.
    itemsize: Bytes per value, b.
    energy: Picojoules per operation.

  Raises:
    ValueError: If the engine is a roofline, `itemsize` is invalid, or a result
      does not fit int64.

  >>> short = AttentionShape(1, 12, 512, 512, 64)
  >>> chip = Memory(buffer=2**19, dram_bw=57)
  >>> array = "os:32x32:overlap=full"
  >>> both = [attention_cost(short, array, chip, f) for f in (False, True)]
  >>> [int(x.dram_bytes) for x in both], int(both[1].tile_rows)
  ([28311552, 3145728], 307)
  """
  engine = parse(engine)
  check_array(engine)
  check_itemsize(itemsize)
  L, S, D = attention.queries, attention.keys, attention.head_dim
  plan = _exact_plan(
    *(L, S, D, memory.buffer, memory.tile_rows), fused=fused, itemsize=itemsize
  )

  def product(rows: Any, N: Any, K: Any) -> _Product:
    parts = gemm_cost(Gemm(rows, N, K), engine, itemsize)
    return _Product(
      parts["cycles"] - parts["stall_dram"],
      parts["ifmap_reads"] + parts["filter_reads"] + parts["ofmap_writes"],
    )

  total = _exact_total(
    attention,
    memory,
    _Plan(**plan),
    *(product(plan["rows"], S, D), product(plan["rows"], D, S)),
    *(product(plan["tail"], S, D), product(plan["tail"], D, S)),
    itemsize=itemsize,
    energy=energy,
  )
  return AttentionCost(
    **total,
    tile_rows=plan["rows"],
    fused=plan["fits"],
    resident=plan["resident"],
  )


def check_array(engine: Engine) -> None:
  """Refuses a roofline, which has neither ports nor a buffer.

  Raises:
    ValueError: If the engine is not an array.
  """
  if not engine.is_array:
    raise ValueError(
      f"engine: expected an array, as in 'ws:128x128', got {engine}"
    )


def _at_least(a: Any, b: Any) -> Any:
  """1 where a >= b, else 0, for integers."""
  return smaller(larger(a - b + 1, 0), 1)


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class _Plan:
  """The tiles of a head's queries, and what stays on chip."""

  rows: Any  # of a whole tile
  whole: Any  # number of whole tiles
  tail: Any  # rows of a last tile, at least 1: a product needs a row
  last: Any  # whether there is one
  fits: Any  # whether tiles are fused
  resident: Any  # whether K and V stay for all tiles


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class _Product:
  """A product of a tile on the engine."""

  cycles: Any
  words: Any  # moved on chip


def _plan(
  L: Any, S: Any, D: Any, buffer: Any, tile_rows: Any, *, fused: bool,
  itemsize: int | Fraction,
) -> dict[str, Any]:  # fmt: skip
  """The fields of `_Plan`."""
  size, unit = Fraction(itemsize).as_integer_ratio()
  room, row = unit * buffer, size * (S + 2 * D)  # in shares of a byte
  passing = larger((room - size * 2 * D) // row, 0)  # (1)
  beside = larger((room - size * 2 * S * D) // row, 0)  # (2)
  half = _at_least(room, 2 * size * 2 * S * D)
  most = half * beside + (1 - half) * passing
  given = smaller(tile_rows, 1)
  rows = smaller(given * tile_rows + (1 - given) * most, L)
  fits = int(fused) * _at_least(passing, rows) * smaller(rows, 1)
  rows = fits * rows + (1 - fits) * L
  return {
    "rows": rows,
    "whole": L // rows,
    "tail": larger(L % rows, 1),
    "last": smaller(L % rows, 1),
    "fits": fits,
    "resident": fits * _at_least(beside, rows),
  }


def _total(
  shape: AttentionShape,
  memory: Memory,
  plan: _Plan,
  qk: _Product,
  av: _Product,
  qk_tail: _Product,
  av_tail: _Product,
  *,
  itemsize: int | Fraction,
  energy: Energy,
) -> dict[str, Any]:
  L, S, D = shape.queries, shape.keys, shape.head_dim
  many = shape.batch * shape.heads
  # Sizes are in shares of a byte, of which fp4 takes one of two.
  size, unit = Fraction(itemsize).as_integer_ratio()
  room = unit * memory.buffer
  logits = many * size * L * S
  ends, sides = many * size * L * D, many * size * S * D
  compute, sram = [], []
  for tile, tail in ((qk, qk_tail), (av, av_tail)):
    cycles = plan.whole * tile.cycles + plan.last * tail.cycles
    words = plan.whole * tile.words + plan.last * tail.words
    compute.append(many * cycles)
    sram.append(many * size * words)
  softmax = ceil_div(many * L * S, larger(memory.lanes, 1))
  softmax = smaller(memory.lanes, 1) * softmax
  # Fused: Q in, the output out, K and V once or for every tile, (3) and (4).
  tiles = plan.resident + (1 - plan.resident) * (plan.whole + plan.last)
  tiled = 2 * ends + 2 * sides * tiles
  # Unfused: the logits stay if they fit beside K and V.
  alive = L * S * (many if memory.unfused == "operator" else 1)
  holds = _at_least(room, size * (alive + 2 * S * D))
  crossing = (1 - holds) * logits
  # Otherwise each operator keeps its K or V, or as many rows of Q as fit.
  kept = larger(holds, _at_least(room, size * (S + 2) * D))
  blocks = ceil_div(L, larger(room // (size * D) - 2, 1))
  product = ends + sides * (kept + (1 - kept) * blocks) + crossing
  between = crossing * (memory.logit_passes - 2)

  def bound(cycles, dram, on_chip):  # (5)
    moved = larger(
      ceil_div(dram, unit * memory.dram_bw),
      ceil_div(on_chip, unit * memory.sram_bw),
    )
    is_hidden = memory.overlap == "full"
    return larger(cycles, moved) if is_hidden else cycles + moved

  together = bound(sum(compute) + softmax, tiled, sum(sram) + 2 * logits)
  in_turn = (
    bound(compute[0], product, sram[0])
    + bound(softmax, between, 2 * logits)
    + bound(compute[1], product, sram[1])
  )
  cycles = plan.fits * together + (1 - plan.fits) * in_turn
  moved = plan.fits * tiled + (1 - plan.fits) * (2 * product + between)
  dram_bytes = ceil_div(moved, unit)
  sram_bytes = ceil_div(sum(sram) + 2 * logits, unit)
  return {
    "cycles": cycles,
    "compute": sum(compute),
    "softmax": softmax,
    "stall": cycles - sum(compute) - softmax,
    "dram_bytes": dram_bytes,
    "sram_bytes": sram_bytes,
    "energy_pj": picojoules(
      2 * many * L * S * D, sram_bytes, dram_bytes, energy=energy, itemsize=1
    ),
  }


_SIZES = dict.fromkeys(
  (
    *("batch", "heads", "queries", "keys", "head_dim", "L", "S", "D"),
    *("rows", "whole", "tail"),
  ),
  _SIZE,
)
_FLAGS = dict.fromkeys(("last", "fits", "resident"), (0, 1))
_LIMITS = _SIZES | _FLAGS | Memory.LIMITS
_exact_plan = exact(_plan, _LIMITS)
_exact_total = exact(_total, _LIMITS, least=0)

# FLAT's platforms: array, memory and published speed-up. Bytes per cycle at
# 940 MHz, rounded to whole bytes (by less than 0.3 %).
_PLATFORMS = {
  "edge": (
    Systolic("os", 32, 32, "full"),
    Memory(buffer=512 * 2**10, dram_bw=57, sram_bw=1064),
    1.94,
  ),
  "cloud": (
    Systolic("os", 256, 256, "full"),
    Memory(buffer=32 * 2**20, dram_bw=457, sram_bw=8511),
    1.76,
  ),
}
# Heads and head dimensions of BERT, TrXL, T5 and XLM.
_HEADS = np.array([(12, 64), (16, 64), (8, 64), (16, 128)]).T[:, :, None]
_BATCH, _LENGTHS = 64, 512 << np.arange(8)  # 512 to 64K


@dataclasses.dataclass(frozen=True)
class FlatClaim:
  """A speed-up that FLAT publishes, beside this model's.

  Pairs are over a baseline that hides memory behind compute, and over one that
  hides nothing. Means are geometric.

  Attributes:
    platform: "edge" or "cloud".
    baseline: When an unfused operator ends, as in `Memory.unfused`.
    published: Speed-up of FLAT over its baseline.
    ideal: Result of `flat_ideal` on this platform.
    mean: Means of this model over all models and lengths.
    extremes: The least of the first kind and the greatest of the second.
  """

  platform: str
  baseline: str
  published: float
  ideal: tuple[float, float]
  mean: tuple[float, float]
  extremes: tuple[float, float]

  @property
  def status(self) -> str:
    """Whether the ideal machine brackets the published mean."""
    low, high = self.ideal
    return "bracket" if low <= self.published <= high else "not reproduced"


def flat_ideal(
  multipliers: int, dram_bw: int, dim: int = 64, passes: int = 4
) -> tuple[float, float]:
  """Speed-up by fusion if products fill the array and only logits move.

  A logit costs c = 2 dim / multipliers cycles of compute and m = 2 passes /
  dram_bw of memory, at 16 bits: max(1, m / c) over a baseline that overlaps
  both, 1 + m / c over one that does not.

  >>> [round(x, 2) for x in flat_ideal(32 * 32, 50)]  # edge: 1 GHz, 50 GB/s
  [1.28, 2.28]
  """
  ratio = passes * multipliers / (dram_bw * dim)
  return max(1.0, ratio), 1 + ratio


def flat_claims() -> tuple[FlatClaim, ...]:
  """FLAT's claims beside this model's, over models and lengths.

  The faster of fused and unfused counts as FLAT: tiles of few rows do not fill
  the array, and FLAT's own search falls back there too.

  >>> [(c.platform, c.status) for c in flat_claims() if c.baseline == "head"]
  [('edge', 'bracket'), ('cloud', 'not reproduced')]
  """
  heads, dims = _HEADS
  shape = AttentionShape(_BATCH, heads, _LENGTHS, _LENGTHS, dims)
  claims = []
  for platform, (array, memory, published) in _PLATFORMS.items():
    fused = attention_cost(shape, array, memory).cycles
    for baseline in Memory.CHOICES["unfused"]:
      hidden = dataclasses.replace(memory, unfused=baseline)
      serial = dataclasses.replace(hidden, overlap="none")
      apart, slow = (
        attention_cost(shape, array, chip, False).cycles
        for chip in (hidden, serial)
      )
      best = np.minimum(fused, apart)
      low, high = apart / best, slow / best
      claims.append(
        FlatClaim(
          platform,
          baseline,
          published,
          ideal=flat_ideal(array.rows * array.cols, memory.dram_bw),
          mean=(_mean(low), _mean(high)),
          extremes=(float(low.min()), float(high.max())),
        )
      )
  return tuple(claims)


def _mean(x: np.ndarray) -> float:
  return float(np.exp(np.log(x).mean()))
