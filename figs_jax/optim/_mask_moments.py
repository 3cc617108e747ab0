"""What becomes of an optimizer's moments where a weight is pruned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.types import Array
from figs_jax.optim.masked import (
  MISSING,
  absent,
  aligned,
  map_leaves,
  map_like,
)
from figs_jax.optim.step_adam import ScaleByStepAdamState

MODES = ("zero", "keep", "reset")


class MaskMomentsState(NamedTuple):
  """State of `mask_moments`: the inner one and, for `reset`, the last masks.

  previous: Booleans shaped like the params, one byte per parameter (of dense
  leaves too: which leaves have masks is known on update only); None otherwise.
  """

  inner: Any
  previous: Any


def mask_moments(
  inner: optax.GradientTransformation, mode: str = "zero"
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer and rules the moments of pruned entries.

  * `zero`: they are 0 after every update, so an entry that comes back starts
    anew, and what a pruned entry's gradients were does not matter.
  * `keep`: they are left to `inner`.
  * `reset`: those of an entry whose mask bit has changed since the last update,
    in either direction, are set to 0 once, before `inner` sees this gradient.
    Before the first update everything counts as kept.

  Moments are the leaves of `inner`'s state that sit in a tree structured like
  the params and have their parameter's shape, wherever `chain`, `masked`,
  `partition`, `inject_hyperparams` or `MultiSteps` have put them. Counts and
  factored moments (Adafactor's rows and columns) are none. A copy of the
  weights is one: wrap the moments only where an optimizer keeps such a copy
  (`optax.contrib.schedule_free`, Prodigy, DoG).

  Adam's bias correction has one count for all entries, so it does not start
  anew: an entry that returns late with zero moments and gradient g takes a
  first step of lr * (1 - b1) / sqrt(1 - b2) in the direction of g, 3.16 lr with
  .9 and .999 (an entry that never left takes about lr).

  Args:
    inner: any transform; `masks=` is passed on to it if it reads them.
    mode: `zero`, `keep` or `reset`.

  Returns:
    A transform whose `update(updates, state, params=None, *, masks)` needs the
    masks. Updates are those of `inner`: see `mask_updates` for these.

  Raises:
    ValueError: an unknown mode; on init, when `inner` keeps no moments, or is
      STEP's Adam, whose second moment is frozen; on update, without `masks=`.

  >>> tx = mask_moments(optax.trace(0.9))
  >>> grads, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
  >>> updates, state = tx.update(grads, tx.init(grads), masks=masks)
  >>> state.inner.trace["w"]
  Array([1., 0.], dtype=float32)
  """
  if mode not in MODES:
    raise ValueError(
      f"mask_moments: mode {mode!r} is unknown: use zero, keep or reset"
    )
  inner = optax.with_extra_args_support(inner)

  def init(params: Any) -> MaskMomentsState:
    state = inner.init(params)
    if mode != "keep":
      _check(params, state)
    previous = None
    if mode == "reset":
      previous = map_leaves(lambda p: jnp.ones_like(p, dtype=bool), params)
    return MaskMomentsState(state, previous)

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    found = aligned(masks, updates, "mask_moments")
    inner_state, previous = state
    if mode == "reset":
      same = map_leaves(
        lambda u, m, old: None if m is None else m == old,
        updates, found, previous,
      )  # fmt: skip
      inner_state = map_like(_kept, updates, inner_state, same)
      previous = map_leaves(
        lambda u, m, old: old if m is None else m, updates, found, previous
      )
    out, inner_state = inner.update(
      updates, inner_state, params, masks=masks, **extra
    )
    if mode == "zero":
      inner_state = map_like(_kept, updates, inner_state, found)
    return out, MaskMomentsState(inner_state, previous)

  return optax.GradientTransformationExtraArgs(init, update)


def _kept(moment: Array, mask: Array | None) -> Array:
  if mask is None:
    return moment
  return jnp.where(mask, moment, jnp.zeros_like(moment))


def _check(params: Any, state: Any) -> None:
  """Refuses a state without moments, and one whose moments must not change."""
  is_step = lambda node: isinstance(node, ScaleByStepAdamState)  # noqa: E731
  if any(map(is_step, jax.tree.leaves(state, is_leaf=is_step))):
    raise ValueError(
      "mask_moments around scale_by_step_adam would zero its frozen second"
      " moment, and an entry that returns would be divided by sqrt(eps); use"
      " mode='keep', or STEP without mask_moments"
    )
  found = []
  map_like(found.append, params, state)
  leaves = [x for x in jax.tree.leaves(params, is_leaf=absent) if not absent(x)]
  if leaves and not found:
    raise ValueError(
      "mask_moments: the inner transform keeps no moments shaped like the"
      " params (none at all, or factored ones), so there is nothing to mask;"
      " leave mask_moments out, or wrap the transform that has them"
    )
