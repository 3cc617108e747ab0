"""The steps at which stages begin, and those at which masks are refreshed.

A stage schedule is a function (number of stages, first step, end) -> the first
step of each stage, in Python integers. `Every` and `Once` decide whether masks
are due within a stage; any function of the step may take their place. All are
frozen dataclasses: hashable, and equal if they do the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Int

StageSchedule = Callable[[int, int, int], tuple[int, ...]]
Due = Callable[[Int[Array, ""]], Bool[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Equal:
  """Every stage gets the same share of the decay phase.

  Step s is in stage 1 + floor((s - start) * S / (end - start)). A phase
  shorter than S steps skips stages.

  >>> Equal()(4, 100, 800)
  (100, 275, 450, 625)
  """

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    steps = end - start
    return tuple(start - (-i * steps // stages) for i in range(stages))


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Every stage but the last takes `steps` steps.

  >>> Fixed(50)(4, 100, 800)
  (100, 150, 200, 250)

  Raises:
    ValueError: If `steps` is not a positive integer, or if the stages do not
      fit between the first step and the end.
  """

  steps: int

  def __post_init__(self):
    whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
    if not whole or self.steps < 1:
      raise ValueError(
        f"steps per stage: expected an integer of at least 1, got {self.steps}"
      )

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    if start + (stages - 1) * self.steps > end:
      raise ValueError(
        f"{stages} stages of {self.steps} steps do not fit between steps"
        f" {start} and {end}: lower the steps per stage, or leave them out for"
        " equal shares"
      )
    return tuple(start + i * self.steps for i in range(stages))


@dataclasses.dataclass(frozen=True)
class LastAtEnd:
  """The last stage begins at the end; the others share the decay phase.

  >>> LastAtEnd()(2, 0, 80), LastAtEnd()(3, 0, 80)
  ((0, 80), (0, 40, 80))
  """

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    return (*Equal()(stages - 1, start, end), end)


@dataclasses.dataclass(frozen=True)
class Cubic:
  """Stage i of S begins when 1 - (1 - t)^3 reaches i / S (1710.01878, eq. 1).

  t runs from 0 to 1 over the decay phase, so the last stage begins at its end.
  Many weights are pruned early, few late.

  >>> Cubic()(3, 0, 100)
  (13, 31, 100)
  """

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    steps = end - start

    def reached(j: int, i: int) -> bool:  # 1 - (1 - j/steps)^3 >= i / stages
      return (steps - j) ** 3 * stages <= (stages - i) * steps**3

    firsts = []
    for i in range(1, stages + 1):
      guess = round(steps * (1 - (1 - i / stages) ** (1 / 3)))
      while guess > 0 and reached(guess - 1, i):
        guess -= 1
      while not reached(guess, i):
        guess += 1
      firsts.append(start + guess)
    return tuple(firsts)


@dataclasses.dataclass(frozen=True)
class Every:
  """Masks are due at multiples of `steps`.

  >>> bool(Every(10)(jnp.int32(20))), str(Every(1))
  (True, 'every step')
  """

  steps: int = 1

  def __call__(self, step: Int[Array, ""]) -> Bool[Array, ""]:
    return step % self.steps == 0

  def __str__(self) -> str:
    return "every step" if self.steps == 1 else f"every {self.steps} steps"


@dataclasses.dataclass(frozen=True)
class Stairs:
  """Masks are due where a stair begins, as in Google's AQT (2209.07617).

  Stair d = 0, 1, ... begins at the first step from start + d * steps / stairs
  on, also beyond the `stairs` stairs of the decay.

  >>> due = Stairs(100, 5, stairs=2)
  >>> [step for step in range(98, 112) if due(jnp.int32(step))]
  [100, 103, 105, 108, 110]

  Raises:
    ValueError: If steps * stairs exceeds int32.
  """

  start: int
  steps: int
  stairs: int = 1

  def __post_init__(self):
    if self.steps * self.stairs >= 2**31:
      raise ValueError(
        f"{self.stairs} stairs in {self.steps} steps: expected a product below"
        " 2**31; take fewer stairs, or refresh_every=1"
      )

  def __call__(self, step: Int[Array, ""]) -> Bool[Array, ""]:
    steps = max(self.steps, 1)
    done = step - self.start
    first = (done % steps) * self.stairs % steps < self.stairs
    return jnp.logical_and(done >= 0, first)

  def __str__(self) -> str:
    return "at every stair"


@dataclasses.dataclass(frozen=True)
class Once:
  """Masks are due at new stages only.

  >>> bool(Once()(jnp.int32(20)))
  False
  """

  def __call__(self, step: Int[Array, ""]) -> Bool[Array, ""]:
    return jnp.zeros_like(step, jnp.bool)

  def __str__(self) -> str:
    return "never"
