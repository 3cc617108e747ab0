"""The text that names an engine: `kind[:SIZE or CHIP][:key=value]...`.

  ws:32x32                      systolic array, weights stationary; also is, os
  vegeta-s-16-2                 VEGETA, alpha 16, beta 2; vegeta-d-1-2 is dense
  figs:32x16:alpha=7:beta=1     FIGS
  tensorcore:h200               2:4 tensor cores; gpu:h200 runs all layers dense
  tpu:v5e                       a TPU's roofline
  trainium2, trainium3          4:16, 4:12, 4:8, 2:8, 2:4, 1:4 and 1:2
  nm-spmm:a100                  a bound for N:M kernels without sparse units
  csr:h200                      sparse times dense in CSR on that memory

Chips: `figs_jax.engine.chips`, or any name with :peak= and :hbm=. A chip runs
at its rate for the data type of the operands; :dtype= sets one for an engine.

Keys are the fields of the engine's class. A bare kind is a preset of 512
multipliers: `ws`, `is`, `os` 32x16; `vegeta`, which is vegeta-s-16-2; `figs`,
which is figs:32x16:alpha=7:beta=1.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
from typing import Any, TypeVar

from figs_jax.engine import chips
from figs_jax.engine.spec import Engine, nearest

# First word of a spec -> the class that reads it.
_CLASSES: dict[str, type[Engine]] = {}
_E = TypeVar("_E", bound=type[Engine])


def register(kind: _E) -> _E:
  """Class decorator that lets `parse` read a kind of engine.

  Args:
    kind: A subclass of `figs_jax.engine.Engine`.

  Raises:
    ValueError: If it has no `KINDS`, or another class has one of them.

  >>> from typing import Any
  >>> @register
  ... class Example(Engine):
  ...   rows: Any = 32
  ...   cols: Any = 16
  ...   KINDS = ("example",)
  >>> parse("example:8x4").cols
  4
  >>> _ = _CLASSES.pop("example")  # so that the example leaves no trace
  """
  if not kind.KINDS:
    raise ValueError(f"engine {kind.__name__}: expected KINDS, as in ('toy',)")
  for word in kind.KINDS:
    if word in _CLASSES and not _again(_CLASSES[word], kind):
      raise ValueError(f"engine {word!r} is registered already; rename yours")
    _CLASSES[word] = kind
  return kind


def _again(old: type, new: type) -> bool:
  """Whether a notebook's cell or a file was merely run once more."""
  codes = (inspect.unwrap(cls.formula).__code__ for cls in (old, new))
  same_file = len({os.path.realpath(code.co_filename) for code in codes}) == 1
  here = same_file or old.__module__ == new.__module__
  return here and old.__qualname__ == new.__qualname__


def parse(spec: str | Engine) -> Engine:
  """Reads an engine's spec; an engine is returned as it is.

  Args:
    spec: Text as in the module's docstring, or an engine.

  Raises:
    ValueError: If the kind, chip or a key is unknown, a size or value is
      malformed, or there can be no such engine. The message names the spec and
      the fix.

  >>> parse("os:16x64").cols
  64
  >>> parse("ws") == parse("ws:32x16:overlap=none:name=ws")
  True
  >>> parse("figs:32x16:alpha=3:exchange=swap").exchange
  'swap'
  """
  if isinstance(spec, Engine):
    return spec
  if not isinstance(spec, str):
    raise ValueError(
      "engine: expected one spec, as in 'ws:32x32', or an engine, got"
      f" {type(spec).__name__}"
    )
  kind, *parts = spec.strip().split(":")
  family = kind if kind in _CLASSES else kind.partition("-")[0] + "-"
  if family not in _CLASSES:
    raise ValueError(f"engine {spec!r}: {_unknown(kind, parts)}")
  cls = _CLASSES[family]
  size = parts.pop(0) if parts and "=" not in parts[0] else None
  try:
    options = _options(cls, parts)
    fields = {"name": spec.strip()} | cls.read_prefix(kind, size) | options
    missing = [name for name in _required(cls) if name not in fields]
    if missing:
      raise ValueError(cls.missing(kind, size, missing))
    return cls(**fields)
  except ValueError as error:
    raise ValueError(f"engine {spec!r}: {error}") from error


def _unknown(kind: str, parts: list[str]) -> str:
  """What to tell the author of a spec that begins with an unknown kind.

  The word may be a chip, which several kinds of engines model, or misspelt.
  """
  known = sorted(name for name in _CLASSES if not name.endswith("-"))
  head, dash, rest = kind.partition("-")
  close = difflib.get_close_matches(head if dash else "", known, 1, 0.7)
  close = [f"{word}-{rest}" for word in close]
  close = close or difflib.get_close_matches(kind, known, 1, 0.5)
  specs = chips.specs(kind)
  is_chip = any(chips.find(x, kind) for x in chips.CHIPS)
  meant = specs if is_chip or not close else close
  texts = [repr(":".join([word, *parts])) for word in meant]
  hint = f"did you mean {' or '.join(texts)}? " if texts else ""
  what = f"unknown kind {kind!r}"
  what = f"expected a kind of engine before chip {kind!r}" if is_chip else what
  return f"{what}, {hint}{'Known' if texts else 'known'}: {', '.join(known)}"


def _required(cls: type[Engine]) -> list[str]:
  """Fields without a default."""
  absent = dataclasses.MISSING
  return [f.name for f in dataclasses.fields(cls) if f.default is absent]


def _options(cls: type[Engine], parts: list[str]) -> dict[str, Any]:
  """The values of key=value parts, of the type of the field they name."""
  fields = {
    field.name: field
    for field in dataclasses.fields(cls)
    if field.name not in cls.PREFIX or field.default is not dataclasses.MISSING
  }
  options: dict[str, Any] = {}
  for part in parts:
    key, equals, text = part.partition("=")
    if not equals or not text:
      raise ValueError(
        f"cannot read {part!r}; write key=value, as in 'ws:32x16:overlap=none'"
      )
    if key not in fields:
      raise ValueError(f"unknown key {key!r}, {nearest(key, fields)}")
    if key in options:
      raise ValueError(f"{key!r} is given twice; keep one")
    options[key] = field_value(cls, fields[key], text)
  return options


def field_value(cls: type[Engine], field: dataclasses.Field, text: str) -> Any:
  """A field's value from text, of the field's type.

  Raises:
    ValueError: If the text is not one of the choices, or not an integer.

  >>> figs = type(parse("figs"))
  >>> field_value(figs, figs.numeric()[0], "64")
  64
  """
  key = field.name
  choices = cls.CHOICES.get(key)
  if field.type in ("bool", bool):
    choices = ("true", "false")
  if choices and text not in choices:
    raise ValueError(f"unknown {key}={text!r}, {nearest(text, choices)}")
  if field.type in ("bool", bool):
    return text == "true"
  if field not in cls.numeric():
    return text
  if not re.fullmatch(r"-?\d+", text):
    raise ValueError(f"{key}={text!r}: expected an integer, as in {key}=1")
  return int(text)
