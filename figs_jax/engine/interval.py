"""What a formula can reach, known before it runs: does all of it fit int64?

A formula uses operators, `ceil_div`, `smaller` and `larger` only. So the same
lines run on numbers of other kinds, which all derive from `Number`:

  Interval   [least, most] of whole arrays, in Python's integers: one run bounds
             every result and every intermediate, whatever the arrays' length
  Watched    arrays on the host that remember the largest number on the way to
             each element, for arrays whose bound does not fit though they may

The kinds that compute on a device are in `figs_jax.engine.whole`.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from typing import Any

import numpy as np


def _reflected(op: Any) -> tuple[Any, Any]:
  def here(self, other):
    return self.apply(op, self, other)

  def swapped(self, other):
    return self.apply(op, other, self)

  return here, swapped


class Number:
  """Operators, each of which is handed to `apply`."""

  __array_ufunc__ = None  # NumPy's numbers leave operators to ours.

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Any:
    """op(a, b) in numbers of this kind, `min` and `max` among the ops."""
    raise NotImplementedError

  __add__, __radd__ = _reflected(operator.add)
  __sub__, __rsub__ = _reflected(operator.sub)
  __mul__, __rmul__ = _reflected(operator.mul)
  __floordiv__, __rfloordiv__ = _reflected(operator.floordiv)
  __mod__, __rmod__ = _reflected(operator.mod)
  __truediv__, __rtruediv__ = _reflected(operator.truediv)

  def __neg__(self) -> Any:
    return self.apply(operator.sub, 0, self)


@dataclasses.dataclass(frozen=True, slots=True)
class Interval(Number):
  """All numbers that an expression can be, where its arguments vary freely.

  An expression in which an argument occurs twice may have wider bounds than it
  can reach. Divisors are taken to be positive integers, since a formula that
  divides by anything else has no meaning.

  Attributes:
    least: its least value, an integer or (after a true division) a float.
    most: its largest value.
    peak: the largest magnitude of an integer on the way to it, itself included.
    divisor: the largest that a floor division or a remainder was taken by.

  >>> x = Interval.of(range(3, 10))
  >>> y = x * x - 100
  >>> y.least, y.most, y.peak
  (-91, -19, 100)
  >>> (x // 4).most, (x % 4).most, (x / 4).most, (x // 4).divisor
  (2, 3, 2.25, 4)
  """

  least: Any
  most: Any
  peak: int = 0
  divisor: int = 1

  @classmethod
  def of(cls, values: Any) -> Interval:
    """The interval of a number, or of integers that are not empty."""
    if isinstance(values, Interval):
      return values
    if isinstance(values, int | float):
      return cls._between(values, values)
    values = np.asarray(values)
    return cls._between(int(values.min()), int(values.max()))

  @classmethod
  def _between(cls, least, most, peak=0, divisor=1) -> Interval:
    if isinstance(least, int):
      peak = max(peak, abs(least), abs(most))
    return cls(least, most, peak, divisor)

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Interval:
    a, b = cls.of(a), cls.of(b)
    peak, divisor = max(a.peak, b.peak), max(a.divisor, b.divisor)
    if op is operator.add:
      least, most = a.least + b.least, a.most + b.most
    elif op is operator.sub:
      least, most = a.least - b.most, a.most - b.least
    elif op in (min, max):
      least, most = op(a.least, b.least), op(a.most, b.most)
    elif op is operator.mod:
      least, most = _remainder(a, b)
    else:
      ends = (b.least, b.most)
      if op is not operator.mul and isinstance(b.least, int):
        ends = [max(end, 1) for end in ends]
      # Monotone in each argument, so that an extreme lies at a corner.
      corners = [
        op(x, y) for x, y in itertools.product((a.least, a.most), ends)
      ]
      least, most = min(corners), max(corners)
    if op in (operator.floordiv, operator.mod):
      divisor = max(divisor, b.most)
    return cls._between(least, most, peak, divisor)


def _remainder(a: Interval, b: Interval) -> tuple[int, int]:
  same = b.least == b.most > 0 and a.least // b.most == a.most // b.most
  if same or 0 <= a.least <= a.most < b.least:
    return a.least % b.most, a.most % b.most
  most = max(b.most, 1) - 1
  return 0, most if a.least < 0 else min(a.most, most)


class Watched(Number):
  """NumPy arrays with, for each element, the largest integer on its way.

  float64 gives an estimate, which is fast; Python's integers in an array of
  objects are exact.

  Attributes:
    x: the numbers.
    peak: the largest magnitude of an integer that went into them.
    whole: whether they are integers, not ratios.
  """

  def __init__(self, x: Any, peak: Any = 0, whole: bool = True):
    self.x, self.whole = x, whole
    self.peak = np.maximum(peak, np.abs(x)) if whole else peak

  @classmethod
  def of(cls, x: Any) -> Watched:
    if isinstance(x, Watched):
      return x
    return cls(x, whole=not isinstance(x, float))

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Watched:
    a, b = cls.of(a), cls.of(b)
    x, y = a.x, b.x
    if op is operator.floordiv and _is_float(x, y):
      out = np.floor(x / y)
    elif op is operator.mod and _is_float(x, y):
      out = x - np.floor(x / y) * y
    else:
      out = {min: np.minimum, max: np.maximum}.get(op, op)(x, y)
    whole = a.whole and b.whole and op is not operator.truediv
    return cls(out, np.maximum(a.peak, b.peak), whole)

  def sum(self, axis: int) -> Watched:
    """Along an axis, which every element of `peak` must have."""
    peak = np.broadcast_to(self.peak, np.shape(self.x)).max(axis)
    total = np.asarray(self.x.sum(axis), self.x.dtype)
    return Watched(total, np.asarray(peak, self.x.dtype), self.whole)


def _is_float(*arrays: Any) -> bool:
  return any(np.asarray(x).dtype == np.float64 for x in arrays)
