"""Transposable masks of wide blocks, by entropic optimal transport.

TSENOR (Meng, Makni and Mazumder, arXiv 2505.23949). The mask of an m x m block
maximizes <S, x> over 0 <= S <= 1 whose rows and columns sum to n. With an
entropy term the solution comes from Bregman projections onto the three sets of
constraints in turn (Dykstra, algorithm 1); only the bound S <= 1 needs a dual.
S is kept as its logarithm. It is then rounded: entries are taken in the order
of S while their row and column have room (algorithm 2), and rows and columns
that are left with room are filled by exchanges. Departing from the paper, pairs
of rows then exchange columns while that increases the sum, as for narrow blocks
(`core.matching`).

Blocks lead, and no step is unrolled over m, so that compilation takes the same
time for every m.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.types import Array, Bool, Float

_STEPS, _SWEEPS = 300, 2
# The entropy weighs 1 / (this * spread) of the scores of a block.
_SHARPNESS = 12.0


def transport_masks(
  x: Float[Array, "blocks m m"], n: int
) -> Bool[Array, "blocks m m"]:
  """A mask with exactly n entries per row and column and nearly the best sum.

  Args:
    x: Scores of every block, finite. Those beyond 2 or -2 count as outliers
      until the mask is rounded.
    n: Number of entries of every row and column.

  >>> x = jnp.array([[[9., 8., 1.], [8., 1., 1.], [1., 1., 3.]]])
  >>> transport_masks(x, 1).astype(int)
  Array([[[0, 1, 0],
          [1, 0, 0],
          [0, 0, 1]]], dtype=int32)
  """
  return _exchanged(x, _rounded(_plan(x, n), x, n))


def _plan(x: Float[Array, "b m m"], n: int) -> Float[Array, "b m m"]:
  """log S after a fixed number of rounds of Dykstra's algorithm."""
  x = jnp.clip(x, -2, 2)  # limits the effect of outliers
  mean = jnp.mean(x, (1, 2), keepdims=True)
  spread = jnp.mean(jnp.abs(x - mean), (1, 2), keepdims=True)
  x = (x - mean) / jnp.where(spread > 0, spread, 1)
  most = jnp.log(jnp.asarray(n, x.dtype))

  def one_round(_, state):
    s, dual = state
    s = s + most - jax.nn.logsumexp(s, axis=2, keepdims=True)  # rows
    s = s + most - jax.nn.logsumexp(s, axis=1, keepdims=True)  # columns
    bounded = jnp.minimum(s + dual, 0)  # S <= 1
    return bounded, dual + s - bounded

  start = (_SHARPNESS * x, jnp.zeros_like(x))
  return lax.fori_loop(0, _STEPS, one_round, start)[0]


def _rounded(
  plan: Float[Array, "b m m"], x: Float[Array, "b m m"], n: int
) -> Bool[Array, "b m m"]:
  """A valid mask from the plan: greedy, then exchanges that fill what is left.

  Between a row i and a column j with room there is always an exchange: an entry
  (p, q) of the mask such that (i, q) and (p, j) are not in it. Row i has at
  most n - 1 entries, so that some column q without (i, q) exists; of the rows p
  with (p, q), which are n or more than the n - 1 entries of column j, one lacks
  (p, j) if q is full.
  """
  blocks, m = plan.shape[:2]
  # By the plan; of equal entries (many are 1), by the score.
  order = jnp.lexsort((-x.reshape(blocks, -1), -plan.reshape(blocks, -1)), -1)
  each = jnp.arange(blocks)

  def take(k, state):
    mask, rows, columns = state
    i, j = order[:, k] // m, order[:, k] % m
    fits = (rows[each, i] < n) & (columns[each, j] < n)
    mask = mask.at[each, i, j].set(fits)
    add = fits.astype(jnp.int32)
    return mask, rows.at[each, i].add(add), columns.at[each, j].add(add)

  none = jnp.zeros((blocks, m), jnp.int32)
  mask = jnp.zeros(plan.shape, bool)
  state = lax.fori_loop(0, m * m, take, (mask, none, none))

  def has_room(state):
    return jnp.any(state[1] < n)

  def fill(state):
    mask, rows, columns = state
    i, j = jnp.argmin(rows, 1), jnp.argmin(columns, 1)
    active = rows[each, i] < n
    free = active & ~mask[each, i, j]
    # x_iq + x_pj - x_pq over entries (p, q) with (i, q) and (p, j) free.
    row, column = x[each, i], x[each, :, j]
    gain = row[:, None, :] + column[:, :, None] - x
    legal = mask & ~mask[each, i][:, None, :] & ~mask[each, :, j][:, :, None]
    best = jnp.argmax(jnp.where(legal, gain, -jnp.inf).reshape(blocks, -1), 1)
    p, q = best // m, best % m
    moves = active & ~free
    mask = mask.at[each, i, j].set(mask[each, i, j] | free)
    mask = mask.at[each, p, q].set(mask[each, p, q] & ~moves)
    mask = mask.at[each, i, q].set(mask[each, i, q] | moves)
    mask = mask.at[each, p, j].set(mask[each, p, j] | moves)
    add = active.astype(jnp.int32)
    return mask, rows.at[each, i].add(add), columns.at[each, j].add(add)

  return lax.while_loop(has_room, fill, state)[0]


def _exchanged(
  x: Float[Array, "b m m"], mask: Bool[Array, "b m m"]
) -> Bool[Array, "b m m"]:
  """Pairs of rows exchange their best pair of columns while the sum grows.

  In round r, row i meets row (r - i) mod m, so that every pair meets in m
  rounds.
  """
  m = x.shape[1]
  rows = jnp.arange(m)

  def meet(r, mask):
    other = (r - rows) % m
    theirs = mask[:, other]
    gain = x - x[:, other]
    getting = jnp.where(theirs & ~mask, gain, -jnp.inf)
    giving = jnp.where(mask & ~theirs, -gain, -jnp.inf)
    best = getting.max(2, keepdims=True) + giving.max(2, keepdims=True)
    get = jax.nn.one_hot(getting.argmax(2), m, dtype=bool)
    give = jax.nn.one_hot(giving.argmax(2), m, dtype=bool)
    # The first of a pair decides, and its partner does the opposite.
    flip = (best > 0) & (get | give) & (rows < other)[None, :, None]
    return mask ^ flip ^ flip[:, other]

  return lax.fori_loop(0, _SWEEPS * m, meet, mask)
