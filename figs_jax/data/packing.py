"""Packs several short examples into one row, each a segment of its own.

  examples   a b c <end>   d <end>   e f g h <end>   i j <end>
  inputs     a b c <end> d <end> i j <end> 0      e f g h <end> 0 0 0 0 0
  segments   1 1 1 1     2 2     3 3 3     0      1 1 1 1 1     0 0 0 0 0

Examples are taken in the order of their stream. Each goes to the first row of
the batch that has room for all of it, and the first one that fits nowhere
begins the next batch. A batch thus follows from the position of its first
example, and the number of examples read so far is a position to resume from.

Models attend within segments and count positions within them, so that the loss
of a packed batch is that of its examples in rows of their own.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.data.batch_checks import segments_name
from figs_jax.data.stream import COUNT

Fields = dict[str, np.ndarray]
_MOST_EMPTY = 100_000
_log = logging.getLogger("figs_jax")


@dataclasses.dataclass(frozen=True)
class Group:
  """Fields of one length, which share their segments.

  Attributes:
    names: Names of the fields; the segments are named after the first one.
    length: Length of a row in tokens.

  >>> Group(("inputs", "targets"), 512).segments
  'inputs_segments'
  """

  names: tuple[str, ...]
  length: int

  @property
  def segments(self) -> str:
    """Name of the segments in a batch."""
    return segments_name(self.names[0])


@dataclasses.dataclass(frozen=True)
class Layout:
  """The rows of packed batches.

  Attributes:
    groups: Fields of the batches.
    rows: Number of rows, over all shards.

  >>> layout = Layout((Group(("inputs",), 5),), rows=2)
  >>> lengths = [4, 2, 1, 3, 1]
  >>> batch = layout.batch({"inputs": np.full(n, n)} for n in lengths)
  >>> batch["inputs"].tolist()
  [[4, 4, 4, 4, 1], [2, 2, 3, 3, 3]]
  >>> batch["inputs_segments"].tolist(), batch["num_examples"]
  ([[1, 1, 1, 1, 2], [1, 1, 2, 2, 2]], 4)
  """

  groups: tuple[Group, ...]
  rows: int

  def batch(self, examples: Iterator[Fields]) -> dict[str, Any]:
    """A batch from the next examples of a stream.

    The batch ends with the first example that fits into no row. It has been
    taken from the iterator by then, and belongs to the next batch.

    Args:
      examples: Iterator over examples without padding, each a dict of ids, int
        [n], with n of at most the length of a row. Examples without tokens are
        counted and left out.

    Returns:
      Ids and segments by name, int32 [rows, length], and the number of examples
      under "num_examples".

    Raises:
      ValueError: If the stream begins with 100 000 examples without tokens.
    """
    batch: dict[str, Any] = {COUNT: 0}
    for group in self.groups:
      for name in (*group.names, group.segments):
        batch[name] = np.zeros((self.rows, group.length), np.int32)
    used = np.zeros((self.rows, len(self.groups)), int)
    segments = np.zeros(self.rows, np.int32)
    room = np.array([group.length for group in self.groups])
    for example in examples:
      sizes = np.array([len(example[g.names[0]]) for g in self.groups])
      if not sizes.all():  # nothing to learn from
        batch[COUNT] += 1
        if batch[COUNT] > _MOST_EMPTY and not used.any():
          raise ValueError(
            f"expected examples with tokens, got {_MOST_EMPTY} without any; set"
            " --config.data.text_column to a column of texts"
          )
        continue
      fitting = (used + sizes <= room).all(axis=1)
      if not fitting.any():
        break
      row = int(fitting.argmax())
      segments[row] += 1
      for group, start, size in zip(self.groups, used[row], sizes):
        place = slice(start, start + size)
        for name in group.names:
          batch[name][row, place] = example[name]
        batch[group.segments][row, place] = segments[row]
      used[row] += sizes
      batch[COUNT] += 1
    return batch

  def padding(self, batch: Mapping[str, Any]) -> tuple[float, float]:
    """The shares of padding of one example per row, and of a packed batch.

    Args:
      batch: Batch from `batch`.

    >>> layout = Layout((Group(("inputs",), 4),), rows=1)
    >>> layout.padding(layout.batch(iter([{"inputs": np.ones(2)}] * 2)))
    (0.5, 0.0)
    """
    tokens = sum(int((batch[g.segments] > 0).sum()) for g in self.groups)
    width = sum(group.length for group in self.groups)
    alone = max(batch[COUNT], 1) * width
    return 1 - tokens / alone, 1 - tokens / (self.rows * width)


class Packed:
  """An iterator of packed batches, of which it gives one shard's rows.

  Args:
    examples: Endless iterator over the examples of all shards; lists of them
      are allowed.
    passed: Number of examples to pass over first.
    layout: Rows of the batches.
    shard: Rows that the shard holds.

  >>> import itertools
  >>> layout = Layout((Group(("inputs",), 3),), rows=2)
  >>> examples = [{"inputs": np.full(n, n)} for n in (2, 3, 1)]
  >>> endless = itertools.cycle(examples)
  >>> batches = Packed(endless, 0, layout, range(0, 1))  # the first row
  >>> [next(batches)["inputs"].tolist() for _ in range(2)]
  [[[2, 2, 1]], [[2, 2, 1]]]
  """

  def __init__(self, examples: Any, passed: int, layout: Layout, shard: range):
    self._source, self._layout, self._shard = examples, layout, shard
    self._examples = self._flat(passed)
    self._held: list[Fields] = []  # the example that did not fit
    self._logged = False

  def __next__(self) -> dict[str, Any]:
    batch = self._layout.batch(self._taken())
    if not self._logged:
      self._logged = True
      before, after = self._layout.padding(batch)
      _log.info(
        "packing: %.1f examples per row, padding %.1f %% -> %.1f %%",
        batch[COUNT] / self._layout.rows,
        100 * before,
        100 * after,
      )
    rows = slice(self._shard.start, self._shard.stop)
    return {k: v if k == COUNT else v[rows] for k, v in batch.items()}

  def start_prefetch(self) -> None:
    """Starts the threads of the examples, a grain iterator."""
    self._source.start_prefetch()

  def close(self) -> None:
    """Stops the threads and processes of the examples, a grain iterator."""
    self._source.close()

  def _taken(self) -> Iterator[Fields]:
    """Examples from the held one on; the last that was asked for is held."""
    while True:
      if not self._held:
        self._held.append(next(self._examples))
      yield self._held[0]
      del self._held[0]

  def _flat(self, passed: int) -> Iterator[Fields]:
    for some in self._source:
      for example in some if isinstance(some, Sequence) else [some]:
        if passed:
          passed -= 1
        else:
          yield example
