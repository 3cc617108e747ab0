"""Batches of texts, for training without end and for evaluation.

What a row holds is decided elsewhere, by `Readable`: `text`, `causal_text` and
`masked_text`. Rows with one example each are read by number, or in order from a
stream; packed rows are filled with examples from either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from figs_jax.data.packing import Fields, Group, Layout, Packed
from figs_jax.data.python_data import Builder
from figs_jax.data.stream import (
  Batch,
  Shard,
  TrainBatches,
  check_shards,
  check_stream,
  identity,
  seed_axis,
  stacked,
)
from figs_jax.data.streaming import Stream
from figs_jax.data.workers import in_processes

_THREADS = 16
_HANDED_OVER = 64  # examples that a worker process gives at a time
Arrays = Callable[[Any, np.random.Generator], dict[str, Any]]


@runtime_checkable
class Readable(Protocol):
  """What batches are made of: `text.Texts`, or `causal_text.CausalText`."""

  @property
  def builders(self) -> tuple[Builder, ...]: ...
  @property
  def input_length(self) -> int: ...

  def examples(self, split: str, *, ordered: bool, whole: bool = False) -> Any:
    """A sequence of examples, with an attribute `cached`.

    Args:
      split: Split.
      ordered: Whether to keep all tokens, in order, for evaluation.
      whole: Same as for `examples_of`.
    """

  def examples_of(self, source: Any, *, whole: bool) -> Any:
    """One example for each entry of a source, which may be a part of a split.

    Args:
      source: Entries of the data set.
      whole: Whether a document is an example by itself, even if it is short.
    """

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    """The fields of an example, padded to the length of a row; zeros for None.

    Args:
      example: Entry of `examples`, or None.
      rng: Generator of what is drawn for the example.
    """
    ...


@runtime_checkable
class Packable(Protocol):
  """A `Readable` whose examples may share a row."""

  @property
  def groups(self) -> tuple[Group, ...]:
    """The fields of a row."""
    ...

  def fields(self, example: Any, rng: np.random.Generator) -> Fields:
    """The fields of an example, without padding.

    Args:
      example: Entry of `examples`.
      rng: Generator of what is drawn for the example.
    """
    ...


def train_batches(
  texts: Readable,
  split: str,
  batch_size: int,
  *,
  seed: int | Sequence[int],
  start: int = 0,
  shard_index: int = 0,
  num_shards: int = 1,
  threads: int = _THREADS,
  workers: int = 0,
  pack: bool = False,
  shuffle_buffer: int = 10_000,
) -> TrainBatches:
  """An endless, shuffled stream; see `figs_jax.data.train_batches`.

  The stream is one for all shards: its position decides an example and what is
  drawn for it, and shard s takes the s-th block of each global batch.

  Args:
    texts: Data and what is learned from them.
    split, batch_size, seed, start, shard_index, num_shards, threads, workers:
      Same as for `figs_jax.data.train_batches`. With `pack`, a batch has this
      number of rows, one seed is allowed, and `start` is 0.
    pack: Whether a row holds several examples, see `packing`.
    shuffle_buffer: Number of records that are held and shuffled together if the
      data set is streamed, see `streaming`.

  Raises:
    DataError: If the data cannot be read, see `figs_jax.data.load`.
    ValueError: If an argument is out of range, or examples cannot be packed.

  >>> from figs_jax.data import find_causal_text
  >>> from figs_jax.data.python_data import PythonData
  >>> rows = [{"text": "so", "target": "no"}] * 5  # so<end>no, and <end>
  >>> texts = find_causal_text(PythonData((rows, rows)), input_length=10)
  >>> batches = train_batches(texts, "train", 2, seed=0, pack=True)
  >>> next(batches)["inputs_segments"].tolist()
  [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]]
  >>> batches.close()
  """
  check_stream(batch_size, shard_index, num_shards, start, workers, seed)
  rows = range(shard_index * batch_size, (shard_index + 1) * batch_size)
  size = batch_size * num_shards
  if pack and (start or not isinstance(seed, int)):
    raise ValueError(
      f"Expected one seed and start=0 of packed batches, got seed={seed} and"
      f" start={start}; set --config.data.order=shared"
    )
  seeds = [seed] if isinstance(seed, int) else seed
  arrays: Arrays = texts.arrays
  layout = None
  if pack:
    if not isinstance(texts, Packable):
      raise ValueError(
        "--config.data.pack: expected texts whose tokens are predicted, got"
        " ones with a label each; set --config.data.objective=masked, or"
        " pack=False"
      )
    arrays, layout = texts.fields, Layout(texts.groups, size)
  kind = _Numbered
  if getattr(texts.builders[0], "streamed", False):
    kind = functools.partial(_Streamed, buffer=shuffle_buffer)
  read: _Numbered | _Streamed = kind(
    texts, split, arrays, pack, rows, size, threads, workers
  )

  def make(first: int) -> Any:
    if layout is not None:
      return Packed(*read.examples(seeds[0], first), layout, rows)
    streams = [read.of_seed(one, first) for one in seeds]
    return read.batches(streams, None if isinstance(seed, int) else 1)

  return TrainBatches(
    make,
    size,
    start,
    packed=pack,
    num_examples=read.num_examples,
    data_set=identity(texts.builders),
  )


@dataclasses.dataclass(frozen=True)
class _Read:
  """A stream of examples, from which rows of a batch of `size` are taken."""

  texts: Readable
  split: str
  arrays: Arrays
  whole: bool
  rows: range
  size: int
  threads: int
  workers: int


@dataclasses.dataclass(frozen=True)
class _Numbered(_Read):
  """Examples by number, each epoch in a permutation of its own."""

  @functools.cached_property
  def data(self) -> Any:
    """All examples of the split."""
    return self.texts.examples(self.split, ordered=False, whole=self.whole)

  @property
  def num_examples(self) -> int:
    """Number of examples in an epoch."""
    return len(self.data)

  def of_seed(self, seed: int, first: int) -> grain.MapDataset:
    """The examples of the shard from a batch on."""
    count = len(self.rows)
    shard = self.rows.start // count, self.size // count
    return Shard(self._all(seed), count, *shard, first)

  def batches(self, streams: Sequence[Any], axis: int | None) -> Any:
    """An iterator over batches, with seeds on the axis before `axis`."""
    join = None if axis is None else functools.partial(stacked, axis=axis)
    stream = streams[0] if axis is None else seed_axis(streams)
    count = len(self.rows)
    if self.workers:
      return in_processes(stream.batch(count, batch_fn=join), self.workers)
    read = _read(stream, self.data, self.threads)
    return iter(read.batch(count, batch_fn=join))

  def examples(self, seed: int, first: int) -> tuple[Any, int]:
    """An iterator over the examples of all shards from one on, and 0."""
    stream = self._all(seed)[first:]
    if self.workers:
      some = stream.batch(_HANDED_OVER, batch_fn=list)
      return in_processes(some, self.workers), 0
    return iter(_read(stream, self.data, self.threads)), 0

  def _all(self, seed: int) -> grain.MapDataset:
    return (
      grain.MapDataset.range(len(self.data))
      .seed(seed % 2**32)
      .shuffle()
      .repeat(None)
      .random_map(_Prepare(self.arrays, self.data))
    )


@dataclasses.dataclass(frozen=True)
class _Streamed(_Read):
  """Examples in the order of `streaming`.

  Attributes:
    buffer: Number of records that are shuffled together.
  """

  buffer: int
  num_examples = None

  def of_seed(self, seed: int, first: int) -> grain.MapDataset:
    """The batches of the shard from one on."""
    return self._lists(seed, self.rows)[first:].map(stacked)

  def batches(self, streams: Sequence[Any], axis: int | None) -> Any:
    """An iterator over batches, with seeds on the axis before `axis`."""
    return self._iterate(streams[0] if axis is None else seed_axis(streams))

  def examples(self, seed: int, first: int) -> tuple[Any, int]:
    """An iterator over lists of examples, and how many to pass over."""
    batch, passed = divmod(first, self.size)
    lists = self._lists(seed, range(self.size))[batch:]
    return self._iterate(lists), passed

  def _lists(self, seed: int, rows: range) -> grain.MapDataset:
    records: Any = self.texts.builders[0]
    of = functools.partial(self.texts.examples_of, whole=self.whole)
    return grain.MapDataset.source(
      Stream(
        records, self.split, of, self.arrays, self.size, seed, self.buffer, rows
      )
    )

  def _iterate(self, stream: grain.MapDataset) -> Any:
    if self.workers:
      return in_processes(stream, self.workers)
    # One thread, which reads in order.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(stream.to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class TextEvalBatches:
  """A re-iterable pass over a split; see `eval_batches`.

  Attributes:
    num_examples: Number of examples in the split, over all shards.
  """

  num_examples: int
  _length: int
  _make: Any

  def __len__(self) -> int:
    return self._length

  def __iter__(self) -> Iterator[Batch]:
    return self._make()


def eval_batches(
  texts: Readable,
  split: str,
  batch_size: int,
  *,
  shard_index: int = 0,
  num_shards: int = 1,
  threads: int = _THREADS,
) -> TextEvalBatches:
  """Reads a whole split in order, in batches of one shape.

  Incomplete batches, and shards with fewer batches, are padded with zeros and
  `valid` False. Every pass gives the same batches.

  Args:
    texts: Data and what is learned from them.
    split, batch_size, shard_index, num_shards, threads: Same as for
      `figs_jax.data.eval_batches`.

  Raises:
    DataError: If the data cannot be read, see `figs_jax.data.load`.
    ValueError: If an argument is out of range.

  >>> from figs_jax.data import find_causal_text
  >>> from figs_jax.data.python_data import PythonData
  >>> rows = [{"text": "so", "target": word} for word in ("yes", "no", "yes")]
  >>> texts = find_causal_text(PythonData((rows, rows)), input_length=8)
  >>> batches = eval_batches(texts, "test", 2)
  >>> len(batches), [batch["valid"].tolist() for batch in batches]
  (2, [[True, True], [True, False]])
  """
  check_shards(batch_size, shard_index, num_shards)
  examples = texts.examples(split, ordered=True)
  count, step = len(examples), batch_size * num_shards
  numbers = np.full(-(-count // step) * step, -1)
  numbers[:count] = np.arange(count)
  stream = (
    grain.MapDataset.source(numbers.tolist())
    .seed(0)
    .random_map(_Prepare(texts.arrays, examples))
  )[shard_index::num_shards]

  def make() -> Iterator[Batch]:
    return iter(_read(stream, examples, threads).batch(batch_size))

  return TextEvalBatches(count, len(numbers) // step, make)


@dataclasses.dataclass(frozen=True)
class _Prepare(grain.transforms.RandomMap):
  """Turns the number of an example into arrays; -1 stands for padding."""

  arrays: Arrays
  examples: Sequence[Any]

  def random_map(self, element: Any, rng: np.random.Generator) -> Any:
    example = self.examples[int(element)] if element >= 0 else None
    return self.arrays(example, rng) | {"valid": np.bool_(element >= 0)}


def _read(stream: Any, examples: Any, threads: int) -> Any:
  # If nothing is read from disk, passing data between threads does not pay.
  count = 0 if examples.cached else threads
  options = grain.ReadOptions(
    num_threads=count, prefetch_buffer_size=16 * count
  )
  return stream.to_iter_dataset(options)
