"""Directories that `datasets` of Hugging Face saved with `save_to_disk`.

A directory has dataset_info.json (the features), state.json (the names of its
Arrow files) and these files, streams of record batches; or dataset_dict.json
and one such directory for each split. pyarrow reads them, which comes with
`datasets`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FEATURES, _STATE = "dataset_info.json", "state.json"
_SPLITS = "dataset_dict.json"


@dataclasses.dataclass(frozen=True)
class Saved:
  """One split.

  Attributes:
    path: Its directory.
    features: Features by column, as `datasets` writes them to JSON.
    files: Arrow files in order.
  """

  path: Path
  features: Mapping[str, Any]
  files: tuple[Path, ...]

  def names(self, column: str) -> list[str] | None:
    """Names of the classes, if a column is a ClassLabel."""
    feature = self.features[column]
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
      return feature.get("names")
    return None

  def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and values of each row; classes by name where they have names.

    Raises:
      ValueError: If a file is damaged, a class is out of range, or pyarrow is
        not installed.
    """
    pa = _pyarrow(self.path)
    classes = {name: self.names(name) for name in self.features}
    number = 0
    for file in self.files:
      try:
        with pa.memory_map(str(file)) as source:
          with pa.ipc.open_stream(source) as batches:
            for batch in batches:
              for row in batch.to_pylist():
                where = f"{self.path}: row {number}"
                number += 1
                yield where, _named(where, row, classes)
      except pa.ArrowException as error:
        raise ValueError(
          f"{file}: expected a stream of Arrow, got a file that pyarrow cannot"
          f" read ({str(error).splitlines()[0]}); save the data again"
        ) from error


def _named(
  where: str, row: dict[str, Any], classes: Mapping[str, list[str] | None]
) -> dict[str, Any]:
  """The row with names in place of the numbers of classes."""
  for column, names in classes.items():
    if column not in row:
      raise ValueError(f"{where}: expected a column {column}, got none")
    if names is not None:
      number = row[column]
      if number is None or not 0 <= number < len(names):
        raise ValueError(
          f"{where}: {column}: expected a label from 0 to {len(names) - 1}, got"
          f" {number}"
        )
      row[column] = names[number]
  return row


def is_saved(path: Path) -> bool:
  """Whether a directory has the files of `save_to_disk` of `datasets`.

  Args:
    path: Directory.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   _ = Path(folder, "dataset_dict.json").write_text('{"splits": []}')
  ...   is_saved(Path(folder)), is_saved(Path(folder) / "train")
  (True, False)
  """
  return (path / _SPLITS).is_file() or _is_one(path)


def _is_one(path: Path) -> bool:
  return (path / _FEATURES).is_file() and (path / _STATE).is_file()


def splits_of(path: Path) -> dict[str, Saved]:
  """The splits of a directory; a single data set is "train".

  Raises:
    ValueError: If a file of JSON has other content.
    OSError: If a file cannot be read.
  """
  if not (path / _SPLITS).is_file():
    return {"train": _one(path)}
  names = _json(path / _SPLITS, "splits", list)
  parts = {name: path / name for name in names if isinstance(name, str)}
  for name, part in parts.items():
    if part.parent != path or not _is_one(part):
      raise ValueError(
        f"{path / _SPLITS}: expected a directory of each split, got none of"
        f" {name!r}; save the data again"
      )
  if "train" not in parts:
    raise ValueError(
      f"{path}: expected a split train, got {', '.join(parts) or 'none'}"
    )
  return {name: _one(part) for name, part in parts.items()}


def files_of(path: Path) -> list[Path]:
  """All files that `splits_of` reads, and the Arrow files."""
  files = [path / _SPLITS] if (path / _SPLITS).is_file() else []
  for saved in splits_of(path).values():
    files += [saved.path / _FEATURES, saved.path / _STATE, *saved.files]
  return files


def _one(path: Path) -> Saved:
  features = _json(path / _FEATURES, "features", dict)
  entries = _json(path / _STATE, "_data_files", list)
  files = []
  for entry in entries:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
      raise ValueError(
        f"{path / _STATE}: expected names of files beside it, got {name!r}"
      )
    files.append(path / name)
  return Saved(path, features, tuple(files))


def _json(path: Path, key: str, kind: type) -> Any:
  try:
    value = json.loads(path.read_bytes())[key]
  except (KeyError, RecursionError, TypeError, ValueError):
    value = None
  if not isinstance(value, kind):
    raise ValueError(
      f"{path}: expected what save_to_disk of datasets writes, with the key"
      f" {key!r}; save the data again"
    )
  return value


def _pyarrow(path: Path) -> Any:
  try:
    import pyarrow
  except ImportError:
    raise ValueError(
      f"{path}: reading it needs pyarrow, which comes with datasets: pip"
      " install pyarrow"
    ) from None
  return pyarrow
