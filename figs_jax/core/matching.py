"""The n:m mask of an m x m block with the largest or nearly largest sum.

n entries in each row and in each column, for the largest sum of scores: a
bipartite b-matching. Arrays are [m, m, *blocks], so that an operation on one
entry of all blocks is one vector operation.

A small block has few masks, 90 at 2:4 (arXiv 2404.01847), and all of them are
tried: up to m = 4, and for 1:5 and 4:5. 1:8 is exact as well, see
`core.assignment`. Other blocks are solved approximately:

1. prices: u_i and v_j such that x_ij = clip((s_ij - u_i - v_j) / eps + 1/2, 0,
   1) sums to n in every row and in every column, by Newton steps while eps
   shrinks. These are the duals of the linear program with a quadratic term (an
   entropy term makes x a sigmoid, which costs more without being closer);
2. fill: row after row keeps its n best s_ij - v_j, but takes all columns that
   need every remaining row, and no full column. This is always possible: with R
   rows to come the needs sum to n R and none exceeds R, so at most n columns
   need R and at least n need more than 0. So the mask is valid for all scores;
3. swaps: two rows exchange their best pair of columns if that increases the
   sum; all pairs of rows meet in a round robin, twice.

Gap between step 3 and the optimum (an exact linear program) in percent of the
optimum, for |w| of normal weights, mean and worst of 1600 / m blocks
(benchmarks/transposable.py):

  2:8 .01, 1.4   4:8 .02, 2.2   2:16 .10, 1.3   4:16 .09, 0.5
  8:16 .04, 0.4   8:32 .08, 0.3
"""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.assignment import best_permutations
from figs_jax.core.pattern import NM
from figs_jax.core.top_n import by_threshold, ordered
from figs_jax.core.types import Array, Bool, Float

# Limit on the masks of one block that are enumerated: 1:5 has 120.
_ENUMERABLE = 120
_PRICE_STEPS, _WARM, _COLD = 12, 1.0, 0.08
_SWEEPS = 2


def best_masks(
  x: Float[Array, "m m *blocks"], pattern: NM
) -> Bool[Array, "m m *blocks"]:
  """The mask with the largest sum of every block, exact as the module says.

  Valid, with exactly n per row and per column, for all x without NaN.

  Args:
    x: Scores of every block, finite, with |sums| far from overflow.
    pattern: Pattern n:m with the m of x.

  >>> x = jnp.array([[9., 8., 1.], [8., 1., 1.], [1., 1., 3.]])
  >>> best_masks(x, NM(1, 3)).astype(int)
  Array([[0, 1, 0],
         [1, 0, 0],
         [0, 0, 1]], dtype=int32)
  """
  if pattern == NM(1, 8):
    return best_permutations(x)
  table = _masks_of(pattern)
  if table is not None:
    return _best_of(x, table)
  u, v = _prices(x, pattern.n)
  return _swap(x, _fill(x - u - v, pattern))


@functools.lru_cache
def _masks_of(pattern: NM) -> np.ndarray | None:
  """All masks of one block whose first row keeps the first n columns.

  The others follow by permuting columns. None if there are too many.

  Returns:
    int [masks, m, n]: the columns that each row keeps.
  """
  n, m = pattern.n, pattern.m
  rows = list(itertools.combinations(range(m), n))
  if m > 5 or len(rows) > 6:
    return None
  masks = [[rows[0]]]
  for left in range(m - 1, 0, -1):
    masks = [f + [r] for f in masks for r in rows if _fits(f + [r], left, n, m)]
  return np.array(masks) if len(masks) * len(rows) <= _ENUMERABLE else None


def _fits(rows: list, left: int, n: int, m: int) -> bool:
  """Whether every column can still reach n in the `left - 1` rows to come."""
  kept = np.bincount(np.concatenate(rows), minlength=m)
  return bool(np.all((kept <= n) & (n - kept < left)))


def _best_of(
  x: Float[Array, "m m *blocks"], table: np.ndarray
) -> Bool[Array, "m m *blocks"]:
  """The mask with the largest sum, by exhaustive search.

  One pass per choice of the first row's columns: these are permuted to the
  front, and the sums of the masks in `table`, which share partial sums, are
  compared in a tournament. The papers multiply the scores by a matrix of all
  masks, which takes five to ten times as long on a CPU (its sums go to memory)
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
  """The (value, word) with the largest value, the first of equal ones."""
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
  """The prices u of each row and v of each column."""
  x = jnp.clip(x, -2, 2)  # limits the effect of outliers
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
  """A Newton step towards sum clip(z - step + 1/2, 0, 1) = n along `axis`."""
  half, one, zero = (jnp.asarray(c, z.dtype) for c in (0.5, 1, 0))
  # One variadic reduction reads z once; two sums take forty times as long.
  kept, slope = lax.reduce(
    (jnp.clip(z + half, 0, 1), jnp.where(jnp.abs(z) < half, one, zero)),
    (zero, zero),
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    (axis,),
  )
  step = jnp.clip((kept - n) / jnp.maximum(slope, 1), -0.75, 0.75)
  return jnp.expand_dims(step, axis)


def _fill(
  keys: Float[Array, "m m *blocks"], pattern: NM
) -> Bool[Array, "m m *blocks"]:
  """A valid mask, filled row by row; keys must not be NaN."""

  def row(need, keys_and_left):
    keys, left = keys_and_left
    keys = jnp.where(need == left, jnp.inf, keys)
    keys = jnp.where(need == 0, -jnp.inf, keys)
    # Within a scan this is faster than comparisons, even for small m.
    kept = by_threshold(ordered(keys), pattern.n, 0)
    return need - kept.astype(jnp.int32), kept

  need = jnp.full_like(keys[0], pattern.n, jnp.int32)
  left = jnp.arange(pattern.m, 0, -1, dtype=jnp.int32)
  return lax.scan(row, need, (keys, left))[1]


def _swap(
  x: Float[Array, "m m *blocks"], mask: Bool[Array, "m m *blocks"]
) -> Bool[Array, "m m *blocks"]:
  """Swaps columns between two rows where that increases the sum.

  Row and column counts stay. Disjoint pairs of rows meet at a time: row i of
  the first half and row i of the reversed second half. Then all rows but the
  first (all, if their number is odd) move on by one, until every pair has met.
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
  """True at the first maximum along axis 1."""
  place = lax.broadcasted_iota(jnp.int32, values.shape, 1)
  tops = jnp.where(values == _top(values), place, values.shape[1])
  return place == jnp.min(tops, 1, keepdims=True)
