"""What a sweep keeps of its points: reductions over blocks, slot by slot.

A device visits one block after the other. Slots are reduced apart from each
other, so that a state is as long as a block and every operation is one on
vectors; the host looks at the few slots that matter.

Reductions are frozen and equal where their fields are (functions by identity),
so that equal ones share a compiled walk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.engine.sweeps.text import read_conditions, read_quantity

Fields = Mapping[str, Any]
# A quantity as text ("cycles", "-utilisation", "rows*cols"), or a function.
By = str | Callable[[Fields], Any]
# Conditions as text ("rows*cols<=1024; m<=8"), or a function.
Where = str | Callable[[Fields], Any] | None


def value(by: By, fields: Fields) -> Any:
  """A field or its negative as it is; else a product or function of floats."""
  if not isinstance(by, str):
    return by(_floats(fields))
  scale, names = read_quantity(by)
  if len(names) == 1 and abs(scale) == 1:
    return fields[names[0]] if scale == 1 else -fields[names[0]]
  return math.prod((fields[name].astype(float) for name in names), start=scale)


def allowed(where: Where, fields: Fields, real: Any) -> Any:
  """The real points that meet the conditions."""
  if not isinstance(where, str):
    return real if where is None else real & where(_floats(fields))
  for left, compare, right in read_conditions(where):
    real = real & compare(value(left, fields) / 1, value(right, fields) / 1)
  return real


def quantity_names(by: By) -> tuple[Any, ...]:
  """The fields that a quantity's text names; or the function itself.

  Raises:
    ValueError: If the text is not a product, or names no field.
  """
  if not isinstance(by, str):
    return (by,)
  names = read_quantity(by)[1]
  if not names:
    raise ValueError(f"sweep quantity {by!r}: expected a field in the product")
  return names


def condition_names(where: Where) -> tuple[Any, ...]:
  """The fields that conditions' text names; or the function itself.

  Raises:
    ValueError: If the text is not conditions.
  """
  if not isinstance(where, str):
    return () if where is None else (where,)
  sides = (side for a, _, b in read_conditions(where) for side in (a, b))
  return tuple(name for side in sides for name in read_quantity(side)[1])


def worst(dtype: Any) -> Any:
  """A value of a type that none exceeds."""
  return np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max


def _floats(fields: Fields) -> dict[str, Any]:
  return {name: x.astype(float) for name, x in fields.items()}


class Reduction:
  """What a device keeps of the blocks that it visits."""

  def reads(self) -> tuple[Any, ...]:
    """Names of the fields that it reads, and functions of fields."""
    raise NotImplementedError

  def start(self, like: Fields) -> Any:
    """The state before the first block, from fields' shapes and types."""
    return ()

  def visit(
    self, state: Any, turn: Any, fields: Fields, real: Any, given: Any
  ) -> tuple[Any, Any]:
    """The next state and what to stack.

    Args:
      state: State before this block.
      turn: Place of this block among the device's, from 0.
      fields: Fields of the block's points, (slots,).
      real: Mask of the slots that are possible points, Bool (slots,).
      given: Values that the host knows from earlier walks.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Smallest(Reduction):
  """Per slot the smallest value, and the turn at which it came first."""

  by: By
  where: Where

  def reads(self):
    return *quantity_names(self.by), *condition_names(self.where)

  def start(self, like):
    one = jax.eval_shape(lambda x: value(self.by, x), like)
    return jnp.full_like(one, worst(one.dtype)), jnp.zeros(one.shape, jnp.int32)

  def visit(self, state, turn, fields, real, given):
    best, at = state
    new, real = value(self.by, fields), allowed(self.where, fields, real)
    better = real & (new < best)
    return (jnp.where(better, new, best), jnp.where(better, turn, at)), ()


@dataclasses.dataclass(frozen=True)
class Undominated(Reduction):
  """Per slot whether any of its points may be on the front of x and y.

  `given` holds rivals: their x, their y, and whether they beat equals too.
  """

  x: By
  y: By
  where: Where

  def reads(self):
    aims = *quantity_names(self.x), *quantity_names(self.y)
    return *aims, *condition_names(self.where)

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
    return *quantity_names(self.by), *condition_names(self.where)

  def start(self, like):
    one = jax.eval_shape(lambda x: value(self.by, x), like)
    top = worst(one.dtype)
    count, total = jnp.zeros(one.shape, jnp.int32), jnp.zeros(one.shape)
    return count, jnp.full_like(one, top), jnp.full_like(one, -top), total

  def visit(self, state, turn, fields, real, given):
    count, least, most, total = state
    new, real = value(self.by, fields), allowed(self.where, fields, real)
    return (
      count + real.astype(jnp.int32),
      jnp.where(real & (new < least), new, least),
      jnp.where(real & (new > most), new, most),
      total + jnp.where(real, new.astype(total.dtype), jnp.zeros_like(total)),
    ), ()


@dataclasses.dataclass(frozen=True)
class Columns(Reduction):
  """All values of some fields, of which `whole` as int64; which slots count."""

  names: tuple[str, ...]
  whole: tuple[str, ...]
  where: Where

  def reads(self):
    return *self.names, *condition_names(self.where)

  def visit(self, state, turn, fields, real, given):
    real = allowed(self.where, fields, real)
    columns = {
      name: fields[name].astype(jnp.int64 if name in self.whole else float)
      for name in self.names
    }
    return (), (real, columns)
