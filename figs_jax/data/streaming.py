"""Streams of records in sharded files, shuffled by a buffer, without an index.

Files are dealt out to lanes, whose number divides the files and the rows of a
global batch; each lane fills the same rows of every batch. A lane reads its
files one after the other without end, in another order for each epoch. It holds
one window of records at a time, and gives them in a random order:

  file order    c.jsonl a.jsonl b.jsonl | a.jsonl c.jsonl b.jsonl | ...
  windows       [c0 c1 c2] [a0 a1 b0] [b1 a0 a1] ...
  examples       c1 c0 c2   b0 a0 a1   a1 b1 a0

Example n of a lane is thus in window n // size, and all that is drawn follows
from the seed, the lane and n: one number is the position in the stream, for any
number of processes. A process passes over records that are not its own unread;
if the lanes divide into the processes, it does not open the files of others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

_MOST_LANES = 64
_Raw = Generator[tuple[Path, int, bytes], None, None]
# Words of the seeds of what is drawn.
_FILES, _WINDOW, _EXAMPLE = 1, 2, 3


@runtime_checkable
class Records(Protocol):
  """What a stream is read from: `record_files.RecordFiles`."""

  files: dict[str, list[Path]]

  def reader(self, path: Path) -> Any:
    """The records of a file in order."""
    ...

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    """The example of a record."""
    ...


def number_of_lanes(files: int, batch_size: int) -> int:
  """The largest common divisor of both, up to 64.

  >>> [number_of_lanes(files, 256) for files in (1024, 96, 5)]
  [64, 32, 1]
  """
  common = math.gcd(files, batch_size)
  return max(
    d for d in range(1, min(common, _MOST_LANES) + 1) if common % d == 0
  )


@dataclasses.dataclass(frozen=True)
class Window(Sequence):
  """Some records, of which an example is read when it is asked for.

  Attributes:
    records: Source of the records.
    raw: File, number in it and bytes of each.

  Raises:
    ValueError: When an example is read, if its record is damaged.
  """

  records: Records
  raw: Sequence[tuple[Path, int, bytes]]

  def __repr__(self) -> str:
    return str(self.raw[0][0].parent)

  def __len__(self) -> int:
    return len(self.raw)

  def __getitem__(self, index: Any) -> Any:
    path, number, raw = self.raw[index]
    return self.records.example(f"{path}: record {number}", raw)


class Lane:
  """The windows of a lane, read in order; for an earlier one, from the start.

  Args:
    records: Source of the records.
    files: Files of the lane.
    size: Number of records of a window.
    seed: Seed of the order of the files.
  """

  def __init__(
    self,
    records: Records,
    files: Sequence[Path],
    size: int,
    seed: Sequence[int],
  ):
    self._records, self._files, self._size = records, files, size
    self._seed = seed
    self._counts: dict[Path, int] = {}  # of files that were read to their end
    self._to_skip = 0
    self._next = 0  # window
    self._stream: _Raw | None = None

  def __getitem__(self, number: int) -> Window:
    """A window.

    Raises:
      ValueError: If a file is damaged, or none has a record.
    """
    if self._stream is None or number < self._next:
      self.close()
      self._stream, self._next = self._read(), 0
    self._to_skip += (number - self._next) * self._size
    self._next = number + 1
    raw = list(itertools.islice(self._stream, self._size))
    return Window(self._records, raw)

  def close(self) -> None:
    """Closes the file that is read."""
    if self._stream is not None:
      self._stream.close()
      self._stream, self._to_skip = None, 0

  def _read(self) -> _Raw:
    """Records without end; before each, those to skip are passed over."""
    for epoch in itertools.count():
      if self._counts.keys() >= set(self._files):
        self._check_not_empty()
      rng = np.random.default_rng([*self._seed, _FILES, epoch])
      for i in rng.permutation(len(self._files)):
        path = self._files[i]
        count = self._counts.get(path)
        if count is not None and count <= self._to_skip:
          self._to_skip -= count
          continue
        yield from self._records_of(path)

  def _records_of(self, path: Path) -> Iterator[tuple[Path, int, bytes]]:
    reader = self._records.reader(path)
    try:
      number, raws = 0, iter(reader)
      while True:
        if self._to_skip:
          skipped = reader.skip(self._to_skip)
          number, self._to_skip = number + skipped, self._to_skip - skipped
        if (raw := next(raws, None)) is None:
          break
        yield path, number, raw
        number += 1
      self._counts[path] = number
    finally:
      reader.close()

  def _check_not_empty(self) -> None:
    if not any(self._counts.values()):
      raise ValueError(
        f"{self._files[0]}: expected records in it and the {len(self._files)}"
        " files of its lane, got none"
      )


@dataclasses.dataclass(frozen=True)
class Stream:
  """The batches of a shard by number, each a list of its examples.

  Batches are read in order; one that is not the next costs passing over the
  records before it.

  Attributes:
    records: Source of the records.
    split: Split to read.
    examples_of: Function from a window to its examples, one for each record.
    arrays: Function from an example and a generator to its fields.
    batch_size: Number of examples of a batch over all shards.
    seed: Seed of the orders and of what is drawn for an example.
    buffer: Number of records that all lanes hold together.
    rows: Rows of a batch that the shard holds.
  """

  records: Records
  split: str
  examples_of: Callable[[Window], Sequence[Any]]
  arrays: Callable[[Any, np.random.Generator], dict[str, Any]]
  batch_size: int
  seed: int
  buffer: int
  rows: range

  def __len__(self) -> int:
    return 2**62 // self.batch_size  # without end

  def __getitem__(self, index: int) -> list[dict[str, Any]]:
    return [self._example(index, row) for row in self.rows]

  @functools.cached_property
  def lanes(self) -> int:
    """Number of lanes."""
    return number_of_lanes(len(self.records.files[self.split]), self.batch_size)

  def _example(self, number: int, row: int) -> dict[str, Any]:
    each = self.batch_size // self.lanes  # rows of a lane
    lane, place = row // each, number * each + row % each
    window, rank = divmod(place, self._size)
    order, examples = self._shuffled(lane, window)
    at = number * self.batch_size + row
    rng = np.random.default_rng([self.seed, _EXAMPLE, at])
    return self.arrays(examples[int(order[rank])], rng)

  @property
  def _size(self) -> int:
    return max(self.buffer // self.lanes, 1)

  def _shuffled(self, lane: int, window: int) -> tuple[np.ndarray, Any]:
    """The order and the examples of a window; each lane keeps its last one."""
    last = self._shown.pop(lane, None)
    if last is None or last[0] != window:
      last = None  # so that one window at a time is in memory
      rng = np.random.default_rng([self.seed, _WINDOW, lane, window])
      examples = self.examples_of(self._lane(lane)[window])
      last = window, rng.permutation(self._size), examples
    self._shown[lane] = last
    return last[1:]

  def _lane(self, lane: int) -> Lane:
    if lane not in self._lanes:
      files = self.records.files[self.split][lane :: self.lanes]
      seed = [self.seed, lane]
      self._lanes[lane] = Lane(self.records, files, self._size, seed)
    return self._lanes[lane]

  @functools.cached_property
  def _lanes(self) -> dict[int, Lane]:
    return {}

  @functools.cached_property
  def _shown(self) -> dict[int, tuple[int, np.ndarray, Any]]:
    return {}

  def __getstate__(self) -> dict[str, Any]:
    """Without open files and windows, for worker processes."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
