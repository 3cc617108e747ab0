"""What a sweep keeps of its points: reductions over blocks, slot by slot.

A device visits one block after the other. Slots are reduced apart from each
other, so that a state is as long as a block and every operation is one on
vectors; the host looks at the few slots that matter.

Reductions are frozen and equal where their fields are (functions by identity),
so that equal ones share a compiled walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Fields = Mapping[str, Any]
Where = Callable[[Fields], Any] | None
# A field's name, "-" before it for the opposite sign, or a function of fields.
By = str | Callable[[Fields], Any]


def value(by: By, fields: Fields) -> Any:
  """A field, its negative, or what a function makes of floats."""
  if not isinstance(by, str):
    return by(_floats(fields))
  return -fields[by[1:]] if by.startswith("-") else fields[by]


def allowed(where: Where, fields: Fields, real: Any) -> Any:
  """Which of the real points a function allows, if there is one."""
  return real if where is None else real & where(_floats(fields))


def worst(dtype: Any) -> Any:
  """At least every value of a type."""
  return np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max


def _floats(fields: Fields) -> dict[str, Any]:
  return {name: x.astype(float) for name, x in fields.items()}


class Reduction:
  """What is kept of the blocks."""

  def reads(self) -> tuple[Any, ...]:
    """The names and functions of fields that it reads."""
    raise NotImplementedError

  def start(self, like: Fields) -> Any:
    """The state before the first block, from fields' shapes and types."""
    return ()

  def visit(
    self, state: Any, turn: Any, fields: Fields, real: Any, given: Any
  ) -> tuple[Any, Any]:
    """The next state and what to stack.

    Args:
      state: before this block.
      turn: which of the device's blocks this is, from 0.
      fields: of its points, (slots,).
      real: which slots are possible points, Bool (slots,).
      given: what the host knows from earlier walks.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Smallest(Reduction):
  """Per slot the smallest value, and the turn at which it came first."""

  by: By
  where: Where

  def reads(self):
    return self.by, self.where

  def start(self, like):
    one = jax.eval_shape(lambda x: value(self.by, x), like)
    return jnp.full_like(one, worst(one.dtype)), jnp.zeros(one.shape, jnp.int32)

  def visit(self, state, turn, fields, real, given):
    best, at = state
    found, real = value(self.by, fields), allowed(self.where, fields, real)
    better = real & (found < best)
    return (jnp.where(better, found, best), jnp.where(better, turn, at)), ()


@dataclasses.dataclass(frozen=True)
class Undominated(Reduction):
  """Per slot whether any of its points may be on the front of x and y.

  `given` holds rivals: their x, their y, and whether they beat equals too.
  """

  x: By
  y: By
  where: Where

  def reads(self):
    return self.x, self.y, self.where

  def start(self, like):
    return jnp.zeros(next(iter(like.values())).shape, bool)

  def visit(self, state, turn, fields, real, given):
    x, y = value(self.x, fields), value(self.y, fields)
    stays = allowed(self.where, fields, real)
    xs, ys, beat_equals = given
    rivals = zip(xs.astype(x.dtype), ys.astype(y.dtype), beat_equals)
    for a, b, beats_equals in rivals:
      beaten = (a <= x) & (b <= y) & ((a < x) | (b < y) | beats_equals)
      stays = stays & ~beaten
    return state | stays, ()


@dataclasses.dataclass(frozen=True)
class Moments(Reduction):
  """Per slot the count, the least, the largest and the sum of a value."""

  by: By
  where: Where

  def reads(self):
    return self.by, self.where

  def start(self, like):
    one = jax.eval_shape(lambda x: value(self.by, x), like)
    top = worst(one.dtype)
    count, total = jnp.zeros(one.shape, jnp.int32), jnp.zeros(one.shape)
    return count, jnp.full_like(one, top), jnp.full_like(one, -top), total

  def visit(self, state, turn, fields, real, given):
    count, least, most, total = state
    found, real = value(self.by, fields), allowed(self.where, fields, real)
    return (
      count + real.astype(jnp.int32),
      jnp.where(real & (found < least), found, least),
      jnp.where(real & (found > most), found, most),
      total + jnp.where(real, found.astype(total.dtype), jnp.zeros_like(total)),
    ), ()


@dataclasses.dataclass(frozen=True)
class Columns(Reduction):
  """All values of some fields, of which `whole` as int64; which slots count."""

  names: tuple[str, ...]
  whole: tuple[str, ...]
  where: Where

  def reads(self):
    return (*self.names, self.where)

  def visit(self, state, turn, fields, real, given):
    real = allowed(self.where, fields, real)
    columns = {
      name: fields[name].astype(jnp.int64 if name in self.whole else float)
      for name in self.names
    }
    return (), (real, columns)
