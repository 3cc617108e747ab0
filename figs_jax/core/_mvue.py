"""Unbiased N:M pruning with the least variance (arXiv 2203.10991).

A group a of m values becomes x with at most n non-zeros and E[x] = a: entry i
is kept with probability p_i and divided by it. The variance is
sum a_i^2 (1/p_i - 1), least under sum p = n, p <= 1 at

  p_i = min(1, |a_i| / tau),  tau such that sum p = n.

No other unbiased x with at most n non-zeros has less variance:
E[x_i^2] >= a_i^2 / P(x_i != 0) by Cauchy-Schwarz. For 1:2 this is the paper's
p_i = |a_i| / (|a_1| + |a_2|).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.groups import Axis, Groups
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Float


def mvue_probabilities(
  x: Float[Array, "*shape"], pattern: NM | str, axis: Axis = -2
) -> Float[Array, "*shape"]:
  """p_i = min(1, |a_i| / tau) with sum p = n in every group of m.

  Zeros have probability 0. If a group has at most n non-zeros, each of them has
  probability 1. Infinite and NaN entries share the n places of their group
  among themselves (the limit of large entries). The result is at least float32.

  Args:
    x: Values of any shape and float dtype.
    pattern: `NM` or "n:m".
    axis: Group axis, see `nm_mask`.

  Raises:
    ValueError: If m does not divide the length of the group axis.

  >>> mvue_probabilities(jnp.array([3., -1.]), "1:2", axis=0)
  Array([0.75, 0.25], dtype=float32)
  >>> mvue_probabilities(jnp.array([8., -1., 2., 1.]), "2:4", axis=0)
  Array([1.  , 0.25, 0.5 , 0.25], dtype=float32)
  """
  pattern = NM.parse(pattern)
  groups = Groups.of(x.shape, pattern.m, axis)
  return _join_probabilities(x, groups, pattern.n)


def mvue(
  key: Array, x: Float[Array, "*shape"], pattern: NM | str, axis: Axis = -2
) -> Float[Array, "*shape"]:
  """Prunes x to N:M at random: unbiased, with the least variance.

  Systematic sampling: one uniform draw per group places n points at distance
  1 on the cumulated probabilities, and an entry under a point is kept. Exactly
  min(n, number of non-zeros) are kept. The paper only fixes the p_i, which
  determine the variance of each entry; entries of a group are correlated.

  Unbiased up to rounding: an entry below about 1e-7 of its group's tau may
  never be drawn. A group with infinities or NaN keeps at least one of them, so
  that an overflow stays visible.

  Args:
    key: Random key; equal keys give equal results.
    x: Values of any shape and float dtype.
    pattern: `NM` or "n:m"; n = m returns x unchanged.
    axis: Group axis, see `nm_mask`.

  Raises:
    ValueError: If m does not divide the length of the group axis.

  >>> x, keys = jnp.array([3., -1.]), jax.random.split(jax.random.key(0), 4000)
  >>> draws = jax.vmap(lambda key: mvue(key, x, "1:2", axis=0))(keys)
  >>> sorted({tuple(draw) for draw in draws.tolist()})
  [(0.0, -4.0), (4.0, 0.0)]
  >>> draws.mean(0).round(1)
  Array([ 3., -1.], dtype=float32)
  """
  pattern = NM.parse(pattern)
  groups = Groups.of(x.shape, pattern.m, axis)
  if pattern.is_dense:
    return x
  return _draw(key, x, groups, pattern.n)


# Compiled even if called eagerly, like masks.
@partial(jax.jit, static_argnums=(1, 2))
def _join_probabilities(x: Array, groups: Groups, n: int) -> Array:
  return groups.join(_probabilities(groups.split(x), n, groups.axis))


@partial(jax.jit, static_argnums=(2, 3))
def _draw(key: Array, x: Array, groups: Groups, n: int) -> Array:
  values = groups.split(x)
  p = _probabilities(values, n, groups.axis)
  kept = _systematic(key, p, n, groups.axis)
  scaled = values.astype(p.dtype) / jnp.where(kept, p, jnp.ones((), p.dtype))
  zero = jnp.zeros((), x.dtype)
  return groups.join(jnp.where(kept, scaled.astype(x.dtype), zero))


def _probabilities(x: Array, n: int, axis: int) -> Array:
  """The inclusion probabilities of groups along `axis`."""
  dtype = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
  zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
  finite = jnp.isfinite(x)
  size = jnp.abs(x).astype(dtype)
  all_finite = jnp.all(finite, axis, keepdims=True)
  size = jnp.where(all_finite, size, jnp.where(finite, zero, one))
  some = size > 0
  # Relative to the largest of the group, so that sums neither overflow nor
  # vanish. Large values are scaled down first, since 1 / 3e38 flushes to 0.
  top = jnp.max(size, axis, keepdims=True, initial=0)
  down = jnp.where(top > one, jnp.asarray(2.0**-64, dtype), one)
  size, top = size * down, top * down
  size = size / jnp.where(top == 0, one, top)

  def narrower(_, tau):
    """The tau that results if entries above tau get probability 1."""
    beyond = size > tau
    count = jnp.sum(beyond, axis, keepdims=True, dtype=jnp.int32)
    rest = jnp.sum(jnp.where(beyond, zero, size), axis, keepdims=True)
    # Their number reaches n only by rounding; then tau was right already.
    left = jnp.maximum(n - count, 1).astype(dtype)
    return jnp.where(count < n, rest / left, tau)

  tau = jnp.sum(size, axis, keepdims=True) / jnp.asarray(n, dtype)
  # Each round but the last moves one entry or more to probability 1.
  tau = lax.fori_loop(0, n - 1, narrower, tau)
  p = jnp.minimum(size / jnp.where(tau == 0, one, tau), one)
  few = jnp.sum(some, axis, keepdims=True, dtype=jnp.int32) <= n
  return jnp.where(few, some.astype(dtype), p)


def _systematic(key: Array, p: Array, n: int, axis: int) -> Array:
  """True at exactly min(n, count of p > 0) entries, each with probability p."""
  total = jnp.cumsum(p, axis)
  last = lax.slice_in_dim(total, p.shape[axis] - 1, p.shape[axis], axis=axis)
  # Divided by its own last value, so that it ends at n to the bit.
  n_points = jnp.asarray(n, p.dtype)
  upper = total / jnp.where(last == 0, n_points, last) * n_points
  # A parallel sum may decrease by the last bit, which would lose a point.
  upper = lax.cummax(upper, axis)
  lead = [(0, 0)] * p.ndim
  lead[axis] = (1, 0)
  lower = lax.slice_in_dim(jnp.pad(upper, lead), 0, p.shape[axis], axis=axis)
  u = jax.random.uniform(key, last.shape, p.dtype)
  kept = jnp.ceil(upper - u) > jnp.ceil(lower - u)
  few = jnp.sum(p > 0, axis, keepdims=True, dtype=jnp.int32) <= n
  return jnp.where(few, p > 0, kept & (p > 0))
