"""Channel permutations under which an N:M mask keeps more.

Which m channels share a group is free where a layer's channels can be
reordered together with whatever produces them. `permute` looks for an order
that keeps more of the scores. The best one is NP-hard to find; the methods and
their distances from the optimum are in docs/permutation.md.

Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from figs_jax.core.groups import Groups, normalized
from figs_jax.core.pattern import NM, VNM
from figs_jax.core.permutation_methods import (
  annealed,
  exhaustive,
  learned,
  top_sums,
)
from figs_jax.core.permutation_moves import gains_of, neighbourhood, refreshed
from figs_jax.core.types import Array, Shaped

METHODS = ("greedy", "exhaustive", "anneal", "sinkhorn")

# Gains below this share of the two stripes' value are rounding.
_ROUNDING = 2e-6
# Stripes whose gains are computed together.
_MOST = 64


def permute(
  scores: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str = "2:4",
  axis: int = -2,
  *,
  method: str = "greedy",
  escapes: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """An order of the channels along `axis` that keeps more under an N:M mask.

  `jnp.take(kernel, order, axis)` has its channels in the new order. What
  produces them must be reordered alike. The sum that `nm_mask` keeps is never
  less than in the given order, and the result is deterministic.

  * `greedy`: the exchanges between two stripes (groups of m channels) that
    gain most, all disjoint ones of a round together, until none gains. All 35
    partitions of two stripes are compared for m up to 4, else all m^2 swaps.
    Then `escapes` times three channels of three stripes change places at
    random, followed by exchanges as before; the best order is kept (bounded
    regressions).
  * `exhaustive`: the optimum, by a recursion over sets of channels; up to four
    stripes of 4 or equivalent (2,627,625 partitions).
  * `anneal`: simulated annealing over random swaps.
  * `sinkhorn`: a doubly stochastic matrix trained by gradient ascent, rounded
    to a permutation by the Hungarian method. Needs scipy.

  Args:
    scores: What a kept entry is worth, such as |w|; kernels that read the same
      channels are concatenated along another axis. Not negative.
    pattern: `NM` or "n:m".
    axis: Axis of the channels, which is the group axis of the mask.
    method: One of the four above.
    escapes: Number of random changes that `greedy` recovers from. Defaults to
      100 for up to 64 stripes, and to 6400 / stripes for more.
    seed: Seed of everything random.

  Returns:
    Integer array [channels], a permutation of 0 .. channels - 1. Groups and the
    channels in them are ordered by their lowest original index, so scores that
    nothing improves give 0, 1, 2, ….

  Raises:
    ValueError: If m does not divide the number of channels, a score is
      negative or not finite, the method is unknown, or `exhaustive` has too
      many partitions.

  >>> w = jnp.array([[9., 8.], [7., 9.], [0., 1.], [1., 0.]])
  >>> order = permute(w, "1:2")
  >>> order.tolist()
  [0, 2, 1, 3]
  >>> float(w[order].reshape(2, 2, 2).max(1).sum())
  33.0
  """
  pattern = NM.parse(pattern)
  if isinstance(pattern, VNM):
    raise ValueError(
      f"Expected an N:M pattern, got {pattern}: orders are searched for groups"
      f" of one output; pass {pattern.pattern}"
    )
  if method not in METHODS:
    raise ValueError(
      f"Expected a method among {', '.join(METHODS)}, got {method!r}"
    )
  if escapes is not None and escapes < 0:
    raise ValueError(f"Expected escapes of at least 0, got {escapes}")
  values = np.asarray(jnp.asarray(scores).astype(jnp.float32))
  Groups.of(values.shape, pattern.m, axis)
  (axis,) = normalized(values.shape, axis)
  rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
  if not np.isfinite(rows).all() or (rows < 0).any():
    raise ValueError(
      "Expected finite scores of at least 0, such as abs(kernel); got"
      f" {rows.min()} as the least and {rows.max()} as the largest"
    )
  identity = np.arange(rows.shape[1])
  n, m = pattern.n, pattern.m
  if n == m or len(identity) == m or not rows.size:
    return identity
  # Shares of the largest score, so that sums of many rows cannot overflow.
  rows = rows / max(rows.max(), np.finfo(np.float32).tiny)
  if method == "exhaustive":
    order = exhaustive(rows, n, m)
  elif method == "anneal":
    order = annealed(rows, n, m, seed)
  elif method == "sinkhorn":
    order = learned(rows, n, m, seed)
  else:
    if escapes is None:
      escapes = min(100, 6400 * m // len(identity))
    order = _greedy(rows, n, m, escapes, seed)
  best = max((identity, order), key=lambda o: _kept(rows[:, o], n, m))
  return _canonical(best, m)


def _kept(rows: np.ndarray, n: int, m: int) -> float:
  return float(top_sums(rows.reshape(len(rows), -1, m), n).sum())


def _canonical(order: np.ndarray, m: int) -> np.ndarray:
  stripes = np.sort(order.reshape(-1, m), axis=1)
  return stripes[np.argsort(stripes[:, 0])].ravel()


class _Search:
  """Greedy exchanges from an order, with the gains of all pairs of stripes."""

  def __init__(self, rows: np.ndarray, n: int, m: int):
    self.m = m
    self.rows = jnp.asarray(rows)
    self.order = np.arange(rows.shape[1])
    self.count = len(self.order) // m
    self.moves = neighbourhood(n, m)
    self.gain = np.full((self.count, self.count), -np.inf, np.float32)
    self.move = np.zeros((self.count, self.count), np.int32)
    self.prepared = self.moves.prepare(self.rows)
    self.update(range(self.count))

  def update(self, stripes) -> None:
    """Computes the gains of these stripes, whose channels changed."""
    stripes = np.array(stripes)
    self.refresh(stripes)
    self.gain[:, stripes] = -np.inf
    others, prepared = np.arange(self.count), self.prepared
    quarter = -(-self.count // 4)
    for start in range(0, len(stripes), _MOST):
      part = stripes[start : start + _MOST]
      padded = np.resize(part, min(_MOST, self.count))
      gains = gains_of(self.moves, self.prepared, prepared, padded, len(part))
      columns = np.ix_(part, others)
      self.gain[columns] = gains.gain[: len(part)]
      self.move[columns] = gains.move[: len(part)]
      left = np.setdiff1d(others, part)  # these pairs are known now
      # In steps of a quarter, for each of which XLA compiles.
      size = -(-len(left) // quarter) * quarter
      if start + _MOST < len(stripes) and size < len(others):
        others = np.resize(left, size)
        prepared = tuple(a[..., others] for a in self.prepared)
    # A pair of two of them, and a stripe with itself, may be listed twice.
    np.fill_diagonal(self.gain, -np.inf)

  def refresh(self, stripes: np.ndarray) -> None:
    """Prepares these stripes anew."""
    for part in _parts(stripes):
      self.prepared = refreshed(
        self.moves, self.prepared, self.rows, self.order, part
      )
    self.value = np.array(self.prepared[0])  # a copy: it is overwritten

  def climb(self) -> None:
    """Applies exchanges until none gains."""
    before = -np.inf
    while (total := self.value.sum(dtype=np.float64)) > before:
      before = total
      limit = _ROUNDING * (self.value[:, None] + self.value)
      pairs = np.argwhere(self.gain > limit)
      gains = self.gain[tuple(pairs.T)]
      changed: set[int] = set()
      for s, t in pairs[np.argsort(-gains, kind="stable")].tolist():
        if s not in changed and t not in changed:
          changed |= {s, t}
          self.exchange(s, t)
      if not changed:
        return
      self.update(sorted(changed))

  def exchange(self, s: int, t: int) -> None:
    stripes = self.order.reshape(-1, self.m)
    both = np.concatenate([stripes[s], stripes[t]])
    both = both[self.moves.channels(int(self.move[s, t]))]
    stripes[s], stripes[t] = both[: self.m], both[self.m :]


def _parts(stripes: np.ndarray) -> Iterator[np.ndarray]:
  """The stripes in parts of few sizes, for each of which XLA compiles.

  Some are repeated to fill the last part.
  """
  for size in (_MOST, 16, 4):
    while len(stripes) >= size:
      yield stripes[:size]
      stripes = stripes[size:]
  if len(stripes):
    yield np.resize(stripes, 4 if len(stripes) == 3 else 2)


def _greedy(
  rows: np.ndarray, n: int, m: int, escapes: int, seed: int
) -> np.ndarray:
  search = _Search(rows, n, m)
  search.climb()
  if search.count < 3:
    return search.order  # the best partition of two stripes, or no third one
  rng = np.random.default_rng(seed)
  kept = search.value.sum(dtype=np.float64)
  for _ in range(escapes):
    order, gain = search.order.copy(), search.gain.copy()
    move = search.move.copy()
    stripes = rng.choice(search.count, 3, replace=False)
    places = stripes * m + rng.integers(m, size=3)
    search.order[places] = search.order[np.roll(places, 1)]
    search.update(stripes)
    search.climb()
    value = search.value.sum(dtype=np.float64)
    if value > kept * (1 + _ROUNDING / search.count):
      kept = value
      continue
    changed = (order != search.order).reshape(-1, m).any(axis=1)
    search.order, search.gain, search.move = order, gain, move
    if changed.any():
      search.refresh(np.flatnonzero(changed))
  return search.order
