"""Attention's two products, one after the other or fused as in FLAT.

softmax(Q K') V with L queries, S keys and head dimension D makes L S logits per
head. Unfused, an operator finishes before the next begins, and logits that do
not fit on chip go off chip: written, read for the softmax, written, read (4
passes; 2 where the softmax happens on the way). FLAT (arXiv 2107.06419) works
on tiles of r rows of Q instead; a tile's logits, r S of them, never leave the
chip:

  bytes on chip      b (r S + 2 r D + 2 D)        K and V pass by, row by row
                  or b (r S + 2 r D + 2 S D)      K and V stay for all tiles
  bytes off chip     b (2 L D + ceil(L / r) 2 S D),  or b (2 L D + 2 S D)
  cycles             max(compute + softmax, DRAM bytes / BW, SRAM bytes / BW)

where an unfused operator takes such a maximum of its own, or the sum of both
where nothing overlaps. Compute is what the
engine needs for its products of r rows each. The softmax waits for its rows and
the products wait for it. Where not even the asked tile fits, the fused form
falls back to the unfused one and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from figs_jax.engine._cost import AT_45_NM, evaluate
from figs_jax.engine.energy import Energy, picojoules
from figs_jax.engine.int64 import (
  array_dataclass,
  ceil_div,
  exact,
  is_traced,
  larger,
  smaller,
)
from figs_jax.engine.spec import (
  UNLIMITED,
  Engine,
  Gemm,
  check_itemsize,
  nearest,
)
from figs_jax.engine.spec_text import parse

UNFUSED = ("head", "operator")
OVERLAPS = ("full", "none")
_SIZE = (1, 2**31 - 1)


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class Attention:
  """softmax(Q K') V of batch x heads; integers or integer arrays.

  Raises:
    ValueError: a size out of range.

  >>> Attention(1, 12, 197, 197, 64).keys
  197
  """

  batch: Any
  heads: Any
  queries: Any
  keys: Any
  head_dim: Any

  def __post_init__(self):
    names = (field.name for field in dataclasses.fields(self))
    _check_whole(self, dict.fromkeys(names, _SIZE))


@array_dataclass("unfused", "overlap")
@dataclasses.dataclass(frozen=True)
class Memory:
  """What surrounds the array; integers or integer arrays.

  Attributes:
    buffer: bytes on chip.
    dram_bw: bytes per cycle off chip.
    sram_bw: bytes per cycle between buffer and array.
    tile_rows: rows r of a fused tile. 0 takes all that fit: beside K and V
      where those fill at most half of the buffer, else with K and V passing by.
    lanes: logits whose softmax is done per cycle; 0 leaves the softmax out.
    logit_passes: how often unfused logits cross the pins, 4 or 2.
    unfused: when the next operator begins: after the operator of one "head"
      (so that one head's logits may stay on chip), or of them all ("operator").
    overlap: "full" hides memory behind compute (double buffers, whose bytes are
      not counted); "none" adds it.

  Raises:
    ValueError: an unknown `unfused` or `overlap`, or a number out of range.
  """

  buffer: Any
  dram_bw: Any = UNLIMITED
  sram_bw: Any = UNLIMITED
  tile_rows: Any = 0
  lanes: Any = 0
  logit_passes: Any = 4
  unfused: str = "head"
  overlap: str = "full"

  LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
    "buffer": (1, 2**53),
    "dram_bw": _SIZE,
    "sram_bw": _SIZE,
    "tile_rows": (0, 2**31 - 1),
    "lanes": (0, 2**31 - 1),
    "logit_passes": (2, 4),
  }

  def __post_init__(self):
    for name, legal in (("unfused", UNFUSED), ("overlap", OVERLAPS)):
      got = getattr(self, name)
      if got not in legal:
        raise ValueError(f"Memory {name}={got!r}: {nearest(got, legal)}")
    _check_whole(self, self.LIMITS)


@array_dataclass()
@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCost:
  """What attention costs, all heads of the batch; int64 but for the energy.

  Attributes:
    cycles: compute + softmax + stall.
    compute: cycles of the engine for both products.
    softmax: cycles of the softmax.
    stall: waiting for memory, on chip or off.
    dram_bytes: to and from memory.
    sram_bytes: between the buffer and the array, and of the softmax.
    tile_rows: rows of a tile; all queries where nothing is fused.
    fused: 1 where tiles are fused, else 0.
    resident: 1 where K and V of a head are read once, else 0.
    energy_pj: float64.
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
  attention: Attention,
  engine: Engine | str,
  memory: Memory,
  fused: bool = True,
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
) -> AttentionCost:
  """What attention costs on an array; everything broadcasts, jits and vmaps.

  Args:
    attention: sizes.
    engine: an array, or its spec; its own `dram_bw` is not looked at.
    memory: buffer and bandwidths.
    fused: whether to fuse.
    itemsize: bytes per value, b.
    energy: picojoules per operation.

  Raises:
    ValueError: a roofline, a bad itemsize, or a result past int64.

  >>> short = Attention(1, 12, 512, 512, 64)
  >>> chip = Memory(buffer=2**19, dram_bw=57)
  >>> array = "os:32x32:overlap=full"
  >>> both = [attention_cost(short, array, chip, f) for f in (False, True)]
  >>> [int(x.dram_bytes) for x in both], int(both[1].tile_rows)
  ([28311552, 3145728], 307)
  """
  engine = parse(engine)
  if not engine.is_array:
    raise ValueError(
      f"attention_cost: {engine} is no array; give one, as in 'ws:128x128'"
    )
  check_itemsize(itemsize)
  sizes = attention.queries, attention.keys, attention.head_dim
  plan = _exact_plan(
    *(*sizes, memory.buffer, memory.tile_rows), fused=fused, itemsize=itemsize
  )
  L, S, D = sizes
  rows, tail = plan["rows"], plan["tail"]
  asked = [(rows, S, D), (rows, D, S), (tail, S, D), (tail, D, S)]
  found = [evaluate(Gemm(*sides), engine, itemsize) for sides in asked]
  cycles = [c["cycles"] - c["stall_dram"] for c in found]
  words = [
    c["ifmap_reads"] + c["filter_reads"] + c["ofmap_writes"] for c in found
  ]
  flags = [plan[name] for name in ("whole", "last", "fits", "resident")]
  done = _exact_total(
    *(attention.batch, attention.heads, L, S, D, *flags, *cycles, *words),
    *(memory.buffer, memory.dram_bw, memory.sram_bw, memory.lanes),
    memory.logit_passes,
    itemsize=itemsize,
    live=memory.unfused,
    overlap=memory.overlap,
    energy=energy,
  )
  return AttentionCost(
    **done,
    tile_rows=rows,
    fused=plan["fits"],
    resident=plan["resident"],
  )


def _check_whole(owner: Any, limits: Mapping[str, tuple[int, int]]) -> None:
  """Raises ValueError for a field that holds no integers within its limits."""
  for name, (least, most) in limits.items():
    value = getattr(owner, name)
    if is_traced(value):
      continue
    array, got = np.asarray(value), repr(value)
    if array.dtype.kind in "iu" and array.size:
      if least <= array.min() and array.max() <= most:
        continue
      got = array.min() if array.min() < least else array.max()
    elif array.ndim:
      got = f"{array.dtype} of shape {array.shape}"
    raise ValueError(
      f"{type(owner).__name__} {name}={got}: give integers from {least} to"
      f" {most}"
    )


def _at_least(a: Any, b: Any) -> Any:
  """1 where a >= b, else 0, for integers."""
  return smaller(larger(a - b + 1, 0), 1)


def _plan(L, S, D, buffer, tile_rows, *, fused, itemsize):
  """How many rows a tile has, and what stays on chip."""
  row = itemsize * (S + 2 * D)
  beside = larger((buffer - itemsize * 2 * S * D) // row, 0)
  passing = larger((buffer - itemsize * 2 * D) // row, 0)
  half = _at_least(buffer, 2 * itemsize * 2 * S * D)
  most = half * beside + (1 - half) * passing
  given = smaller(tile_rows, 1)
  rows = smaller(given * tile_rows + (1 - given) * most, L)
  fits = int(fused) * _at_least(passing, rows) * smaller(rows, 1)
  rows = fits * rows + (1 - fits) * L
  tail = L % rows
  return {
    "rows": rows,
    "whole": L // rows,
    # A product without rows has no cost: it is weighed by `last`.
    "tail": larger(tail, 1),
    "last": smaller(tail, 1),
    "fits": fits,
    "resident": fits * _at_least(beside, rows),
  }


def _total(
  batch, heads, L, S, D, whole, last, fits, resident, qk, av, qk_tail, av_tail,
  qk_words, av_words, qk_tail_words, av_tail_words, buffer, dram_bw, sram_bw,
  lanes, passes, *, itemsize, live, overlap, energy,
):  # fmt: skip
  many = batch * heads
  compute = [
    many * (whole * rows + last * rest)
    for rows, rest in ((qk, qk_tail), (av, av_tail))
  ]
  sram = [
    many * itemsize * (whole * rows + last * rest)
    for rows, rest in ((qk_words, qk_tail_words), (av_words, av_tail_words))
  ]
  logits = many * itemsize * L * S
  softmax = smaller(lanes, 1) * ceil_div(many * L * S, larger(lanes, 1))
  ends, sides = many * itemsize * L * D, many * itemsize * S * D
  # Fused: Q in, the output out, K and V once or for every tile.
  tiles = whole + last
  tiled = 2 * ends + 2 * sides * (resident + (1 - resident) * tiles)
  # Unfused: the logits stay if they fit beside K and V.
  alive = L * S * (many if live == "operator" else 1)
  holds = _at_least(buffer, itemsize * (alive + 2 * S * D))
  crossing = (1 - holds) * logits
  # Else each operator keeps its K or V, or as many rows of Q as fit.
  kept = larger(holds, _at_least(buffer, itemsize * (S + 2) * D))
  blocks = ceil_div(L, larger(buffer // (itemsize * D) - 2, 1))
  product = ends + sides * (kept + (1 - kept) * blocks) + crossing
  apart = (2 * product, crossing * (passes - 2))

  def bound(cycles, dram, on_chip):
    moved = larger(ceil_div(dram, dram_bw), ceil_div(on_chip, sram_bw))
    return larger(cycles, moved) if overlap == "full" else cycles + moved

  together = bound(sum(compute) + softmax, tiled, sum(sram) + 2 * logits)
  in_turn = (
    bound(compute[0], product, sram[0])
    + bound(softmax, apart[1], 2 * logits)
    + bound(compute[1], product, sram[1])
  )
  cycles = fits * together + (1 - fits) * in_turn
  dram_bytes = fits * tiled + (1 - fits) * sum(apart)
  sram_bytes = sum(sram) + 2 * logits
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


_SIDES = dict.fromkeys(("L", "S", "D", "batch", "heads"), _SIZE)
_FLAGS = dict.fromkeys(("last", "fits", "resident"), (0, 1))
_exact_plan = exact(_plan, _SIDES | Memory.LIMITS)
_exact_total = exact(
  _total,
  _SIDES
  | _FLAGS
  | Memory.LIMITS
  | {"passes": Memory.LIMITS["logit_passes"], "whole": _SIZE},
  least=0,
)
