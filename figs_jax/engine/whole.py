"""Whole numbers on a device, divided through floating point.

No vector unit divides 64-bit integers, so that XLA's division takes them one
by one; it divides doubles eight at a time. Which kind of number gives exactly
the integers is decided before a formula runs, from the bounds of
`figs_jax.engine.interval`:

  Doubles   float64 throughout, where no integer on the way exceeds 2^51
  Longs     int64, divided through float64, up to 2^62 and divisors up to 2^51
  Singles   float32: not exact, for devices without fast float64 and int64

A quotient cannot be read off floor(a / b): XLA may multiply by 1 / b instead,
as it does for a scalar b, and 49 (1 / 49) < 1. But it is off by at most one,
which the remainder shows. Proof, for 0 <= |a| <= 2^52, 1 <= b <= 2^51 and
p = 53 bits: the reciprocal and the product are each rounded by a factor within
1 +- 2^-53, so that the computed ratio differs from a / b by at most
|a / b| (2^-52 + 2^-106) < 1 where b >= 2, and is exact where b = 1. With
q = floor(a / b), its floor q' is q - 1, q or q + 1. Then |q' b| <= |a| + 2 b
is at most 2^53, an integer that float64 holds, and so is r' = a - q' b, in
[-b, 2 b): r' >= b shows q' = q - 1, and r' < 0 shows q' = q + 1.

Longs divide twice. float64 rounds a <= 2^62 too, so that the first quotient
differs from a / b by at most |a / b| 3.01 2^-53 + 1, and what is left,
a - q' b, is at most 1542 + b: an integer to which the above applies.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from figs_jax.engine.interval import Interval, Number

_DOUBLES_MAX = 2**51
_LONGS_MAX = 2**62
_EXACT_FLOAT64 = ("cpu", "gpu")


def fastest(bounds: Iterable[Interval]) -> type[Whole] | None:
  """The fastest kind that is exact within bounds; None: int64 as it is.

  >>> fastest([Interval.of(2**50)]).__name__
  'Doubles'
  >>> fastest([Interval.of(2**60)]).__name__
  'Longs'
  """
  bounds = list(bounds)
  # Elsewhere float64 is put together from narrower numbers.
  if jax.default_backend() not in _EXACT_FLOAT64:
    return None
  peak = max((bound.peak for bound in bounds), default=0)
  divisor = max((bound.divisor for bound in bounds), default=0)
  if peak <= _DOUBLES_MAX:
    return Doubles
  return Longs if peak <= _LONGS_MAX and divisor <= _DOUBLES_MAX else None


class Whole(Number):
  """Integers in an array of `dtype`; a true division leaves an array of floats.

  Attributes:
    x: the array.
  """

  dtype: ClassVar[Any]

  def __init__(self, x: Any):
    self.x = jnp.asarray(x).astype(self.dtype)

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Any:
    if op in (operator.floordiv, operator.mod):
      is_power = isinstance(b, int) and b > 0 and b & (b - 1) == 0
      divide = cls._scaled if is_power else cls._divided
      quotient, rest = divide(cls._array(a), cls._array(b))
      return cls(quotient if op is operator.floordiv else rest)
    a, b = cls._array(a), cls._array(b)
    if op is operator.truediv:
      return cls._ratio(a, b)
    return cls({min: jnp.minimum, max: jnp.maximum}.get(op, op)(a, b))

  @classmethod
  def _array(cls, value: Any) -> Any:
    return value.x if isinstance(value, Whole) else cls(value).x

  @classmethod
  def _ratio(cls, a: Any, b: Any) -> Any:
    return a / b

  @classmethod
  def _scaled(cls, a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient and remainder by a power of two, which only scales a."""
    quotient = jnp.floor(a / b)
    return quotient, a - quotient * b

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient and remainder, as above."""
    quotient = jnp.floor(a / b)
    rest = a - quotient * b
    low, high = rest >= b, rest < 0
    quotient += low.astype(a.dtype) - high.astype(a.dtype)
    zero = jnp.zeros((), a.dtype)
    rest += jnp.where(high, b, zero) - jnp.where(low, b, zero)
    return quotient, rest

  def sum(self, axis: int) -> Any:
    return type(self)(self.x.sum(axis))


class Doubles(Whole):
  """Integers as float64."""

  dtype = jnp.float64


class Singles(Whole):
  """Integers as float32, rounded above 2^24; so are quotients of such."""

  dtype = jnp.float32

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    quotient, rest = super()._divided(a, b)
    is_exact = jnp.abs(a) + 2 * b <= 2**24
    rough = jnp.floor(a / b)
    left = jnp.clip(a - rough * b, 0, b)
    return jnp.where(is_exact, quotient, rough), jnp.where(is_exact, rest, left)


class Longs(Whole):
  """Integers as int64."""

  dtype = jnp.int64

  @classmethod
  def _ratio(cls, a: Any, b: Any) -> Any:
    return a.astype(jnp.float64) / b.astype(jnp.float64)

  @classmethod
  def _scaled(cls, a: Any, b: Any) -> tuple[Any, Any]:
    return a // b, a % b  # which the compiler turns into shifts

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    by = b.astype(jnp.float64)
    first = jnp.floor(a.astype(jnp.float64) / by).astype(jnp.int64)
    left = (a - first * b).astype(jnp.float64)
    second, rest = super()._divided(left, by)
    return first + second.astype(jnp.int64), rest.astype(jnp.int64)
