"""The timeline of a run: phases, stages, mask refreshes and STEP's switch.

    0 ......... dense_end ......... finetune_start ......... total_steps
      dense phase       decay phase           fine-tune phase
      stage 0           stages 1, 2, ... S    stage S

Everything is a function of the integer step (and of STEP's flag), so training,
resuming and evaluating cannot disagree. The forward pass of step s follows s
updates.
"""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Int
from figs_jax.recipes.stage_schedule import (
  Due,
  Equal,
  Every,
  Once,
  StageSchedule,
)

Step = Int[Array, ""]
Flag = Bool[Array, ""] | bool


@dataclasses.dataclass(frozen=True)
class Switch:
  """Masks that start when the optimizer switches, within two limits (STEP).

  Attributes:
    t_min: Last update at which the switch cannot come.
    t_max: Last update before the switch comes in any case. The first masked
      step thus lies in [t_min + 1, t_max + 1].
  """

  t_min: int
  t_max: int


@dataclasses.dataclass(frozen=True)
class Timeline:
  """The phases of a run, in steps.

  Attributes:
    total_steps: Optimizer steps of the run.
    dense_end: First step after the dense phase.
    finetune_start: First step of the fine-tune phase.
    due: Function of the step: whether masks are refreshed. They also are
      whenever a stage changes.
    stage_schedule: Division of the decay phase into stages.
    switch: Limits of STEP's switch, which then replaces the decay phase; None
      for all other recipes.

  >>> Timeline.of_fractions(1000, dense=0.1, finetune=0.2).boundaries(4)
  (100, 275, 450, 625)
  """

  total_steps: int
  dense_end: int
  finetune_start: int
  due: Due = Every(1)
  stage_schedule: StageSchedule = Equal()
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
      total_steps: Optimizer steps of the run.
      dense: Share of the dense phase.
      finetune: Share of the fine-tune phase.
      refresh_every: Steps between mask refreshes; 0 keeps masks within a stage.

    Raises:
      ValueError: If a share lies outside [0, 1], if the shares add up to more
        than 1, or if `total_steps` or `refresh_every` is not an integer or is
        too small.
    """
    total_steps = _count("total_steps", total_steps, 1)
    refresh_every = _count("refresh_every", refresh_every, 0)
    due = Every(refresh_every) if refresh_every else Once()
    for name, share in (("dense", dense), ("finetune", finetune)):
      if share != 1:  # a run may be all dense, or all fine-tuning
        check_fraction(name, share)
    if dense + finetune > 1:
      raise ValueError(
        f"dense={dense} and finetune={finetune}: expected shares of the run"
        " that add up to at most 1"
      )
    dense_end = round(dense * total_steps)
    start = total_steps - round(finetune * total_steps)
    return cls(total_steps, dense_end, max(start, dense_end), due)

  def boundaries(self, stages: int) -> tuple[int, ...]:
    """The first step of each of the stages 1..S."""
    return self.stage_schedule(stages, self.dense_end, self.finetune_start)

  def stage(self, stages: int, step: Step, switched: Flag = False) -> Step:
    """The stage at a step: 0 in the dense phase, then 1..S.

    Args:
      stages: S, the number of stages.
      step: Step, an int32 scalar that may be traced.
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
    """Whether masks are refreshed: where due, and at each new stage.

    Args:
      stages: S, the number of stages.
      step: Step, an int32 scalar that may be traced.
      switched: STEP's flag at this step.
      was_switched: STEP's flag one step before.
    """
    due = self.due(step)
    if self.switch is not None:
      just = jnp.logical_and(switched, jnp.logical_not(was_switched))
      return jnp.logical_or(due, just)
    starts = jnp.asarray(self.boundaries(stages), jnp.int32)
    return jnp.logical_or(due, jnp.any(step == starts))

  def switched_by(self, step: int) -> bool:
    """STEP's flag at a step if the switch comes as late as it can."""
    return self.switch is not None and step > self.switch.t_max


def check_fraction(name: str, share: float | int) -> None:
  """Raises ValueError unless 0 <= share < 1."""
  if not 0 <= share < 1:
    raise ValueError(
      f"{name}: expected a share of the run in [0, 1), got {share}"
    )


def _count(name: str, count: int, least: int) -> int:
  try:
    count = operator.index(count)
  except TypeError:
    raise ValueError(f"{name}: expected an integer, got {count!r}") from None
  if not least <= count < 2**31:
    raise ValueError(
      f"{name}: expected an integer in [{least}, 2**31), got {count}"
    )
  return count
