"""Which n of every m are kept, and what a mask looks like.

A mask is a Boolean array of the kernel's shape, True = kept. Groups are m
entries, consecutive or `stride` apart, along one axis or along several
flattened in the order given; for a `[in, out]` kernel the contraction axis is
-2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core import top_n
from figs_jax.core.groups import Axis, Groups
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float, Int, Shaped

Count = int | Int[Array, ""] | None


def nm_mask(
  scores: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  n: Count = None,
  *,
  stride: int = 1,
  inside: Bool[Array | np.ndarray, "*shape"] | None = None,
) -> Bool[Array, "*shape"]:
  """True at the n largest scores of every group of m: exactly n per group.

  Scores are ranked as given: pass |w| for magnitude pruning. Among equals the
  lowest index wins, -0 equals +0, and NaN ranks below everything. Exact in
  every real dtype. Shards without communication as long as no group straddles
  two shards. There is no gradient through a mask.

  Group g of a line of entries x holds x[g // stride * m * stride + g % stride
  + i * stride] for i < m: with `stride` the lane width of a TPU, say, all of a
  lane's entries belong to one group (praxis calls it the offset).

  Args:
    scores: any shape, float or integer.
    pattern: `NM` or "n:m".
    axis: the group axis; a tuple is flattened in the order given.
    n: how many to keep instead of `pattern.n`, for schedules that shrink it
      under one compilation. A traced n beyond 0..m acts as 0 or m.
    stride: how far apart the entries of one group lie.
    inside: where an entry may be kept at all, as when masks are nested in the
      mask before. A group with fewer such entries than n keeps all of them.

  Raises:
    TypeError: Boolean or complex scores, an n that is no integer, or an inside
      that is not Boolean.
    ValueError: m * stride does not divide the length of the group axis, an
      axis is out of range or named twice, n is not within 1..m, stride is no
      positive integer, or inside has another shape.

  >>> w = jnp.array([[3., -1.], [2., 5.], [-9., 0.], [1., 5.]])
  >>> nm_mask(jnp.abs(w), "1:2").astype(int)
  Array([[1, 0],
         [0, 1],
         [1, 0],
         [0, 1]], dtype=int32)
  """
  pattern = NM.parse(pattern)
  scores = jnp.asarray(scores)
  groups = Groups.of(scores.shape, pattern.m, axis, stride)
  if inside is not None:
    inside = jnp.asarray(inside)
    _same_shape(scores, inside)
    if inside.dtype != bool:
      raise TypeError(f"inside of dtype {inside.dtype}: pass a Boolean mask")
  if isinstance(n, Array):
    return _traced_mask(scores, groups, _scalar(n), inside)
  if n is not None:
    pattern = NM(n, pattern.m)
  return _static_mask(scores, groups, pattern.n, inside)


def is_nm(
  array_or_mask: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  stride: int = 1,
) -> Bool[Array, ""]:
  """Whether every group obeys the pattern.

  A Boolean mask must have exactly n True per group; any other array at most n
  non-zeros, since a kept weight may be zero too. NaN is not zero.

  Args:
    array_or_mask: a Boolean mask, or weights of any other dtype.
    pattern: `NM` or "n:m".
    axis: the group axis, as in `nm_mask`.
    stride: as in `nm_mask`.

  Raises:
    ValueError: as `nm_mask`.

  >>> is_nm(jnp.array([0., 2., 0., 0.]), "2:4", axis=0)
  Array(True, dtype=bool)
  >>> is_nm(jnp.array([False, True, False, False]), "2:4", axis=0)
  Array(False, dtype=bool)
  """
  pattern = NM.parse(pattern)
  array = jnp.asarray(array_or_mask)
  groups = Groups.of(array.shape, pattern.m, axis, stride)
  mask = array if array.dtype == bool else array != 0
  kept = jnp.sum(groups.split(mask), groups.axis, dtype=jnp.int32)
  if array.dtype == bool:
    return jnp.all(kept == pattern.n)
  return jnp.all(kept <= pattern.n)


def flip_rate(
  old: Bool[Array, "*shape"], new: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """The share of entries whose mask changed.

  Args:
    old: a mask.
    new: a mask of the same shape.

  Raises:
    ValueError: the shapes differ.

  >>> flip_rate(jnp.array([True, False, False]), jnp.array([True, True, False]))
  Array(0.33333334, dtype=float32)
  """
  _same_shape(old, new)
  return density(old != new)


def density(mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
  """The share of True entries; 0 for an empty mask.

  Args:
    mask: any shape.

  >>> density(jnp.array([True, False, False, False]))
  Array(0.25, dtype=float32)
  """
  # Counted in integers: a float32 sum of ones stops at 2^24.
  kept = jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
  return kept / jnp.float32(max(mask.size, 1))


def kept_magnitude(
  kernel: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """The share of sum |w| at kept entries; 1 where there is nothing to lose.

  Args:
    kernel: weights.
    mask: of the same shape, True = kept.

  Raises:
    ValueError: the shapes differ.

  >>> kept_magnitude(jnp.array([3., -1.]), jnp.array([True, False]))
  Array(0.75, dtype=float32)
  """
  _same_shape(kernel, mask)
  magnitude = jnp.abs(kernel).astype(jnp.float32)
  total = jnp.sum(magnitude)
  kept = jnp.sum(magnitude, where=mask)
  return jnp.where(total == 0, jnp.float32(1), kept / total)


def _mask(
  scores: Array, groups: Groups, n: int | Array, inside: Array | None
) -> Array:
  compare = top_n.compares(scores.dtype, n, groups.m)
  # Ordered before the split: after it XLA no longer vectorizes 16-bit floats.
  keys = top_n.ordered(lax.stop_gradient(scores))
  if isinstance(n, int) and n == groups.m:
    return jnp.ones(scores.shape, bool) if inside is None else inside
  if inside is not None:
    keys = jnp.where(inside, keys, jnp.iinfo(keys.dtype).min)
    inside = groups.split(inside)
  choose = top_n.by_comparison if compare else top_n.by_threshold
  return groups.join(choose(groups.split(keys), n, groups.axis, inside))


# Compiled also when called eagerly: a network is hundreds of operations.
_static_mask = jax.jit(_mask, static_argnums=(1, 2))
_traced_mask = jax.jit(_mask, static_argnums=1)


def _scalar(n: Array) -> Array:
  if n.ndim or not jnp.issubdtype(n.dtype, jnp.integer):
    raise TypeError(
      f"n of dtype {n.dtype} and shape {n.shape}: pass one integer scalar"
    )
  return n.astype(jnp.int32)


def _same_shape(a: Array, b: Array) -> None:
  if a.shape != b.shape:
    raise ValueError(f"shapes {a.shape} and {b.shape} differ: pass equal ones")
