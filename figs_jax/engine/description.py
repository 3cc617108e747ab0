"""What all descriptions of engines share: their checks, names and limits."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, cast

import numpy as np

from figs_jax.engine.int64 import is_traced

MAX_SIDE = 2**31 - 1
UNLIMITED = MAX_SIDE  # of a bandwidth, or of a tile: no bound


class Description:
  """What all engines share: how they are checked, named and printed."""

  CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}
  # Fields that the head of a spec writes out.
  HEAD: ClassVar[tuple[str, ...]] = ()
  # Numeric fields that may be 0; the others start at 1.
  FROM_ZERO: ClassVar[tuple[str, ...]] = ()
  # Unit of its cycles, and whether it is an array of multipliers.
  unit: ClassVar[str] = "cycles"
  is_array: ClassVar[bool] = True

  def __post_init__(self):
    kind = type(self).__name__
    for field, legal in self.CHOICES.items():
      got = getattr(self, field)
      if got not in legal:
        raise ValueError(f"{kind} {field} {got!r}: {nearest(got, legal)}")
    for name, (least, _) in limits_of(type(self)).items():
      _check_whole(name, getattr(self, name), least)
    for impossible, why in self.faults():
      if np.any(impossible):
        raise ValueError(why)
    if not str(self):
      object.__setattr__(self, "name", self.spec())

  def faults(self) -> Iterator[tuple[Any, str]]:
    """Where fields do not go together, and why; none of what is traced."""
    yield from ()

  @classmethod
  def numeric(cls) -> tuple[dataclasses.Field, ...]:
    """The fields that hold integers or integer arrays."""
    fields = dataclasses.fields(cast(Any, cls))
    return tuple(field for field in fields if field.type == "Any")

  @property
  def leaves(self) -> tuple[Any, ...]:
    """The values of the numeric fields, in their order."""
    return tuple(getattr(self, field.name) for field in self.numeric())

  def head(self) -> str:
    """The spec without its keys, as in "ws:32x16"."""
    raise NotImplementedError

  def implied(self) -> dict[str, Any]:
    """The values of the other fields where a spec says no more than its head.

    `dataclasses.MISSING` where a spec has to say it.
    """
    return {
      field.name: field.default
      for field in dataclasses.fields(cast(Any, self))
      if field.name not in (*self.HEAD, "name")
    }

  def spec(self) -> str:
    """The text that `parse` reads back, arrays as a star."""
    options = [
      f":{name}={text_of(getattr(self, name))}"
      for name, value in self.implied().items()
      if not is_default(getattr(self, name), value)
    ]
    return self.head() + "".join(options)

  def __str__(self) -> str:
    return cast(Any, self).name


def limits_of(cls: Any) -> dict[str, tuple[int, int]]:
  """The least and the largest legal value of each numeric field."""
  return {
    field.name: (0 if field.name in cls.FROM_ZERO else 1, MAX_SIDE)
    for field in cls.numeric()
  }


def is_default(value: Any, default: Any) -> bool:
  """Whether a field holds its default; an array never does."""
  return not is_traced(value) and np.ndim(value) == 0 and value == default


def text_of(value: Any) -> str:
  """A field's value as specs write it; a star for many."""
  if isinstance(value, bool):
    return "true" if value else "false"
  return "*" if is_traced(value) or np.ndim(value) else str(value)


def sides_of(engine: Any) -> str:
  """An array's size, as in 32x16."""
  return f"{text_of(engine.rows)}x{text_of(engine.cols)}"


def _check_whole(field: str, value: Any, least: int) -> None:
  if is_traced(value):
    return
  array = np.asarray(value)
  got = value
  if array.dtype.kind in "iu" and array.size:
    if least <= array.min() and array.max() <= MAX_SIDE:
      return
    got = array.min() if array.min() < least else array.max()
  elif array.ndim:
    got = f"{array.dtype} of shape {array.shape}"
  raise ValueError(
    f"{field}: got {got}; give integers from {least} to {MAX_SIDE}"
  )


def indivisible(name: str, value: Any, by: str, unit: Any) -> tuple[Any, str]:
  """Where a field is no multiple of another, and the error that says so."""
  bad = 0 if is_traced(value, unit) else np.asarray(value) % np.asarray(unit)
  return bad, (
    f"{name}={text_of(value)} is not a multiple of {by}={text_of(unit)}; choose"
    f" {name} = {by} times a whole number"
  )


def nearest(word: object, choices: Iterable[str]) -> str:
  """A hint for an error message: the closest choice, then all of them."""
  choices = sorted(choices)
  close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
  hint = f"did you mean {close[0]!r}? Known" if close else "known"
  return f"{hint}: {', '.join(choices)}"
