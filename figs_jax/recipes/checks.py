"""Checks of the options that builders get."""

from __future__ import annotations

import difflib
import inspect
import numbers
import operator
import types
from dataclasses import replace
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from figs_jax.core._flow import GradMode
from figs_jax.recipes.criterion import Criterion, Magnitude
from figs_jax.recipes.recipe import Recipe

MISSING: Any = object()  # instead of an argument that was not given
_WORDS = {
  int: ("an integer",),
  float: ("a number",),
  bool: ("True", "False"),
  str: ("text",),
  type(None): ("None",),
}


def check_type(where: str, annotation: Any, value: Any) -> Any:
  """The value, if it fits the annotation; NumPy's scalars become Python's.

  Integers are numbers, Booleans are neither. An annotation other than a union
  of classes and literals takes anything.

  Args:
    where: Beginning of the message, such as "sr_ste: decay".
    annotation: Type of the value.
    value: The value, or `MISSING`.

  Raises:
    TypeError: If the value is missing.
    ValueError: If the value has another type.

  >>> import numpy as np
  >>> check_type("sr_ste: decay", float | int, np.float32(0.5))
  0.5
  """
  kinds = _alternatives(annotation)
  if value is MISSING:
    raise TypeError(f"{where}: expected {_in_words(kinds)}, got nothing")
  for kind in kinds:
    fits, converted = _fit(kind, value)
    if fits:
      return converted
  choices = [one for kind in kinds for one in get_args(kind)]
  close = difflib.get_close_matches(str(value), map(str, choices), 1)
  hint = f". Did you mean {close[0]!r}?" if close else ""
  raise ValueError(
    f"{where}: expected {_in_words(kinds)}, got {shown(value)}{hint}"
  )


def shown(value: Any) -> str:
  """A value in one line of an error message.

  >>> shown("x"), shown("y" * 99)[-4:]
  ("'x'", 'y...')
  """
  text = " ".join(repr(value).split())
  return text if len(text) <= 60 else f"{text[:57]}..."


def _alternatives(annotation: Any) -> tuple[Any, ...]:
  """The members of a union; the annotation itself if it is none."""
  if get_origin(annotation) in (Union, types.UnionType):
    return get_args(annotation)
  return (type(None) if annotation is None else annotation,)


def _fit(kind: Any, value: Any) -> tuple[bool, Any]:
  """Whether a value is of a kind, and the value as Python's own type."""
  if kind is bool:
    fits = isinstance(value, (bool, np.bool_))
    return fits, bool(value) if fits else value
  if kind in (int, float):
    if isinstance(value, (bool, np.bool_)):
      return False, value
    if type(value) in (int, kind):
      return True, value
    if kind is float and isinstance(value, numbers.Real):
      return True, float(value)
    try:
      return True, operator.index(value)
    except TypeError:
      return False, value
  if get_origin(kind) is Literal:
    choices = get_args(kind)
    return any(type(value) is type(k) and value == k for k in choices), value
  if isinstance(kind, type) and kind is not inspect.Parameter.empty:
    return isinstance(value, kind), value
  return True, value


def _in_words(kinds: tuple[Any, ...]) -> str:
  """The kinds as an enumeration, for an error message."""
  words: list[str] = []
  for kind in kinds:
    if get_origin(kind) is Literal:
      words += [repr(choice) for choice in get_args(kind)]
    elif not (kind is int and float in kinds):
      words += _WORDS.get(kind, (getattr(kind, "__name__", str(kind)),))
  *most, last = words
  return f"{', '.join(most)} or {last}" if most else last


def check_not_negative(option: str, value: float | int) -> None:
  """Raises ValueError for a negative number or NaN."""
  if not value >= 0:
    raise ValueError(f"{option}: expected a number of at least 0, got {value}")


def with_grad_mode(plain: Recipe, grad_mode: GradMode) -> Recipe:
  """The recipe with another gradient of pruned entries."""
  return replace(plain, flow=replace(plain.flow, grad_mode=grad_mode))


def with_criterion(plain: Recipe, criterion: Criterion, option: str) -> Recipe:
  """The recipe with a criterion, unless an option has chosen another.

  Args:
    plain: The recipe that the builder got.
    criterion: Criterion of the builder.
    option: Name of its source in the error message.

  Raises:
    ValueError: If `transposable=True` chooses the masks already.
  """
  if criterion == Magnitude():
    return plain
  if plain.criterion != Magnitude():
    raise ValueError(
      f"{option} and transposable=True both choose the masks: give one of them"
    )
  return replace(plain, criterion=criterion)
