"""The end of a chain: pruned entries get no update, or are set to zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from figs_jax.optim.masked import MISSING, aligned, map_leaves, promoted_dtype


class MaskUpdatesState(NamedTuple):
  """State of `mask_updates`: empty, recognized by its type."""


def mask_updates(clear: bool = False) -> optax.GradientTransformationExtraArgs:
  """Gives pruned entries no update, or with `clear` one that makes them 0.

  Put it last in the chain, after the learning rate and weight decay:
  `chain(adamw(lr), mask_updates())`. When retraining with a fixed mask (arXiv
  2104.08378) it keeps pruned weights constant despite momentum and weight
  decay. The update of a pruned entry is exactly 0, even if it was NaN.

  `clear=True` returns -w instead, so that `optax.apply_updates` gives exactly 0
  at pruned entries. To hold -w without rounding, such an update has the common
  dtype of update and weight (float32 for a bfloat16 update of a float32
  weight). A pruned weight that is already infinite or NaN becomes NaN, since no
  addition gives 0.

  Args:
    clear: Whether to set pruned weights to 0 instead of leaving them as they
      are.

  Returns:
    A transform with `update(updates, state, params, *, masks)`, which requires
    the masks and, with `clear`, the params. Leaves without a mask pass through.

  Raises:
    ValueError: If `masks=` or, with `clear`, the params are missing on update.

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
        "mask_updates(clear=True) needs the params: call tx.update(grads,"
        " opt_state, params, masks=masks)"
      )

    def erase(u, m, w):
      if m is None:
        return u
      dtype = promoted_dtype(u, w)
      return jnp.where(m, u.astype(dtype), -w.astype(dtype))

    return map_leaves(erase, updates, masks, params), state

  return optax.GradientTransformationExtraArgs(init, update)
