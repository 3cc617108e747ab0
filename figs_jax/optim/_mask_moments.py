"""The moments of an optimizer at pruned entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.types import Array
from figs_jax.optim._pass_masks import pass_masks
from figs_jax.optim.masked import (
  MISSING,
  aligned,
  map_leaves,
  map_like,
)
from figs_jax.optim.step_adam import ScaleByStepAdamState

MODES = ("zero", "keep", "reset")


class MaskMomentsState(NamedTuple):
  """State of `mask_moments`.

  Attributes:
    inner: State of the inner transform.
    previous: Last masks in mode `reset`, else None. Shaped like the params, one
      byte per parameter (including dense leaves, since masks are only known on
      update).
  """

  inner: Any
  previous: Any


def mask_moments(
  inner: optax.GradientTransformation, mode: str = "zero"
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer and controls the moments of pruned entries.

  * `zero`: the moments are 0 after every update. An entry that returns starts
    anew, and the gradients of a pruned entry have no effect.
  * `keep`: the moments are left to `inner`.
  * `reset`: if the mask bit of an entry has changed since the last update, in
    either direction, its moments are set to 0 once, before `inner` receives the
    gradient. Before the first update all entries count as kept.

  Moments are the leaves of the state of `inner` that belong to a tree
  structured like the params and have the shape of their parameter, also inside
  `chain`, `masked`, `partition`, `inject_hyperparams` or `MultiSteps`. Counts
  and factored moments (Adafactor's rows and columns) do not match. A copy of
  the weights does: if an optimizer keeps one (Prodigy, DoG), wrap only the part
  that has the moments. That of `optax.contrib.schedule_free` should be 0 too.

  Adam's bias correction has one count for all entries and does not start anew.
  An entry that returns late with zero moments and gradient g takes a first step
  of lr * (1 - b1) / sqrt(1 - b2) in the direction of g, 3.16 lr for .9 and .999
  (an entry that was always kept takes about lr).

  Args:
    inner: Any transform; it receives `masks=` as well.
    mode: `zero`, `keep` or `reset`.

  Returns:
    A transform with `update(updates, state, params=None, *, masks)`, which
    requires the masks. The updates are those of `inner`, see `mask_updates`.

  Raises:
    ValueError: If the mode is unknown; on init, if all moments of `inner` are
      factored, or if it is STEP's Adam, whose second moment is frozen; on
      update, if `masks=` is missing.

  >>> tx = mask_moments(optax.trace(0.9))
  >>> grads, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
  >>> updates, state = tx.update(grads, tx.init(grads), masks=masks)
  >>> state.inner.trace["w"]
  Array([1., 0.], dtype=float32)
  """
  if mode not in MODES:
    raise ValueError(
      f"mask_moments: unknown mode {mode!r}. Known: {', '.join(MODES)}"
    )
  inner = pass_masks(inner)

  def init(params: Any) -> MaskMomentsState:
    state = inner.init(params)
    if mode != "keep":
      _check(params, state)
    previous = None
    if mode == "reset":
      previous = map_leaves(lambda p: jnp.ones_like(p, dtype=bool), params)
    return MaskMomentsState(state, previous)

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    own_masks = aligned(masks, updates, "mask_moments")
    inner_state, previous = state
    if mode == "reset":
      same = map_leaves(
        lambda u, m, old: None if m is None else m == old,
        updates, own_masks, previous,
      )  # fmt: skip
      inner_state = map_like(_kept, updates, inner_state, same)
      previous = map_leaves(
        lambda u, m, old: old if m is None else m,
        updates,
        own_masks,
        previous,
      )
    out, inner_state = inner.update(
      updates, inner_state, params, masks=masks, **extra
    )
    if mode == "zero":
      inner_state = map_like(_kept, updates, inner_state, own_masks)
    return out, MaskMomentsState(inner_state, previous)

  return optax.GradientTransformationExtraArgs(init, update)


def _kept(moment: Array, mask: Array | None) -> Array:
  if mask is None:
    return moment
  return jnp.where(mask, moment, jnp.zeros_like(moment))


def _check(params: Any, state: Any) -> None:
  """Refuses a state without moments, or with moments that must not change."""
  is_step = lambda node: isinstance(node, ScaleByStepAdamState)  # noqa: E731
  if any(map(is_step, jax.tree.leaves(state, is_leaf=is_step))):
    raise ValueError(
      "mask_moments around scale_by_step_adam would zero its frozen second"
      " moment, and an entry that returns would be divided by sqrt(eps); use"
      " mode='keep', or STEP without mask_moments"
    )
  moments = []
  map_like(moments.append, params, state)
  if not moments and any(map(jnp.ndim, jax.tree.leaves(state))):
    raise ValueError(
      "mask_moments: expected an inner transform with moments shaped like the"
      " params, got one with factored or flattened moments only; use another"
      " optimizer, or wrap the transform that has the moments"
    )
