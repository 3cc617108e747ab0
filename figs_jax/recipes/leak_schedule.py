"""The leak D: the share of a pruned weight that the forward pass keeps.

A leak is a function of the step, frozen and hashable. Recipes call it between
the end of the dense phase (D = 1) and the start of fine-tuning (D = 0). Each
ends at an integer step computed in Python, from which D is exactly 0 with and
without jit, however the formula rounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp

from figs_jax.core.types import Array, Float, Int
from figs_jax.recipes.stage_schedule import Equal, Fixed
from figs_jax.recipes.timeline import Timeline

Leak = Callable[[Int[Array, ""]], Float[Array, ""]]
CUT = 1e-3  # below this the exponential leak is 0 (2402.04744)
# Half of float32's step at 1: a D below it is a rounding error of 1 - β j, as
# in 1 / (1 / 49) > 49, and no step of the schedule.
_ROUNDING = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Hard:
  """D = 0."""

  def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.zeros_like(step, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Linear:
  """D = max(1 - β j, 0) with j = step - start, and 0 from step `end` on."""

  start: int
  end: int
  beta: float | int

  def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
    j = (step - self.start).astype(jnp.float32)
    return jnp.where(step < self.end, jnp.maximum(1 - self.beta * j, 0), 0.0)


@dataclasses.dataclass(frozen=True)
class Exponential:
  """D = exp(-β j) with j = step - start, and 0 from step `end` on."""

  start: int
  end: int
  beta: float | int

  def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
    j = (step - self.start).astype(jnp.float32)
    return jnp.where(step < self.end, jnp.exp(-self.beta * j), 0.0)


@dataclasses.dataclass(frozen=True)
class Staircase:
  """D = max(1 - d ω, 0) on stair d = 0, 1, ..., and 0 from step `end` on."""

  starts: tuple[int, ...]
  end: int
  omega: float | int

  def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
    begun = step >= jnp.asarray(self.starts, jnp.int32)
    d = jnp.sum(begun, dtype=jnp.int32).astype(jnp.float32) - 1
    leak = jnp.maximum(1 - self.omega * d, 0)
    return jnp.where(step < self.end, leak, 0.0)


def staircase(
  timeline: Timeline, omega: float | int, freq: int | None
) -> Staircase:
  """A leak that falls by ω every `freq` steps; None shares the decay phase.

  It has ceil(1 / ω) stairs, the first with D = 1, and is 0 after the last.
  """
  if not 0 < omega <= 1:
    raise ValueError(f"omega: expected a number in (0, 1], got {omega}")
  stairs = math.ceil((1 - _ROUNDING) / omega)
  start, end = timeline.dense_end, timeline.finetune_start
  schedule = Equal() if freq is None else Fixed(freq)
  starts = schedule(stairs, start, end)
  if freq is not None:
    end = min(start + stairs * freq, end)
  return Staircase(starts, end, omega)


def linear(
  timeline: Timeline, beta: float | int | None, zero_at: float | int | None
) -> Linear:
  """A linear leak that reaches 0 at a share of all steps, or has slope β."""
  start = timeline.dense_end
  if beta is None:
    steps = _steps_until(timeline, zero_at)
    return Linear(start, start + steps, 1 / max(steps, 1))
  _check_beta(beta, zero_at)
  return Linear(start, _end(timeline, math.ceil((1 - _ROUNDING) / beta)), beta)


def exponential(
  timeline: Timeline, beta: float | int | None, zero_at: float | int | None
) -> Exponential:
  """An exponential leak that is 1e-3 at a share of all steps, or has rate β.

  D is 0 from the first step at which it would be below 1e-3.
  """
  start = timeline.dense_end
  if beta is None:
    steps = _steps_until(timeline, zero_at)
    end = _end(timeline, steps + 1)
    return Exponential(start, end, -math.log(CUT) / max(steps, 1))
  _check_beta(beta, zero_at)
  steps = math.floor(-math.log(CUT) / beta * (1 + _ROUNDING))
  return Exponential(start, _end(timeline, steps + 1), beta)


def _end(timeline: Timeline, steps: int) -> int:
  """The step `steps` after the dense phase, at most that of fine-tuning."""
  return min(timeline.dense_end + steps, timeline.finetune_start)


def _steps_until(timeline: Timeline, zero_at: float | int | None) -> int:
  share = 0.70 if zero_at is None else zero_at
  if not 0 < share <= 1:
    raise ValueError(
      f"zero_at: expected a share of all steps in (0, 1], got {share}"
    )
  end = min(round(share * timeline.total_steps), timeline.finetune_start)
  return max(end - timeline.dense_end, 0)


def _check_beta(beta: float | int, zero_at: float | int | None) -> None:
  if zero_at is not None:
    raise ValueError(
      f"beta={beta} and zero_at={zero_at} both set the decay: give one of them"
    )
  if not 0 < beta < math.inf:
    raise ValueError(f"beta: expected a positive number, got {beta}")
