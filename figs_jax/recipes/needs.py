"""What a recipe needs of the optimizer, and how it is composed.

A need has `compose(tx, learning_rate)`, which returns the optimizer with the
need met, and `state`, the type of optimizer state that shows it was.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import optax

from figs_jax.optim import (
  DecayPrunedState,
  ScaleByStepAdamState,
  decay_pruned,
  replace_adam,
)


@runtime_checkable
class Need(Protocol):
  """Something a recipe needs of the optimizer."""

  state: ClassVar[type]
  name: ClassVar[str]

  def compose(
    self,
    tx: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule | None,
  ) -> optax.GradientTransformation:
    """`tx` with the need met."""
    ...


@dataclasses.dataclass(frozen=True)
class PrunedDecay:
  """SR-STE's term, before the moments or decoupled from them."""

  state: ClassVar[type] = DecayPrunedState
  name: ClassVar[str] = "decay_pruned"

  weight: float
  mode: str

  def compose(self, tx, learning_rate):
    """chain(term, tx), or for `decoupled` chain(tx, -lr * term)."""
    if self.mode == "into_grad":
      return optax.chain(decay_pruned(self.weight), tx)
    if learning_rate is None:
      raise ValueError(
        "the decoupled decay of pruned weights is scaled by the learning rate,"
        " which cannot be read from tx: call recipe.transform(tx,"
        " learning_rate=...) with the number or schedule that tx was built with"
      )
    # tx ends with its own learning rate, so the term brings -lr itself. Its
    # count and that of the schedule inside tx both start at 0.
    rate = learning_rate
    if callable(rate):
      schedule = lambda count: -1 * rate(count)  # noqa: E731
    else:
      schedule = lambda count: -rate  # noqa: E731
    return optax.chain(tx, decay_pruned(self.weight, self.mode, schedule))


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


def states_of(kind: type, opt_state: Any) -> list[Any]:
  """Every state of a type, wherever wrappers have put it."""
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [node for node in nodes if isinstance(node, kind)]
