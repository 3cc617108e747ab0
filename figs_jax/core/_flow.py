"""Masked weights: what the forward pass sees and what the gradient does.

Forward, with mask m and leak D:  w~ = w * (m + D * not m).
Backward, given g = dL/dw~: kept entries get g; pruned ones get
  g      (`ste`, straight-through),
  D * g  (`damped`, the true derivative),
  0      (`masked`).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float

GradMode = Literal["ste", "damped", "masked"]
GRAD_MODES: tuple[str, ...] = get_args(GradMode)


@dataclasses.dataclass(frozen=True)
class Flow:
  """How a masked kernel acts beside its mask and its leak. Static, hashable.

  Attributes:
    grad_mode: what pruned entries get as gradient, see `flow`.
    decay: λ of SR-STE's term inside the backward pass, see `flow`; None
      leaves it out.
    soft: the kernel acts through S-STE's soft threshold (`core.soft`), which
      has a straight-through gradient of its own.
    mvue: the pattern to which the gradient of a layer's output is pruned,
      unbiased, before it enters the weight gradient (`core.mvue`).

  Raises:
    ValueError: an unknown `grad_mode`, a negative `decay`, or `soft` together
      with either.

  >>> Flow("damped")
  Flow(grad_mode='damped', decay=None, soft=False, mvue=None)
  """

  grad_mode: GradMode = "ste"
  decay: float | int | None = None
  soft: bool = False
  mvue: NM | None = None

  def __post_init__(self):
    if self.grad_mode not in GRAD_MODES:
      raise ValueError(
        f"grad_mode={self.grad_mode!r} is unknown: use one of"
        f" {', '.join(GRAD_MODES)}"
      )
    if self.decay is not None and not 0 <= self.decay < math.inf:
      raise ValueError(f"decay={self.decay!r} must be a number, at least 0")
    if self.soft and (self.grad_mode != "ste" or self.decay is not None):
      raise ValueError(
        "soft=True has a gradient rule of its own: leave grad_mode at 'ste' and"
        " decay at None"
      )


def flow(
  kernel: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"] | None,
  leak: Float[Array, ""] | float | int = 0.0,
  grad_mode: GradMode = "ste",
  decay: Float[Array, ""] | float | int | None = None,
) -> Float[Array, "*shape"]:
  """The effective weight w * (m + D * not m), with its own gradient rule.

  At leak 0 a pruned entry is exactly 0, whatever it holds (NaN included). The
  backward pass keeps the Boolean mask and the scalar only; `kernel` itself is
  kept only when `decay` is given. Mask, leak and decay get no gradient.

  Args:
    kernel: weights, any shape and float dtype.
    mask: True = kept; None returns `kernel` untouched.
    leak: D in [0, 1], the share that pruned entries keep.
    grad_mode: `ste`, `damped` or `masked` (see the module).
    decay: λ of SR-STE's term (arXiv 2102.04010, eq. 8) added inside the
      backward pass: the gradient gains λ * not m * w, once for every use of
      the kernel in that pass. None: no such term.

  Raises:
    ValueError: an unknown `grad_mode`, or shapes that differ.

  >>> w, m = jnp.array([1., 2., 3., 4.]), jnp.array([True, False, False, True])
  >>> flow(w, m, 0.5, "ste")
  Array([1. , 1. , 1.5, 4. ], dtype=float32)
  >>> jax.grad(lambda w: flow(w, m, 0.5, "damped").sum())(w)
  Array([1. , 0.5, 0.5, 1. ], dtype=float32)
  """
  if grad_mode not in GRAD_MODES:
    raise ValueError(
      f"grad_mode {grad_mode!r} is unknown: use one of {', '.join(GRAD_MODES)}"
    )
  if mask is None:
    return kernel
  if jnp.shape(mask) != jnp.shape(kernel):
    raise ValueError(
      f"mask of shape {jnp.shape(mask)} on a kernel of {jnp.shape(kernel)}:"
      " they must be equal; take the mask from nm_mask of this kernel"
    )
  leak = jnp.asarray(leak).astype(kernel.dtype)
  if decay is not None:
    decay = jnp.asarray(decay).astype(kernel.dtype)
  return _flow(grad_mode, kernel, mask, leak, decay)


def _scaled(x: Array, mask: Array, scale: Array) -> Array:
  """x where kept, scale * x where pruned; exactly 0 there when scale is 0."""
  zero = jnp.zeros((), x.dtype)
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
    grad = jnp.where(mask, g, jnp.zeros((), g.dtype))
  else:
    grad = g
  if decay is not None:
    grad = grad + jnp.where(mask, jnp.zeros((), g.dtype), decay * kernel)
  return grad, None, None, None


_flow.defvjp(_flow_fwd, _flow_bwd)
