"""S-STE: the kernel acts through a soft threshold (arXiv 2409.09099).

With t the largest pruned |w| of a group, the forward weight is

  w~ = beta * S(w),  S(w) = sign(w) * max(|w| - t, 0).

S is continuous where the mask flips: the entry that is pruned and the entry
that returns both pass through 0. The scale beta = <w, S> / ||S||^2 brings
beta * S closest to w; there is one per kernel, frozen once training starts. The
backward pass is straight-through.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.groups import Axis, Groups
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float


def soft_threshold(
  kernel: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
) -> Float[Array, "*shape"]:
  """S(w) = sign(w) * max(|w| - t, 0), t the largest pruned |w| of the group.

  t is 0 if a group prunes nothing, and ignores NaN. A pruned entry is exactly
  0, even if the weight is NaN. With a mask that does not rank by magnitude, a
  kept entry below t is 0 too. Autodiff gives the true derivative of this
  function, which training does not use (see `s_ste`).

  Args:
    kernel: Weights of any shape and float dtype.
    mask: Mask, as from `nm_mask(jnp.abs(kernel), pattern, axis)`.
    pattern: `NM` or "n:m"; only m is used.
    axis: Group axis, see `nm_mask`.

  Raises:
    ValueError: If m does not divide the length of the group axis, or the shapes
      differ.

  >>> w = jnp.array([3., -1., 2., 0.5])
  >>> soft_threshold(w, jnp.array([True, False, True, False]), "2:4", axis=0)
  Array([2., 0., 1., 0.], dtype=float32)
  """
  if jnp.shape(mask) != jnp.shape(kernel):
    raise ValueError(
      f"Expected a mask of the kernel's shape {jnp.shape(kernel)}, got"
      f" {jnp.shape(mask)}; take it from nm_mask of this kernel"
    )
  groups = Groups.of(kernel.shape, NM.parse(pattern).m, axis)
  return _threshold(kernel, mask, groups)


# Compiled even if called eagerly, like masks.
@partial(jax.jit, static_argnums=2)
def _threshold(kernel: Array, mask: Array, groups: Groups) -> Array:
  w, kept = groups.split(kernel), groups.split(mask)
  size, zero = jnp.abs(w), jnp.zeros((), w.dtype)
  pruned = jnp.where(kept | jnp.isnan(w), zero, size)
  t = jnp.max(pruned, groups.axis, keepdims=True, initial=0)
  # Not max(|w| - t, 0), where an infinite t would give NaN instead of 0.
  # `~(<=)` lets a kept NaN through, so that it stays visible.
  out = jnp.where(kept & ~(size <= t), jnp.sign(w) * (size - t), zero)
  return groups.join(out)


def soft_scale(
  kernel: Float[Array, "*shape"], soft: Float[Array, "*shape"]
) -> Float[Array, ""]:
  """beta = <w, S> / ||S||^2, which minimizes ||w - beta S||; 1 if S is 0.

  Summed in float32 (or float64 for a float64 kernel).

  Args:
    kernel: A single kernel of any shape; use vmap for stacked kernels.
    soft: `soft_threshold` of the kernel.

  >>> w = jnp.array([3., -1., 2., 0.5])
  >>> soft_scale(w, jnp.array([2., 0., 1., 0.]))
  Array(1.6, dtype=float32)
  """
  dtype = kernel.dtype if kernel.dtype.itemsize >= 4 else jnp.float32
  w, s = kernel.astype(dtype), soft.astype(dtype)
  # A pruned entry may be NaN or inf, which must not reach the sum.
  inner = jnp.sum(jnp.where(s == 0, jnp.zeros((), dtype), w * s))
  norm = jnp.sum(s * s)
  one = jnp.ones((), dtype)
  return jnp.where(norm == 0, one, inner / jnp.where(norm == 0, one, norm))


def kernel_scale(
  kernel: Float[Array, "*shape"], pattern: NM | str, axis: Axis = -2
) -> Float[Array, ""]:
  """`soft_scale` of a kernel under its own N:M mask (see `soft_threshold`).

  >>> kernel_scale(jnp.array([3., -1., 2., 0.5]), "2:4", axis=0)
  Array(1.6, dtype=float32)
  """
  mask = nm_mask(jnp.abs(kernel), pattern, axis)
  return soft_scale(kernel, soft_threshold(kernel, mask, pattern, axis))


def s_ste(
  kernel: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"],
  scale: Float[Array, ""] | float,
  pattern: NM | str,
  axis: Axis = -2,
  leak: Float[Array, ""] | float | int = 0.0,
) -> Float[Array, "*shape"]:
  """The effective weight D * w + (1 - D) * scale * S(w), with gradient g.

  At leak 0 it is exactly the weight of S-STE, at leak 1 (a dense phase) exactly
  the kernel. In between, a pruned entry keeps D * w, as in `flow`. As in the
  paper, the gradient reaches every entry of the kernel unchanged, without the
  factor `scale`. Mask, scale and leak get no gradient.

  Args:
    kernel: Weights of any shape and float dtype.
    mask: Boolean mask, True = kept.
    scale: Factor beta, see `soft_scale`.
    pattern: `NM` or "n:m".
    axis: Group axis, see `nm_mask`.
    leak: Factor D in [0, 1].

  Raises:
    ValueError: If shapes or axis do not fit, see `soft_threshold`.

  >>> w = jnp.array([3., -1., 2., 0.5])
  >>> m = jnp.array([True, False, True, False])
  >>> s_ste(w, m, 1.6, "2:4", axis=0)
  Array([3.2, 0. , 1.6, 0. ], dtype=float32)
  >>> jax.grad(lambda w: s_ste(w, m, 1.6, "2:4", axis=0).sum())(w)
  Array([1., 1., 1., 1.], dtype=float32)
  """
  leak, scale = (jnp.asarray(x).astype(kernel.dtype) for x in (leak, scale))
  fixed = lax.stop_gradient(kernel)
  soft = scale * soft_threshold(fixed, mask, pattern, axis)
  one = jnp.ones((), kernel.dtype)
  mixed = leak * fixed + (one - leak) * soft
  value = jnp.where(leak == 0, soft, jnp.where(leak == one, fixed, mixed))
  return _straight_through(kernel, lax.stop_gradient(value))


@jax.custom_vjp
def _straight_through(kernel, value):
  """`value`, whose gradient goes to `kernel`."""
  del kernel
  return value


def _straight_through_fwd(kernel, value):
  return _straight_through(kernel, value), None


def _straight_through_bwd(_, g):
  return g, None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)
