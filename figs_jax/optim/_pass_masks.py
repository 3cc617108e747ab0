"""Masks for transforms inside of wrappers that drop extra arguments."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import optax

from figs_jax.optim.masked import MISSING, ambient_masks


@dataclasses.dataclass(frozen=True)
class _Update:
  """`update` with its masks in scope. Equal for equal `update`, for jit."""

  update: Any

  def __call__(
    self, updates, state, params=None, *, masks: Any = MISSING, **extra
  ):
    if masks is not MISSING:
      extra["masks"] = masks
    if not _takes_extra(self.update):
      extra = {}
    with ambient_masks(masks):  # those of an outer one, if missing here
      return self.update(updates, state, params, **extra)


def pass_masks(
  tx: optax.GradientTransformation | optax.MultiSteps,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer whose `masks=` reaches every transform inside of it.

  `optax.MultiSteps` forwards extra arguments, but neither the object nor its
  `gradient_transformation()` is an `optax.GradientTransformationExtraArgs`, and
  so `optax.chain` and other wrappers call its `update` without them. During an
  update of the result, the transforms of `figs_jax.optim` read masks that a
  wrapper has dropped from here. `TrainState.create` and `recipe.transform`
  apply it; use it in a loop of your own.

  Args:
    tx: Optimizer, or any object with its `init` and `update`.

  Returns:
    `tx` with an `update` that takes any extra arguments. Those that `tx` does
    not take are left out.

  >>> import jax.numpy as jnp
  >>> from figs_jax.optim import decay_pruned
  >>> steps = optax.MultiSteps(decay_pruned(0.5), 1)
  >>> tx = pass_masks(optax.chain(steps.gradient_transformation()))
  >>> w, masks = {"w": jnp.array([2., 4.])}, {"w": jnp.array([True, False])}
  >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(w), w, masks=masks)
  >>> updates["w"]
  Array([0., 2.], dtype=float32)
  """
  if isinstance(tx.update, _Update):
    return optax.GradientTransformationExtraArgs(tx.init, tx.update)
  return optax.GradientTransformationExtraArgs(tx.init, _Update(tx.update))


def _takes_extra(update: Any) -> bool:
  """Whether a function takes any keyword argument."""
  kinds = [p.kind for p in inspect.signature(update).parameters.values()]
  return inspect.Parameter.VAR_KEYWORD in kinds
