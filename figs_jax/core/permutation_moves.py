"""Gains of exchanging channels between two stripes, for all stripes at once.

A stripe is the m channels of one group. Its value is the sum over rows of the
n largest scores among them, so that a permutation of channels is judged by the
sum of the values of its stripes, and an exchange between two stripes changes
those two values alone. Two neighbourhoods, each exact:

* `Partitions`: all ways to share the 2m channels of two stripes, (2m)! / 2
  (m!)^2 of them: 3 for m = 2, 10 for m = 3, 35 for m = 4. The n largest of the
  union of P and Q are the k largest of P and the n - k largest of Q for the
  best k, so sums of the k largest of every subset of a stripe, computed once,
  leave a few additions and maxima per row for each pair of subsets.
* `Swaps`: one channel of a stripe for one of the other, m^2 ways, for any m.
  Without channel i a stripe has the n largest A_i and the n-th largest t_i;
  with channel c in its place the sum is A_i + max(0, c - t_i).

Rows come first in all arrays and stripes last: reductions over rows then run
along whole vectors of stripes. Sums are float32.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.types import Array, Float, Int

# Rows per block of a sum: their operands stay in a CPU's cache.
_ROWS = 128


class Gains(NamedTuple):
  """The best exchange of one stripe with each stripe.

  Attributes:
    gain: Increase of the value of both stripes, [stripes].
    move: Index of that exchange, for `Neighbourhood.channels`, [stripes].
  """

  gain: Float[Array, " stripes"]
  move: Int[Array, " stripes"]


def stripe_values(
  x: Float[Array, "rows channels"], n: int, m: int
) -> Float[Array, " stripes"]:
  """The sum of the n largest of each group of m channels, over all rows."""
  ranked = -jnp.sort(-x.reshape(len(x), -1, m), axis=-1)
  return ranked[..., :n].sum((0, 2))


def _best(gain: Float[Array, "moves stripes"]) -> Gains:
  return Gains(gain.max(0), gain.argmax(0))


def _over_rows(
  function: Callable[..., list[Array]], operands: tuple[Array, ...]
) -> list[Array]:
  """The sums of function(*rows of operands) over blocks of rows."""
  whole = len(operands[0]) // _ROWS * _ROWS
  sums = function(*(a[whole:] for a in operands))
  if not whole:
    return sums
  blocks = tuple(a[:whole].reshape(-1, _ROWS, *a.shape[1:]) for a in operands)

  def add(sums, block):
    return jax.tree.map(jnp.add, sums, function(*block)), None

  return lax.scan(add, sums, blocks)[0]


@dataclasses.dataclass(frozen=True)
class Partitions:
  """All ways to share the channels of two stripes, for m of at most 4."""

  n: int
  m: int

  @functools.cached_property
  def _subsets(self) -> dict[int, list[tuple[int, ...]]]:
    return {
      p: list(itertools.combinations(range(self.m), p))
      for p in range(1, self.m)
    }

  @functools.cached_property
  def _ways(self) -> list[tuple[int, int, int]]:
    """Sizes and indices of the part that stays and the part that comes.

    Each way is listed once: more than half of the stripe stays, or a half with
    its first channel.
    """
    return [
      (p, i, j)
      for p in range((self.m + 1) // 2, self.m)
      for i, stays in enumerate(self._subsets[p])
      for j in range(len(self._subsets[self.m - p]))
      if 2 * p > self.m or 0 in stays
    ]

  def channels(self, move: int) -> np.ndarray:
    """Positions 0 .. 2m - 1 in their new order, of which m make a stripe."""
    p, i, j = self._ways[move]
    stays = self._subsets[p][i]
    comes = [self.m + c for c in self._subsets[self.m - p][j]]
    first = [*stays, *comes]
    return np.array(first + [c for c in range(2 * self.m) if c not in first])

  @functools.partial(jax.jit, static_argnums=0)
  def prepare(self, x: Float[Array, "rows channels"]) -> tuple[Array, ...]:
    """Values of stripes; per size p of a subset, its sums of k = 1, 2, …."""
    lines = jnp.moveaxis(x.reshape(len(x), -1, self.m), 2, 1)
    sums = []
    for p, subsets in self._subsets.items():
      chosen = lines[:, np.array(subsets)]  # rows, subsets, p, stripes
      ranked = -jnp.sort(-chosen, axis=2)
      sums.append(jnp.cumsum(ranked, axis=2)[:, :, : min(p, self.n)])
    return stripe_values(x, self.n, self.m), *sums

  @functools.partial(jax.jit, static_argnums=0)
  def gains(
    self,
    prepared: tuple[Array, ...],
    others: tuple[Array, ...],
    stripe: Int[Array, ""],
  ) -> Gains:
    """The best exchange of a stripe of `prepared` with each of `others`."""
    own_value, *own_sums = (
      lax.dynamic_slice_in_dim(a, stripe, 1, -1) for a in prepared
    )
    value, *sums = others

    def union(*blocks):
      own, blocks = blocks[: self.m - 1], blocks[self.m - 1 :]
      totals = []
      for p in range(1, self.m):
        q = self.m - p
        one, other = own[p - 1][:, :, None], blocks[q - 1][:, None]
        # The k largest of P and the n - k largest of Q.
        terms = [
          (one[:, :, :, k - 1] if k else 0.0)
          + (other[:, :, :, self.n - k - 1] if k < self.n else 0.0)
          for k in range(max(0, self.n - q), min(p, self.n) + 1)
        ]
        totals.append(jnp.sum(functools.reduce(jnp.maximum, terms), axis=0))
      return totals

    totals = _over_rows(union, (*own_sums, *sums))
    # Complements of combinations are in reverse order.
    both = [
      totals[p - 1][i, j] + totals[self.m - p - 1][::-1, ::-1][i, j]
      for p, i, j in self._ways
    ]
    return _best(jnp.stack(both) - (own_value + value)[None])


@dataclasses.dataclass(frozen=True)
class Swaps:
  """One channel of each of two stripes changes places, for any n < m."""

  n: int
  m: int

  def channels(self, move: int) -> np.ndarray:
    """Positions 0 .. 2m - 1 in their new order, of which m make a stripe."""
    order = np.arange(2 * self.m)
    i, j = divmod(move, self.m)
    order[i], order[self.m + j] = self.m + j, i
    return order

  @functools.partial(jax.jit, static_argnums=0)
  def prepare(self, x: Float[Array, "rows channels"]) -> tuple[Array, ...]:
    """Values of stripes, sums A, thresholds t, and the scores."""
    lines = jnp.moveaxis(x.reshape(len(x), -1, self.m), 2, 1)
    ranked = -jnp.sort(-lines, axis=1)
    last, following = ranked[:, self.n - 1], ranked[:, self.n]
    selected = lines >= last[:, None]
    threshold = jnp.where(selected, following[:, None], last[:, None])
    top = ranked[:, : self.n].sum(1)[:, None]
    without = top + jnp.where(selected, following[:, None] - lines, 0)
    return stripe_values(x, self.n, self.m), without.sum(0), threshold, lines

  @functools.partial(jax.jit, static_argnums=0)
  def gains(
    self,
    prepared: tuple[Array, ...],
    others: tuple[Array, ...],
    stripe: Int[Array, ""],
  ) -> Gains:
    """The best exchange of a stripe of `prepared` with each of `others`."""
    own_value, own_without, *own = (
      lax.dynamic_slice_in_dim(a, stripe, 1, -1) for a in prepared
    )
    value, without, threshold, lines = others

    def excess(t, x, threshold, lines):
      both = jax.nn.relu(lines[:, None] - t[:, :, None])
      both += jax.nn.relu(x[:, :, None] - threshold[:, None])
      return [both.sum(0)]

    (total,) = _over_rows(excess, (*own, threshold, lines))
    total += own_without[:, None] + without[None]
    return _best(total.reshape(self.m**2, -1) - (own_value + value)[None])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def refreshed(
  moves: Partitions | Swaps,
  prepared: tuple[Array, ...],
  rows: Float[Array, "rows channels"],
  order: Int[Array | np.ndarray, " channels"],
  stripes: Int[Array | np.ndarray, " changed"],
) -> tuple[Array, ...]:
  """`prepared`, which is overwritten, with these stripes as in this order."""
  places = stripes[:, None] * moves.m + np.arange(moves.m)[None]
  fresh = moves.prepare(rows[:, order[places.ravel()]])

  def put(i, arrays):
    return tuple(
      lax.dynamic_update_slice_in_dim(
        old, lax.dynamic_slice_in_dim(new, i, 1, -1), stripes[i], -1
      )
      for old, new in zip(arrays, fresh)
    )

  return lax.fori_loop(0, len(stripes), put, prepared)


@functools.partial(jax.jit, static_argnums=0)
def gains_of(
  moves: Partitions | Swaps,
  prepared: tuple[Array, ...],
  others: tuple[Array, ...],
  stripes: Int[Array | np.ndarray, " some"],
  count: Int[Array, ""] | int,
) -> Gains:
  """The gains of the first `count` stripes, [some, others].

  The count is traced, since each number of stripes would be compiled anew.
  """
  shape = len(stripes), others[0].shape[-1]

  def put(i, gains):
    return jax.tree.map(
      lambda all_gains, one: all_gains.at[i].set(one),
      gains,
      moves.gains(prepared, others, stripes[i]),
    )

  start = Gains(jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
  return lax.fori_loop(0, count, put, start)


def neighbourhood(n: int, m: int) -> Partitions | Swaps:
  """All partitions where they are at most 35, else all swaps."""
  return Partitions(n, m) if m <= 4 else Swaps(n, m)
