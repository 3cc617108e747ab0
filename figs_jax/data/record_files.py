"""Sharded files prepared elsewhere: `tfrecord:DIR`, and JSON lines in streams.

A directory holds the files of each split, as train-00000-of-00128 or
c4-train.00000-of-01024.json.gz: the split is the word train, validation (valid,
val, dev) or test in the name of the file or of its folder; without one all
files are train. They are read in the order of their names.

TFRecord files hold tf.train.Example messages, and features.json beside them
says what they mean. It is that of tfds, or an object with a key for each
feature:

  {"image": "image/encoded",
   "label": {"key": "image/class/label", "classes": 1000, "first": 1}}
  {"text": "content", "target": "summary"}

`first` is the smallest label (0 by default); `names` in the place of `classes`
lists the names of the classes, and then a label may be a name; `shape` of an
image is that of all images, [height, width, channels], encoded or as raw bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from figs_jax.data import tfrecord
from figs_jax.data.features import Features, features_of
from figs_jax.data.opened import Options

PREFIX = "tfrecord:"
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test)(?![a-z])")
_TFRECORD = re.compile(r"tfrecord|-\d{3,}-of-\d{3,}")
_JSON_LINES = re.compile(r"\.jsonl?(\.gz)?$")
_OF = re.compile(r"^(.*?)[-.](\d{3,})-of-(\d{3,})(.*)$")
_DESCRIPTIONS = ("features.json", "dataset_info.json")
# Decompressed bytes of a split that is kept in memory to be read at random.
_MOST_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Info:
  """What is read of the info of a builder of tfds.

  Attributes:
    features: Features of an example.
    splits: Splits by name, each with its `num_examples`.
    full_name: Kind, name and version of the data.
    dataset_size: Size of all files in bytes.
  """

  features: tfds.features.FeaturesDict
  splits: Mapping[str, Any]
  full_name: str
  dataset_size: int


@dataclasses.dataclass(frozen=True)
class _Split:
  """The files of a split; their records are counted when asked for."""

  records: RecordFiles
  name: str

  @property
  def num_examples(self) -> int:
    return len(self.records.source(self.name))


@dataclasses.dataclass(frozen=True)
class _Index:
  """Where the records of a split are.

  Attributes:
    bounds: Number of records before each file, and of all, int64 [files + 1].
    starts: Place of each record in its file in bytes, int64 [n].
    lengths: Number of bytes of each, int64 [n].
  """

  bounds: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray


class RecordFiles:
  """Stands for a builder of tfds, where files of records are the examples.

  Args:
    path: Directory of the files, or one file.
    root: Directory of the data sets, which keeps the index of TFRecord files.
    options: Columns of JSON lines, and whether the training split is streamed.
    lines: Whether the files are JSON lines, as opposed to TFRecord.

  Raises:
    ValueError: If files or their description are missing or wrong.
    OSError: If a file cannot be read.

  >>> import tempfile
  >>> folder = tempfile.TemporaryDirectory()
  >>> for split, text in (("train", "so good"), ("test", "so bad")):
  ...   file = Path(folder.name) / f"{split}-00000-of-00001.jsonl"
  ...   _ = file.write_text(f'{{"text": "{text}"}}\\n' * 3)
  >>> records = RecordFiles(
  ...   Path(folder.name), folder.name, Options(), lines=True)
  >>> {name: split.num_examples for name, split in records.info.splits.items()}
  {'test': 3, 'train': 3}
  >>> list(records.as_data_source("train[:2]"))
  [{'text': 'so good'}, {'text': 'so good'}]
  >>> folder.cleanup()
  """

  builder_config = None

  def __init__(
    self, path: Path, root: str, options: Options, *, lines: bool = False
  ):
    self.path, self.data_dir, self.streamed = path, str(path), options.stream
    self._root, self._lines = root, lines
    self.name = "text" if lines else "tfrecord"
    self.files = _files_by_split(path, _JSON_LINES if lines else _TFRECORD)
    states = {
      str(file.relative_to(path)) if file != path else file.name: file.stat()
      for files in self.files.values()
      for file in files
    }
    sizes = [(name, state.st_size) for name, state in states.items()]
    self.version = hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]
    times = [state.st_mtime_ns for state in states.values()]
    self._state = hashlib.sha256(repr((sizes, times)).encode()).hexdigest()
    first = next(iter(self.files.values()))[0]
    self._features: Features = features_of(
      path, options, functools.partial(self._first, first), lines=lines
    )
    self.info = Info(
      self._features.spec,
      {name: _Split(self, name) for name in self.files},
      f"{self.name}/{path.name}/{self.version}",
      sum(size for _, size in sizes),
    )

  def as_data_source(self, split: str) -> Sequence[Any]:
    """The examples of a split, or of a slice such as "train[:90%]".

    Args:
      split: Split in the notation of tfds.

    Raises:
      ValueError: If the split is unknown, or a file is damaged.
    """
    parts: list[tuple[_Source, range]] = []
    named = {split: _Split(self, split)} if split in self.files else None
    for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(
      named or self.info.splits
    ):
      source = self.source(part.splitname)
      numbers = range(*slice(part.from_, part.to).indices(len(source)))
      parts.append((source, numbers))
    return _Parts(parts)

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    """An example from what `reader` or an index gives.

    Args:
      where: Its place, for errors.
      raw: Its bytes.

    Raises:
      ValueError: If it is damaged, or does not fit the description.
    """
    if not self._lines:
      raw = tfrecord.checked(where, raw)
    return self._features.example(where, raw)

  def reader(self, path: Path) -> Any:
    """The records of a file in order; see `tfrecord.Reader`."""
    return _LineReader(path) if self._lines else tfrecord.Reader(path)

  def source(self, split: str) -> _Source:
    """The examples of a split by number."""
    return self._sources.setdefault(split, _Source(self, split))

  @functools.cached_property
  def _sources(self) -> dict[str, _Source]:
    return {}

  def index(self, split: str) -> _Index:
    """The index of a split; that of TFRecord files is built once and kept."""
    if self._lines:
      return _joined([_scan_lines(file) for file in self.files[split]])
    stem = re.sub(r"\W+", "_", self.path.name, flags=re.ASCII)
    name = f"{stem}_{split}_{self._state[:16]}.npz"
    kept = Path(self._root) / "tfrecord" / name
    try:
      with np.load(kept) as arrays:
        return _Index(*(arrays[x] for x in ("bounds", "starts", "lengths")))
    except Exception:  # absent, or whatever a damaged file raises
      index = _joined([tfrecord.scan(file) for file in self.files[split]])
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as part:
      np.savez(part, **vars(index))
    os.replace(part.name, kept)
    return index

  def _first(self, path: Path) -> tuple[str, bytes] | None:
    """The place and the bytes of the first record of a file."""
    reader = self.reader(path)
    try:
      raw = next(iter(reader), None)
    finally:
      reader.close()
    if raw is None:
      return None
    where = f"{path}: record 0"
    return where, raw if self._lines else tfrecord.checked(where, raw)

  def __getstate__(self) -> dict[str, Any]:
    """Without what worker processes read again."""
    return {k: v for k, v in vars(self).items() if k != "_sources"}


@dataclasses.dataclass(frozen=True)
class _Source(Sequence):
  """The examples of a split by number."""

  records: RecordFiles
  split: str

  def __len__(self) -> int:
    if self._in_memory is not None:
      return len(self._in_memory)
    return int(self._index.bounds[-1])

  def __getitem__(self, number: Any) -> Any:
    if self._in_memory is not None:
      return self.records.example(*self._in_memory[number])
    index = self._index
    at = int(np.searchsorted(index.bounds, number, side="right")) - 1
    path = self.records.files[self.split][at]
    more = 0 if self.records.name == "text" else tfrecord.FOOTER
    with path.open("rb", buffering=0) as file:
      file.seek(int(index.starts[number]))
      raw = file.read(int(index.lengths[number]) + more)
    where = f"{path}: record {number - index.bounds[at]}"
    return self.records.example(where, raw)

  def __getstate__(self) -> dict[str, Any]:
    """Without what worker processes read again."""
    return {"records": self.records, "split": self.split}

  @functools.cached_property
  def _index(self) -> _Index:
    return self.records.index(self.split)

  @functools.cached_property
  def _in_memory(self) -> list[tuple[str, bytes]] | None:
    """Places and bytes of compressed records."""
    files = self.records.files[self.split]
    if not any(file.suffix == ".gz" for file in files):
      return None
    kept, left = [], _MOST_BYTES
    for file in files:
      reader = self.records.reader(file)
      for number, raw in enumerate(reader):
        kept.append((f"{file}: record {number}", raw))
        left -= len(raw)
        if left < 0:
          raise ValueError(
            f"{file}: expected at most {_MOST_BYTES} bytes in the compressed"
            f" files of {self.split}, which are kept in memory to be read at"
            " random; decompress them, or set --config.data.stream=True and"
            " another --config.data.eval_split"
          )
      reader.close()
    return kept


@dataclasses.dataclass(frozen=True)
class _Parts(Sequence):
  """Some examples of some splits."""

  parts: Sequence[tuple[_Source, range]]

  def __repr__(self) -> str:
    return ", ".join(str(source.records.path) for source, _ in self.parts)

  def __len__(self) -> int:
    return sum(len(numbers) for _, numbers in self.parts)

  def __getitem__(self, index: Any) -> Any:
    for source, numbers in self.parts:
      if index < len(numbers):
        return source[numbers[index]]
      index -= len(numbers)
    raise IndexError(index)


class _LineReader:
  """The lines of a file that are not blank."""

  def __init__(self, path: Path):
    opener: Any = gzip.open if path.suffix == ".gz" else open
    self._path, self._file = path, opener(path, "rb")
    self._lines = self._read()

  def __iter__(self) -> Iterator[bytes]:
    return self._lines

  def skip(self, count: int) -> int:
    """Passes over up to `count` lines; returns how many there were."""
    done = 0
    while done < count and next(self._lines, None) is not None:
      done += 1
    return done

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _read(self) -> Iterator[bytes]:
    try:
      for line in self._file:
        if line.strip():
          yield line
    except (EOFError, gzip.BadGzipFile) as error:
      raise ValueError(
        f"{self._path}: damaged gzip file ({error}); copy it again"
      ) from error


def _scan_lines(path: Path) -> tfrecord.Index:
  starts, lengths, at = [], [], 0
  with path.open("rb") as file:
    for line in file:
      if line.strip():
        starts.append(at)
        lengths.append(len(line))
      at += len(line)
  return tfrecord.Index(np.array(starts, np.int64), np.array(lengths, np.int64))


def _joined(parts: Sequence[tfrecord.Index]) -> _Index:
  counts = [len(part.starts) for part in parts]
  return _Index(
    np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    np.concatenate([part.starts for part in parts]),
    np.concatenate([part.lengths for part in parts]),
  )


def _files_by_split(path: Path, kind: re.Pattern[str]) -> dict[str, list[Path]]:
  """Files of each split, in order, with all shards that their names count."""
  if not path.exists():
    raise ValueError(f"{path}: expected a directory of files, got none")
  candidates = [path] if path.is_file() else sorted(path.rglob("*"))
  splits: dict[str, list[Path]] = {}
  for file in candidates:
    name = file.name
    if name in _DESCRIPTIONS or name.startswith(".") or not file.is_file():
      continue
    if path.is_dir() and not kind.search(name):
      continue
    place = name if file == path else str(file.relative_to(path))
    word = _SPLIT.search(place.lower())
    split = word[1] if word else "train"
    split = "validation" if split in ("valid", "val", "dev") else split
    splits.setdefault(split, []).append(file)
  if not splits:
    wanted = ".jsonl or .json.gz" if kind is _JSON_LINES else ".tfrecord"
    raise ValueError(
      f"{path}: expected files such as train-00000-of-00008{wanted}, got none"
    )
  for split, files in splits.items():
    _check_complete(path, split, files)
  return splits


def _check_complete(path: Path, split: str, files: Sequence[Path]) -> None:
  groups: dict[tuple[str, ...], set[int]] = {}
  for file in files:
    if match := _OF.match(file.name):
      base, number, count, rest = match.groups()
      key = (str(file.parent), base, count, rest)
      groups.setdefault(key, set()).add(int(number))
  for (_, base, count, rest), numbers in groups.items():
    missing = sorted(set(range(int(count))) - numbers)
    if missing:
      raise ValueError(
        f"{path}: expected {int(count)} files of {base}{rest} in {split}, got"
        f" {len(numbers)}, without {missing[0]:05}-of-{count}; copy the missing"
        " files"
      )
