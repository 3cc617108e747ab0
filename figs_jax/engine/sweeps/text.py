"""Sweeps as text: `pattern=1:2,1:4,...,1:128; rows=8,16,32`.

An axis is a name and its values. Three dots multiply by what lies between the
two numbers before them (by two, after a single number) up to the value that
follows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from figs_jax.core.pattern import NM
from figs_jax.engine._report import Report, report
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import field_value

_DOTS = ("...", "…")
_MOST = 100_000  # designs that a table can list
_ROWS = 2_000_000  # rows of a table


def read_axes(texts: str | Iterable[str]) -> dict[str, tuple[str, ...]]:
  """Name -> values of every axis, in the given order.

  Args:
    texts: "name=value,value,...", several separated by ";" or one per text.

  Raises:
    ValueError: no such text, an axis without values or given twice, or dots
      that do not lead from the values before them to the one after.

  >>> read_axes("pattern=1:2,1:4,...,1:32; rows=8,...,32")
  {'pattern': ('1:2', '1:4', '1:8', '1:16', '1:32'), 'rows': ('8', '16', '32')}
  """
  texts = [texts] if isinstance(texts, str) else texts
  found: dict[str, tuple[str, ...]] = {}
  parts = [part.strip() for text in texts for part in text.split(";")]
  for part in filter(None, parts):
    name, equals, values = (word.strip() for word in part.partition("="))
    if not name or not equals or not values:
      raise ValueError(
        f"sweep {part!r}: write name=value,value,..., as in"
        " 'pattern=1:2,1:4,...,1:128'"
      )
    if name in found:
      raise ValueError(f"sweep {part!r}: {name!r} is given twice; keep one")
    found[name] = _expanded(
      part, [value.strip() for value in values.split(",")]
    )
  return found


def designs(
  engines: Sequence[Engine], axes: Mapping[str, Sequence[str]]
) -> list[Engine]:
  """Every engine at every point of the axes that it has.

  An engine that lacks an axis stands still along it. The name of a changed
  engine is its spec.

  Args:
    engines: with scalar fields.
    axes: field -> values, as text.

  Raises:
    ValueError: an axis that no engine has, a value of the wrong type, or an
      engine that cannot be.

  >>> from figs_jax.engine import parse
  >>> found = designs([parse("ws:8x8"), parse("figs")], {"alpha": ["1", "3"]})
  >>> list(map(str, found))
  ['ws:8x8', 'figs:32x16:alpha=1', 'figs:32x16:alpha=3']
  """
  _refuse_text(axes)
  known = {name for engine in engines for name in _fields(engine)}
  for name in axes:
    if name not in known:
      raise ValueError(
        f"sweep {name!r}: none of the engines has it,"
        f" {nearest(name, known | {'pattern', 'batch'})}"
      )
  made = []
  for engine in engines:
    names = [name for name in axes if name in _fields(engine)]
    several = math.prod(len(axes[name]) for name in names)
    if len(made) + several > _MOST:
      raise ValueError(
        f"sweep: {engine} alone has {several} designs, and a table lists"
        f" {_MOST} at most; give fewer values"
      )
    points = itertools.product(*(axes[name] for name in names))
    made += [_changed(engine, dict(zip(names, point))) for point in points]
  return made


def swept(
  workloads: Mapping[str, Layers],
  engines: Sequence[Engine],
  axes: Mapping[str, Sequence[str]],
  fmt: str = "table",
  **options: Any,
) -> Report:
  """The report of every workload with every pattern on every design.

  Args:
    workloads: label -> layers, which the axis "pattern" changes where they are
      sparse (`Layers.with_pattern`); "dense" takes patterns away.
    engines: with scalar fields.
    axes: of `read_axes`; all but "pattern" are fields of engines.
    fmt: of `figs_jax.engine._report`.
    **options: of it too.

  Raises:
    ValueError: as `designs` and `report`, a value of "pattern" that is none, or
      more rows than a table can hold.

  >>> from figs_jax.engine import parse
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64}]
  >>> axes = read_axes("pattern=dense,1:2")
  >>> made = swept({"": Layers.of(rows)}, [parse("ws:8x8")], axes)
  >>> [total.pattern for total in made.totals]
  ['dense', '1:2']
  """
  _refuse_text(axes)
  axes = dict(axes)
  patterns = axes.pop("pattern", (None,))
  machines = designs(engines, axes)
  layers = sum(map(len, workloads.values()))
  if layers * len(patterns) * len(machines) > _ROWS:
    raise ValueError(
      f"sweep: {layers} layers, {len(patterns)} patterns and {len(machines)}"
      f" designs are more than {_ROWS} rows; give fewer values"
    )
  return Report.joined(
    [
      report(_with(table, pattern), machines, fmt, workload=label, **options)
      for label, table in workloads.items()
      for pattern in patterns
    ]
  )


def _refuse_text(axes: Mapping[str, Any]) -> None:
  for name, values in axes.items():
    if isinstance(values, str):
      raise ValueError(
        f"sweep {name!r}: got {values!r}; give a list of values, as in"
        f" {[values]!r}"
      )


def _with(table: Layers, pattern: str | None) -> Layers:
  if pattern is None:
    return table
  if pattern == "dense":
    return table.dense()
  try:
    return table.with_pattern(pattern)
  except ValueError as error:
    raise ValueError(f"sweep pattern: {error}") from error


def _changed(engine: Engine, texts: Mapping[str, str]) -> Engine:
  if not texts:
    return engine
  fields = _fields(engine)
  try:
    values = {
      name: field_value(type(engine), fields[name], text)
      for name, text in texts.items()
    }
    return dataclasses.replace(engine, name="", **values)
  except ValueError as error:
    at = "".join(f":{name}={text}" for name, text in texts.items())
    raise ValueError(f"sweep {engine}{at}: {error}") from error


def _fields(engine: Engine) -> dict[str, dataclasses.Field]:
  """The fields that a sweep may change: numbers, and choices by name."""
  return {
    field.name: field
    for field in dataclasses.fields(engine)
    if field in engine.numeric() or field.name in engine.CHOICES
  }


def _expanded(part: str, values: list[str]) -> tuple[str, ...]:
  if any(not value for value in values):
    raise ValueError(f"sweep {part!r}: a value is missing between commas")
  found: list[str] = []
  for place, value in enumerate(values):
    if value not in _DOTS:
      found.append(value)
      continue
    if not found or place + 1 == len(values) or values[place + 1] in _DOTS:
      raise ValueError(
        f"sweep {part!r}: put a value before and after the dots, as in"
        " 1:2,1:4,...,1:128"
      )
    before = [x for x in found[-2:-1] if x[0].isdigit()] + found[-1:]
    found += _between(part, before, values[place + 1])
  if len(set(found)) < len(found):
    raise ValueError(f"sweep {part!r}: a value is given twice; keep one")
  return tuple(found)


def _between(part: str, before: list[str], end: str) -> list[str]:
  """The values that the dots stand for, without those on either side."""
  numbers = [_number(part, text) for text in (*before, end)]
  heads = {head for head, _ in numbers}
  first, value, last = numbers[0][1], numbers[-2][1], numbers[-1][1]
  factor, rest = divmod(value, first) if len(before) == 2 else (2, 0)
  found = []
  while factor > 1 and value * factor < last:
    value *= factor
    found.append(value)
  if len(heads) > 1 or rest or value * factor != last:
    raise ValueError(
      f"sweep {part!r}: the dots multiply by {factor} and do not lead from"
      f" {before[-1]} to {end}; write the values out"
    )
  head = heads.pop()
  return [f"{head}{value}" for value in found]


def _number(part: str, text: str) -> tuple[str, int]:
  """("", 8) of "8"; ("1:", 8) of "1:8"."""
  if re.fullmatch(r"[1-9]\d{0,17}", text):
    return "", int(text)
  try:
    pattern = NM.parse(text)
  except ValueError as error:
    raise ValueError(
      f"sweep {part!r}: dots need patterns or whole numbers from 1, not"
      f" {text!r}"
    ) from error
  return f"{pattern.n}:", pattern.m
