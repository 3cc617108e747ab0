"""The text that names an engine: `kind[:SIZE or CHIP][:key=value]...`.

  ws:32x32                      systolic array, weights stationary; also is, os
  vegeta-s-16-2                 VEGETA, alpha 16, beta 2; vegeta-d-1-2 is dense
  figs:32x16:alpha=7:beta=1     FIGS
  tensorcore:h200               2:4 tensor cores; gpu:h200 runs all layers dense
  tpu:v5e                       a TPU's roofline
  csr:h200                      sparse times dense in CSR on that memory

Keys are the fields of the engine's class. A bare kind is a preset of 512
multipliers: `ws`, `is`, `os` 32x16; `vegeta`, which is vegeta-s-16-2; `figs`,
which is figs:32x16:alpha=7:beta=1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from figs_jax.engine.description import nearest
from figs_jax.engine.spec import (
  DATAFLOWS,
  Csr,
  Engine,
  Figs,
  Roofline,
  Systolic,
  Vegeta,
)

_SHAPE = re.compile(r"(\d+)x(\d+)")
_VEGETA = re.compile(r"vegeta-([ds])-(\d+)-(\d+)")
_PRESET = "32x16"

# chip -> dense 16-bit GFLOP/s, GB/s, side of the matrix unit, and how many
# times the peak 8-bit operands run at.
TPUS = {
  "v4": (275_000, 1230, 128, 1),
  "v5e": (197_000, 820, 128, 2),
  "v5p": (459_000, 2460, 128, 2),
  "v6e": (920_000, 1640, 256, 2),
  "v7x": (2_310_000, 7400, 256, 2),
}
# The side is that of one tensor core instruction; kernels pad to larger tiles.
GPUS = {
  "a100": (312_000, 2039, 16, 2),
  "h100": (989_000, 3350, 16, 2),
  "h200": (989_000, 4800, 16, 2),
}
# kind -> the chips it knows.
CHIPS = {"tpu": TPUS, "gpu": GPUS, "tensorcore": GPUS, "csr": GPUS | TPUS}
# ns of a 2:4 call before it computes, on any GPU: calibrated on one published
# ratio, 1.11 at 4096^3 in 16 bits on an A100, measured from PyTorch
# (`figs_jax.engine.roofline.calibrated_overhead`).
SPARSE_OVERHEAD = 176_601


def parse(spec: str | Engine) -> Engine:
  """Reads an engine's spec; an engine is returned as it is.

  Args:
    spec: as in the module's docstring, or an engine.

  Raises:
    ValueError: an unknown kind, chip or key, a malformed size or value, or an
      engine that cannot be; it names the spec and the fix.

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
      f"engine: got {type(spec).__name__}; give one spec, as in 'ws:32x32', or"
      " an engine"
    )
  kind, *parts = spec.strip().split(":")
  family = "vegeta" if kind.startswith("vegeta") else kind
  if family not in _READERS:
    raise ValueError(
      f"engine {spec!r}: unknown kind {kind!r}, {nearest(kind, _READERS)}"
    )
  cls, read = _READERS[family]
  size = parts.pop(0) if parts and "=" not in parts[0] else None
  try:
    options = _options(cls, parts)
    fields: dict[str, Any] = {"name": spec.strip()} | read(kind, size)
    return cls(**(fields | options))
  except ValueError as error:
    raise ValueError(f"engine {spec!r}: {error}") from error


def _systolic(kind: str, size: str | None) -> dict[str, Any]:
  return {"dataflow": kind} | _sides(kind, size)


def _figs(kind: str, size: str | None) -> dict[str, Any]:
  return _sides(kind, size)


def _vegeta(kind: str, size: str | None) -> dict[str, Any]:
  match = _VEGETA.fullmatch("vegeta-s-16-2" if kind == "vegeta" else kind)
  if match is None:
    raise ValueError(
      f"{kind!r} is not vegeta-d-ALPHA-BETA or vegeta-s-ALPHA-BETA; write it as"
      " in 'vegeta-s-16-2'"
    )
  letter, alpha, beta = match.groups()
  shape = {"alpha": int(alpha), "beta": int(beta)}
  return {"sparse": letter == "s"} | shape | _sides(kind, size)


def _chip(kind: str, size: str | None) -> dict[str, Any]:
  chips = CHIPS[kind]
  if size is None:
    raise ValueError(
      f"name the chip, as in '{kind}:{min(chips)}'; {nearest('', chips)}"
    )
  if size not in chips:
    raise ValueError(f"unknown chip {size!r}, {nearest(size, chips)}")
  peak, hbm, side, int8 = chips[size]
  found: dict[str, Any] = {"chip": size, "peak": peak, "hbm": hbm}
  if kind == "csr":
    return found
  if kind == "tensorcore":
    found["sparse_overhead"] = SPARSE_OVERHEAD
  return found | {"kind": kind, "side": side, "int8": int8}


def _sides(kind: str, size: str | None) -> dict[str, int]:
  match = _SHAPE.fullmatch(_PRESET if size is None else size)
  if match is None:
    raise ValueError(
      f"size {size!r} is not ROWSxCOLS; write it as in '{kind}:{_PRESET}'"
    )
  return {"rows": int(match[1]), "cols": int(match[2])}


_READERS: dict[str, tuple[Any, Callable[..., dict[str, Any]]]] = {
  **dict.fromkeys(DATAFLOWS, (Systolic, _systolic)),
  "vegeta": (Vegeta, _vegeta),
  "figs": (Figs, _figs),
  **dict.fromkeys(("tpu", "gpu", "tensorcore"), (Roofline, _chip)),
  "csr": (Csr, _chip),
}


def _options(cls: Any, parts: list[str]) -> dict[str, Any]:
  """The values of key=value parts, of the type of the field they name."""
  fields = {f.name: f for f in dataclasses.fields(cls)}
  legal = {n for n, f in fields.items() if f.default is not dataclasses.MISSING}
  legal -= {"sparse"} if cls is Vegeta else set()
  legal |= {"peak", "hbm"} if cls in (Roofline, Csr) else set()
  options: dict[str, Any] = {}
  for part in parts:
    key, equals, text = part.partition("=")
    if not equals or not text:
      raise ValueError(
        f"cannot read {part!r}; write key=value, as in 'ws:32x16:overlap=none'"
      )
    if key not in legal:
      raise ValueError(f"unknown key {key!r}, {nearest(key, legal)}")
    if key in options:
      raise ValueError(f"{key!r} is given twice; keep one")
    options[key] = field_value(cls, fields[key], text)
  return options


def field_value(cls: Any, field: dataclasses.Field, text: str) -> Any:
  """A field's value from text, of the field's type.

  Raises:
    ValueError: no such choice, or no whole number.

  >>> field_value(Figs, dataclasses.fields(Figs)[0], "64")
  64
  """
  key = field.name
  choices = cls.CHOICES.get(key)
  if field.type == "bool":
    choices = ("true", "false")
  if choices and text not in choices:
    raise ValueError(f"{key}={text!r}, {nearest(text, choices)}")
  if field.type == "bool":
    return text == "true"
  if field.type != "Any":
    return text
  if not re.fullmatch(r"-?\d+", text):
    raise ValueError(f"{key}={text!r} is no whole number; write {key}=1")
  return int(text)
