"""Other searches for channel permutations: exact, annealed and learned."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.permutation_moves import Swaps
from figs_jax.core.types import Array, Float, Int

_PARTITIONS = math.factorial(16) // (math.factorial(4) ** 4 * 24)
_SUBSETS = 50_000


def partitions(channels: int, m: int) -> int:
  """Number of ways to part channels into groups of m: C! / (m!^S S!).

  >>> [partitions(4 * stripes, 4) for stripes in (2, 3, 4)]
  [35, 5775, 2627625]
  """
  stripes = channels // m
  return math.factorial(channels) // (
    math.factorial(m) ** stripes * math.factorial(stripes)
  )


def exhaustive(rows: np.ndarray, n: int, m: int) -> np.ndarray:
  """The order that keeps most.

  The best parting of a set of channels takes the lowest one with m - 1 others,
  for the best parting of what is left; sets are met again and remembered.

  Raises:
    ValueError: If there are more than 2,627,625 partitions or 50,000 groups.
  """
  channels = rows.shape[1]
  if partitions(channels, m) > _PARTITIONS or math.comb(channels, m) > _SUBSETS:
    raise ValueError(
      f"exhaustive: {channels} channels have"
      f" {partitions(channels, m):.3g} partitions into groups of {m}, more"
      f' than {_PARTITIONS}; use method="greedy"'
    )
  subsets = np.array(list(itertools.combinations(range(channels), m)))
  value = dict(
    zip(
      (1 << subsets).sum(1).tolist(),
      _subset_values(rows, n, subsets).tolist(),
      strict=True,
    )
  )

  @functools.cache
  def best(free: int) -> tuple[float, tuple[int, ...]]:
    """The value and the groups, as bits, of the best parting of `free`."""
    if not free:
      return 0.0, ()
    members = [c for c in range(channels) if free >> c & 1]
    low = 1 << members[0]
    result = (-1.0, ())
    for others in itertools.combinations(members[1:], m - 1):
      group = low | sum(1 << c for c in others)
      rest, groups = best(free ^ group)
      if rest + value[group] > result[0]:
        result = (rest + value[group], (group, *groups))
    return result

  groups = best((1 << channels) - 1)[1]
  return np.array([c for g in groups for c in range(channels) if g >> c & 1])


def top_sums(groups: np.ndarray, n: int) -> np.ndarray:
  """The sum of the n largest along the last axis, in float64.

  >>> top_sums(np.array([[1.0, 5.0, 3.0]]), 2)
  array([8.])
  """
  least = groups.shape[-1] - n
  ranked = np.partition(groups, least, axis=-1)
  return ranked[..., least:].sum(-1, dtype=np.float64)


def _subset_values(rows: np.ndarray, n: int, subsets: np.ndarray) -> np.ndarray:
  """The sum of the n largest of each subset over rows, in float64."""
  m = subsets.shape[1]
  step = max(1, 2**22 // (m * len(rows)))
  return np.concatenate(
    [
      top_sums(rows[:, subsets[i : i + step]], n).sum(0)
      for i in range(0, len(subsets), step)
    ]
  )


def annealed(rows: np.ndarray, n: int, m: int, seed: int) -> np.ndarray:
  """Simulated annealing over swaps: 200 proposals per channel.

  The temperature falls geometrically from the mean loss of a random swap by a
  factor of 1,000.
  """
  return np.asarray(
    _anneal(
      jnp.asarray(rows.T), jax.random.key(seed), n, m, 200 * rows.shape[1]
    )
  )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _anneal(
  x: Float[Array, "channels rows"], key: Array, n: int, m: int, steps: int
) -> Int[Array, " channels"]:
  channels = len(x)

  def value(stripe: Int[Array, " m"]) -> Float[Array, ""]:
    return -jnp.sort(-x[stripe], axis=0)[:n].sum()

  def propose(order, key):
    """Two places, the stripes as they would be, and the gain."""
    a, b = jax.random.randint(key, (2,), 0, channels)
    swapped = order.at[jnp.array([a, b])].set(order[jnp.array([b, a])])
    gain = jnp.zeros(())
    for place in (a, b):
      start = place // m * m
      for sign, o in ((1, swapped), (-1, order)):
        gain += sign * value(lax.dynamic_slice_in_dim(o, start, m))
    return swapped, jnp.where(a // m == b // m, 0, gain)

  start = jnp.arange(channels)
  probes = jax.random.split(jax.random.fold_in(key, 1), 64)
  hot = jnp.abs(lax.map(lambda k: propose(start, k)[1], probes)).mean()

  def step(i, state):
    order, kept, best, most = state
    swap, accept = jax.random.split(jax.random.fold_in(key, i + 2))
    swapped, gain = propose(order, swap)
    heat = hot * 1e-3 ** (i / steps)
    take = gain >= heat * jnp.log(jax.random.uniform(accept, minval=1e-30))
    order = jnp.where(take, swapped, order)
    kept = kept + jnp.where(take, gain, 0)
    better = kept > most
    return (
      order,
      kept,
      jnp.where(better, order, best),
      jnp.where(better, kept, most),
    )

  zero = jnp.zeros(())
  return lax.fori_loop(0, steps, step, (start, zero, start, zero))[2]


def learned(rows: np.ndarray, n: int, m: int, seed: int) -> np.ndarray:
  """A permutation by gradient ascent on a doubly stochastic matrix.

  Logits L give P = Sinkhorn(L), which the Hungarian method rounds. The value
  is that of the rounded permutation, its gradient is taken as that of P
  (straight through), and Adam moves L for 300 steps. The best permutation met
  is kept.
  """
  from scipy.optimize import linear_sum_assignment

  x = jnp.asarray(rows)
  channels = x.shape[1]
  noise = np.random.default_rng(seed).normal(size=(channels, channels))
  logits = jnp.eye(channels) + 0.1 * jnp.asarray(noise, jnp.float32)
  moments = jnp.zeros((2, channels, channels))
  best, most = np.arange(channels), -np.inf
  for step in range(300):
    order = linear_sum_assignment(-np.asarray(_sinkhorn(logits)))[1]
    kept, logits, moments = _ascend(
      x, order, logits, moments, jnp.float32(step + 1), n, m
    )
    if kept > most:
      best, most = order, kept
  return best


@jax.jit
def _sinkhorn(
  logits: Float[Array, "channels channels"],
) -> Float[Array, "channels channels"]:
  def normalize(_, z):
    z = z - jax.nn.logsumexp(z, axis=1, keepdims=True)
    return z - jax.nn.logsumexp(z, axis=0, keepdims=True)

  return jnp.exp(lax.fori_loop(0, 20, normalize, logits))


@functools.partial(jax.jit, static_argnums=(5, 6))
def _ascend(x, order, logits, moments, t, n, m):
  """The value of `order`, and logits and moments after a step of Adam."""
  value, without, threshold, lines = Swaps(n, m).prepare(x[:, order])
  threshold = jnp.moveaxis(threshold, 2, 1).reshape(len(x), -1)
  without = without.T.ravel()
  worth = without[:, None] + jax.nn.relu(
    x[:, None, :] - threshold[:, :, None]
  ).sum(0)
  slope = jax.grad(lambda z: (_sinkhorn(z) * worth).sum())(logits)
  slope = slope / len(x)
  mean = 0.9 * moments[0] + 0.1 * slope
  square = 0.99 * moments[1] + 0.01 * slope**2
  ahead = mean / (1 - 0.9**t) / (jnp.sqrt(square / (1 - 0.99**t)) + 1e-8)
  return value.sum(), logits + 0.1 * ahead, jnp.stack([mean, square])
