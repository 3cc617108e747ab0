"""Dynamic sparse training: drop some kept weights and grow as many others."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from figs_jax.core.groups import Axis, Groups
from figs_jax.core.pattern import NM
from figs_jax.core.scores import random_words, uniform
from figs_jax.core.top_n import (
  by_comparison,
  by_threshold,
  compares,
  fence,
  ordered,
)
from figs_jax.core.types import Array, Bool, Float
from figs_jax.core.unstructured import top_mask

SCOPES = ("group", "leaf")


def regrow_mask(
  key: Array,
  weight: Float[Array, "*shape"],
  growth: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"],
  share: Float[Array, ""] | float | int,
  pattern: NM | str,
  axis: Axis = -2,
  *,
  scope: str = "group",
) -> Bool[Array, "*shape"]:
  """One update of RigL's or SET's mask under an n:m constraint.

  The kept weights with the smallest |w| are dropped. Every group then grows as
  many as it lost, where `growth` is largest among the entries it does not keep
  (an entry that was just dropped may return). RigL (arXiv 1911.11134) uses
  growth = |gradient|, SET (1707.04780) random numbers; both papers drop per
  layer and are unstructured.

  Args:
    key: Random key of the rounding in scope `group`, which `random_order` may
      share.
    weight: Kernel.
    growth: Scores of the entries that may grow, any real numbers; NaN is last.
    mask: Previous mask. A group that does not keep exactly n (as in a dense
      phase) gets its n largest |w| instead.
    share: Share in [0, 1] of the kept weights to drop; may be traced.
    pattern: `NM` or "n:m".
    axis: Group axis, see `nm_mask`.
    scope: `group` drops the smallest share * n of each group, where a fraction
      is rounded up or down at random with the right mean, and needs no
      communication between shards; `leaf` drops the smallest of the
      kernel, floor(share * kept) in float32.

  Returns:
    A mask with exactly n per group.

  Raises:
    ValueError: If the scope is unknown, or the axis does not fit the shape.

  >>> w, g = jnp.array([.1, 2., 0., 0.]), jnp.array([0., 0., 1., 3.])
  >>> m = jnp.array([True, True, False, False])
  >>> regrow_mask(jax.random.key(0), w, g, m, 0.5, "2:4", axis=0).astype(int)
  Array([0, 1, 0, 1], dtype=int32)
  """
  if scope not in SCOPES:
    raise ValueError(f"Unknown scope {scope!r}. Known: {', '.join(SCOPES)}")
  pattern = NM.parse(pattern)
  groups = Groups.of(weight.shape, pattern.m, axis)
  share = jnp.asarray(share, jnp.float32)
  return _regrow(key, weight, growth, mask, share, pattern.n, groups, scope)


# Compiled even if called eagerly, and traced once for equal kernels.
@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _regrow(
  key: Array,
  weight: Array,
  growth: Array,
  mask: Array,
  share: Array,
  n: int,
  groups: Groups,
  scope: str,
) -> Array:
  magnitude = jnp.abs(weight).astype(jnp.float32)
  strength = jnp.where(mask, magnitude, -1)
  held = groups.split(mask)
  small = compares(magnitude.dtype, groups.m)
  choose = by_comparison if small else by_threshold
  if scope == "leaf":
    kept = jnp.sum(mask, dtype=jnp.int32)
    # Truncated, as in RigL's code.
    drop = jnp.floor(share * kept.astype(jnp.float32)).astype(jnp.int32)
    remain = groups.split(mask & top_mask(strength, kept - drop))
  else:
    drop = jnp.floor(share * n).astype(jnp.int32)
    one = tuple(
      1 if d == groups.axis else s for d, s in enumerate(groups.grouped)
    )
    chance = share * n - drop.astype(jnp.float32)
    more = uniform(random_words(key, one)) < chance
    stay = n - drop - more.astype(jnp.int32)
    if n == 1:
      remain = held & (stay > 0)
    else:
      ranks = groups.split(fence(ordered(strength)))
      remain = held & choose(ranks, stay, groups.axis)
  # What remains outranks every growth: keys of floats, infinity included, stay
  # below. An infinity here would stop a sound run under jax_debug_infs.
  top = jnp.int32(jnp.iinfo(jnp.int32).max - 1)
  grown = groups.split(ordered(growth.astype(jnp.float32)))
  whole = jnp.sum(held, groups.axis, keepdims=True, dtype=jnp.int32) == n
  keys = jnp.where(
    whole,
    jnp.where(remain, top, grown),
    groups.split(ordered(magnitude)),
  )
  return groups.join(choose(fence(keys), n, groups.axis))
