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
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from figs_jax.engine._cost import AT_45_NM, Cost, gemm_cost
from figs_jax.engine.energy import Energy, picojoules
from figs_jax.engine.int64 import (
  array_dataclass,
  ceil_div,
  exact,
  larger,
  smaller,
)
from figs_jax.engine.layers import Layers, NonGemm
from figs_jax.engine.non_gemm import non_gemm_cycles
from figs_jax.engine.spec import (
  UNLIMITED,
  Engine,
  Gemm,
  check_integers,
  check_itemsize,
  nearest,
)
from figs_jax.engine.spec_text import parse
from figs_jax.engine.timing import PARTS

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
  """What attention costs on an engine; arguments broadcast, jit and vmap.

  Args:
    attention: Sizes.
    engine: Engine, or its spec. Its own memory is ignored, and so is what a
      processor charges for each call.
    memory: Buffer and bandwidths.
    fused: Whether to fuse.
    itemsize: Bytes per value, b.
    energy: Picojoules per operation.

  Raises:
    ValueError: If `itemsize` is invalid, or a result does not fit int64.

  >>> short = AttentionShape(1, 12, 512, 512, 64)
  >>> chip = Memory(buffer=2**19, dram_bw=57)
  >>> array = "os:32x32:overlap=full"
  >>> both = [attention_cost(short, array, chip, f) for f in (False, True)]
  >>> [int(x.dram_bytes) for x in both], int(both[1].tile_rows)
  ([28311552, 3145728], 307)
  """
  engine = parse(engine)
  check_itemsize(itemsize)
  L, S, D = attention.queries, attention.keys, attention.head_dim
  plan = _exact_plan(
    *(L, S, D, memory.buffer, memory.tile_rows), fused=fused, itemsize=itemsize
  )

  def product(rows: Any, N: Any, K: Any) -> _Product:
    parts = gemm_cost(Gemm(rows, N, K), engine, itemsize)
    # Tiles are one call, so that a processor's overhead is not theirs.
    apart = parts["stall_dram"] + parts["launch"]
    apart = apart + (0 if engine.is_array else parts["fill"])
    return _Product(
      parts["cycles"] - apart,
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


@dataclasses.dataclass(frozen=True)
class Fusion:
  """How attention's products of a model run.

  Attributes:
    fuse: "none" runs q k', softmax and a v one after the other, each through
      the memory; "flat" keeps the logits of a tile of rows on chip, except
      where no tile fits or the tiles take longer.
    buffer: Bytes on chip. Defaults to 32 MiB, as on FLAT's cloud platform.
    sram_bw: Bytes per cycle between buffer and multipliers.

  Raises:
    ValueError: If `fuse` is unknown or a number is out of range.

  >>> str(Fusion("flat", buffer=2**19)), str(Fusion())
  ('flat:buffer=524288', 'none')
  """

  fuse: str = "none"
  buffer: int = 2**25
  sram_bw: int = UNLIMITED

  CHOICES: ClassVar[tuple[str, ...]] = ("none", "flat")

  def __post_init__(self):
    if self.fuse not in self.CHOICES:
      raise ValueError(
        f"fuse {self.fuse!r}: {nearest(self.fuse, self.CHOICES)}"
      )
    for name in ("buffer", "sram_bw"):
      check_integers(name, getattr(self, name), *Memory.LIMITS[name])

  def __str__(self) -> str:
    if self.fuse == "none":
      return self.fuse
    keys = (
      f":{field.name}={getattr(self, field.name)}"
      for field in dataclasses.fields(self)[1:]
      if getattr(self, field.name) != field.default
    )
    return self.fuse + "".join(keys)


def attention_pairs(table: Layers) -> tuple[list[int], list[int]]:
  """The rows `.../qk` of attention's first products, and their `.../av`.

  Raises:
    ValueError: If a product has no partner, or one of another size.
  """
  where = {name: index for index, name in enumerate(table.names)}
  pairs = {}
  for name, index in where.items():
    stem, _, last = name.rpartition("/")
    if last not in ("qk", "av"):
      continue
    other = f"{stem}/{'av' if last == 'qk' else 'qk'}".lstrip("/")
    if other not in where:
      raise ValueError(
        f"layer {name!r}: its partner {other!r} is missing; give both products"
        " of attention, or rename this one"
      )
    if last == "qk":
      pairs[index] = where[other]
  columns = np.stack([table.M, table.N, table.K, table.count], -1)
  for qk, av in pairs.items():
    L, S, D, count = columns[qk].tolist()
    if columns[av].tolist() != [L, D, S, count]:
      raise ValueError(
        f"layer {table.names[av]!r}: expected (M, N, K, count) ="
        f" {(L, D, S, count)} after {table.names[qk]!r}, got"
        f" {tuple(columns[av].tolist())}"
      )
  return list(pairs), list(pairs.values())


def fused_cost(
  table: Layers,
  engine: Engine,
  price: Cost,
  fusion: Fusion,
  itemsize: int | Fraction = 2,
  energy: Energy = AT_45_NM,
) -> tuple[Cost, np.ndarray]:
  """The cost of layers whose attention runs as in FLAT, and where it does.

  The two rows of a fused pair share its cost equally; all time that is not
  waiting for memory counts as compute. A pair stays unfused where no tile fits,
  or where the tiles take longer than both products and a softmax between them.

  Args:
    table: Layers with pairs of attention's products.
    engine: Engine; its fields may be arrays (..., 1), which describe several.
    price: Cost of the layers, unfused.
    fusion: Buffer and bandwidth on chip.
    itemsize: Bytes per value.
    energy: Picojoules per operation.

  Returns:
    The cost, and 1 where a pair is fused, else 0: (..., pairs).

  Raises:
    ValueError: If the layers have no pairs, or as `attention_pairs` and
      `attention_cost`.
  """
  qk, av = attention_pairs(table)
  if not qk:
    raise ValueError(
      "fuse 'flat': expected products of attention, rows '.../qk' and '.../av',"
      " among the layers"
    )
  L, S, D = (np.asarray(column)[qk] for column in (table.M, table.N, table.K))
  memory = Memory(fusion.buffer, engine.memory_bandwidth, fusion.sram_bw)
  shape = AttentionShape(1, 1, L, S, D)
  tiled = attention_cost(shape, engine, memory, True, itemsize, energy)
  logits = [NonGemm("", "softmax", a, a) for a in (L * S).tolist()]
  apart = price.cycles[..., qk] + price.cycles[..., av]
  apart = apart + non_gemm_cycles(logits, engine, itemsize)
  chosen = tiled.fused.astype(bool) & (tiled.cycles <= apart)
  fields = dict.fromkeys(PARTS, 0 * tiled.cycles) | {
    "cycles": tiled.cycles,
    "compute": tiled.cycles - tiled.stall,
    "stall_dram": tiled.stall,
    "dram_bytes": tiled.dram_bytes,
    "energy_pj": tiled.energy_pj,
  }
  shared = {"utilisation": np.array(price.utilisation)}
  work = price.utilisation * price.cycles
  for name, whole in fields.items():
    column = np.array(getattr(price, name))
    second = whole / 2 if name == "energy_pj" else whole // 2
    column[..., qk] = np.where(chosen, whole - second, column[..., qk])
    column[..., av] = np.where(chosen, second, column[..., av])
    shared[name] = column
  for rows in (qk, av):
    busy = work[..., rows] / shared["cycles"][..., rows]
    shared["utilisation"][..., rows] = busy
  return dataclasses.replace(price, **shared), chosen


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
