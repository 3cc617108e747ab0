"""Requirements of a recipe on its optimizer, and how they are composed.

A requirement has `compose(tx, learning_rate)`, which returns an optimizer that
meets it, and `state`, the type of optimizer state by which that is recognized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from figs_jax.optim import (
  DecayPrunedState,
  LazyAdaptersState,
  MaskMomentsState,
  MaskUpdatesState,
  ScaleByStepAdamState,
  decay_pruned,
  lazy_adapters,
  mask_moments,
  mask_updates,
  pass_masks,
  scale_by_step_adam,
)

# Params of no model: what most optimizers' init can be tried on.
_PROBE = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
# Optimizers of optax, by a state of theirs, that need more than gradients.
_NEEDS_MORE = {
  optax.LookaheadState: (
    "optax.lookahead",
    "keeps its own pair of params, optax.LookaheadParams; average the weights"
    " with ema_decay of TrainState.create",
  ),
  contrib.HutchinsonState: (
    "optax.contrib.sophia",
    "differentiates the gradient forwards, which straight-through gradients do"
    " not allow; use optax.adamw or optax.lion",
  ),
  contrib.DifferentiallyPrivateAggregateState: (
    "optax.contrib.dpsgd",
    "needs one gradient per example, and a step has their mean; clip with"
    " optax.clip_by_global_norm",
  ),
}


def check_gradients_suffice(opt_state: Any) -> None:
  """Refuses an optimizer that a training step cannot serve.

  Raises:
    ValueError: If the state is that of an optimizer that needs more than
      gradients, the loss and its function.
  """
  for kind, (name, reason) in _NEEDS_MORE.items():
    if states_of(kind, opt_state):
      raise ValueError(f"{name} cannot train a masked model: it {reason}.")


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
    tx = _checked(tx, self._check_accumulation)
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

  @staticmethod
  def _check_accumulation(opt_state: Any) -> None:
    if states_of(optax.MultiStepsState, opt_state):
      raise ValueError(
        "The decoupled decay of pruned weights would act at every micro-step of"
        " optax.MultiSteps: wrap the result instead, as in optax.MultiSteps("
        "recipe.transform(tx, learning_rate=...), k)."
      )

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
class LazyAdapters:
  """Adapters stay at 0 before step `start`."""

  state: ClassVar[type] = LazyAdaptersState
  name: ClassVar[str] = "lazy_adapters"

  start: int

  def compose(self, tx, learning_rate):
    """lazy_adapters(tx)."""
    del learning_rate
    return lazy_adapters(tx, self.start)

  def __str__(self) -> str:
    return f"low-rank adapters learn from step {self.start} on"


@dataclasses.dataclass(frozen=True)
class StepAdam:
  """STEP's Adam in place of the ordinary one; `options` are its keywords."""

  state: ClassVar[type] = ScaleByStepAdamState
  name: ClassVar[str] = "scale_by_step_adam"

  options: tuple[tuple[str, Any], ...]

  def scale_by_adam(
    self, *moments: Any, mu_dtype: Any = None
  ) -> optax.GradientTransformation:
    """Takes the place of `optax.scale_by_adam` and its arguments."""
    options = dict(self.options)
    return scale_by_step_adam(*moments, mu_dtype=mu_dtype, **options)

  def compose(self, tx, learning_rate):
    """`tx`, which must have STEP's Adam already."""
    del learning_rate
    return _checked(tx, self._check_adam)

  def _check_adam(self, opt_state: Any) -> None:
    if states_of(self.state, opt_state):
      return
    if states_of(optax.FactoredState, opt_state):
      raise ValueError(
        "STEP cannot freeze Adafactor's second moment: it is factored into row"
        " and column means, so neither |v_t - v_{t-1}| nor a frozen v* exists"
        " per coordinate. Use recipe.adamw(learning_rate, mu_dtype=jnp.bfloat16"
        ") or another recipe."
      )
    options = dict(self.options)
    raise ValueError(
      "STEP needs scale_by_step_adam in the optimizer, got one without: use"
      " recipe.adamw(learning_rate, ...) or figs_jax.optim.step_adamw("
      f"learning_rate, t_min={options['t_min']}, t_max={options['t_max']}, ...)"
      ", or in a chain recipe.scale_by_adam(...) in place of"
      " optax.scale_by_adam."
    )

  def __str__(self) -> str:
    return "STEP's Adam, its second moment frozen at the switch"


def _checked(
  tx: optax.GradientTransformation, check: Callable[[Any], None]
) -> optax.GradientTransformationExtraArgs:
  """`tx` with an init that passes the new state to `check`.

  `check` raises ValueError. Where `tx` can be initialized for any params, that
  happens here and now; else (labels of `optax.partition`, say) on init.
  """
  tx = pass_masks(tx)

  def init(params: Any) -> Any:
    opt_state = tx.init(params)
    check(opt_state)
    return opt_state

  try:
    opt_state = jax.eval_shape(tx.init, _PROBE)
  except Exception:
    pass  # The probe is not the user's params; `init` checks those.
  else:
    check(opt_state)
  return optax.GradientTransformationExtraArgs(init, tx.update)


def states_of(kind: type, opt_state: Any) -> list[Any]:
  """Every state of a type, wherever wrappers have put it."""
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [node for node in nodes if isinstance(node, kind)]
