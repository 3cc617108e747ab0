"""N:M masks, and simple statistics of masks.

A mask is a Boolean array of the kernel's shape, True = kept. A group is m
entries, consecutive or `stride` apart, along one axis or along several axes
flattened in the given order. For an `[in, out]` kernel the contraction axis is
-2.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core import top_n
from figs_jax.core.groups import Axis, Groups, other_axis
from figs_jax.core.pattern import NM, VNM, parse_pattern
from figs_jax.core.types import Array, Bool, Float, Int, Shaped

COUNT_LIMIT = 2**31 - 1  # of an int32

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

  Scores are ranked as given: pass |w| for magnitude pruning. Of equal scores
  the lowest index wins, -0 equals +0, and NaN ranks below everything. Exact in
  every real dtype. A sharded array needs no communication unless a group spans
  two shards. A mask has no gradient.

  Group g of a line of entries x holds x[g // stride * m * stride + g % stride +
  i * stride] for i < m. With the lane width of a TPU as `stride`, for example,
  the entries of one lane form groups (praxis calls it the offset).

  Args:
    scores: Scores of any shape, float or integer; larger is kept.
    pattern: `NM` or "n:m"; `VNM` or "v:n:m" gives the mask of `vnm_mask`.
    axis: Group axis; a tuple of axes is flattened in the given order.
    n: Number of entries to keep instead of `pattern.n`, for schedules that
      shrink it within one compilation. A traced n is clipped to 0..m.
    stride: Distance between the entries of a group.
    inside: Mask of the entries that may be kept at all, for masks nested in an
      earlier mask. A group with fewer than n such entries keeps all of them.

  Raises:
    TypeError: If scores are Boolean or complex, n is not an integer, or
      `inside` is not Boolean.
    ValueError: If m * stride does not divide the length of the group axis, an
      axis is out of range or named twice, n is not within 1..m, stride is not
      a positive integer, `inside` has another shape, or n, stride or `inside`
      are given with V:N:M.

  >>> w = jnp.array([[3., -1.], [2., 5.], [-9., 0.], [1., 5.]])
  >>> nm_mask(jnp.abs(w), "1:2").astype(int)
  Array([[1, 0],
         [0, 1],
         [1, 0],
         [0, 1]], dtype=int32)
  """
  pattern = parse_pattern(pattern)
  if isinstance(pattern, VNM):
    if n is not None or stride != 1 or inside is not None:
      raise ValueError(
        f"Expected V:N:M {pattern} without n, stride and inside, which are for"
        f" N:M; pass the pattern {pattern.pattern}"
      )
    return vnm_mask(scores, pattern, axis)
  scores = jnp.asarray(scores)
  groups = Groups.of(scores.shape, pattern.m, axis, stride)
  if inside is not None:
    inside = jnp.asarray(inside)
    _same_shape(scores, inside)
    if inside.dtype != bool:
      raise TypeError(f"Expected a Boolean inside, got dtype {inside.dtype}")
  if isinstance(n, Array):
    return _traced_mask(scores, groups, _scalar(n), inside)
  if n is not None:
    pattern = NM(n, pattern.m)
  return _static_mask(scores, groups, pattern.n, inside)


def vnm_mask(
  scores: Shaped[Array | np.ndarray, "*shape"],
  pattern: VNM | str,
  axis: Axis = -2,
) -> Bool[Array, "*shape"]:
  """True at the entries that V:N:M keeps: exactly n of every m of each output.

  In every block of m inputs and v outputs, the 2n inputs with the largest sums
  of scores are chosen; each output then keeps its n largest scores among them.
  Of equal sums or scores the lowest index wins.

  Args:
    scores: Scores of a kernel; larger is kept. Pass |w|.
    pattern: `VNM` or "v:n:m".
    axis: Group axis, see `nm_mask`. The outputs lie on the last other axis.

  Raises:
    ValueError: If m does not divide the inputs, or v the outputs.

  >>> scores = jnp.array([[9., 0.], [1., 2.], [0., 3.], [0., 0.]])
  >>> vnm_mask(scores, "2:1:4").astype(int)  # the inputs 0 and 1 are shared
  Array([[1, 0],
         [0, 1],
         [0, 0],
         [0, 0]], dtype=int32)
  """
  vnm, scores = VNM.parse(pattern), jnp.asarray(scores)
  outputs = other_axis(scores.ndim, axis)
  wide = scores
  if scores.dtype.itemsize < 4:
    is_float = jnp.issubdtype(scores.dtype, jnp.floating)
    wide = scores.astype(jnp.float32 if is_float else jnp.int32)
  sums = _blocks(wide, vnm.v, outputs).sum(outputs)
  chosen = nm_mask(sums, NM(vnm.columns, vnm.m), axis)
  inside = jnp.repeat(chosen, vnm.v, axis=outputs)
  return nm_mask(scores, vnm.pattern, axis, inside=inside)


def _blocks(x: Array, v: int, axis: int) -> Array:
  """The array with a negative axis split into blocks of v and their entries."""
  length = x.shape[axis]
  if length % v:
    raise ValueError(
      f"axis {axis} of shape {x.shape} has length {length}, not a multiple of"
      f" v={v}, the outputs that share inputs; choose a v that divides it"
    )
  at = x.ndim + axis
  return x.reshape(*x.shape[:at], length // v, v, *x.shape[at + 1 :])


def rank_in_group(
  scores: Shaped[Array | np.ndarray, "*shape"],
  m: int,
  axis: Axis = -2,
  *,
  stride: int = 1,
) -> Int[Array, "*shape"]:
  """The rank of every score in its group of m, 0 = kept first.

  The ranking is that of `nm_mask`: of equal scores the lowest index comes
  first, -0 equals +0, and NaN comes last. Hence `rank_in_group(scores, m) < n`
  is `nm_mask(scores, NM(n, m))` for every n, and the masks of one rank array
  are nested. n may be traced.

  Across different m:

  * At equal n the masks nest: a score that is among the n largest of a group of
    k * m is among the n largest of its group of m, so 1:8 is within 1:4 within
    1:2. In ranks: r_m <= r_km <= r_m + (k - 1) m.
  * At equal density they do not. Every 1:2 mask obeys 2:4, so the feasible sets
    nest (the decay of FiGS relies on it), but the masks of the same scores
    differ: 4, 3, 2, 1 keeps the entries 0 and 2 at 1:2 and 0 and 1 at 2:4.

  Ranking takes m comparisons per entry. A sharded array needs no communication
  unless a group spans two shards. Ranks have no gradient.

  Args:
    scores: Scores of any shape, float or integer; larger is kept first.
    m: Size of a group.
    axis: Group axis; a tuple of axes is flattened in the given order.
    stride: Distance between the entries of a group, see `nm_mask`.

  Returns:
    Ranks within 0..m-1, int32, in the shape of the scores.

  Raises:
    TypeError: If scores are Boolean or complex.
    ValueError: If m is not a positive integer, m * stride does not divide the
      length of the group axis, an axis is out of range or named twice, or
      stride is not a positive integer.

  >>> w = jnp.array([3., -1., 9., -3.])
  >>> ranks = rank_in_group(jnp.abs(w), 4, axis=0)
  >>> ranks
  Array([1, 3, 0, 2], dtype=int32)
  >>> (ranks < 2).astype(int)  # 2:4
  Array([1, 0, 1, 0], dtype=int32)
  """
  m = NM(m, m).m
  scores = jnp.asarray(scores)
  return _ranks(scores, Groups.of(scores.shape, m, axis, stride))


def is_nm(
  array_or_mask: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  stride: int = 1,
) -> Bool[Array, ""]:
  """Whether every group obeys the pattern.

  A Boolean mask must have exactly n True entries per group, any other array at
  most n non-zeros, since a kept weight may be zero. NaN and denormal numbers
  count as non-zero.

  Args:
    array_or_mask: A Boolean mask, or weights of any other dtype.
    pattern: `NM` or "n:m"; of `VNM` or "v:n:m" the choice of v outputs is
      checked, too.
    axis: Group axis, see `nm_mask`.
    stride: Distance between the entries of a group.

  Raises:
    ValueError: If axis or stride do not fit the shape, see `nm_mask`.

  >>> is_nm(jnp.array([0., 2., 0., 0.]), "2:4", axis=0)
  Array(True, dtype=bool)
  >>> is_nm(jnp.array([False, True, False, False]), "2:4", axis=0)
  Array(False, dtype=bool)
  """
  pattern = parse_pattern(pattern)
  array = jnp.asarray(array_or_mask)
  groups = Groups.of(array.shape, pattern.m, axis, stride)
  obeys = _obeys(array, groups, pattern.n)
  if not isinstance(pattern, VNM):
    return obeys
  outputs = other_axis(array.ndim, axis)
  mask = array if array.dtype == bool else non_zero(array)
  used = _blocks(mask, pattern.v, outputs).any(outputs).astype(jnp.int32)
  groups = Groups.of(used.shape, pattern.m, axis)
  return obeys & _obeys(used, groups, pattern.columns)


def non_zero(array: Shaped[Array, "*shape"]) -> Bool[Array, "*shape"]:
  """`array != 0`, denormal numbers too, which XLA compares as 0 on a CPU.

  Bits alone are compared: of `array != 0` and the bits of its magnitude under
  one `or`, LLVM keeps the first, as if denormal numbers were not flushed.
  """
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return array != 0
  bits = lax.bitcast_convert_type(
    array, jnp.dtype(f"uint{jnp.finfo(array.dtype).bits}")
  )
  zeros = np.array([0.0, -0.0]).astype(array.dtype)
  mask = jnp.ones(array.shape, bool)
  for code in zeros[zeros == 0].view(f"uint{8 * zeros.itemsize}").tolist():
    mask &= bits != jnp.array(code, bits.dtype)
  return mask


def flip_rate(
  old: Bool[Array, "*shape"], new: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """The share of mask entries that changed.

  Args:
    old: Earlier mask.
    new: Later mask of the same shape.

  Raises:
    ValueError: If the shapes differ.

  >>> flip_rate(jnp.array([True, False, False]), jnp.array([True, True, False]))
  Array(0.33333334, dtype=float32)
  """
  _same_shape(old, new)
  return density(old != new)


def density(mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
  """The share of True entries; 0 for an empty mask.

  Args:
    mask: Boolean mask of any shape.

  >>> density(jnp.array([True, False, False, False]))
  Array(0.25, dtype=float32)
  """
  kept = true_count(mask).astype(jnp.float32)
  return kept / jnp.float32(max(mask.size, 1))


def true_count(
  mask: Bool[Array, "*shape"],
) -> Int[Array, ""] | Float[Array, ""]:
  """The number of True entries, in `count_dtype` of the number of entries.

  A float32 sum of ones would stop at 2^24, so that rows are counted in int32.

  Args:
    mask: Boolean mask of any shape.

  >>> true_count(jnp.array([True, False, True]))
  Array(2, dtype=int32)
  """
  axis = int(np.argmax(mask.shape)) if mask.ndim else None
  rows = jnp.sum(mask, axis, dtype=jnp.int32)
  return jnp.sum(rows.astype(count_dtype(mask.size)))


def count_dtype(size: int) -> Any:
  """int32, or float32 for counts up to more than an int32 holds.

  A stack of large kernels has more entries: 80 of 8192 x 28672 are 1.9e10.

  Args:
    size: The largest count.

  >>> count_dtype(10).__name__, count_dtype(2**31).__name__
  ('int32', 'float32')
  """
  return jnp.int32 if size <= COUNT_LIMIT else jnp.float32


def kept_magnitude(
  kernel: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """The share of sum |w| at kept entries; 1 if the sum is 0.

  Args:
    kernel: Weights.
    mask: Boolean mask of the same shape, True = kept.

  Raises:
    ValueError: If the shapes differ.

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
  compare = top_n.compares(scores.dtype, groups.m)
  # Ordered before the split; after it XLA does not vectorize 16-bit floats.
  keys = top_n.ordered(lax.stop_gradient(scores))
  if isinstance(n, int) and n == groups.m:
    return jnp.ones(scores.shape, bool) if inside is None else inside
  if inside is not None:
    keys = jnp.where(inside, keys, jnp.iinfo(keys.dtype).min)
    inside = groups.split(inside)
  choose = top_n.by_comparison if compare else top_n.by_threshold
  return groups.join(choose(groups.split(keys), n, groups.axis, inside))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _obeys(array: Array, groups: Groups, n: int) -> Array:
  mask = array if array.dtype == bool else non_zero(array)
  kept = jnp.sum(groups.split(mask), groups.axis, dtype=jnp.int32)
  return jnp.all(kept == n if array.dtype == bool else kept <= n)


@functools.partial(jax.jit, static_argnums=1)
def _ranks(scores: Array, groups: Groups) -> Array:
  keys = top_n.ordered(lax.stop_gradient(scores))
  overflows = top_n.overflows(scores.dtype)
  if keys.dtype.itemsize < 4:  # 16-bit keys are compared more slowly.
    keys = keys.astype(jnp.int32)
  return groups.join(top_n.ranks(groups.split(keys), groups.axis, overflows))


# Compiled even if called eagerly: a network is hundreds of operations.
_static_mask = jax.jit(_mask, static_argnums=(1, 2))
_traced_mask = jax.jit(_mask, static_argnums=1)


def _scalar(n: Array) -> Array:
  if n.ndim or not jnp.issubdtype(n.dtype, jnp.integer):
    raise TypeError(
      f"Expected n as an integer scalar, got dtype {n.dtype}, shape {n.shape}"
    )
  return n.astype(jnp.int32)


def _same_shape(a: Array, b: Array) -> None:
  if a.shape != b.shape:
    raise ValueError(f"Expected equal shapes, got {a.shape} and {b.shape}")
