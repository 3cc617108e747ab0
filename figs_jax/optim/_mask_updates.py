"""Pruned entries get no update, or are set to zero: the end of a chain."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from figs_jax.optim.masked import MISSING, aligned, map_leaves, promoted_dtype


class MaskUpdatesState(NamedTuple):
  """State of `mask_updates`: nothing; its type shows that it is there."""


def mask_updates(clear: bool = False) -> optax.GradientTransformationExtraArgs:
  """Gives pruned entries no update; with `clear`, one that makes them 0.

  Put it last in the chain, after the learning rate and weight decay:
  `chain(adamw(lr), mask_updates())`. It is the step of retraining with a fixed
  mask (arXiv 2104.08378) that keeps pruned weights where they are, whatever
  momentum and weight decay would do to them. The update of a pruned entry is
  exactly 0 even where it was NaN.

  `clear=True` returns -w instead, so that `optax.apply_updates` leaves exactly
  0 at pruned entries. -w must be held without rounding, so such an update has
  the common dtype of update and weight (float32 for a bfloat16 update of a
  float32 weight). A pruned weight that is already infinite or NaN becomes NaN:
  no update can be added to it that gives 0.

  Args:
    clear: set pruned weights to 0; False leaves them as they are.

  Returns:
    A transform whose `update(updates, state, params, *, masks)` needs the masks
    and, with `clear`, the params. A leaf without a mask passes through.

  Raises:
    ValueError: on update, when `masks=` or, with `clear`, the params are
      missing.

  >>> w, masks = {"w": jnp.array([2., 4.])}, {"w": jnp.array([True, False])}
  >>> tx = optax.chain(optax.sgd(0.5), mask_updates(clear=True))
  >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(w), w, masks=masks)
  >>> optax.apply_updates(w, updates)["w"]
  Array([1.5, 0. ], dtype=float32)
  """

  def init(params: Any) -> MaskUpdatesState:
    del params
    return MaskUpdatesState()

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del extra
    masks = aligned(masks, updates, "mask_updates")
    if not clear:
      stop = lambda u, m: u if m is None else jnp.where(m, u, jnp.zeros_like(u))  # noqa: E731
      return map_leaves(stop, updates, masks), state
    if params is None:
      raise ValueError(
        "mask_updates(clear=True) subtracts the pruned weights, so"
        " tx.update(grads, opt_state, params, masks=masks) must get the params"
      )

    def erase(u, m, w):
      if m is None:
        return u
      dtype = promoted_dtype(u, w)
      return jnp.where(m, u.astype(dtype), -w.astype(dtype))

    return map_leaves(erase, updates, masks, params), state

  return optax.GradientTransformationExtraArgs(init, update)
