"""Requirements of a recipe on its optimizer, and how they are composed.

A requirement has `compose(tx, learning_rate)`, which returns an optimizer that
meets it, and `state`, the type of optimizer state by which that is recognized.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from figs_jax.optim import (
  DecayPrunedState,
  MaskMomentsState,
  MaskUpdatesState,
  ScaleByStepAdamState,
  accumulates,
  decay_pruned,
  mask_moments,
  mask_updates,
  replace_adam,
)


@runtime_checkable
class OptimizerRequirement(Protocol):
  """A transform that a recipe adds to its optimizer."""

  state: ClassVar[type]
  name: ClassVar[str]

  def compose(
    self,
    tx: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule | None,
  ) -> optax.GradientTransformation:
    """`tx` with the requirement met."""
    ...


@dataclasses.dataclass(frozen=True)
class PrunedDecay:
  """SR-STE's term, before the moments or decoupled from them.

  Attributes:
    weight: λ of the term.
    mode: Place of the term, `into_grad` or `decoupled`.
    schedule: Function of the update count, a factor on λ; None is 1.
  """

  state: ClassVar[type] = DecayPrunedState
  name: ClassVar[str] = "decay_pruned"

  weight: float
  mode: str
  schedule: optax.Schedule | None = None

  def compose(self, tx, learning_rate):
    """chain(term, tx), or for `decoupled` chain(tx, -lr * term)."""
    if self.mode == "into_grad":
      term = decay_pruned(self.weight, self.mode, self.schedule)
      return optax.chain(term, tx)
    if accumulates(tx):
      raise ValueError(
        "the decoupled decay of pruned weights would act at every micro-step of"
        " optax.MultiSteps: wrap the result instead, as in optax.MultiSteps("
        "recipe.transform(tx, learning_rate=...), k)"
      )
    if learning_rate is None:
      raise ValueError(
        "the decoupled decay of pruned weights is scaled by the learning rate,"
        " which cannot be read from tx: call recipe.transform(tx,"
        " learning_rate=...) with the number or schedule that tx was built with"
      )
    # tx ends with its own learning rate, so the term has its own -lr. Its count
    # and that of the schedule inside tx both start at 0.

    def schedule(count):
      rate = learning_rate(count) if callable(learning_rate) else learning_rate
      factor = 1.0 if self.schedule is None else self.schedule(count)
      return -1 * jnp.asarray(factor * rate)

    return optax.chain(tx, decay_pruned(self.weight, self.mode, schedule))

  def __str__(self) -> str:
    rising = ""
    if isinstance(self.schedule, Ramp):
      rising = f", rising until step {self.schedule.steps}"
    return f"{self.weight:g} * pruned w, {self.mode}{rising}"


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A schedule that rises linearly from 0 to 1 at `steps` and stays there.

  >>> float(Ramp(10)(5)), float(Ramp(10)(20))
  (0.5, 1.0)
  """

  steps: int

  def __call__(self, count):
    t = jnp.asarray(count, jnp.float32)
    return jnp.minimum(t / max(self.steps, 1), 1.0)


@dataclasses.dataclass(frozen=True)
class MaskedUpdates:
  """Pruned weights do not move; with `clear` they are 0 after every update."""

  state: ClassVar[type] = MaskUpdatesState
  name: ClassVar[str] = "mask_updates"

  clear: bool = False

  def compose(self, tx, learning_rate):
    """chain(tx, mask_updates)."""
    del learning_rate
    return optax.chain(tx, mask_updates(clear=self.clear))

  def __str__(self) -> str:
    done = "are set to 0" if self.clear else "do not move"
    return f"pruned weights {done}"


@dataclasses.dataclass(frozen=True)
class MaskedMoments:
  """The optimizer's moments of pruned weights, as in `optim.mask_moments`."""

  state: ClassVar[type] = MaskMomentsState
  name: ClassVar[str] = "mask_moments"

  mode: str = "zero"

  def compose(self, tx, learning_rate):
    """mask_moments(tx)."""
    del learning_rate
    return mask_moments(tx, self.mode)

  def __str__(self) -> str:
    return f"moments of pruned weights: {self.mode}"


@dataclasses.dataclass(frozen=True)
class StepAdam:
  """STEP's Adam in place of the ordinary one; `options` are its keywords."""

  state: ClassVar[type] = ScaleByStepAdamState
  name: ClassVar[str] = "scale_by_step_adam"

  options: tuple[tuple[str, Any], ...]

  def compose(self, tx, learning_rate):
    """`tx` with its scale_by_adam replaced."""
    del learning_rate
    return replace_adam(tx, **dict(self.options))

  def __str__(self) -> str:
    return "STEP's Adam, its second moment frozen at the switch"


def states_of(kind: type, opt_state: Any) -> list[Any]:
  """Every state of a type, wherever wrappers have put it."""
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [node for node in nodes if isinstance(node, kind)]
