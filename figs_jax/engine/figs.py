"""The FIGS array in closed form: swap registers, blocks, packed outputs.

The FiGS slides state three things: a PE is beta MACs that share one input swap
register and keep beta partial sums of their own; swap registers take inputs
from the side, pass them on, and exchange them vertically with alpha more; the
aim is variable N:M at a lower input bandwidth. Everything else here is our
reconstruction.

R rows of swap registers hold the contraction in blocks of B rows; C columns of
PEs take one value per row per cycle. Of every block an output keeps n, so that
it needs n PEs and s = floor(B / n) outputs share a column of PEs:

  F    = ceil(K / R) ceil(N / (C beta s))             R rounded down to B
  WL   = ceil(R / w)
  fill = 1 + (R / B - 1) + (C - 1)(1 + sigma)
  II   = max(1, kappa, ceil(R / bw_in), ceil(C beta s / bw_out))

put through `figs_jax.engine.timing`. B is the layer's m, at most alpha + 1,
or `block`; a dense layer runs in blocks of one row. Rows that do not make up a
block idle, and so do those of an output's share that floor(B / n) leaves over
(3:8 packs 2 outputs in 6 of 8 rows): both show in the utilisation.

Where multiplexers exchange, each MAC selects its own value and kappa is 1.
Where registers swap, a PE shows its one value to its beta MACs, and in a cycle
the block's values are permuted among its PEs. `mask_group` beta means that the
beta outputs of a PE share a mask, so that all its MACs want the same value and
kappa is the largest number of outputs of a column that keep one index; 1 means
that each has its own, and a PE must also be shown all that its MACs want.
Known masks give each fold its kappa, the largest of its blocks as the array is
in lock step (`occupancy.exchanges`); without them all folds take that of the
worst mask that fills all columns (`occupancy.worst_exchange`).

A vector takes the ports' time of a full one even where a last fold uses only a
part of the array. Counting starts with the first load, the first vector waiting
at the array. `figs_jax.engine.simulator._simulate` clocks such an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.blocks import (
  Masks,
  check_shared,
  exchanges,
  fit,
  fits,
  worst,
  worst_exchange,
)
from figs_jax.engine.description import limits_of
from figs_jax.engine.flops import (
  check_itemsize,
  check_pattern,
  index_bits,
  kept_depth,
)
from figs_jax.engine.int64 import (
  LayerError,
  Size,
  ceil_div,
  exact,
  is_traced,
  larger,
  smaller,
)
from figs_jax.engine.layers import LIMITS, Layers
from figs_jax.engine.spec import Figs
from figs_jax.engine.timing import PARTS, bounded, once, schedule, streams


def counts(
  M: Size,
  N: Size,
  K: Size,
  engine: Figs,
  n: Size = 1,
  m: Size = 1,
  itemsize: int = 2,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """What one GEMM costs; see `figs_jax.engine.systolic.counts`.

  A column of the weight is read once, and a value of the activations once per
  fold of outputs. An index is stored once for `mask_group` outputs.

  Args:
    M: rows of the activations.
    N: columns of the weight.
    K: the contraction.
    engine: the array.
    n: weights kept of every m along K; n = m is dense.
    m: group length.
    itemsize: bytes per value, of every operand off chip.
    masks: the real mask, Bool (K, N), of each layer of the last axis, or None.
      It decides what a block holds where m is longer than B, and how long
      swapping takes. Without any, both are the worst that n:m allows.

  Raises:
    ValueError: as `systolic.counts`, or a block that is longer than the rows,
      does not go with m, is no power of two where registers swap, or (with
      masks) is not shared as `mask_group` says. Traced values go unchecked,
      and with traced sizes of array or layer masks are of no use.

  >>> array = Figs(32, 16, overlap="full")
  >>> [int(counts(512, 512, 512, array, 1, m)["cycles"]) for m in (1, 2, 8)]
  [262223, 131135, 32819]
  >>> float(counts(512, 512, 512, Figs(32, 16), 3, 8)["utilisation"]) < 0.75
  True
  """
  options = {"exchange": engine.exchange, "overlap": engine.overlap}
  check_pattern(n, m)
  check_itemsize(itemsize)
  block, run = None, 0  # the worst
  sides = engine.rows, engine.alpha, engine.block, engine.mask_group
  if not is_traced(n, m, *sides):
    block, run = packing(n, m, engine, masks)
  sizes = (M, N, K, n, m, run, *engine.leaves)
  swaps = masks is not None and engine.exchange == "swap"
  if block is None or not swaps or is_traced(N, K, engine.cols, engine.beta):
    return _exact_counts(*sizes, **options, itemsize=itemsize)
  parts = _exact_unlike(
    *_kinds(N, K, block, run, engine, masks), *sizes, overlap=engine.overlap
  )
  return _exact_known(
    *(parts[name] for name in PARTS[:-1]), *sizes, itemsize=itemsize
  )


def stall_factor(
  masks: Sequence[np.ndarray],
  engine: Figs,
  n: ArrayLike,
  m: ArrayLike,
) -> np.ndarray:
  """How much longer real masks stream on swap registers: mean kappa of a fold.

  The share of a checkpoint, each layer streamed for its tokens, is 1 +
  stall_exchange / compute of its totals; see `checkpoint_stall_factor`.

  Args:
    masks: Bool (K, N) of each layer.
    engine: the array; 1 for all masks where multiplexers exchange.
    n: weights kept of every m, of each layer or of all.
    m: group length.

  Returns:
    Per layer, at least 1 and at most B.

  >>> mask = np.tile(np.eye(4, dtype=bool), (8, 16))
  >>> array = Figs(32, 16, alpha=3, exchange="swap")
  >>> stall_factor([mask, np.roll(mask, 1, 0)], array, 1, 4)
  array([1., 1.])
  >>> stall_factor([mask[:, np.arange(64) // 4]], array, 1, 4)
  array([4.])
  """
  K, N = np.array([mask.shape for mask in masks]).T
  n, m = (np.broadcast_to(x, K.shape) for x in (n, m))
  parts = counts(1, N, K, engine, n, m, masks=masks)
  return 1 + parts["stall_exchange"] / parts["compute"]


def checkpoint_stall_factor(layers: Layers, engine: Figs) -> float:
  """How much longer a checkpoint's masks stream on swap registers, in all.

  Cycles in which vectors stream, those of swapping included, over those of the
  same folds without a stall; every layer counts for its tokens and its count.
  A layer whose mask is not known is charged the worst.

  Args:
    layers: a table, best with its real masks.
    engine: the array.

  >>> row = {"name": "ff", "M": 8, "N": 64, "K": 32, "pattern": "1:4"}
  >>> mask = np.tile(np.eye(4, dtype=bool), (8, 16))
  >>> table = Layers.of([row | {"mask": mask}, row])
  >>> checkpoint_stall_factor(table, Figs(32, 16, alpha=3, exchange="swap"))
  2.5
  """
  sizes = layers.M, layers.N, layers.K
  parts = counts(*sizes, engine, layers.n, layers.m, masks=layers.masks)
  stream, stall = (
    float((parts[name] / 1 * layers.count).sum())
    for name in ("compute", "stall_exchange")
  )
  return 1 + stall / stream


def packing(
  n: Any, m: Any, engine: Figs, masks: Masks | None = None
) -> tuple[Any, Any]:
  """B and what it runs of them, for each design and layer.

  Args:
    n: weights kept of every m along K; n = m is dense.
    m: group length.
    engine: the array.
    masks: as of `counts`.

  Raises:
    ValueError: as `counts`.

  >>> [int(x) for x in packing(3, 16, Figs(32, 16, alpha=7))]
  [8, 3]
  """
  n, m, rows = (np.asarray(x) for x in (n, m, engine.rows))
  if masks is not None:
    n, m, _ = np.broadcast_arrays(n, m, np.empty(len(masks)))
  block = _block(n, m, np.asarray(engine.alpha), np.asarray(engine.block))
  values = {"n": n, "m": m, "block": block, "rows": rows}
  for bad, why in _misfits(block, rows, engine.exchange):
    _refuse(bad, why, values)
  for layer, mask in enumerate(masks or ()):
    if mask is not None and (n < m)[..., layer].any():
      for group in np.unique(engine.mask_group).tolist():
        check_shared(mask, group)
  return block, fit(n, m, block, masks)


def runs(n: Any, m: Any, engine: Figs) -> np.ndarray:
  """Whether designs run patterns; both may be arrays that broadcast.

  >>> runs(1, np.array([4, 6, 8]), Figs(4, 4, alpha=7)).tolist()
  [True, False, False]
  """
  n, m, rows = (np.asarray(x) for x in (n, m, engine.rows))
  block = _block(n, m, np.asarray(engine.alpha), np.asarray(engine.block))
  found = fits(n, m, block)
  for bad, _ in _misfits(block, rows, engine.exchange):
    found = found & (bad == 0)
  return np.asarray(found)


def _misfits(block, rows, exchange):
  """Where a pattern's block does not go with the array, and why."""
  yield (
    block > rows,
    "is longer than rows={rows}; set rows={block} or a smaller alpha",
  )
  if exchange == "swap":
    yield (
      block & (block - 1),
      "is no power of two, which exchange='swap' needs; use a pattern with"
      " m = 2, 4, 8, ... or exchange='mux'",
    )


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


def _kinds(N, K, block, run, engine, masks):
  """Kinds of folds on a leading axis: their number, their kappa; the last's."""
  lanes = np.asarray(engine.beta) // np.asarray(engine.mask_group)
  sides = run, block, engine.rows, engine.cols, engine.beta, engine.mask_group
  *fields, unknown, N, K = np.broadcast_arrays(
    *sides, worst_exchange(run, block, lanes), N, K
  )
  most = int(fields[1].max())
  shape = fields[0].shape
  share, last = np.zeros((most, *shape), np.int64), np.ones(shape, np.int64)
  found: dict[Any, Any] = {}
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
    if key not in found:
      found[key] = exchanges(mask, **dict(zip(names, sizes)))
    kappa = found[key]
    share[(slice(None), *at)] = np.bincount(kappa.ravel() - 1, minlength=most)
    last[at] = kappa[-1, -1]
  kinds = np.arange(1, most + 1).reshape(-1, *[1] * len(shape))
  return share, kinds, last


def _array(n, m, run, rows, cols, alpha, beta, block):
  """B, n, the rows in use, and the outputs that the array holds."""
  size = larger(_block(n, m, alpha, block), 1)
  # Nothing known: the worst.
  run = run + (1 - smaller(run, 1)) * worst(n, m, size)
  run = larger(smaller(run, size), 1)
  used = larger(rows // size * size, 1)
  return size, run, used, cols * beta * larger(size // run, 1)


def _timing(used, size, slots, cols, sigma, load, bw_in, bw_out):
  """WL and fill, and the ports' cycles per vector."""
  fill = used // size + (cols - 1) * (1 + sigma)
  ports = {
    "ports_in": ceil_div(used, bw_in),
    "ports_out": ceil_div(slots, bw_out),
  }
  return ceil_div(used, load), fill, ports


def _counts(
  M, N, K, n, m, run, rows, cols, alpha, beta, block, mask_group, sigma, load,
  bw_in, bw_out, dram_bw, *, exchange, overlap, itemsize,
):  # fmt: skip
  """Folds that are all alike."""
  sides = n, m, run, rows, cols, alpha, beta, block
  size, run, used, slots = _array(*sides)
  WL, fill, ports = _timing(used, size, slots, cols, sigma, load, bw_in, bw_out)
  kappa = 1
  if exchange == "swap":
    kappa = worst_exchange(run, size, ceil_div(beta, mask_group))
  folds = ceil_div(K, used) * ceil_div(N, slots)
  parts = schedule(folds, M, WL, fill, overlap, exchange=kappa, **ports)
  return _finish(M, N, K, sides, parts, mask_group, dram_bw, itemsize)


def _unlike(
  share, kinds, last, M, N, K, n, m, run, rows, cols, alpha, beta, block,
  mask_group, sigma, load, bw_in, bw_out, dram_bw, *, overlap,
):  # fmt: skip
  """The parts of folds of which `share` take each kappa of `kinds`."""
  size, run, used, slots = _array(n, m, run, rows, cols, alpha, beta, block)
  WL, fill, ports = _timing(used, size, slots, cols, sigma, load, bw_in, bw_out)
  parts = streams(share, M, WL, fill, overlap, exchange=kinds, **ports)
  start = once(M, WL, fill, overlap, exchange=last, **ports)
  # Of an axis of one, as no kind of folds tells these apart.
  start = {name: value.sum(0) for name, value in start.items()}
  return {
    name: value.sum(0) + start.get(name, 0) for name, value in parts.items()
  }


def _known(
  compute, fill, stall_weights, stall_exchange, stall_in, stall_out,
  M, N, K, n, m, run, rows, cols, alpha, beta, block, mask_group, sigma, load,
  bw_in, bw_out, dram_bw, *, itemsize,
):  # fmt: skip
  stalls = stall_weights, stall_exchange, stall_in, stall_out
  parts = dict(zip(PARTS, (compute, fill, *stalls)))
  sides = n, m, run, rows, cols, alpha, beta, block
  return _finish(M, N, K, sides, parts, mask_group, dram_bw, itemsize)


def _finish(M, N, K, sides, parts, mask_group, dram_bw, itemsize):
  n, m, _, rows, cols, _, beta, _ = sides
  size, run, used, slots = _array(*sides)
  down, across = ceil_div(K, used), ceil_div(N, slots)
  stored = kept_depth(K, n, m)
  indices = stored * ceil_div(N, mask_group)
  metadata = ceil_div(indices * index_bits(n, m), 8)
  dram_bytes = itemsize * (M * K + stored * N + M * N) + metadata
  parts = bounded(parts, dram_bytes, dram_bw)
  # A mask may hold less than its pattern allows.
  kept = smaller(stored, kept_depth(K, run, size))
  # Ratios that cannot pass 1, so that rounding cannot lift their product, which
  # is M N kept / (cycles R C beta).
  utilisation = kept / (down * (used // size) * run) * (N / (across * slots))
  utilisation = utilisation * (run * (size // run) / size * (used / rows))
  return parts | {
    "utilisation": utilisation * (down * across * M / parts["cycles"]),
    "ifmap_reads": across * M * K,
    "filter_reads": stored * N,
    "ofmap_writes": down * M * N,
    "metadata_bytes": metadata,
    "dram_bytes": dram_bytes,
  }


_SIZES = LIMITS | limits_of(Figs) | {"run": (0, LIMITS["n"][1])}
_exact_counts = exact(_counts, _SIZES)
_exact_unlike = exact(
  _unlike, _SIZES | {"share": (0, 2**63 - 1)}, elementwise=False
)
_exact_known = exact(_known, _SIZES | dict.fromkeys(PARTS, (0, 2**63 - 1)))
