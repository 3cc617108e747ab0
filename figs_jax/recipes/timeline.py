"""When things happen in a run: phases, stages, refreshes, STEP's switch.

    0 ......... dense_end ......... finetune_start ......... total_steps
      dense phase       decay phase           fine-tune phase
      stage 0           stages 1, 2, ... S    stage S

Everything is a function of the integer step (and of STEP's flag), so that
training, resuming and evaluating cannot disagree. Step s is the one whose
forward pass follows s updates.
"""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Int
from figs_jax.recipes.stage_schedule import Due, Equal, Every, Once, Pace

Step = Int[Array, ""]
Flag = Bool[Array, ""] | bool


@dataclasses.dataclass(frozen=True)
class Switch:
  """The masks start when the optimizer says so, within two limits (STEP).

  t_min, t_max count updates: no switch comes at t <= t_min, and one comes at
  the first t > t_max. So the first masked step lies in [t_min + 1, t_max + 1].
  """

  t_min: int
  t_max: int


@dataclasses.dataclass(frozen=True)
class Timeline:
  """The phases of a run, in steps.

  `due`: step -> whether masks are recomputed; they also are whenever a stage
  changes. `pace`: how the stages share the decay phase. `switch`: None, or
  STEP's, whose flag then takes the place of the decay phase.

  >>> Timeline.of_fractions(1000, dense=0.1, finetune=0.2).boundaries(4)
  (100, 275, 450, 625)
  """

  total_steps: int
  dense_end: int
  finetune_start: int
  due: Due = Every(1)
  pace: Pace = Equal()
  switch: Switch | None = None

  @classmethod
  def of_fractions(
    cls,
    total_steps: int,
    dense: float | int = 0.0125,
    finetune: float | int = 0.10,
    refresh_every: int = 1,
  ) -> Timeline:
    """The phases from their shares of the run, rounded to whole steps.

    Args:
      total_steps: optimizer steps of the run.
      dense: share of the dense phase.
      finetune: share of the fine-tune phase.
      refresh_every: steps between refreshes; 0 leaves masks alone within a
        stage.

    Raises:
      ValueError: a share outside [0, 1], shares that add up to more than 1, a
        `total_steps` below 1 or a negative `refresh_every` (or no integer).
    """
    total_steps = _count("total_steps", total_steps, 1)
    refresh_every = _count("refresh_every", refresh_every, 0)
    due = Every(refresh_every) if refresh_every else Once()
    for name, share in (("dense", dense), ("finetune", finetune)):
      if share != 1:  # a run may be all dense, or all fine-tuning
        check_fraction(name, share)
    if dense + finetune > 1:
      raise ValueError(
        f"dense={dense} and finetune={finetune} are shares of the run and must"
        " add up to at most 1"
      )
    dense_end = round(dense * total_steps)
    start = total_steps - round(finetune * total_steps)
    return cls(total_steps, dense_end, max(start, dense_end), due)

  def boundaries(self, stages: int) -> tuple[int, ...]:
    """The first step of each of the stages 1..S, as the pace has it."""
    return self.pace(stages, self.dense_end, self.finetune_start)

  def stage(self, stages: int, step: Step, switched: Flag = False) -> Step:
    """The stage at a step: 0 in the dense phase, then 1..S.

    Args:
      stages: S, the length of the chain.
      step: int32 scalar, may be traced.
      switched: STEP's flag; other recipes ignore it.
    """
    if self.switch is not None:
      return jnp.where(switched, stages, 0).astype(jnp.int32)
    starts = jnp.asarray(self.boundaries(stages), jnp.int32)
    return jnp.sum(step >= starts, dtype=jnp.int32)

  def refresh(
    self,
    stages: int,
    step: Step,
    switched: Flag = False,
    was_switched: Flag = False,
  ) -> Bool[Array, ""]:
    """True where masks are due, and at each new stage.

    Args:
      stages: S, the length of the chain.
      step: int32 scalar, may be traced.
      switched: STEP's flag at this step.
      was_switched: its flag one step before.
    """
    due = self.due(step)
    if self.switch is not None:
      just = jnp.logical_and(switched, jnp.logical_not(was_switched))
      return jnp.logical_or(due, just)
    starts = jnp.asarray(self.boundaries(stages), jnp.int32)
    return jnp.logical_or(due, jnp.any(step == starts))

  def switched_by(self, step: int) -> bool:
    """STEP's flag at a step if it comes as late as it can, else False."""
    return self.switch is not None and step > self.switch.t_max


def check_fraction(name: str, share: float | int) -> None:
  """Raises ValueError unless 0 <= share < 1."""
  if not 0 <= share < 1:
    raise ValueError(f"{name}={share!r} must be a share of the run in [0, 1)")


def _count(name: str, count: int, least: int) -> int:
  try:
    count = operator.index(count)
  except TypeError:
    raise ValueError(f"{name}={count!r} must be an integer") from None
  if not least <= count < 2**31:
    raise ValueError(f"{name}={count} must lie in [{least}, 2**31)")
  return count
