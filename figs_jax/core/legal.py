"""Legal values of a field: intervals of numbers, words, text, and others.

`str` of each names the values in an error message and in the docs.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

_TINY = float(np.finfo(np.float32).tiny)


@runtime_checkable
class Legal(Protocol):
  """The legal values of a field."""

  def __contains__(self, value: Any, /) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Number:
  """The numbers of an interval; NaN is in none.

  An open end excludes what rounds to it in float32, in which training computes.

  Attributes:
    interval: Interval as text. Both ends are finite.

  >>> [value in Number("[0, 1)") for value in (0, 0.5, 1 - 1e-9, float("nan"))]
  [True, True, False, False]
  """

  interval: str

  @property
  def ends(self) -> tuple[float | int, float | int]:
    """The least and the greatest number."""
    low, high = self.interval[1:-1].split(", ")
    return _number(low), _number(high)

  @property
  def _open(self) -> tuple[float | int, ...]:
    low, high = self.ends
    return (low,) * (self.interval[0] == "(") + (high,) * (
      self.interval[-1] == ")"
    )

  def __contains__(self, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return False
    low, high = self.ends
    inside = low <= value <= high
    return inside and _in_float32(value) not in map(_in_float32, self._open)

  def __str__(self) -> str:
    return f"a number in {self.interval}"


@dataclasses.dataclass(frozen=True)
class Integer(Number):
  """The integers of an interval.

  Attributes:
    interval: Interval as text.
    special: A further legal integer.
    powers: Whether only powers of two are legal.

  >>> [value in Integer("[1, 8]", special=-1) for value in (-1, 0, 1, True)]
  [True, False, True, False]
  """

  special: int | None = None
  powers: bool = False

  def __contains__(self, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
      return False
    low, high = self.ends
    inside = low <= value <= high and value not in self._open
    is_power = not self.powers or not value & (value - 1)
    return (inside and is_power) or value == self.special

  def __str__(self) -> str:
    noun = "a power of two" if self.powers else "an integer"
    also = "" if self.special is None else f"{self.special} or "
    return f"{also}{noun} in {self.interval}"


@dataclasses.dataclass(frozen=True)
class Word:
  """One of a few words.

  Attributes:
    choices: The words.
    meant: Other words for them, which errors translate.

  >>> word = Word(("exact", "tanh"), {"approximate": "tanh"})
  >>> "tanh" in word, suggestion(word, "approximate")
  (True, "; did you mean 'tanh'?")
  """

  choices: tuple[str, ...]
  meant: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __contains__(self, value: Any) -> bool:
    return isinstance(value, str) and value in self.choices

  def __str__(self) -> str:
    return f"one of {', '.join(map(repr, self.choices))}"


@dataclasses.dataclass(frozen=True)
class Typed:
  """Any value of a type: text, or True and False.

  Attributes:
    kind: The type.

  >>> True in Typed(bool), 1 in Typed(bool), "" in Typed(str)
  (True, False, True)
  """

  kind: type

  def __contains__(self, value: Any) -> bool:
    return isinstance(value, self.kind)

  def __str__(self) -> str:
    return "True or False" if self.kind is bool else "text"


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Numbers between commas as text, or a name of such.

  Attributes:
    each: Legal values of a number.
    names: The names.

  >>> "0.5,0.4" in Numbers(Number("[0, 1]"), ("half",))
  True
  """

  each: Number
  names: tuple[str, ...]

  def __contains__(self, value: Any) -> bool:
    if not isinstance(value, str) or value in self.names:
      return isinstance(value, str)
    try:
      return all(float(number) in self.each for number in value.split(","))
    except ValueError:
      return False

  def __str__(self) -> str:
    names = ", ".join(map(repr, self.names))
    return f"{names}, or numbers in {self.each.interval} between commas"


@dataclasses.dataclass(frozen=True)
class Several:
  """A tuple or list of legal values.

  Attributes:
    each: Legal values of the entries.
    least, most: Bounds of the number of entries.

  >>> (2, 2) in Several(Integer("[1, 9]")), (2, 0) in Several(Integer("[1, 9]"))
  (True, False)
  """

  each: Legal
  least: int = 0
  most: int = 1000

  def __contains__(self, value: Any) -> bool:
    return (
      isinstance(value, (tuple, list))
      and self.least <= len(value) <= self.most
      and all(one in self.each for one in value)
    )

  def __str__(self) -> str:
    return f"a tuple of {self.least} to {self.most} entries, each {self.each}"


@dataclasses.dataclass(frozen=True)
class Either:
  """The values of either of two kinds.

  >>> None in Either(UNSET, Number("[0, 1]"))
  True
  """

  first: Legal
  second: Legal

  def __contains__(self, value: Any) -> bool:
    return value in self.first or value in self.second

  def __str__(self) -> str:
    return f"{self.first} or {self.second}"


@dataclasses.dataclass(frozen=True)
class Unset:
  """None, where another field decides."""

  def __contains__(self, value: Any) -> bool:
    return value is None

  def __str__(self) -> str:
    return "None"


@dataclasses.dataclass(frozen=True)
class Unchecked:
  """Any value, which something else checks.

  Attributes:
    reason: What checks it.
  """

  reason: str

  def __contains__(self, value: Any) -> bool:
    return True

  def __str__(self) -> str:
    return self.reason


UNSET = Unset()
# Sizes and counts are bounded, so that no configuration that a checkpoint
# brings along keeps a program busy or fills the memory.
BELOW_ONE, SHARE = Number("[0, 1)"), Number("[0, 1]")
EXAMPLES = Integer("[1, 1048576]")
SEED = Integer("[0, 2000000000]")
# Dtypes of a computation, and those without the narrow range of float16.
DTYPES = Word(
  ("float32", "bfloat16", "float16"),
  {
    "bf16": "bfloat16", "brain": "bfloat16", "bfloat": "bfloat16",
    "fp16": "float16", "f16": "float16", "half": "float16",
    "fp32": "float32", "f32": "float32", "float": "float32",
    "single": "float32", "fp64": "float32", "f64": "float32",
    "float64": "float32", "double": "float32", "int8": "bfloat16",
    "fp8": "bfloat16", "float8": "bfloat16", "float8_e4m3fn": "bfloat16",
    "float8_e5m2": "bfloat16",
  },
)  # fmt: skip
WIDE_DTYPES = Word(
  ("float32", "bfloat16"),
  {
    word: "bfloat16" if meant == "float16" else meant
    for word, meant in {**DTYPES.meant, "float16": "float16"}.items()
  },
)


class Field(NamedTuple):
  """A field of a configuration.

  Attributes:
    default: Default, or the type of a field without one.
    meaning: Meaning in one sentence.
    legal: Legal values. Defaults to all values of the default's type.
  """

  default: Any
  meaning: str
  legal: Legal | None = None


def suggestion(legal: Legal, value: Any) -> str:
  """A hint that ends an error message, or "".

  >>> suggestion(Word(("cosine", "linear")), "cosin")
  "; did you mean 'cosine'?"
  """
  if isinstance(legal, Either):
    return suggestion(legal.first, value) or suggestion(legal.second, value)
  if not (isinstance(legal, Word) and isinstance(value, str)):
    return ""
  word = value.lower()
  close = [legal.meant[word]] if word in legal.meant else None
  close = close or difflib.get_close_matches(word, legal.choices, 1)
  return f"; did you mean {close[0]!r}?" if close else ""


def _number(text: str) -> float | int:
  """A number of an interval; integers exactly, "2**31" as a power."""
  base, _, power = text.partition("**")
  if power:
    return int(base) ** int(power)
  return float(text) if set(text) & set(".e") else int(text)


def _in_float32(value: float | int) -> float:
  """The value in float32, where numbers below the normal ones are 0."""
  return float(np.float32(value)) if abs(value) >= _TINY else 0.0
