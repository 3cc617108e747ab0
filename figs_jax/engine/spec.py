"""Engines as frozen, validated descriptions, and the text that names them.

`kind[:RxC][:key=value]...`, as in `ws:32x32:overlap=none`. A bare kind is a
preset: `ws`, `is` and `os` are 32 x 16, the 512 multipliers at which published
sparse engines are compared.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from figs_jax.engine.exact import array_dataclass, is_traced

DATAFLOWS = ("ws", "os", "is")
OVERLAPS = ("none", "weights", "full")
MAX_SIDE = 2**31 - 1
_SHAPE = re.compile(r"(\d+)x(\d+)")
_PRESET = "32x16"


@array_dataclass("dataflow", "overlap", "name", "sparse")
@dataclasses.dataclass(frozen=True)
class Systolic:
  """A systolic array of rows x cols multipliers, one result each per cycle.

  Attributes:
    dataflow: what stays in the array: "ws" weights (K down the rows, N across),
      "is" inputs (K down, M across), "os" outputs (M down, N across).
    rows: rows R; an integer array describes many designs at once.
    cols: columns C; broadcasts against rows and against the layers.
    overlap: what hides behind the streaming of another fold: "none"; "weights",
      the loading of the stationary operand; "full", filling and draining too.
    name: how tables call it; by default its spec.
    sparse: whether N:M weights are stored and run compressed. If not, a sparse
      layer runs dense, and only its kept weights count as useful.

  >>> str(Systolic("ws", 32, 16, overlap="full"))
  'ws:32x16:overlap=full'

  Raises:
    ValueError: an unknown dataflow or overlap, or a side below 1.
  """

  dataflow: str
  rows: Any
  cols: Any
  overlap: str = "none"
  name: str = ""
  sparse: bool = True

  def __post_init__(self):
    for field, legal in (("dataflow", DATAFLOWS), ("overlap", OVERLAPS)):
      got = getattr(self, field)
      if got not in legal:
        raise ValueError(f"Systolic {field} {got!r}: {nearest(got, legal)}")
    for field in ("rows", "cols"):
      _check_side(field, getattr(self, field))
    if not self.name:
      object.__setattr__(self, "name", self._spec())

  def _spec(self) -> str:
    sides = [
      "*" if is_traced(side) or np.ndim(side) else str(side)
      for side in (self.rows, self.cols)
    ]
    overlap = "" if self.overlap == "none" else f":overlap={self.overlap}"
    sparse = "" if self.sparse else ":sparse=false"
    return f"{self.dataflow}:{'x'.join(sides)}{overlap}{sparse}"

  def __str__(self) -> str:
    return self.name


def parse(spec: str | Systolic) -> Systolic:
  """Reads an engine's spec; an engine is returned as it is.

  Raises:
    ValueError: an unknown kind or key, or a malformed size or value.

  >>> parse("os:16x64").cols
  64
  >>> parse("ws") == parse("ws:32x16:overlap=none:name=ws")
  True
  """
  if isinstance(spec, Systolic):
    return spec
  kind, *parts = spec.strip().split(":")
  if kind not in _KINDS:
    raise ValueError(
      f"engine {spec!r}: unknown kind {kind!r}, {nearest(kind, _KINDS)}"
    )
  shape = parts.pop(0) if parts and "=" not in parts[0] else None
  options = {}
  for part in parts:
    key, equals, value = part.partition("=")
    if not equals or not value:
      raise ValueError(
        f"engine {spec!r}: cannot read {part!r}; write key=value, as in"
        f" '{kind}:{_PRESET}:overlap=none'"
      )
    if key in options:
      raise ValueError(f"engine {spec!r}: {key!r} is given twice; keep one")
    options[key] = value
  options = {"name": spec.strip()} | options
  return _KINDS[kind](spec, shape, options)


def _systolic(
  dataflow: str, spec: str, shape: str | None, options: dict[str, str]
) -> Systolic:
  match = _SHAPE.fullmatch(_PRESET if shape is None else shape)
  if match is None:
    raise ValueError(
      f"engine {spec!r}: size {shape!r} is not ROWSxCOLS; write it as in"
      f" '{dataflow}:{_PRESET}'"
    )
  values: dict[str, Any] = {}
  for key, text in options.items():
    if key not in _SYSTOLIC_KEYS:
      raise ValueError(
        f"engine {spec!r}: unknown key {key!r}, {nearest(key, _SYSTOLIC_KEYS)}"
      )
    legal = _SYSTOLIC_KEYS[key]
    if legal and text not in legal:
      raise ValueError(
        f"engine {spec!r}: {key}={text!r}, {nearest(text, legal)}"
      )
    values[key] = text == "true" if key == "sparse" else text
  try:
    return Systolic(dataflow, int(match[1]), int(match[2]), **values)
  except ValueError as error:
    raise ValueError(f"engine {spec!r}: {error}") from error


_SYSTOLIC_KEYS: dict[str, tuple[str, ...]] = {
  "overlap": OVERLAPS,
  "sparse": ("true", "false"),
  "name": (),
}
# kind -> reader of (spec, size text or None, options).
_KINDS: dict[str, Callable[[str, str | None, dict[str, str]], Systolic]] = {
  dataflow: functools.partial(_systolic, dataflow) for dataflow in DATAFLOWS
}


def _check_side(field: str, value: Any) -> None:
  if is_traced(value):
    return
  array = np.asarray(value)
  legal = array.dtype.kind in "iu" and array.size > 0
  if not legal or array.min() < 1 or array.max() > MAX_SIDE:
    raise ValueError(
      f"{field}: got {value!r}; give integers from 1 to {MAX_SIDE}, as in"
      f" 'ws:{_PRESET}'"
    )


def nearest(word: object, choices: Iterable[str]) -> str:
  """A hint for an error message: the closest choice, then all of them."""
  choices = sorted(choices)
  close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return f"{hint}Known: {', '.join(choices)}"
