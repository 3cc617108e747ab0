"""Engines as frozen, validated descriptions: names and numbers, no formulas.

A numeric field may be an integer array, which describes many designs at once;
fields broadcast against each other and against the layers. Bandwidths count
per cycle: values at the ports of the array, bytes at the memory's.
`figs_jax.engine.parse` reads engines from text, as in `ws:32x32:overlap=none`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from figs_jax.engine.description import (
  UNLIMITED,
  Description,
  indivisible,
  is_default,
  sides_of,
  text_of,
)
from figs_jax.engine.int64 import array_dataclass, is_traced

DATAFLOWS = ("ws", "os", "is")
OVERLAPS = ("none", "weights", "full")
EXCHANGES = ("mux", "swap")
VEGETA_BLOCK = 4


@array_dataclass("dataflow", "overlap", "sparse", "name")
@dataclasses.dataclass(frozen=True)
class Systolic(Description):
  """A systolic array of rows x cols multipliers, one result each per cycle.

  Attributes:
    dataflow: what stays in the array: "ws" weights (K down the rows, N across),
      "is" inputs (K down, M across), "os" outputs (M down, N across).
    rows: rows R; an integer array describes many designs at once.
    cols: columns C; broadcasts against rows and against the layers.
    overlap: what hides behind the streaming of another fold: "none"; "weights",
      the loading of the stationary operand; "full", filling and draining too.
    sparse: whether N:M weights are stored and run compressed. If not, a sparse
      layer runs dense, and only its kept weights count as useful.
    bw_in: values that may enter per cycle; a full array takes R ("os": R + C).
    bw_out: values that may leave per cycle; a full array gives C.
    dram_bw: bytes per cycle between chip and memory.
    name: how tables call it; by default its spec.

  >>> str(Systolic("ws", 32, 16, overlap="full"))
  'ws:32x16:overlap=full'

  Raises:
    ValueError: an unknown dataflow or overlap, or a number out of range.
  """

  dataflow: str
  rows: Any
  cols: Any
  overlap: str = "none"
  sparse: bool = True
  bw_in: Any = UNLIMITED
  bw_out: Any = UNLIMITED
  dram_bw: Any = UNLIMITED
  name: str = ""

  CHOICES = {"dataflow": DATAFLOWS, "overlap": OVERLAPS}
  HEAD = ("dataflow", "rows", "cols")

  def head(self) -> str:
    return f"{self.dataflow}:{sides_of(self)}"


@array_dataclass("sparse", "overlap", "name")
@dataclasses.dataclass(frozen=True)
class Vegeta(Description):
  """VEGETA (HPCA'23, arXiv 2302.08687): PEs of alpha PUs of beta MACs.

  Attributes:
    sparse: an S engine, with a 4:1 multiplexer before each multiplier, or a
      dense D engine.
    alpha: PUs that share the inputs of a PE.
    beta: MACs that reduce into one output.
    rows: multipliers along the contraction, K_c; rows / beta rows of PEs.
    cols: multipliers along the outputs, M_c; cols / alpha columns of PEs.
    overlap: as of `Systolic`.
    tile: rows of activations that stream through a tile of weights.
    interleave: output tiles worked on in turn, d, where overlap is "full"; a
      tile waits for the last sums of its output to leave. 0: sums are
      forwarded, and no tile waits for another.
    bw_in: values that may enter per cycle; a full S engine takes 4 rows.
    bw_out: values that may leave per cycle; a full array gives cols.
    dram_bw: bytes per cycle between chip and memory.
    name: how tables call it; by default its spec.

  >>> str(Vegeta(True, 16, 2))
  'vegeta-s-16-2'

  Raises:
    ValueError: beta does not divide rows or alpha cols, or a number is out of
      range.
  """

  sparse: bool
  alpha: Any
  beta: Any
  rows: Any = 32
  cols: Any = 16
  overlap: str = "none"
  tile: Any = UNLIMITED
  interleave: Any = 0
  bw_in: Any = UNLIMITED
  bw_out: Any = UNLIMITED
  dram_bw: Any = UNLIMITED
  name: str = ""

  CHOICES = {"overlap": OVERLAPS}
  HEAD = ("sparse", "alpha", "beta", "rows", "cols")
  FROM_ZERO = ("interleave",)

  def head(self) -> str:
    kind = "s" if self.sparse else "d"
    head = f"vegeta-{kind}-{text_of(self.alpha)}-{text_of(self.beta)}"
    is_preset = is_default(self.rows, 32) and is_default(self.cols, 16)
    return head if is_preset else f"{head}:{sides_of(self)}"

  def faults(self) -> Iterator[tuple[Any, str]]:
    yield indivisible("rows", self.rows, "beta", self.beta)
    yield indivisible("cols", self.cols, "alpha", self.alpha)


@array_dataclass("exchange", "overlap", "name")
@dataclasses.dataclass(frozen=True)
class Figs(Description):
  """The FIGS array: swap registers that exchange values within a block.

  A reconstruction from the FiGS slides, which state alpha, beta, the swap
  registers and their aim; the rest is ours.

  Attributes:
    rows: rows R of swap registers; one value enters each of them per cycle.
    cols: columns C of PEs.
    alpha: further swap registers that a register exchanges with vertically, so
      that blocks hold at most alpha + 1 rows.
    beta: MACs of a PE, each with a partial sum of its own.
    block: rows M of a block; 0 takes it from the layer's pattern.
    exchange: "mux", any value to any MAC of its block; "swap", a permutation of
      the block's values per cycle, which stalls where a value is wanted twice.
    mask_group: outputs that share a selected operand, hence a mask: 1 or beta.
    sigma: extra cycles of a hop from one column to the next.
    load: rows of weights loaded per cycle, w.
    overlap: as of `Systolic`.
    bw_in: values that may enter per cycle; a full array takes R.
    bw_out: partial sums that may leave per cycle.
    dram_bw: bytes per cycle between chip and memory.
    name: how tables call it; by default its spec.

  >>> str(Figs(32, 16, alpha=3))
  'figs:32x16:alpha=3'

  Raises:
    ValueError: block is above alpha + 1, does not divide rows, or is no power
      of two where exchange is "swap"; mask_group is neither 1 nor beta; or a
      number is out of range.
  """

  rows: Any = 32
  cols: Any = 16
  alpha: Any = 7
  beta: Any = 1
  block: Any = 0
  exchange: str = "mux"
  mask_group: Any = 1
  sigma: Any = 0
  load: Any = 1
  overlap: str = "none"
  bw_in: Any = UNLIMITED
  bw_out: Any = UNLIMITED
  dram_bw: Any = UNLIMITED
  name: str = ""

  CHOICES = {"overlap": OVERLAPS, "exchange": EXCHANGES}
  HEAD = ("rows", "cols")
  FROM_ZERO = ("alpha", "block", "sigma")

  def head(self) -> str:
    return f"figs:{sides_of(self)}"

  def faults(self) -> Iterator[tuple[Any, str]]:
    values = (self.rows, self.alpha, self.block, self.mask_group, self.beta)
    if is_traced(*values):
      return
    rows, alpha, block, group, beta = map(np.asarray, values)
    given = np.maximum(block, 1)
    # A network that swaps registers 1, 2, 4, ... apart.
    wide = np.where(block == 0, alpha + 1, block)
    bad = [
      block > alpha + 1,
      rows % given,
      (wide & (wide - 1)) * (self.exchange == "swap"),
      (group != 1) & (group != beta),
    ]
    why = [
      f"Figs block={block}, alpha={alpha}: a block spans at most"
      f" alpha + 1 rows; set alpha={int(given.max()) - 1} or a smaller block",
      f"Figs rows={rows} is not a multiple of block={block}; set"
      f" rows={text_of(-(-rows // given) * given)}",
      f"Figs exchange='swap': a block of {text_of(wide)} rows is no power of"
      " two; set block= (or alpha + 1) to 2, 4, 8, ... or exchange='mux'",
      f"Figs mask_group={group}: a mask is shared by 1 output or by"
      f" the beta={beta} of a PE",
    ]
    yield from zip(bad, why)


class Chip(Description):
  """A description whose head names a chip of `figs_jax.engine.spec_text`."""

  unit = "ns"
  is_array = False

  def implied(self) -> dict[str, Any]:
    from figs_jax.engine.spec_text import parse

    names = super().implied()
    try:
      preset = parse(self.head())
    except ValueError:  # A chip of the caller's own.
      return names
    return {name: getattr(preset, name) for name in names}


@array_dataclass("kind", "chip", "fallback", "name")
@dataclasses.dataclass(frozen=True)
class Roofline(Chip):
  """A processor known by its peak and its memory; its cycles are nanoseconds.

  Attributes:
    kind: how specs call it: "tpu", "gpu", or "tensorcore", where 2:4 operands
      run at twice the peak.
    chip: its generation.
    peak: dense GFLOP/s (FLOP per ns) of 16-bit operands.
    hbm: GB/s (bytes per ns) of its memory.
    side: M, N and K are padded to multiples of the side of its matrix unit.
    int8: operands of one byte run at this many times the peak.
    overhead: ns of every call.
    sparse_overhead: further ns of every call with a 2:4 operand.
    fallback: whether a layer runs dense where that is faster, as a runtime that
      has both kernels would choose.
    name: how tables call it; by default its spec.

  Raises:
    ValueError: a number is out of range.
  """

  kind: str
  chip: str
  peak: Any
  hbm: Any
  side: Any = 1
  int8: Any = 1
  overhead: Any = 0
  sparse_overhead: Any = 0
  fallback: bool = False
  name: str = ""

  CHOICES = {"kind": ("tpu", "gpu", "tensorcore")}
  HEAD = ("kind", "chip")
  FROM_ZERO = ("overhead", "sparse_overhead")

  @property
  def sparse(self) -> bool:
    """Whether it has a mode for 2:4."""
    return self.kind == "tensorcore"

  def head(self) -> str:
    return f"{self.kind}:{self.chip}"


@array_dataclass("chip", "reuse", "name")
@dataclasses.dataclass(frozen=True)
class Csr(Chip):
  """Sparse times dense in CSR, bound by arithmetic intensity; in nanoseconds.

  Attributes:
    chip: whose peak and memory these are.
    peak: GFLOP/s (FLOP per ns).
    hbm: GB/s (bytes per ns).
    value_bytes: B_T, bytes per value.
    index_bytes: B_I, bytes per column index.
    pointer_bytes: delta, bytes of row pointer per row.
    reuse: whether the sparse operand is kept while dense columns stream; if
      not, it is read again for each of them.
    name: how tables call it; by default its spec.

  Raises:
    ValueError: a number is out of range.
  """

  chip: str
  peak: Any
  hbm: Any
  value_bytes: Any = 4
  index_bytes: Any = 4
  pointer_bytes: Any = 4
  reuse: bool = True
  name: str = ""

  HEAD = ("chip",)

  def head(self) -> str:
    return f"csr:{self.chip}"


Engine = Systolic | Vegeta | Figs | Roofline | Csr
