"""What builders check of their options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from figs_jax.core._flow import GradMode
from figs_jax.core.rules import nearest
from figs_jax.recipes.criterion import Criterion, Magnitude
from figs_jax.recipes.recipe import Recipe


def one_of(name: str, option: str, got: str, known: Iterable[str]) -> None:
  """Raises ValueError unless `got` is known; the nearest is suggested."""
  known = tuple(known)
  if got not in known:
    raise ValueError(
      f"{name}: {option}={got!r} is unknown, {nearest(got, known)}"
    )


def not_negative(name: str, option: str, got: float | int) -> None:
  """Raises ValueError for a negative number or NaN."""
  if not got >= 0:
    raise ValueError(f"{name}: {option}={got!r} must be at least 0")


def with_grad_mode(
  plain: Recipe, grad_mode: str, known: tuple[GradMode, ...]
) -> Recipe:
  """The recipe under a gradient mode, if it is one that makes sense for it."""
  for mode in known:
    if mode == grad_mode:
      return replace(plain, flow=replace(plain.flow, grad_mode=mode))
  raise ValueError(
    f"{plain.name}: grad_mode={grad_mode!r} must be"
    f" {' or '.join(map(repr, known))}"
  )


def with_criterion(plain: Recipe, criterion: Criterion, what: str) -> Recipe:
  """The recipe with its own criterion, unless an option has chosen another.

  Args:
    plain: what the builder was given.
    criterion: its own.
    what: names it in the error message.

  Raises:
    ValueError: `transposable=True` was given too.
  """
  if criterion != Magnitude() and plain.criterion != Magnitude():
    raise ValueError(
      f"{plain.name}: {what} and transposable=True both choose the masks: give"
      " one of them"
    )
  if criterion == Magnitude():
    return plain
  return replace(plain, criterion=criterion)
