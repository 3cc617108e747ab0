"""Layer tables from CSV files: plain tables, and SCALE-Sim's topologies.

The header says which kind a file is and what its columns are:

  name,M,N,K[,pattern][,count]
  Layer,M,N,K,[Sparsity,]
  Layer name,IFMAP Height,IFMAP Width,Filter Height,Filter Width,Channels,
    Num Filter,Strides,[Sparsity,]

SCALE-Sim itself reads columns by their place and no name at all. A header that
has its names in most of these places may have others in the rest.

A convolution becomes the product of its patches with the filters, as in
SCALE-Sim:

  M = ceil((IH - FH + s) / s) ceil((IW - FW + s) / s)
  K = FH FW C,  N = filters

A file is read line by line, and no more of a line than a table could need, so
that junk of any size is refused at once.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from figs_jax.core.pattern import NM
from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.layers import Layers, read_pattern
from figs_jax.engine.spec import LIMITS, nearest

_log = logging.getLogger(__name__)
_LONGEST = 2**16  # characters of a line
_SHOWN = 40  # characters of a cell in an error message
_DENSE = "dense"
# Column -> its names in headers, in lower case with blanks for underscores.
_HEADERS = {
  "name": ("name", "layer", "layer name"),
  "M": ("m",),
  "N": ("n",),
  "K": ("k",),
  "IFMAP Height": ("ifmap height",),
  "IFMAP Width": ("ifmap width",),
  "Filter Height": ("filter height",),
  "Filter Width": ("filter width",),
  "Channels": ("channels",),
  "Num Filter": ("num filter", "num filters"),
  "Strides": ("strides", "stride"),
  "Stride Height": ("stride height",),
  "Stride Width": ("stride width",),
  "pattern": ("pattern", "sparsity"),
  "count": ("count", "batch", "batch size"),
}
_COLUMN_OF = {text: name for name, texts in _HEADERS.items() for text in texts}
_GEMM = ("name", "M", "N", "K")
_CONV = (
  "name", "IFMAP Height", "IFMAP Width", "Filter Height", "Filter Width",
  "Channels", "Num Filter",
)  # fmt: skip
_STRIDES = ("Strides", "Stride Height", "Stride Width")
_OPTIONAL = ("pattern", "count")
# The columns of SCALE-Sim's topologies, in their order.
_LAYOUTS = ((*_CONV, "Strides"), _GEMM)
_FIX = (
  "name the columns in the first row, separated by commas, as in"
  " name,M,N,K,pattern,count"
)


def read_layers(path: str | Path) -> Layers:
  """Reads a table of layers; a blank pattern is dense, a missing count is 1.

  Columns may come in any order, and blank lines are skipped. SCALE-Sim's habits
  are understood: trailing commas, comments after the last column that begin
  with #, a pattern (n:m) or a count there without a header, `Stride Height` and
  `Stride Width` in place of `Strides`, and layers with DP in their name, which
  are depth-wise: `Channels` products over one channel each. Its columns end at
  the first one without a name. Where names are unknown or doubled but most of
  the others stand in SCALE-Sim's places, these decide, and a warning is logged.

  Args:
    path: CSV file with columns name, M, N, K and optionally pattern and count,
      or topology file of SCALE-Sim.

  Raises:
    ValueError: If the file cannot be read. The message is one line with the
      file, row (the number of the line, from 1), column, value and fix.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "net.csv")
  ...   _ = path.write_text("Layer,M,N,K,Sparsity,\\nff,196,3072,768,1:8,\\n")
  ...   read_layers(path).pattern(0)
  '1:8'
  """
  try:
    with open(
      path, encoding="utf-8-sig", errors="surrogateescape", newline=None
    ) as file:
      rows, notes = _read(str(path), file)
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ValueError(
      f"{path}: {reason[0].lower()}{reason[1:]}; give the path of a CSV file"
      " with columns name,M,N,K"
    ) from error
  for note in notes:
    _log.warning(note)
  return Layers.of(rows)


def _read(path: str, file: TextIO) -> tuple[list[dict[str, Any]], list[str]]:
  """The rows, and what a reader of the table should know."""
  records = _records(path, file)
  number, header = next(records, (0, []))
  if not header:
    raise ValueError(f"{path}: the file is empty; {_FIX}")
  where = f"{path}, row {number}"
  # SCALE-Sim's rows may omit cells or add some; those of plain tables may not.
  strict = "name" in map(str.lower, header)
  named, rest = _named(header, strict)
  columns, notes = _columns(where, named, strict)
  rows = []
  for number, cells in records:
    if rest:
      cells = cells[: len(columns)]
    rows.append(_row(f"{path}, row {number}", columns, cells, strict))
  if not rows:
    raise ValueError(f"{path}: no row below the header; add one per layer")
  if rest:
    notes.append(
      f"{where}: column {len(columns) + 1} has no name; it and what follows it"
      f" ({', '.join(map(_got, rest[:4]))}) are left out"
    )
  return rows, notes


def _named(header: list[str], strict: bool) -> tuple[list[str], list[str]]:
  """The header's columns, and the names that stand behind a nameless one."""
  if strict:
    while not header[-1]:
      header.pop()
    return header, []
  end = header.index("") if "" in header else len(header)
  return header[:end], [cell for cell in header[end:] if cell]


def _records(path: str, file: TextIO) -> Iterator[tuple[int, list[str]]]:
  """(line number, stripped cells) of every row that is not blank."""
  reader = csv.reader(_lines(path, file), skipinitialspace=True)
  number = 1
  while True:
    try:
      cells = next(reader, None)
    except csv.Error as error:
      raise ValueError(
        f"{path}, row {number}: invalid CSV ({error}); close every quote"
      ) from error
    if cells is None:
      return
    cells = [cell.strip() for cell in cells]
    if any(cells):
      yield number, cells
    number = reader.line_num + 1


def _lines(path: str, file: TextIO) -> Iterator[str]:
  """The lines; the beginning of one that is too long precedes the error."""
  number = 0
  while line := file.readline(_LONGEST):
    number += 1
    bad = re.search(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]", line)
    if bad:
      raise ValueError(
        f"{path}, row {number}, character {bad.start() + 1}: expected text, got"
        f" byte 0x{ord(bad[0]) & 0xFF:02x}; save the table as CSV in UTF-8"
      )
    yield line
    if len(line) == _LONGEST and not line.endswith("\n"):
      raise ValueError(
        f"{path}, row {number}: longer than {_LONGEST} characters; {_FIX}"
      )


def _columns(
  where: str, header: list[str], strict: bool
) -> tuple[list[str], list[str]]:
  """The columns of a header, and what a reader should know about them."""
  columns = [_column(cell) for cell in header]
  notes = []
  for layout in () if strict else _LAYOUTS:
    if columns[: len(layout)] != list(layout) and _is_placed(columns, layout):
      notes = [
        f"{where}, column {number}: {_got(header[number - 1])} is read as"
        f" {column!r}, by its place"
        for number, column in enumerate(layout, 1)
        if columns[number - 1] != column
      ]
      columns[: len(layout)] = layout
      break
  for number, (cell, column) in enumerate(zip(header, columns), 1):
    here = f"{where}, column {number}"
    if column is None:
      raise ValueError(f"{here}: unknown column {_hint(cell, columns, strict)}")
    if column in columns[: number - 1]:
      raise ValueError(f"{here}: column {_got(cell)} is given twice; keep one")
  named = [column for column in columns if column is not None]
  _check_kind(where, named)
  return named, notes


def _column(cell: str) -> str | None:
  return _COLUMN_OF.get(" ".join(cell.lower().replace("_", " ").split()))


def _is_placed(columns: Sequence[str | None], layout: Sequence[str]) -> bool:
  """Whether places say more than names, some of which are unknown or doubled.

  Most columns are in their places, and none of the others is elsewhere: what
  stands there is unknown, or the second of its name.
  """
  if len(columns) < len(layout):
    return False
  placed = {x for x, want in zip(columns, layout) if x == want}
  absent = not (set(layout) - placed) & set(columns)
  return (
    absent
    and len(placed) > len(layout) / 2
    and all(x is None or x in placed for x in columns[: len(layout)])
  )


def _hint(cell: str, columns: Sequence[str | None], strict: bool) -> str:
  """An unknown column, and the names that a table of its kind may have."""
  word, kind = cell[:_SHOWN], (*_GEMM, *_OPTIONAL)
  if not {*_CONV[1:], *_STRIDES}.isdisjoint(columns):
    word = word.title().replace("Ifmap", "IFMAP")
    kind = ("Layer Name", *_CONV[1:], *_STRIDES, "Sparsity", "Batch Size")
    return f"{_got(cell)}, {nearest(word, kind)}"
  if "name" in columns and not strict:
    word, kind = word.title(), ("Layer", *_GEMM[1:], "Sparsity", "Batch Size")
  return f"{_got(cell)}, {nearest(word, kind)}; {_FIX}"


def _check_kind(where: str, columns: list[str]) -> None:
  """Raises ValueError if a column is missing, or is of another kind."""
  convolution = not {*_CONV[1:], *_STRIDES}.isdisjoint(columns)
  needed = _CONV if convolution else _GEMM
  if convolution and not set(_STRIDES[1:]) <= set(columns):
    needed = (*needed, "Strides")
  for column in needed:
    if column not in columns:
      raise ValueError(
        f"{where}: column {column!r} is missing; a table of"
        f" {'convolutions' if convolution else 'products'} needs"
        f" {', '.join(needed)}"
      )
  extra = set(columns) - {*needed, *_OPTIONAL, *_STRIDES}
  if extra:
    raise ValueError(
      f"{where}: column {min(extra)!r} does not belong to a convolution; remove"
      " it"
    )


def _row(
  where: str, columns: list[str], cells: list[str], strict: bool
) -> dict[str, Any]:
  """One layer as a row of `Layers`."""
  row = _cells(where, columns, cells, strict)
  name = row["name"]
  if not name:
    raise ValueError(f"{where}, column 'name': got ''; name the layer")
  if "M" in row:
    size = {column: _size(where, column, row[column]) for column in _GEMM[1:]}
    times = 1
  else:
    size, times = _product(where, row)
  pattern = _pattern(where, row.get("pattern", ""))
  count = times * _size(where, "count", row.get("count") or "1")
  row = size | {"count": count}
  for column, value in row.items():
    if value > LIMITS[column][1]:
      raise ValueError(
        f"{where}: the layer has {column} = {value}, above {LIMITS[column][1]};"
        " split it"
      )
  return {"name": name, "pattern": pattern} | row


def _cells(
  where: str, columns: list[str], cells: list[str], strict: bool
) -> dict[str, str]:
  """Column -> cell; raises ValueError for a cell too few or too many."""
  row = dict(zip(columns, cells))
  extra = [cell for cell in cells[len(columns) :] if cell]
  if not strict:
    extra = [cell for cell in extra if not cell.startswith("#")]
    if len(extra) == 1:
      says_pattern = ":" in extra[0] or extra[0] == _DENSE
      column = "pattern" if says_pattern else "count"
      if column not in columns:
        row[column] = extra.pop()
  if extra:
    number = cells.index(extra[0], len(columns)) + 1
    raise ValueError(
      f"{where}, column {number}: got {_got(extra[0])} beyond the"
      f" {len(columns)} columns of the header; remove it, or quote a name that"
      " holds a comma"
    )
  for number, column in enumerate(columns[len(cells) :], len(cells) + 1):
    if strict or column not in _OPTIONAL:
      raise ValueError(
        f"{where}, column {number} ({column!r}): the row ends after"
        f" {len(cells)} of {len(columns)} cells; complete it"
      )
  return row


def _product(where: str, row: dict[str, str]) -> tuple[dict[str, int], int]:
  """M, N, K of a convolution, and the number of such products."""
  size = {
    name: _size(where, name, cell)
    for name, cell in row.items()
    if name not in ("name", *_OPTIONAL)
  }
  places = 1
  for side in ("Height", "Width"):
    length, taps = size[f"IFMAP {side}"], size[f"Filter {side}"]
    stride = size.get(f"Stride {side}", size.get("Strides", 1))
    if taps > length:
      raise ValueError(
        f"{where}, column 'Filter {side}': expected at most the IFMAP {side}"
        f" {length}, got {taps}; add the padding to IFMAP {side}, as SCALE-Sim"
        " adds none"
      )
    places *= ceil_div(length - taps + stride, stride)
  depthwise = "DP" in row["name"]
  channels = size["Channels"]
  taps = size["Filter Height"] * size["Filter Width"]
  depth = taps * (1 if depthwise else channels)
  product = {"M": places, "N": size["Num Filter"], "K": depth}
  return product, channels if depthwise else 1


def _pattern(where: str, text: str) -> NM | str | None:
  if text in ("", _DENSE):
    return None
  try:
    # NM's own errors grow with the text, and int() refuses 4300 digits.
    v, pattern = read_pattern(text if len(text) <= _SHOWN else "")
  except ValueError as error:
    raise ValueError(
      f"{where}, column 'pattern': expected dense, or n:m with 1 <= n <= m as"
      f" in 1:8, got {_got(text)}"
    ) from error
  if pattern.m > LIMITS["m"][1]:
    raise ValueError(
      f"{where}, column 'pattern': expected m up to {LIMITS['m'][1]}, got"
      f" {_got(text)}"
    )
  return text if v else pattern


def _size(where: str, column: str, text: str) -> int:
  limit = LIMITS.get(column, LIMITS["count"])[1]
  legal = text.isascii() and text.isdigit() and len(text) <= _SHOWN
  if not legal or not 1 <= int(text) <= limit:
    raise ValueError(
      f"{where}, column {column!r}: expected an integer from 1 to {limit}, got"
      f" {_got(text)}"
    )
  return int(text)


def _got(text: str) -> str:
  """A cell as an error shows it, on one line and not too long."""
  return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
