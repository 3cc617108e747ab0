"""Masks that are N:M along two axes, so that the transpose is N:M as well.

The backward product multiplies by the transposed kernel, and is sparse only if
that is N:M along its own contraction axis. Both hold if every m x m block of
the mask keeps exactly n entries in each row and in each column (arXiv
2102.08124). `core.matching` computes the best such mask of a block up to
32 x 32, and `core.transport` one of a larger block.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.assignment import power_of_two
from figs_jax.core.groups import Axis, normalized
from figs_jax.core.matching import best_masks
from figs_jax.core.pattern import NM
from figs_jax.core.transport import transport_masks
from figs_jax.core.types import Array, Bool, Float, Shaped

# Above this m, `core.transport` takes over from `core.matching`, whose program
# grows with m: at 32 it compiles in seconds, at 64 in minutes.
_WIDEST = 32


def transposable_nm_mask(
  scores: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  other: Axis = -1,
) -> Bool[Array, "*shape"]:
  """A mask that is N:M along `axis` and `other`, with the largest sum.

  There are always exactly n per group along both axes. The kept sum of scores
  is the largest possible, up to rounding in float32, for m <= 4, 1:5, 4:5 and
  1:8, and close to it otherwise (see `core.matching`, and `core.transport` for
  m above 32). For m up to 32, the mask keeps as few NaN as possible, then as
  many +inf and as few -inf, then the largest sum. Unlike `nm_mask` it depends
  on the values of the scores, not only on their order. Other axes are stacked
  kernels. For m up to 32, a sharded array needs no communication unless a block
  spans two shards. A mask has no gradient.

  Args:
    scores: Scores of any shape, float or integer, summed in float32 (float64
      for float64 scores).
    pattern: `NM` or "n:m".
    axis: Group axis of the forward product; a tuple of axes is flattened in the
      given order.
    other: Group axis of the backward product, likewise.

  Raises:
    TypeError: If scores are Boolean or complex.
    ValueError: If m does not divide the length of both axes, or an axis is out
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
      f"Expected real scores, got dtype {scores.dtype}; pass"
      " transposable_nm_mask(jnp.abs(kernel), pattern), for example"
    )
  return _mask(
    scores, _Blocks.of(scores.shape, pattern.m, axis, other), pattern
  )


# Compiled even if called eagerly, like nm_mask.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _mask(scores: Array, blocks: _Blocks, pattern: NM) -> Array:
  if pattern.is_dense or not scores.size:
    return jnp.ones(scores.shape, bool)
  wide = scores.dtype == jnp.float64
  x = lax.stop_gradient(scores).astype(jnp.float64 if wide else jnp.float32)
  x = _finite(blocks.split(x), pattern)
  if pattern.m <= _WIDEST:
    return blocks.join(best_masks(x, pattern))
  stacked = jnp.moveaxis(x, (0, 1), (-2, -1))
  wide = stacked.reshape(-1, pattern.m, pattern.m)
  masks = transport_masks(wide, pattern.n).reshape(stacked.shape)
  return blocks.join(jnp.moveaxis(masks, (-2, -1), (0, 1)))


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """How an array is split into m x m blocks, and joined again.

  The split array is [m, m, *rest, blocks, blocks]: blocks lie side by side, so
  that an operation on one entry of all blocks is one vector operation.
  """

  order: tuple[int, ...]
  shape: tuple[int, ...]
  grid: tuple[int, ...]
  other: int

  @classmethod
  def of(
    cls, shape: tuple[int, ...], m: int, axis: Axis, other: Axis
  ) -> _Blocks:
    named = [normalized(shape, a) for a in (axis, other)]
    if set(named[0]) & set(named[1]):
      raise ValueError(
        f"axis {axis} and other {other} of shape {shape} share an axis; pass"
        " the two axes of the kernel's product"
      )
    grid = []
    for what, given, axes in zip(("axis", "other"), (axis, other), named):
      length = math.prod(shape[a] for a in axes)
      if length % m:
        raise ValueError(
          f"{what} {given} of shape {shape} has length {length}, not a"
          f" multiple of m={m}; choose an m that divides both axes, or use"
          " nm_mask for a mask along one axis"
        )
      grid += [length // m, m]
    rest = [a for a in range(len(shape)) if a not in named[0] + named[1]]
    order = (*rest, *named[0], *named[1])
    turned = tuple(shape[a] for a in order)
    other = len(rest) + len(named[0])
    return cls(order, turned, (*turned[: len(rest)], *grid), other)

  def split(self, x: Array) -> Array:
    grid = x.transpose(self.order)
    # One axis per reshape, as explicit sharding requires.
    grid = grid.reshape(*self.grid[:-2], *self.shape[self.other :])
    grid = grid.reshape(self.grid)
    # Without the barrier, all later operations read the kernel entry by entry
    # in its own order, which is three times slower on a CPU.
    return lax.optimization_barrier(jnp.moveaxis(grid, (-3, -1), (0, 1)))

  def join(self, x: Array) -> Array:
    back = sorted(range(len(self.order)), key=self.order.__getitem__)
    grid = jnp.moveaxis(x, (0, 1), (-3, -1))
    grid = grid.reshape(*self.grid[:-2], *self.shape[self.other :])
    return grid.reshape(self.shape).transpose(back)


def _finite(x: Float[Array, "*b"], pattern: NM) -> Float[Array, "*b"]:
  """Scales finite scores into (-4, 4) and replaces infinities and NaN.

  Every block is divided by a power of two, which is exact. Sums of finite
  scores then differ by less than 8 n m. One infinity outweighs this, and one
  NaN outweighs all infinities.
  """
  finite = jnp.isfinite(x)
  y = jnp.where(finite, x, jnp.zeros_like(x))
  top = jnp.max(jnp.abs(y), (0, 1), keepdims=True)
  # XLA multiplies by 1 / power, which is 0 (a denormal number) for the largest.
  tiny = jnp.finfo(x.dtype).tiny
  y = y / jnp.clip(power_of_two(top), tiny, 1 / tiny)
  entries = pattern.n * pattern.m
  infinity = 8 * entries
  nan = -infinity * (2 * entries + 1)
  y = jnp.where(
    finite, y, jnp.where(x > 0, infinity, -infinity).astype(x.dtype)
  )
  return jnp.where(jnp.isnan(x), jnp.asarray(nan, x.dtype), y)
