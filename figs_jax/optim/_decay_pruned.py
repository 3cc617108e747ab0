"""SR-STE's term, which pulls pruned weights towards zero."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import optax

from figs_jax.core.types import Array
from figs_jax.optim.masked import MISSING, Scalar, aligned, map_leaves

Mode = Literal["into_grad", "decoupled"]
MODES: tuple[str, ...] = get_args(Mode)


class DecayPrunedState(NamedTuple):
  """State of `decay_pruned`: the number of updates, an int32 scalar."""

  count: Array


def decay_pruned(
  weight: Scalar = 2e-4,
  mode: str = "into_grad",
  schedule: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Adds λ(t) * not m * w to the updates (Zhou et al., arXiv 2102.04010).

  The arithmetic is the same in both modes. `mode` states the position in the
  chain, which determines the method under Adam:

  * `into_grad`: after unscaling and clipping, before the moments. The term goes
    through Adam's normalization, as in SR-STE with L2-style decay:
    `chain(clip, decay_pruned(2e-4), adamw(lr))`.
  * `decoupled`: after the moments, before the learning rate, like AdamW's
    weight decay, so that w -= lr * λ * not m * w:
    `chain(scale_by_adam(), decay_pruned(2e-4, "decoupled"),
    scale_by_learning_rate(lr))`.

  Do not put it before the unscaling of a mixed-precision loss, which would
  divide λ by the loss scale. A third position, inside the backward pass as in
  the paper, is the `decay` argument of `core.flow`; it is always before
  clipping, and under loss scaling needs λ times the scale.

  The annealed decay of arXiv 2407.20584, λ(t) = α t up to T0 and constant
  after, is `decay_pruned(α * T0, schedule=optax.linear_schedule(0., 1., T0))`.

  Args:
    weight: Factor λ, at least 0: a number, or a scalar array under
      `optax.inject_hyperparams`.
    mode: `into_grad` or `decoupled`, the intended position in the chain.
    schedule: Function from the number of updates to a factor on λ; None is 1.

  Returns:
    A transform with `update(updates, state, params, *, masks)`, which requires
    params and masks. Leaves without a mask pass through; dtypes stay.

  Raises:
    ValueError: If λ is negative or `mode` is unknown; on update, if `masks=` or
      the params are missing.

  >>> tx = decay_pruned(0.5)
  >>> w, masks = {"w": jnp.array([2., 4.])}, {"w": jnp.array([True, False])}
  >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(w), w, masks=masks)
  >>> updates["w"]
  Array([0., 2.], dtype=float32)
  """
  if mode not in MODES:
    raise ValueError(
      f"decay_pruned: unknown mode {mode!r}. Known: {', '.join(MODES)}"
    )
  # An array comes from inject_hyperparams and may be traced.
  if not isinstance(weight, Array) and not weight >= 0:
    raise ValueError(
      f"decay_pruned: expected a weight of at least 0, got {weight!r}"
    )

  def init(params: Any) -> DecayPrunedState:
    del params
    return DecayPrunedState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del extra
    masks = aligned(masks, updates, "decay_pruned")
    if params is None:
      raise ValueError(
        "decay_pruned needs the params: call tx.update(grads, opt_state,"
        " params, masks=masks)"
      )
    scale = weight if schedule is None else weight * schedule(state.count)

    def pull(u, m, w):
      if m is None:
        return u
      term = (jnp.asarray(scale, w.dtype) * w).astype(u.dtype)
      return jnp.where(m, u, u + term)

    updates = map_leaves(pull, updates, masks, params)
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, DecayPrunedState(count)

  return optax.GradientTransformationExtraArgs(init, update)
