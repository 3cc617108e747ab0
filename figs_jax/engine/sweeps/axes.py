"""What a sweep varies: axes by name, and the designs that they make.

`AXES` holds the axes of a layer. Besides these every field of an engine that
holds a number is an axis, and so is every choice (`overlap`, `sparse`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import LIMITS, Engine, nearest, text_of
from figs_jax.engine.spec_text import field_value
from figs_jax.engine.sweeps.text import read_axes, read_values

SIZES = ("M", "N", "K")

Axes = Mapping[str, Sequence[Any] | str]


def _integers(
  name: str, limits: tuple[int, int], values: Sequence[Any]
) -> dict[str, np.ndarray]:
  least, most = limits
  array = np.asarray(values)
  whole = array.dtype.kind in "iu" and array.ndim == 1
  if not whole or array.min() < least or array.max() > most:
    wrong = [
      x
      for x in values
      if not isinstance(x, int | np.integer) or not least <= x <= most
    ] or [*values]
    # NumPy writes its own numbers as calls.
    got = getattr(wrong[0], "item", lambda: wrong[0])()
    raise ValueError(
      f"sweep axis {name!r}: got {got!r}; expected integers from {least}"
      f" to {most}"
    )
  return {name: array.astype(np.int64)}


def _patterns(values: Sequence[Any]) -> dict[str, np.ndarray]:
  try:
    patterns = [
      NM(1, 1) if x in (None, "dense") else NM.parse(x) for x in values
    ]
  except ValueError as error:
    raise ValueError(f"sweep axis 'pattern': {error}") from error
  return {
    "n": np.array([pattern.n for pattern in patterns], np.int64),
    "m": np.array([pattern.m for pattern in patterns], np.int64),
  }


# Axis -> reader of its values, which gives the columns that they are.
AXES: dict[str, Callable[[Sequence[Any]], dict[str, np.ndarray]]] = {
  **{name: functools.partial(_integers, name, LIMITS[name]) for name in SIZES},
  "pattern": _patterns,
}
# Axes that change the layers as a whole, one workload per value. Whoever makes
# the layers reads them: launch/engine.py for a model.
WORKLOAD_AXES = ("batch", "seq", "context")


def as_axes(axes: Axes | str | Iterable[str]) -> dict[str, Sequence[Any]]:
  """Name -> values, from axes as text or by name.

  Raises:
    ValueError: If there are none, or values are neither a sequence nor text.
  """
  known: dict[str, Any] = {}
  if isinstance(axes, Mapping):
    for name, values in axes.items():
      text = isinstance(values, str)
      known[name] = read_values(name, values) if text else values
  else:
    known |= read_axes(axes)
  if not known:
    raise ValueError(
      "sweep: no axes; give at least one, as in 'rows=8,16,...,256', or call"
      " cost()"
    )
  for name, values in known.items():
    if not np.iterable(values) or isinstance(values, Mapping):
      raise ValueError(
        f"sweep axis {name!r}: got {values!r}; expected a list of values, as in"
        f" [{values!r}], or text, as in '8,16,...,256'"
      )
    if not len(known[name]):
      raise ValueError(f"sweep axis {name!r}: no values; give at least one")
  return known


def workloads_of(
  layers: Layers | Iterable[Mapping[str, Any]] | Mapping[str, Layers],
  label: str = "",
) -> dict[str, Layers]:
  """Label -> table, from one table, its rows, or tables by label."""
  tables: Any = layers
  if not isinstance(layers, Mapping) or not all(
    isinstance(table, Layers) for table in layers.values()
  ):
    tables = {label: layers}
  return {name: Layers.of(table) for name, table in tables.items()}


def read_axis(
  engine: Engine, name: str, values: Sequence[Any]
) -> dict[str, np.ndarray]:
  """The columns of an axis: one, or several that change together.

  Args:
    engine: Engine whose fields may be axes.
    name: One of `AXES`, a numeric field, or several of them, as "rows,cols".
    values: Values of the axis, tuples where `name` has several parts.

  Raises:
    ValueError: If the name is unknown or a value illegal.
  """
  names = parts_of(name)
  columns = [values]
  if len(names) > 1:
    for row in values:
      if np.ndim(row) != 1 or len(row) != len(names):
        raise ValueError(f"sweep axis {name!r}: got {row!r}; give {name} each")
    columns = list(zip(*values))
  limits = engine.limits()
  read: dict[str, np.ndarray] = {}
  for part, column in zip(names, columns):
    if part in AXES:
      read |= AXES[part](column)
    elif part in limits:
      read |= _integers(part, limits[part], column)
    else:
      known = nearest(part, {*limits, *AXES})
      raise ValueError(f"sweep axis {name!r} of {engine}: {known}")
  return read


def parts_of(name: str) -> list[str]:
  """What an axis names.

  >>> parts_of("rows, cols")
  ['rows', 'cols']
  """
  return [part.strip() for part in name.split(",")]


def own_axes(
  engines: Sequence[Engine], axes: Iterable[str], fixed: Iterable[str] = ()
) -> list[list[str]]:
  """The axes of each engine, layers' axes among them, in their order.

  Args:
    engines: Engines to vary.
    axes: Names of the axes.
    fixed: Names that may not be axes, since the layers say them.

  Raises:
    ValueError: If none of the engines has an axis, or the layers fix it.
  """
  own: list[list[str]] = [[] for _ in engines]
  known = {name for engine in engines for name in fields_of(engine)} | {*AXES}
  for name in axes:
    parts = set(parts_of(name))
    if parts & set(fixed):
      raise ValueError(
        f"sweep axis {name!r}: the layers have it; leave out one"
      )
    has = [parts <= {*AXES, *fields_of(engine)} for engine in engines]
    if not any(has):
      part = next((p for p in parts_of(name) if p not in known), name)
      who = engines[0] if len(engines) == 1 else "the engines"
      if parts & set(WORKLOAD_AXES):
        raise ValueError(
          f"sweep axis {name!r} is of models; pass the layers of each value, as"
          " in {'batch 8': layers}"
        )
      raise ValueError(
        f"sweep axis {name!r} of {who}:"
        f" {nearest(part, {*known, *WORKLOAD_AXES} - {*fixed})}"
      )
    for names, here in zip(own, has):
      names += [name] * here
  return own


def fields_of(engine: Engine) -> dict[str, dataclasses.Field]:
  """The fields that may be axes: numbers, and choices by name or yes and no."""
  return {
    field.name: field
    for field in dataclasses.fields(engine)
    if field in engine.numeric()
    or field.name in engine.CHOICES
    or field.type in ("bool", bool)
  }


def choices_of(engine: Engine) -> set[str]:
  """The fields among them that are static."""
  return {*fields_of(engine)} - {field.name for field in engine.numeric()}


def designs(
  engines: Sequence[Engine],
  axes: Mapping[str, Sequence[Any]],
  most: int = 100_000,
) -> list[Engine]:
  """Every engine at every point of the axes that it has, one by one.

  An engine that lacks an axis stands still along it. The name of a changed
  engine is its spec with every axis, so that points differ in their names.

  Args:
    engines: Engines with scalar fields.
    axes: Field -> values.
    most: Number of designs that can be listed.

  Raises:
    ValueError: If no engine has an axis, a value is of the wrong type, an
      engine cannot be, or there are too many.

  >>> from figs_jax.engine import parse
  >>> made = designs([parse("ws:8x8"), parse("figs")], {"alpha": [3, 7]})
  >>> list(map(str, made))
  ['ws:8x8', 'figs:32x16:alpha=3', 'figs:32x16:alpha=7']
  """
  own = [
    {name: axes[name] for name in names}
    for names in own_axes(engines, axes, AXES)
  ]
  count = sum(math.prod(map(len, mine.values())) for mine in own)
  if count > most:
    raise ValueError(
      f"sweep: {count:,} designs are more than the {most:,} that a report of"
      " these layers can list; give fewer values, or select from all of them by"
      " engine.sweep (--pareto, --smallest, --points)"
    )
  return [
    design(engine, dict(zip(mine, point)))
    for engine, mine in zip(engines, own)
    for point in itertools.product(*mine.values())
  ]


def design(engine: Engine, point: Mapping[str, Any]) -> Engine:
  """The engine at a point of some axes.

  Raises:
    ValueError: If a value is of the wrong type, or the engine cannot be.
  """
  if not point:
    return engine
  fields, values = fields_of(engine), {}
  for name, value in point.items():
    parts = parts_of(name)
    values |= zip(parts, value if len(parts) > 1 else (value,))
  for name in values:
    if name not in fields:
      raise ValueError(
        f"sweep axis: {name!r} cannot change with an engine's choices"
      )
  try:
    changes = {
      name: field_value(type(engine), fields[name], text_of(value))
      for name, value in values.items()
    }
    made = dataclasses.replace(engine, name="", **changes)
    return dataclasses.replace(made, name=made.spec(shown=changes))
  except ValueError as error:
    at = "".join(f":{name}={value}" for name, value in values.items())
    raise ValueError(f"sweep {engine}{at}: {error}") from error
