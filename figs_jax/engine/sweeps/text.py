"""The language of sweeps: axes, quantities and conditions as text.

  rows=8,16,...,256; pattern=1:2,1:4,...,1:128   axes; the last turns fastest
  rows,cols=32x16,16x32                          one axis of pairs
  cycles   -utilisation   rows*cols              quantities, to be small
  rows*cols<=1024; utilisation>0.5               conditions, all to hold

Dots stand for the values between those before them and the one after. After
two numbers they go on in equal steps: 8,16,...,256 has 32 values. After three
they may multiply as well: 8,16,32,...,256 has 6. Patterns multiply their m:
1:2,1:4,...,1:128 has 7.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from figs_jax.core.pattern import NM

_DOTS = ("...", "…")
_MOST = 10**6  # values of an axis that dots may stand for
_SHOWN = 60  # characters of a text that an error repeats
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
  "<=": operator.le,
  ">=": operator.ge,
  "==": operator.eq,
  "!=": operator.ne,
  "<": operator.lt,
  ">": operator.gt,
}


def read_axes(texts: str | Iterable[str]) -> dict[str, tuple[Any, ...]]:
  """Reads axes: name -> values, whole numbers as integers.

  Args:
    texts: "name=value,value,...", several separated by ";" or one per text.

  Raises:
    ValueError: If a text is not an axis, an axis is given twice, or dots do not
      lead from the values before them to the one after.

  >>> read_axes("pattern=dense,1:2,1:4,...,1:16; rows=8,16,...,32")
  {'pattern': ('dense', '1:2', '1:4', '1:8', '1:16'), 'rows': (8, 16, 24, 32)}
  """
  texts = [texts] if isinstance(texts, str) else texts
  axes: dict[str, tuple[Any, ...]] = {}
  parts = [part.strip() for text in texts for part in text.split(";")]
  for part in filter(None, parts):
    name, _, values = (word.strip() for word in part.partition("="))
    if not name or not values:
      raise ValueError(
        f"sweep {_short(part)}: expected name=value,value,..., as in"
        " 'rows=8,16,...,256'"
      )
    if name in axes:
      raise ValueError(f"sweep axis {name!r} is given twice; keep one")
    axes[name] = read_values(name, values)
  return axes


def read_values(name: str, text: str) -> tuple[Any, ...]:
  """The values of one axis, with those that dots stand for.

  Args:
    name: Name of the axis; where it names several, "rows,cols", a value is a
      tuple, as in "32x16".
    text: Values separated by commas, with dots.

  Raises:
    ValueError: If a value is missing, or as `read_axes`.

  >>> read_values("rows", "8,16,32,...,256")
  (8, 16, 32, 64, 128, 256)
  >>> read_values("rows,cols", "32x16, 16x32")
  ((32, 16), (16, 32))
  """
  where = f"sweep {_short(f'{name}={text}')}"
  texts = [value.strip() for value in text.split(",")]
  if not all(texts):
    raise ValueError(f"{where}: a value is missing between commas")
  values: list[Any] = []
  begin = 0  # of the values that the next dots go on from
  for place, value in enumerate(texts):
    if value not in _DOTS:
      values.append(_value(value, "," in name))
      continue
    after = texts[place + 1 : place + 2]
    if not values[begin:] or not after or after[0] in _DOTS:
      raise ValueError(
        f"{where}: expected values before and after the dots, as in"
        " 8,16,...,256 or 1:2,1:4,...,1:128"
      )
    values += _between(where, values[begin:], _value(after[0], "," in name))
    begin = len(values)
  if len(set(values)) < len(values):
    raise ValueError(f"{where}: a value is given twice; keep one")
  return tuple(values)


@functools.lru_cache
def read_quantity(text: str) -> tuple[float, tuple[str, ...]]:
  """Reads a product: its constant factor, and the names of its fields.

  Raises:
    ValueError: If the text is not a product of names and numbers.

  >>> read_quantity("-rows*2*cols")
  (-2.0, ('rows', 'cols'))
  """
  product = text.strip().removeprefix("-")
  scale, names = 1.0 if product == text.strip() else -1.0, []
  for factor in map(str.strip, product.split("*")):
    if re.fullmatch(r"[A-Za-z_]\w*", factor):
      names.append(factor)
    elif re.fullmatch(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", factor):
      scale *= float(factor)
    else:
      raise ValueError(
        f"sweep quantity {_short(text)}: expected a product of fields and"
        " numbers, as in 'cycles', '-utilisation' or 'rows*cols'"
      )
  return scale, tuple(names)


@functools.lru_cache
def read_conditions(text: str) -> tuple[tuple[str, Any, str], ...]:
  """Reads conditions that must all hold: (quantity, comparison, quantity).

  Raises:
    ValueError: If the text is not "quantity<=quantity; ...".

  >>> [(left, right) for left, _, right in read_conditions("m<=8; rows*2 > m")]
  [('m', '8'), ('rows*2', 'm')]
  """
  conditions = []
  for part in filter(str.strip, text.split(";")):
    match = re.fullmatch(r"([^<>=!]+)([<>=!]=?)([^<>=!]+)", part)
    left, sign, right = match.groups() if match else ("", "", "")
    sign = "==" if sign == "=" else sign
    if sign not in _COMPARISONS:
      raise ValueError(
        f"sweep condition {_short(part.strip())}: expected one of"
        f" {' '.join(_COMPARISONS)} between two quantities, as in"
        " 'rows*cols<=1024'"
      )
    for side in (left, right):
      read_quantity(side.strip())
    conditions.append((left.strip(), _COMPARISONS[sign], right.strip()))
  if not conditions:
    raise ValueError("sweep condition: expected one, as in 'rows*cols<=1024'")
  return tuple(conditions)


def _short(text: str) -> str:
  return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _value(text: str, several: bool) -> Any:
  if several:
    return tuple(_value(part, False) for part in text.split("x"))
  return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text


def _between(where: str, before: list[Any], end: Any) -> list[Any]:
  """The values that dots stand for, without those on either side."""
  last = before[-1]
  if isinstance(last, int) and isinstance(end, int):
    numbers = [x for x in before[-3:] if isinstance(x, int)]
    return _numbers(where, numbers, end)
  patterns = []
  for value in (*before[-2:], end):
    try:
      patterns.append(NM.parse(value))
    except ValueError as error:
      if value != "dense":
        raise ValueError(
          f"{where}: dots stand for whole numbers or patterns n:m, got"
          f" {value!r} beside them"
        ) from error
  *known, final = patterns
  factor, rest = divmod(known[-1].m, known[0].m) if known[1:] else (2, 0)
  same = len({pattern.n for pattern in patterns}) == 1
  if rest or not same:
    raise ValueError(
      f"{where}: dots between patterns multiply m by a whole number and keep n;"
      f" {', '.join(map(str, patterns))} do not; write the values out"
    )
  between = _multiplied(where, known[-1].m, factor, final.m)
  return [f"{final.n}:{m}" for m in between]


def _numbers(where: str, numbers: list[int], end: int) -> list[int]:
  """Two numbers go on in equal steps; three may multiply."""
  if len(numbers) == 1:
    (one,) = numbers
    raise ValueError(
      f"{where}: one number before the dots does not say how to go on; give two"
      f" for equal steps ({one},{2 * one},...,{end}) or three to multiply"
      f" ({one},{2 * one},{4 * one},...,{end})"
    )
  *first, middle, last = numbers
  step = last - middle
  if step and (not first or middle - first[0] == step):
    values = range(last + step, end, step)
    if len(values) > _MOST:
      raise ValueError(
        f"{where}: the dots stand for {len(values):,} values; expected at most"
        f" {_MOST:,}"
      )
    if (end - last) * step <= 0 or (end - last) % step:
      nearest = last + max((end - last) // step, 1) * step
      raise ValueError(
        f"{where}: steps of {step} do not lead from {last} to {end}; end at"
        f" {nearest}, or write the values out"
      )
    return list(values)
  factor = last // middle if middle else 0
  if factor < 2 or (first or [0])[0] * factor != middle or last % middle:
    raise ValueError(
      f"{where}: {','.join(map(str, numbers))} go on neither in equal steps nor"
      " by a whole factor; write the values out"
    )
  return _multiplied(where, last, factor, end)


def _multiplied(where: str, last: int, factor: int, end: int) -> list[int]:
  values, value = [], last
  while factor > 1 and value * factor < end:
    value *= factor
    values.append(value)
  if factor < 2 or value * factor != end:
    raise ValueError(
      f"{where}: multiplying by {factor} does not lead from {last} to {end};"
      f" end at {value if values else last * factor}, or write the values out"
    )
  return values
