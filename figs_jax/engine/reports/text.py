"""Rows and columns as text: for a terminal, a page, or a program."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Comma-separated values; fractions with nine digits.

  >>> print(csv_text(["name", "share"], [["a, b", 1 / 3]]))
  name,share
  "a, b",0.333333333
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(
    [f"{x:.9g}" if isinstance(x, float) else x for x in row] for row in rows
  )
  return out.getvalue().rstrip("\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table for a page.

  >>> print(markdown(["name", "share"], [["a", 0.5]]))
  | name | share |
  | --- | --- |
  | a | 0.500 |
  """
  cells = [[x.replace("|", "\\|") for x in row] for row in _texts(header, rows)]
  cells.insert(1, ["---"] * len(header))
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table for a terminal: text to the left, numbers to the right.

  >>> print(text_table(["name", "size"], [["a", 5], ["bb", 50]]))
  name  size
  a        5
  bb      50
  """
  cells = _texts(header, rows)
  widths = [max(map(len, column)) for column in zip(*cells)]
  left = [
    all(isinstance(x, str) for x in column)
    for column in zip(*(rows or [header]))
  ]
  return "\n".join(
    "  ".join(
      x.ljust(w) if to_left else x.rjust(w)
      for x, w, to_left in zip(row, widths, left)
    ).rstrip()
    for row in cells
  )


def columns_text(columns: Mapping[str, Any], caption: str, fmt: str) -> str:
  """Columns as one of `FORMATS`, with a caption but in CSV.

  Args:
    columns: Arrays of equal length by name; -1 stands for nothing.
    caption: What the numbers are.
    fmt: Format of the text.

  >>> print(columns_text({"a": np.array([1, -1])}, "Two rows.", "table"))
  Two rows.
  <BLANKLINE>
  a
  1
  -
  """
  lists = [np.asarray(x).tolist() for x in columns.values()]
  rows = [[None if x == -1 else x for x in row] for row in zip(*lists)]
  if fmt == "json":
    points = [dict(zip(columns, row)) for row in rows]
    return json.dumps({"caption": caption, "points": points}, indent=1)
  if fmt == "csv":
    return csv_text(list(columns), rows)
  draw = markdown if fmt == "md" else text_table
  return f"{caption}\n\n{draw(list(columns), rows)}"


def times(ratio: float) -> str:
  """A speed-up, which may be tiny, as text.

  >>> times(2.149), times(1.0), times(0.000412)
  ('2.15×', '1.00×', '0.00041×')
  """
  return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def plain(value: Any) -> str:
  """A value for a reader: three decimals, or four digits of a large number.

  >>> [plain(x) for x in (1 / 3, 1234.5, 9999999, 454807872, 9.162e11)]
  ['0.333', '1234', '9999999', '454.8M', '916.2G']
  >>> plain(None), plain(0.0), plain(0.000051), plain("ws")
  ('-', '0.000', '0.000051', 'ws')
  """
  if value is None:
    return "-"
  if not isinstance(value, int | float) or isinstance(value, bool):
    return str(value)
  size = abs(value)
  for letter, unit in _UNITS:
    if size >= max(unit, _LARGE) and size < 1000 * unit:
      return f"{value / unit:#.4g}".rstrip(".") + letter
  if isinstance(value, int):
    return str(value)
  if size >= 1000:
    return f"{value:.0f}"
  if not size or size >= 0.001:
    return f"{value:.3f}"
  # Two digits, without an exponent unless the number is beyond sense.
  return np.format_float_positional(float(f"{value:.2g}"), trim="-")


_LARGE = 10**7
_UNITS = [(x, 10 ** (3 * i)) for i, x in enumerate("MGTPE", 2)]


def _texts(
  header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[list[str]]:
  return [list(header), *([plain(x) for x in row] for row in rows)]
