"""Decaying gradient flow as a transform: smaller updates of pruned entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from figs_jax.core.types import Array
from figs_jax.optim.masked import MISSING, Scalar, aligned, map_leaves


class GradientFlowState(NamedTuple):
  """State of `gradient_flow`: the number of updates, an int32 scalar."""

  count: Array


def gradient_flow(
  decay: Scalar | optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Scales the updates of pruned entries by D: u * (m + D * not m).

  This is the decaying gradient flow of arXiv 2402.04744 for weights that are
  masked in any way. Put it first in the chain. (Layers that use `flow` with
  grad mode `damped` do the same in their backward pass.) At D = 0 a pruned
  entry gets exactly 0, even if its gradient is NaN.

  Args:
    decay: Factor D in [0, 1]: a number, a scalar array (under
      `optax.inject_hyperparams`), or a function of the number of updates.

  Returns:
    A transform with `update(updates, state, params=None, *, masks)`, which
    requires the masks. Leaves without a mask pass through; dtypes stay.

  Raises:
    ValueError: If D is a number outside [0, 1]; on update, if `masks=` is
      missing.

  >>> tx = gradient_flow(lambda step: 1.0 / (1 + step))
  >>> masks = {"w": jnp.array([True, False]), "b": None}
  >>> grads = {"w": jnp.ones(2), "b": jnp.ones(1)}
  >>> state = tx.init(grads)
  >>> for _ in range(2):
  ...   updates, state = tx.update(grads, state, masks=masks)
  >>> updates["w"], updates["b"]
  (Array([1. , 0.5], dtype=float32), Array([1.], dtype=float32))
  """
  # An array comes from inject_hyperparams and may be traced.
  number = not callable(decay) and not isinstance(decay, Array)
  if number and not 0 <= decay <= 1:
    raise ValueError(
      f"gradient_flow: expected a decay in [0, 1] or a schedule, got {decay!r}"
    )

  def init(params: Any) -> GradientFlowState:
    del params
    return GradientFlowState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del params, extra
    masks = aligned(masks, updates, "gradient_flow")
    d = decay(state.count) if callable(decay) else decay

    def scale(u, m):
      if m is None:
        return u
      factor, zero = jnp.asarray(d, u.dtype), jnp.zeros([], u.dtype)
      return jnp.where(m, u, jnp.where(factor == zero, zero, factor * u))

    updates = map_leaves(scale, updates, masks)
    return updates, GradientFlowState(
      jnp.asarray(optax.safe_increment(state.count))
    )

  return optax.GradientTransformationExtraArgs(init, update)
