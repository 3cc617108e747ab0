"""Masks that are N:M along two axes at once, so that the transpose is too.

The backward product multiplies by the transposed kernel; it runs sparse only
if that is N:M along its own contraction axis. Both hold where every m x m
block of the mask keeps exactly n entries in each row and in each column
(arXiv 2102.08124). The best such mask of a block keeps the largest sum of
scores, a bipartite b-matching.

Few masks are possible in a small block, 90 at 2:4 (arXiv 2404.01847), and all
of them are tried: up to m = 4, and for 1:5 and 4:5. Wider blocks are solved
nearly:

1. prices: u_i and v_j such that sum_j sigmoid((s_ij - u_i - v_j) / eps) = n in
   every row, likewise in every column, by Newton steps while eps shrinks. These
   are the duals of the linear program with an entropy term;
2. fill: row after row keeps its n best s_ij - v_j, but all columns that need
   every row still to come, and no column that is full. A row can always obey:
   with R rows to come the needs sum to n R and none exceeds R, so at most n
   columns equal R and at least n are above 0. Hence the mask is valid whatever
   the scores are;
3. swaps: two rows exchange their best pair of columns where that gains; all
   pairs of rows meet in a round robin, twice.

How far step 3 ends below the optimum (an exact linear program), |w| of normal
weights, mean and worst of the blocks, by benchmarks/transposable.py:

  1:8 .00 0.0 %   2:8 .02 1.0 %   4:8 .03 1.1 %   2:16 .12 1.2 %
  4:16 .11 0.6 %  8:16 .05 0.4 %  8:32 .09 0.3 %
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.masks import Axis, _normalized, nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float, Shaped

# The most masks of one block that are enumerated: 120 are possible at 1:5.
_ENUMERABLE = 120
_PRICE_STEPS, _WARM, _COLD = 12, 0.25, 0.02
_SWEEPS = 2


def transposable_nm_mask(
  scores: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  other: Axis = -1,
) -> Bool[Array, "*shape"]:
  """A mask that is N:M along `axis` and along `other`, for the largest sum.

  Always exactly n per group on both axes. The kept sum of scores is the
  largest possible, up to rounding in float32, for m <= 4, 1:5 and 4:5, and
  close to it elsewhere (figures at the top of this page). A mask has as few
  NaN as possible, then as many +inf and as few -inf, then the largest sum;
  unlike `nm_mask` it depends on the sizes of the scores and not only on their
  order. Other axes are stacked kernels. Shards without communication as long
  as no block straddles two shards. There is no gradient through a mask.

  Args:
    scores: any shape, float or integer; ranked in float32 (float64 in itself).
    pattern: `NM` or "n:m".
    axis: the group axis of the forward product; a tuple is flattened in the
      order given.
    other: the group axis of the backward product, likewise.

  Raises:
    TypeError: Boolean or complex scores.
    ValueError: m does not divide the length of either axis, or an axis is out
      of range or named twice.

  >>> w = jnp.array([[9., 8., 1.], [8., 1., 1.], [1., 1., 3.]])
  >>> transposable_nm_mask(w, "1:3").astype(int)
  Array([[0, 1, 0],
         [1, 0, 0],
         [0, 0, 1]], dtype=int32)
  """
  pattern = NM.parse(pattern)
  scores = jnp.asarray(scores)
  if scores.dtype == bool or jnp.issubdtype(scores.dtype, jnp.complexfloating):
    raise TypeError(
      f"scores of dtype {scores.dtype} have no sum to maximise: pass real"
      " numbers, as in transposable_nm_mask(jnp.abs(kernel), pattern)"
    )
  return _mask(
    scores, _Blocks.of(scores.shape, pattern.m, axis, other), pattern
  )


# Compiled also when called eagerly, as nm_mask is.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _mask(scores: Array, blocks: _Blocks, pattern: NM) -> Array:
  if pattern.is_dense or not scores.size:
    return jnp.ones(scores.shape, bool)
  wide = scores.dtype == jnp.float64
  x = lax.stop_gradient(scores).astype(jnp.float64 if wide else jnp.float32)
  x = _finite(blocks.split(x), pattern)
  table = _masks_of(pattern)
  if table is not None:
    return blocks.join(_best_of(x, table))
  u, v = _prices(x, pattern.n)
  return blocks.join(_swap(x, _fill(x - u - v, pattern)))


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """How an array is split into m x m blocks, and put together again.

  Split, it is [m, m, *rest, blocks, blocks]: blocks lie side by side, so that
  what is done to one entry of all blocks is one vector operation.
  """

  order: tuple[int, ...]
  shape: tuple[int, ...]
  grid: tuple[int, ...]
  other: int

  @classmethod
  def of(
    cls, shape: tuple[int, ...], m: int, axis: Axis, other: Axis
  ) -> _Blocks:
    named = [_normalized(shape, a) for a in (axis, other)]
    if set(named[0]) & set(named[1]):
      raise ValueError(
        f"axis {axis} and other {other} of shape {shape} name one axis twice:"
        " pass the two axes of the kernel's product"
      )
    grid = []
    for what, given, axes in zip(("axis", "other"), (axis, other), named):
      length = math.prod(shape[a] for a in axes)
      if length % m:
        raise ValueError(
          f"{what} {given} of shape {shape} has length {length}, not a"
          f" multiple of m={m}; choose an m that divides both axes, or a mask"
          " along one axis with nm_mask"
        )
      grid += [length // m, m]
    rest = [a for a in range(len(shape)) if a not in named[0] + named[1]]
    order = (*rest, *named[0], *named[1])
    turned = tuple(shape[a] for a in order)
    other = len(rest) + len(named[0])
    return cls(order, turned, (*turned[: len(rest)], *grid), other)

  def split(self, x: Array) -> Array:
    grid = x.transpose(self.order)
    # One axis per reshape: explicit sharding takes no more at a time.
    grid = grid.reshape(*self.grid[:-2], *self.shape[self.other :])
    grid = grid.reshape(self.grid)
    # Without the barrier XLA reads the kernel in its own order, entry by
    # entry, in all that follows: three times slower on a CPU.
    return lax.optimization_barrier(jnp.moveaxis(grid, (-3, -1), (0, 1)))

  def join(self, x: Array) -> Array:
    back = sorted(range(len(self.order)), key=self.order.__getitem__)
    grid = jnp.moveaxis(x, (0, 1), (-3, -1))
    grid = grid.reshape(*self.grid[:-2], *self.shape[self.other :])
    return grid.reshape(self.shape).transpose(back)


def _finite(x: Float[Array, "*b"], pattern: NM) -> Float[Array, "*b"]:
  """Numbers within (-2, 2) whose sums cannot overflow; others stand out.

  Every block is divided by a power of two, which is exact. Sums of finite
  scores then differ by less than 4 n m, so that one infinity outweighs them,
  and one NaN outweighs all infinities.
  """
  finite = jnp.isfinite(x)
  y = jnp.where(finite, x, jnp.zeros_like(x))
  top = jnp.max(jnp.abs(y), (0, 1), keepdims=True)
  signed = jnp.dtype(f"int{8 * x.dtype.itemsize}")
  exponent = np.array(np.inf, x.dtype).view(signed)
  power = lax.bitcast_convert_type(
    lax.bitcast_convert_type(top, signed) & exponent, x.dtype
  )
  y = y / jnp.maximum(power, jnp.finfo(x.dtype).tiny)
  entries = pattern.n * pattern.m
  infinity = 4 * entries
  nan = -infinity * (2 * entries + 1)
  y = jnp.where(
    finite, y, jnp.where(x > 0, infinity, -infinity).astype(x.dtype)
  )
  return jnp.where(jnp.isnan(x), jnp.asarray(nan, x.dtype), y)


@functools.lru_cache
def _masks_of(pattern: NM) -> np.ndarray | None:
  """All masks of one block whose first row keeps the first n columns.

  The others follow by permuting columns. None where there are too many.

  Returns:
    int [masks, m, n]: the columns that each row keeps.
  """
  n, m = pattern.n, pattern.m
  rows = list(itertools.combinations(range(m), n))
  if m > 5 or len(rows) > 6:
    return None
  found = [[rows[0]]]
  for left in range(m - 1, 0, -1):
    found = [f + [r] for f in found for r in rows if _fits(f + [r], left, n, m)]
  return np.array(found) if len(found) * len(rows) <= _ENUMERABLE else None


def _fits(rows: list, left: int, n: int, m: int) -> bool:
  """Whether every column can still reach n in the `left - 1` rows to come."""
  kept = np.bincount(np.concatenate(rows), minlength=m)
  return bool(np.all((kept <= n) & (n - kept < left)))


def _best_of(
  x: Float[Array, "m m *blocks"], table: np.ndarray
) -> Bool[Array, "m m *blocks"]:
  """The mask of the largest sum, found by trying all.

  One pass per choice of the first row's columns: those are permuted to the
  front, and the sums of the masks in `table`, which share partial sums, are
  compared in a tournament. The papers' product of the scores with a matrix of
  all masks takes five to ten times as long on a CPU (its sums go to memory),
  and would need full float32 precision on an accelerator.
  """
  m, n = x.shape[0], table.shape[2]
  firsts = list(itertools.combinations(range(m), n))
  perms = np.array([sorted(range(m), key=lambda j: j not in c) for c in firsts])
  bits = np.arange(m)[:, None] * m + perms[:, table]  # [first, mask, row, n]
  words = jnp.asarray((1 << bits).sum((2, 3)), jnp.uint32)
  perms = jnp.asarray(perms, jnp.int32)

  def try_all(first, best):
    columns = [
      [lax.dynamic_index_in_dim(row, perms[first, j], 0, False) for row in x]
      for j in range(m)
    ]

    @functools.cache
    def total(start, rows):
      if len(rows) == 1:
        return sum(
          (columns[j][start] for j in rows[0][1:]), columns[rows[0][0]][start]
        )
      half = len(rows) // 2
      return total(start, rows[:half]) + total(start + half, rows[half:])

    entries = [
      (total(0, tuple(map(tuple, rows))), words[first, k])
      for k, rows in enumerate(table.tolist())
    ]
    return _tournament([best, *entries])

  none = jnp.full_like(x[0, 0], -jnp.inf)
  start = (none, jnp.zeros_like(none, jnp.uint32))
  word = lax.fori_loop(0, len(firsts), try_all, start)[1]
  shape = (m, m) + (1,) * word.ndim
  place = lax.broadcasted_iota(jnp.uint32, shape, 0) * jnp.uint32(m)
  place = place + lax.broadcasted_iota(jnp.uint32, shape, 1)
  return ((word[None, None] >> place) & jnp.uint32(1)) != 0


def _tournament(entries: list) -> tuple:
  """The (value, word) of the largest value; the first of equals."""
  while len(entries) > 1:
    pairs = [
      (lax.max(a, b), jnp.where(a >= b, p, q))
      for (a, p), (b, q) in zip(entries[::2], entries[1::2])
    ]
    entries = pairs + entries[len(pairs) * 2 :]
  return entries[0]


def _prices(
  x: Float[Array, "m m *blocks"], n: int
) -> tuple[Float[Array, "m 1 *blocks"], Float[Array, "1 m *blocks"]]:
  """What a place in each row and in each column costs: u and v."""
  x = jnp.clip(x, -2, 2)  # an outlier is no measure of the others
  mean = jnp.mean(x, (0, 1), keepdims=True)
  spread = jnp.mean(jnp.abs(x - mean), (0, 1), keepdims=True)
  spread = jnp.where(spread > 0, spread, jnp.ones_like(spread))
  cooling = (_COLD / _WARM) ** (1 / (_PRICE_STEPS - 1))

  def step(i, prices):
    u, v = prices
    eps = spread * jnp.asarray(_WARM * cooling**i, x.dtype)
    u = u + _newton((x - u - v) / eps, n, 1) * eps
    v = v + _newton((x - u - v) / eps, n, 0) * eps
    return u, v

  start = (jnp.zeros_like(x[:, :1]) + mean, jnp.zeros_like(x[:1]))
  return lax.fori_loop(0, _PRICE_STEPS, step, start)


def _newton(z: Array, n: int, axis: int) -> Array:
  """A step towards sum sigmoid(z - step) = n along `axis`, at most 3 long."""
  p = lax.logistic(z)
  excess = jnp.sum(p, axis, keepdims=True) - n
  slope = jnp.sum(p * (1 - p), axis, keepdims=True)
  return jnp.clip(excess / jnp.maximum(slope, 1e-3), -3, 3)


def _fill(
  keys: Float[Array, "m m *blocks"], pattern: NM
) -> Bool[Array, "m m *blocks"]:
  """A valid mask, row by row; keys must not be NaN."""

  def row(need, keys_and_left):
    keys, left = keys_and_left
    keys = jnp.where(need == left, jnp.inf, keys)
    keys = jnp.where(need == 0, -jnp.inf, keys)
    kept = nm_mask(keys, pattern, 0)
    return need - kept.astype(jnp.int32), kept

  need = jnp.full_like(keys[0], pattern.n, jnp.int32)
  left = jnp.arange(pattern.m, 0, -1, dtype=jnp.int32)
  return lax.scan(row, need, (keys, left))[1]


def _swap(
  x: Float[Array, "m m *blocks"], mask: Bool[Array, "m m *blocks"]
) -> Bool[Array, "m m *blocks"]:
  """Exchanges between two rows that gain; sums of rows and columns stay.

  Disjoint pairs of rows at a time: row i of the first half meets row i of the
  reversed second half, then all rows but the first (all, if their number is
  odd) move on by one, until every two have met.
  """
  m, half = x.shape[0], x.shape[0] // 2
  fixed = 1 - m % 2

  def pairs(a):
    return a[:half], a[m - half :][::-1]

  def rotate(a):
    return jnp.concatenate([a[:fixed], a[m - 1 :], a[fixed : m - 1]])

  def meet(_, state):
    x, mask = state
    (one, two), (has, lacks) = pairs(x), pairs(mask)
    gain = one - two
    getting = jnp.where(lacks & ~has, gain, -jnp.inf)
    giving = jnp.where(has & ~lacks, -gain, -jnp.inf)
    better = _top(getting) + _top(giving) > 0
    flip = better & (_first_top(getting) | _first_top(giving))
    middle = mask[half : m - half]
    mask = jnp.concatenate([has ^ flip, middle, (lacks ^ flip)[::-1]])
    return rotate(x), rotate(mask)

  rounds = _SWEEPS * (m - fixed)
  return lax.fori_loop(0, rounds, meet, (x, mask))[1]


def _top(values: Array) -> Array:
  return jnp.max(values, 1, keepdims=True)


def _first_top(values: Array) -> Array:
  """True at the first of the largest along axis 1."""
  place = lax.broadcasted_iota(jnp.int32, values.shape, 1)
  tops = jnp.where(values == _top(values), place, values.shape[1])
  return place == jnp.min(tops, 1, keepdims=True)
