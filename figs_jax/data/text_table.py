"""Text of one's own with a label or a target, `text:FILE`.

FILE is .csv, .tsv, .jsonl or .parquet, in UTF-8; .csv and .tsv begin with a row
of column names. A directory that holds train.csv and test.csv, or validation,
has a test part of its own, and so may one that `datasets` saved. Else every
fifth example of a label is held out, or every fifth of all if there are none.

Columns are found by name, in any case: the text is text, sentence, input or
inputs; a label is label, labels, class or category; a target is target,
targets, output or outputs. Labels are words, or integers of 0 or more. Where
scores are learned, their column is score, scores, similarity or rating.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from figs_jax.data import saved_datasets
from figs_jax.data.opened import Opened, Options, digest_of_all
from figs_jax.data.text_rows import Columns, in_splits

_TEXT = ("text", "sentence", "input", "inputs")
_LABEL = ("label", "labels", "class", "category")
_TARGET = ("target", "targets", "output", "outputs")
_SCORE = ("score", "scores", "similarity", "rating")
_SPLITS = ("train", "validation", "test")


class _Table(NamedTuple):
  """A table of one split.

  Attributes:
    where: Its place, for errors.
    columns: Names of the columns.
    rows: Place and values by column of each row.
  """

  where: str
  columns: Sequence[str]
  rows: Iterable[tuple[str, Mapping[str, Any]]]


def open_text(path: Path, options: Options) -> Opened:
  """Opens a table of text, and reads and checks all of it.

  Args:
    path: File, directory of files by split, or directory of `datasets`.
    options: Names of the columns, if they have others.

  Raises:
    ValueError: If a column is missing or a row is wrong; the message names the
      file and the row.
    OSError: If a file cannot be read.
  """
  states = [file.stat() for file in _files(path)]
  key = tuple((state.st_size, state.st_mtime_ns) for state in states)
  return _opened(path, options, key)


@functools.lru_cache(maxsize=8)
def _opened(path: Path, options: Options, key: Any) -> Opened:
  del key  # changes with the files
  columns, names, _ = _read(path, options)
  features: dict[str, Any] = {"text": tfds.features.Text()}
  if columns.is_label:
    features["label"] = tfds.features.ClassLabel(names=names)
  elif columns.is_score:
    features["label"] = tfds.features.Scalar(np.float32)
  elif columns.other:
    features["target"] = tfds.features.Text()
  what = (*columns[:3], *("scores",) * columns.is_score)
  digest = digest_of_all(path, _files(path), what)
  return Opened(path, digest, features, lambda: _examples(path, options))


def _examples(path: Path, options: Options) -> dict[str, Any]:
  columns, _, splits = _read(path, options)
  is_text = not (columns.is_label or columns.is_score)
  key = "target" if is_text else "label"
  has_other = bool(columns.other)
  return {
    split: (
      {"text": text, **({key: value} if has_other else {})}
      for text, value in pairs
    )
    for split, pairs in splits.items()
  }


def _read(
  path: Path, options: Options
) -> tuple[Columns, list[str], dict[str, list[tuple[str, Any]]]]:
  """The columns, the names of classes, and pairs of texts by split."""
  tables = {split: table() for split, table in _tables(path).items()}
  columns = _columns(tables["train"], options)
  for table in tables.values():
    wanted = [name for name in columns[:2] if name]
    if not set(wanted) <= set(table.columns):
      raise _missing(table, wanted, "name them as in train")
  rows = {split: table.rows for split, table in tables.items()}
  fix = "a test part, as train and test in a directory"
  return columns, *in_splits(str(path), rows, columns, fix)


def _columns(table: _Table, options: Options) -> Columns:
  """Columns by the names in the options, or else by their usual ones."""
  usual = {name.strip().lower(): name for name in reversed(table.columns)}

  def named(given: str | None, choices: Sequence[str]) -> str | None:
    if given is not None:
      if given not in table.columns:
        raise _missing(table, [given], "name one of them")
      return given
    return next((usual[name] for name in choices if name in usual), None)

  if len(set(table.columns)) < len(table.columns):
    raise ValueError(
      f"{table.where}: expected columns of distinct names, got"
      f" {', '.join(table.columns)}"
    )
  text = named(options.text_column, _TEXT)
  if text is None:
    raise _missing(table, _TEXT, "name yours with --config.data.text_column")
  if options.others == "ignored":
    return Columns(text, "", False)
  if options.others == "scores":
    score = named(options.label_column, _SCORE)
    if score is None:
      fix = "name yours with --config.data.label_column"
      raise _missing(table, _SCORE, fix)
    return Columns(text, score, False, True)
  label = target = None
  if options.label_column is not None or options.target_column is None:
    label = named(options.label_column, _LABEL)
  if options.target_column is not None or options.label_column is None:
    target = named(options.target_column, _TARGET)
  if label is not None and target is not None:
    raise ValueError(
      f"{table.where}: expected a column of labels or one of targets, got both"
      f" ({label}, {target}); set only one of --config.data.label_column and"
      " --config.data.target_column"
    )
  other = label if label is not None else target
  if other is None and options.others == "optional":
    return Columns(text, "", False)
  if other is None:
    raise _missing(
      table,
      _LABEL + _TARGET,
      "name yours with --config.data.label_column or"
      " --config.data.target_column",
    )
  return Columns(text, other, label is not None)


def _missing(table: _Table, wanted: Sequence[str], fix: str) -> ValueError:
  shown = [name[:30] for name in table.columns]
  return ValueError(
    f"{table.where}: expected a column {', '.join(wanted)}, got"
    f" {', '.join(shown[:8]) or 'none'}{', ...' * (len(shown) > 8)}; {fix}"
  )


def _by_split(path: Path) -> dict[str, Path]:
  """Files by split."""
  if not path.is_dir():
    if path.suffix.lower() not in _FORMATS:
      raise ValueError(
        f"{path}: expected a file that ends in {', '.join(_FORMATS)}, got"
        f" {path.suffix or 'no suffix'}"
      )
    return {"train": path}
  files: dict[str, Path] = {}
  for file in sorted(path.iterdir()):
    if file.stem in _SPLITS and file.suffix.lower() in _FORMATS:
      if file.stem in files:
        raise ValueError(
          f"{path}: expected one file for each split, got"
          f" {files[file.stem].name} and {file.name}"
        )
      files[file.stem] = file
  if "train" not in files:
    raise ValueError(
      f"{path}: expected a file train and others of test or validation, each"
      f" with one of {', '.join(_FORMATS)}, got none"
    )
  return {split: files[split] for split in _SPLITS if split in files}


def _files(path: Path) -> list[Path]:
  """All files that are read."""
  if saved_datasets.is_saved(path):
    return saved_datasets.files_of(path)
  return list(_by_split(path).values())


def _tables(path: Path) -> dict[str, Callable[[], _Table]]:
  """A function that reads the table of each split, train first."""
  if saved_datasets.is_saved(path):
    splits = saved_datasets.splits_of(path)
    return {
      split: functools.partial(_of_saved, splits[split])
      for split in sorted(splits, key=lambda split: split != "train")
    }
  return {
    split: functools.partial(_FORMATS[file.suffix.lower()], file)
    for split, file in _by_split(path).items()
  }


def _of_saved(saved: saved_datasets.Saved) -> _Table:
  return _Table(str(saved.path), list(saved.features), saved.rows())


def _decoded(path: Path) -> str:
  raw = path.read_bytes()
  try:
    return raw.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = raw.count(b"\n", 0, error.start) + 1
    raise ValueError(
      f"{path}: line {line}: expected UTF-8, got the byte"
      f" {raw[error.start]:02x}; convert the file"
    ) from error


def _of_csv(path: Path, delimiter: str = ",") -> _Table:
  file = io.StringIO(_decoded(path), newline="")
  reader = csv.reader(file, delimiter=delimiter, strict=True)
  rows = _csv_rows(path, reader)
  _, columns = next(rows, ("", []))
  return _Table(str(path), columns, _named_rows(rows, columns, delimiter))


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
  """Rows with the lines at which they begin; blank ones are left out."""
  while True:
    where = f"{path}: line {reader.line_num + 1}"
    try:
      row = _next_row(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise ValueError(
        f"{where}: expected fields in double quotes where they hold one or a"
        f" delimiter, got a row that cannot be read ({error})"
      ) from error
    if row:
      yield where, row


def _next_row(reader: Any) -> list[str]:
  """The next row, with fields of any length; the limit is one of the process.

  Raises:
    StopIteration: If there is none.
  """
  limit = csv.field_size_limit(sys.maxsize)
  try:
    return next(reader)
  finally:
    csv.field_size_limit(limit)


def _named_rows(
  rows: Iterable[tuple[str, list[str]]], columns: list[str], delimiter: str
) -> Iterator[tuple[str, dict[str, str]]]:
  for where, row in rows:
    if len(row) != len(columns):
      raise ValueError(
        f"{where}: expected {len(columns)} fields, as in the first row, got"
        f" {len(row)}; put those with {delimiter!r} in double quotes"
      )
    yield where, dict(zip(columns, row))


def _of_jsonl(path: Path) -> _Table:
  rows = _json_rows(path)
  first = next(rows, None)
  if first is None:
    raise ValueError(f"{path}: expected rows, got none")
  return _Table(str(path), list(first[1]), itertools.chain([first], rows))


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  for number, line in enumerate(_decoded(path).split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path}: line {number}"
    try:
      row = json.loads(line)
    except (RecursionError, ValueError) as error:
      what = error.msg if isinstance(error, json.JSONDecodeError) else error
      raise ValueError(
        f"{where}: expected a JSON object, got invalid JSON ({what})"
      ) from error
    if not isinstance(row, dict):
      raise ValueError(
        f"{where}: expected a JSON object, got {type(row).__name__}"
      )
    yield where, row


def _of_parquet(path: Path) -> _Table:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      f"{path}: reading Parquet needs pyarrow: pip install pyarrow"
    ) from None
  try:
    table = parquet.read_table(path)
  except (OSError, pyarrow.ArrowException) as error:
    raise ValueError(
      f"{path}: expected a Parquet file, got one that pyarrow cannot read"
      f" ({str(error).splitlines()[0]})"
    ) from error
  rows = (row for batch in table.to_batches() for row in batch.to_pylist())
  places = ((f"{path}: row {i}", row) for i, row in enumerate(rows))
  return _Table(str(path), table.column_names, places)


_FORMATS: dict[str, Callable[[Path], _Table]] = {
  ".csv": _of_csv,
  ".tsv": functools.partial(_of_csv, delimiter="\t"),
  ".jsonl": _of_jsonl,
  ".parquet": _of_parquet,
}
