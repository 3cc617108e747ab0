"""The FIGS array in closed form: swap registers, blocks, packed outputs.

The FiGS slides state three things: a PE is beta MACs that share one input swap
register and keep beta partial sums of their own; swap registers take inputs
from the side, pass them on, and exchange them vertically with alpha more; the
aim is variable N:M at a lower input bandwidth. Everything else here is our
reconstruction.

R rows of swap registers hold the contraction in blocks of B rows; C columns of
PEs take one value per row per cycle. Of every block an output keeps n, so that
it needs n PEs and s = floor(B / n) outputs share a column of PEs:

  F    = ceil(K / R) ceil(N / (C beta s))             R rounded down to B   (1)
  WL   = ceil(R / w)                                                        (2)
  fill = 1 + (R / B - 1) + (C - 1)(1 + sigma)                               (3)
  II   = max(1, kappa, ceil(R / bw_in), ceil(C beta s / bw_out))            (4)

put through `figs_jax.engine.timing`. B is the layer's m, at most alpha + 1, or
`block`; a dense layer runs in blocks of one row. Rows that do not make up a
block idle, and so do those of an output's share that floor(B / n) leaves over
(3:8 packs 2 outputs in 6 of 8 rows): both show in the utilisation. K is not
compressed but packed: a last block that it cuts takes all B rows and n PEs per
output, of which only the K mod B real rows are read, and their weights stored.

Where multiplexers exchange, each MAC selects its own value and kappa is 1.
Where registers swap, a PE shows its one value to its beta MACs, and in a cycle
the block's values are permuted among its PEs. `mask_group` beta means that the
beta outputs of a PE share a mask, so that all its MACs want the same value and
kappa is the largest number of outputs of a column that keep one index; 1 means
that each has its own, and a PE must also be shown all that its MACs want.
Known masks give each fold its kappa, the largest of its blocks as the array is
in lock step (`blocks.exchanges`); without them all folds take that of the worst
mask that fills all columns (`blocks.worst_exchange`).

A vector takes the ports' time of a full one even where a last fold uses only a
part of the array. Counting starts with the first load, the first vector waiting
at the array. `figs_jax.engine.simulator` clocks such an array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine import blocks
from figs_jax.engine.area import Parts
from figs_jax.engine.blocks import Masks, index_bits, kept_depth
from figs_jax.engine.int64 import (
  LayerError,
  ceil_div,
  exact,
  is_traced,
  larger,
  smaller,
)
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import (
  CLOCK,
  LIMITS,
  OVERLAPS,
  UNLIMITED,
  Engine,
  Gemm,
  text_of,
)
from figs_jax.engine.timing import (
  ON_CHIP,
  Fold,
  bounded,
  bytes_of,
  once,
  schedule,
  streams,
)

EXCHANGES = ("mux", "swap")


class Figs(Engine):
  """The FIGS array: swap registers that exchange values within a block.

  A reconstruction from the FiGS slides, which state alpha, beta, the swap
  registers and their aim; the rest is ours. A column of the weight is read
  once, a value of the activations once per fold of outputs, and an index is
  stored once for `mask_group` outputs.

  Attributes:
    rows: Rows R of swap registers; one value enters each of them per cycle.
    cols: Columns C of PEs.
    alpha: Further swap registers that a register exchanges with vertically, so
      that blocks hold at most alpha + 1 rows.
    beta: MACs of a PE, each with a partial sum of its own.
    block: Rows B of a block; 0 takes them from the layer's pattern.
    exchange: "mux", any value to any MAC of its block; "swap", a permutation of
      the block's values per cycle, which stalls where a value is wanted twice.
    mask_group: Outputs that share a selected operand, hence a mask: 1 or beta.
    sigma: Extra cycles of a hop from one column to the next.
    load: Rows of weights loaded per cycle, w.
    overlap: Work hidden behind the streaming of another fold, as in `Systolic`.
    bw_in: Values that may enter per cycle; a full array takes R.
    bw_out: Partial sums that may leave per cycle.
    dram_bw: Bytes per cycle between chip and memory.
    clock: Clock in MHz.

  Raises:
    ValueError: If block is above alpha + 1, does not divide rows, or is not a
      power of two where exchange is "swap"; if mask_group is neither 1 nor
      beta; or if a number is out of range.

  >>> array = Figs(32, 16, alpha=3, overlap="full")
  >>> str(array)
  'figs:32x16:alpha=3:overlap=full'
  >>> [int(array.counts(Gemm(512, 512, 512, 1, m))["cycles"]) for m in (1, 4)]
  [262223, 65591]
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
  clock: Any = CLOCK

  KINDS = ("figs",)
  CHOICES = {"overlap": OVERLAPS, "exchange": EXCHANGES}
  FROM_ZERO = ("alpha", "block", "sigma")

  def invalid(self) -> Iterator[tuple[Any, str]]:
    values = (self.rows, self.alpha, self.block, self.mask_group, self.beta)
    if is_traced(*values):
      return
    rows, alpha, block, group, beta = map(np.asarray, values)
    given = np.maximum(block, 1)
    yield (
      block > alpha + 1,
      f"block={block}, alpha={alpha}: a block spans at most alpha + 1 rows; set"
      f" alpha={int(given.max()) - 1} or a smaller block",
    )
    yield (
      rows % given,
      f"rows={rows} is not a multiple of block={block}; set"
      f" rows={text_of(-(-rows // given) * given)}",
    )
    # A network that swaps registers 1, 2, 4, ... apart.
    wide = np.where(block == 0, alpha + 1, block)
    yield (
      (wide & (wide - 1)) * (self.exchange == "swap"),
      f"exchange='swap': expected blocks of a power of two, got {text_of(wide)}"
      " rows; set block= (or alpha + 1) to 2, 4, 8, ... or exchange='mux'",
    )
    yield (
      (group != 1) & (group != beta),
      f"mask_group={group}: expected 1, or the beta={beta} outputs of a PE",
    )

  def runs(self, n: Any, m: Any) -> np.ndarray:
    """Whether the designs run patterns n:m; all three broadcast.

    >>> Figs(4, 4, alpha=7).runs(1, np.array([4, 6, 8])).tolist()
    [True, False, False]
    """
    n, m, rows = (np.asarray(x) for x in (n, m, self.rows))
    block = _block(n, m, np.asarray(self.alpha), np.asarray(self.block))
    possible = blocks.fits_blocks(n, m, block)
    for bad, _ in self._misfits(block, rows):
      possible = possible & (bad == 0)
    return np.asarray(possible)

  def note(self, sparse: int, known: int) -> str:
    if self.exchange != "swap":
      return ""
    return (
      f"Swap registers stall as the real masks make them in {known} of {sparse}"
      " sparse layers, else as the worst mask would."
    )

  def counts(
    self,
    gemm: Gemm,
    itemsize: int | Fraction | None = None,
    masks: Masks | None = None,
  ) -> dict[str, Any]:
    """What a GEMM costs; see `Engine.counts`.

    Masks decide what a block holds where m is longer than B, and how long
    swapping takes. Without them, both are the worst that n:m allows. They are
    ignored where sizes of the array or the layers are traced.

    Raises:
      ValueError: If a block is longer than the rows, does not go with m, is not
        a power of two where registers swap, or (with masks) is not shared as
        `mask_group` says; or as `Engine.counts`. Traced values go unchecked.
    """
    itemsize = self.itemsize if itemsize is None else itemsize
    block, run = None, 0  # the worst
    sides = self.rows, self.alpha, self.block, self.mask_group
    if not is_traced(gemm.n, gemm.m, *sides):
      block, run = self.packing(gemm.n, gemm.m, masks)
    traced = is_traced(gemm.N, gemm.K, self.cols, self.beta)
    if masks is None or self.exchange != "swap" or block is None or traced:
      return self._exact(self, gemm, run, itemsize=itemsize)
    kinds = _kinds(gemm, block, run, self, masks)
    parts = _exact_unlike(*kinds, gemm, self, run)
    known = (parts[name] for name in ON_CHIP)
    return _exact_known(*known, gemm, self, run, itemsize=itemsize)

  def occupancy(
    self, gemm: Gemm, masks: Masks | None = None, *, check: bool = True
  ) -> Any:
    """See `Engine.occupancy`."""
    return self.packing(gemm.n, gemm.m, masks, check=check)[1]

  @property
  def sweeps_masks(self) -> bool:
    return self.exchange != "swap"

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    packed, kappa = _Packed(gemm, self, run), 1
    if self.exchange == "swap":
      lanes = ceil_div(self.beta, self.mask_group)
      kappa = blocks.worst_exchange(packed.run, packed.block, lanes)
    across = ceil_div(gemm.N, packed.slots)
    folds = ceil_div(gemm.K, packed.used) * across  # (1)
    parts = schedule(folds, packed.fold(gemm.M, self, kappa))
    return _finish(gemm, self, packed, parts, itemsize)

  def packing(
    self, n: Any, m: Any, masks: Masks | None = None, *, check: bool = True
  ) -> tuple[Any, Any]:
    """B, and the weights of each block that run, per design and layer.

    Raises:
      ValueError: If `check` is set and `counts` would refuse the pattern, or
        masks are not shared as `mask_group` says.

    >>> [int(x) for x in Figs(32, 16, alpha=7).packing(3, 16)]
    [8, 3]
    """
    n, m, rows = (np.asarray(x) for x in (n, m, self.rows))
    if masks is not None:
      n, m, _ = np.broadcast_arrays(n, m, np.empty(len(masks)))
    block = _block(n, m, np.asarray(self.alpha), np.asarray(self.block))
    values = {"n": n, "m": m, "block": block, "rows": rows}
    for bad, why in self._misfits(block, rows):
      if check:
        _refuse(bad, why, values)
    for layer, mask in enumerate(masks or ()):
      if mask is not None and (n < m)[..., layer].any():
        for group in np.unique(self.mask_group).tolist():
          blocks.check_shared_masks(mask, group)
    return block, blocks.fit(n, m, block, masks, check=check)

  @property
  def input_width(self) -> Any:
    return smaller(self.rows, self.bw_in)

  def parts(self) -> Parts:
    """See `Engine.parts`; like the array itself, a reconstruction.

    A PE has one swap register; a MAC, the registers of its weight and its sum.
    An (alpha + 1):1 multiplexer stands before each MAC, or before the
    `mask_group` MACs that share an operand; where registers swap, before each
    register, which then holds the passing value and the exchanged one. As many
    indices of ceil(log2(alpha + 1)) bits steer them.

    >>> Figs(32, 16, alpha=7).parts()[2:]
    (1024, 512, 3584, 1536)
    """
    pes = self.rows * self.cols
    macs = pes * self.beta
    held = 1 if self.overlap == "none" else 2
    swaps = int(self.exchange == "swap")
    indices = ceil_div(macs, self.mask_group)
    selectors = pes if swaps else indices
    bits = held * indices * index_bits(1, self.alpha + 1)
    registers = (1 + swaps) * pes + held * macs
    return Parts(macs, macs, registers, macs, self.alpha * selectors, bits)

  def port_values(self, n: Any = 1, m: Any = 1) -> dict[str, Any]:
    block, run = self.packing(n, m)
    return {
      "inputs": self.rows // block * block,
      "outputs": self.cols * self.beta * (block // run),
    }

  def _misfits(self, block: Any, rows: Any) -> Iterator[tuple[Any, str]]:
    """Where a pattern's block does not go with the array, and why."""
    yield (
      block > rows,
      "is longer than rows={rows}; set rows={block} or a smaller alpha",
    )
    if self.exchange == "swap":
      yield (
        block & (block - 1),
        "is not a power of two, which exchange='swap' needs; use a pattern with"
        " m = 2, 4, 8, ... or exchange='mux'",
      )


def stall_factor(
  masks: Sequence[np.ndarray], engine: Figs, n: ArrayLike, m: ArrayLike
) -> np.ndarray:
  """How much longer real masks stream on swap registers: mean kappa of a fold.

  Args:
    masks: Mask of each layer, Bool (K, N).
    engine: The array; the factor is 1 where multiplexers exchange.
    n: Weights kept of every m, in each layer or in all.
    m: Length of a group.

  Returns:
    Factor of each layer, from 1 to B.

  >>> mask = np.tile(np.eye(4, dtype=bool), (8, 16))
  >>> array = Figs(32, 16, alpha=3, exchange="swap")
  >>> stall_factor([mask, np.roll(mask, 1, 0)], array, 1, 4)
  array([1., 1.])
  """
  K, N = np.array([mask.shape for mask in masks]).T
  n, m = (np.broadcast_to(x, K.shape) for x in (n, m))
  parts = engine.counts(Gemm(1, N, K, n, m), masks=masks)
  return 1 + parts["stall_exchange"] / parts["compute"]


def checkpoint_stall_factor(layers: Layers, engine: Figs) -> float:
  """How much longer a checkpoint's masks stream on swap registers, in all.

  1 + stall_exchange / compute of the totals, in which every layer counts for
  its tokens and its count. A layer without a known mask is charged the worst.

  Args:
    layers: A table, best with its real masks.
    engine: The array.

  >>> row = {"name": "ff", "M": 8, "N": 64, "K": 32, "pattern": "1:4"}
  >>> mask = np.tile(np.eye(4, dtype=bool), (8, 16))
  >>> table = Layers.of([row | {"mask": mask}, row])
  >>> checkpoint_stall_factor(table, Figs(32, 16, alpha=3, exchange="swap"))
  2.5
  """
  parts = engine.counts(layers.gemm, masks=layers.masks)
  stream, stall = (
    float((parts[name] / 1 * layers.count).sum())
    for name in ("compute", "stall_exchange")
  )
  return 1 + stall / stream


def _refuse(bad: Any, why: str, values: dict[str, Any]) -> None:
  if not bad.any():
    return
  at = tuple(np.argwhere(bad)[0])
  here = {name: np.broadcast_to(x, bad.shape)[at] for name, x in values.items()}
  where = "Figs, pattern {n}:{m}: a block of {block} rows "
  raise LayerError((where + why).format(**here), int(at[-1]) if at else 0)


def _block(n, m, alpha, block):
  """B: `block` where it is given, 1 if dense, else m up to alpha + 1."""
  given, dense = smaller(block, 1), 1 - smaller(m - n, 1)
  own = dense + (1 - dense) * smaller(m, alpha + 1)
  return given * block + (1 - given) * own


def _kinds(gemm, block, run, array, masks):
  """Kinds of folds on a leading axis: their number, their kappa; the last's."""
  lanes = np.asarray(array.beta) // np.asarray(array.mask_group)
  sides = run, block, array.rows, array.cols, array.beta, array.mask_group
  *fields, unknown, N, K = np.broadcast_arrays(
    *sides, blocks.worst_exchange(run, block, lanes), gemm.N, gemm.K
  )
  most = int(fields[1].max())
  shape = fields[0].shape
  share, last = np.zeros((most, *shape), np.int64), np.ones(shape, np.int64)
  seen: dict[Any, Any] = {}
  names = "run", "block", "rows", "cols", "beta", "mask_group"
  for at in np.ndindex(shape):
    mask, sizes = masks[at[-1]], tuple(int(field[at]) for field in fields)
    if mask is None:
      run_, block_, rows, cols, beta, _ = sizes
      down = ceil_div(K[at], rows // block_ * block_)
      across = ceil_div(N[at], cols * beta * (block_ // run_))
      share[(unknown[at] - 1, *at)], last[at] = down * across, unknown[at]
      continue
    key = (at[-1], sizes)
    if key not in seen:
      seen[key] = blocks.exchanges(mask, **dict(zip(names, sizes)))
    kappa = seen[key]
    share[(slice(None), *at)] = np.bincount(kappa.ravel() - 1, minlength=most)
    last[at] = kappa[-1, -1]
  kinds = np.arange(1, most + 1).reshape(-1, *[1] * len(shape))
  return share, kinds, last


class _Packed:
  """How a pattern lies in the array: B, n, the rows in use R, and C beta s."""

  def __init__(self, gemm, array, run):
    n, m = gemm.n, gemm.m
    self.block = larger(_block(n, m, array.alpha, array.block), 1)
    # 0: nothing is known, so that the worst runs.
    run = run + (1 - smaller(run, 1)) * blocks.worst_fit(n, m, self.block)
    self.run = larger(smaller(run, self.block), 1)
    self.used = larger(array.rows // self.block * self.block, 1)
    outputs = larger(self.block // self.run, 1)
    self.slots = array.cols * array.beta * outputs

  def fold(self, M, array, kappa):
    """The fold of M vectors: (2), (3), and what (4) is made of."""
    used, block = self.used, self.block
    return Fold(
      M,
      load=ceil_div(used, array.load),
      fill=used // block + (array.cols - 1) * (1 + array.sigma),
      overlap=array.overlap,
      exchange=kappa,
      enter=ceil_div(used, array.bw_in),
      leave=ceil_div(self.slots, array.bw_out),
    )


def _unlike(
  share: Any, kinds: Any, last: Any, gemm: Gemm, array: Figs, run: Any
) -> dict[str, Any]:
  """The parts of folds of which `share` take each kappa of `kinds`."""
  packed = _Packed(gemm, array, run)
  parts = streams(share, packed.fold(gemm.M, array, kinds))
  start = once(packed.fold(gemm.M, array, last))
  # Their leading axis is 1, as no kind of folds tells these apart.
  start = {name: value.sum(0) for name, value in start.items()}
  return {
    name: value.sum(0) + start.get(name, 0) for name, value in parts.items()
  }


def _known(
  compute: Any,
  fill: Any,
  stall_weights: Any,
  stall_exchange: Any,
  stall_input: Any,
  stall_output: Any,
  gemm: Gemm,
  array: Figs,
  run: Any,
  *,
  itemsize: int | Fraction,
) -> dict[str, Any]:
  stalls = stall_weights, stall_exchange, stall_input, stall_output
  parts = dict(zip(ON_CHIP, (compute, fill, *stalls)))
  return _finish(gemm, array, _Packed(gemm, array, run), parts, itemsize)


def _finish(gemm, array, packed, parts, itemsize):
  M, N, K = gemm.M, gemm.N, gemm.K
  block, run, used, slots = packed.block, packed.run, packed.used, packed.slots
  down, across = ceil_div(K, used), ceil_div(N, slots)
  stored = gemm.kept
  indices = stored * ceil_div(N, array.mask_group)
  metadata = ceil_div(indices * index_bits(gemm.n, gemm.m), 8)
  dram_bytes = bytes_of(M * K + stored * N + M * N, itemsize) + metadata
  parts = bounded(parts, dram_bytes, array.dram_bw)
  # A mask may hold less than its pattern allows.
  kept = smaller(stored, kept_depth(K, run, block))
  # Ratios that cannot pass 1, so that rounding cannot lift their product, which
  # is M N kept / (cycles R C beta).
  utilisation = kept / (down * (used // block) * run) * (N / (across * slots))
  packing = run * (block // run) / block * (used / array.rows)
  utilisation = utilisation * packing
  return parts | {
    "utilisation": utilisation * (down * across * M / parts["cycles"]),
    "ifmap_reads": across * M * K,
    "filter_reads": stored * N,
    "ofmap_writes": down * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


_SIZES = LIMITS | Figs.limits() | {"run": (0, LIMITS["n"][1])}
_COUNT = (0, 2**63 - 1)
_exact_unlike = exact(_unlike, _SIZES | {"share": _COUNT}, elementwise=False)
_exact_known = exact(_known, _SIZES | dict.fromkeys(ON_CHIP, _COUNT))
