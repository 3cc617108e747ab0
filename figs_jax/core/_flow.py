"""The effective weight of a masked kernel, and its gradient.

Forward, with mask m and leak D:  w~ = w * (m + D * not m).
Backward, with g = dL/dw~: kept entries get g, pruned entries get
  g      in mode `ste` (straight-through),
  D * g  in mode `damped` (the true derivative),
  0      in mode `masked`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from figs_jax.core.mask_bits import unpack_mask
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float, UInt8

GradMode = Literal["ste", "damped", "masked"]
GRAD_MODES: tuple[str, ...] = get_args(GradMode)


@dataclasses.dataclass(frozen=True)
class Flow:
  """How a masked kernel acts, apart from its mask and leak. Static, hashable.

  Attributes:
    grad_mode: Gradient of the pruned entries, see `flow`.
    decay: Weight λ of SR-STE's term inside the backward pass, see `flow`; None
      leaves the term out.
    soft: Whether the kernel acts through S-STE's soft threshold (`core.soft`),
      which has a straight-through gradient of its own.
    mvue: Pattern to which the gradient of a layer's output is pruned, without
      bias, before it enters the weight gradient (`core.mvue`).
    double_pruned: Whether the gradient of a layer's input comes from the masked
      kernel, pruned to the same pattern along its other axis (SLoPe).

  Raises:
    ValueError: If `grad_mode` is unknown, `decay` is negative, or `soft` is
      combined with either.

  >>> Flow("damped")
  Flow(grad_mode='damped', decay=None, soft=False, mvue=None,\
 double_pruned=False)
  """

  grad_mode: GradMode = "ste"
  decay: float | int | None = None
  soft: bool = False
  mvue: NM | None = None
  double_pruned: bool = False

  def __post_init__(self):
    if self.grad_mode not in GRAD_MODES:
      raise ValueError(
        f"Unknown grad_mode {self.grad_mode!r}. Known: {', '.join(GRAD_MODES)}"
      )
    if self.decay is not None and not 0 <= self.decay < math.inf:
      raise ValueError(
        f"Expected a finite decay of at least 0, got {self.decay!r}"
      )
    if self.soft and (self.grad_mode != "ste" or self.decay is not None):
      raise ValueError(
        "soft=True has a gradient rule of its own: expected grad_mode='ste' and"
        f" decay=None, got {self.grad_mode!r} and {self.decay!r}"
      )


def flow(
  kernel: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"] | UInt8[Array, ...] | None,
  leak: Float[Array, ""] | float | int = 0.0,
  grad_mode: GradMode = "ste",
  decay: Float[Array, ""] | float | int | None = None,
) -> Float[Array, "*shape"]:
  """The effective weight w * (m + D * not m), with its own gradient rule.

  At leak 0 a pruned entry is exactly 0, even if the weight is NaN. The backward
  pass stores only the mask as it is given and the scalar, and `kernel` if
  `decay` is given. Mask, leak and decay get no gradient.

  Args:
    kernel: Weights of any shape and float dtype.
    mask: Boolean mask, True = kept, or packed by `pack_mask`; None returns
      `kernel` unchanged.
    leak: Factor D in [0, 1] on the pruned entries.
    grad_mode: `ste`, `damped` or `masked` (see the module).
    decay: Weight λ of SR-STE's term λ * not m * w (arXiv 2102.04010, eq. 8),
      which is added to the gradient once for every use of the kernel in the
      backward pass; None leaves the term out.

  Raises:
    ValueError: If `grad_mode` is unknown or the shapes differ.

  >>> w, m = jnp.array([1., 2., 3., 4.]), jnp.array([True, False, False, True])
  >>> flow(w, m, 0.5, "ste")
  Array([1. , 1. , 1.5, 4. ], dtype=float32)
  >>> jax.grad(lambda w: flow(w, m, 0.5, "damped").sum())(w)
  Array([1. , 0.5, 0.5, 1. ], dtype=float32)
  """
  if grad_mode not in GRAD_MODES:
    raise ValueError(
      f"Unknown grad_mode {grad_mode!r}. Known: {', '.join(GRAD_MODES)}"
    )
  if mask is None:
    return kernel
  leak = jnp.asarray(leak).astype(kernel.dtype)
  if decay is not None:
    decay = jnp.asarray(decay).astype(kernel.dtype)
  return _flow(grad_mode, kernel, jnp.asarray(mask), leak, decay)


def _scaled(x: Array, mask: Array, scale: Array) -> Array:
  """x where kept, scale * x where pruned (exactly 0 if scale is 0)."""
  zero = jnp.zeros((), x.dtype)
  mask = unpack_mask(mask, x.shape)
  return jnp.where(mask, x, jnp.where(scale == zero, zero, scale * x))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flow(grad_mode, kernel, mask, leak, decay):
  del grad_mode, decay
  return _scaled(kernel, mask, leak)


def _flow_fwd(grad_mode, kernel, mask, leak, decay):
  out = _flow(grad_mode, kernel, mask, leak, decay)
  return out, (mask, leak, decay, None if decay is None else kernel)


def _flow_bwd(grad_mode, residuals, g):
  mask, leak, decay, kernel = residuals
  if grad_mode == "damped":
    grad = _scaled(g, mask, leak)
  elif grad_mode == "masked":
    mask = unpack_mask(mask, g.shape)
    grad = jnp.where(mask, g, jnp.zeros((), g.dtype))
  else:
    grad = g
  if decay is not None:
    mask = unpack_mask(mask, g.shape)
    grad = grad + jnp.where(mask, jnp.zeros((), g.dtype), decay * kernel)
  return grad, None, None, None


_flow.defvjp(_flow_fwd, _flow_bwd)
