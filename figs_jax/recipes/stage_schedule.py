"""When the stages of a chain begin, and when masks are taken anew.

A pace is a function (stages, first step, end) -> the first step of each stage,
computed in Python integers. `Every` and `Once` say between the stages whether
masks are due: a function of the step, which you may write yourself. All are
frozen dataclasses: hashable, and equal when they do the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Int

Pace = Callable[[int, int, int], tuple[int, ...]]
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
    ValueError: `steps` is below 1 or no integer, or the stages do not fit.
  """

  steps: int

  def __post_init__(self):
    whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
    if not whole or self.steps < 1:
      raise ValueError(
        f"{self.steps} steps per stage: an integer of at least 1 is needed"
      )

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    if start + (stages - 1) * self.steps > end:
      raise ValueError(
        f"{stages} stages of {self.steps} steps do not fit between steps"
        f" {start} and {end}: give them fewer steps, or none for equal shares"
      )
    return tuple(start + i * self.steps for i in range(stages))


@dataclasses.dataclass(frozen=True)
class Cubic:
  """Stage i of S begins when 1 - (1 - t)^3 reaches i / S (1710.01878, eq. 1).

  t runs from 0 to 1 over the decay phase, so that the last stage begins at its
  end: many weights go early, few late.

  >>> Cubic()(3, 0, 100)
  (13, 31, 100)
  """

  def __call__(self, stages: int, start: int, end: int) -> tuple[int, ...]:
    steps = end - start

    def reached(j: int, i: int) -> bool:
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
  """Masks are due at the multiples of `steps`.

  >>> bool(Every(10)(jnp.int32(20))), str(Every(1))
  (True, 'every step')
  """

  steps: int = 1

  def __call__(self, step: Int[Array, ""]) -> Bool[Array, ""]:
    return step % self.steps == 0

  def __str__(self) -> str:
    return "every step" if self.steps == 1 else f"every {self.steps} steps"


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
