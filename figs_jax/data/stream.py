"""The training stream: examples, their order, and a position that resumes.

Training reads an endless stream of examples: epoch e is the e-th permutation
of a seed, and every global batch takes the next positions. Shard s of S holds
the s-th of S equal blocks of each batch, so that row i of a batch is the same
example, with the same draws, for any number of processes. Every example occurs
once per epoch, and a position is one integer.

Small images of one shape are decoded once, by a thread that goes ahead of the
reader, kept as uint8 and augmented in whole batches; others are decoded and
augmented one by one in threads.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import ZipMapDataset

from figs_jax.data import sources
from figs_jax.data.augment import Images

Batch = dict[str, np.ndarray]
# Decoded sets of up to this many bytes stay in memory; cifar10 has 154 MB.
_CACHE_BYTES = 256 * 2**20
_AHEAD = 16  # examples that a thread decodes at a time
COUNT = "num_examples"  # entry of a batch of another number of examples
_NOT_TRAINED_ON = ("valid", "task", COUNT)
_log = logging.getLogger("figs_jax")


class Examples:
  """Images and labels of a split by index; caches decoded small sets.

  Attributes:
    shape: Shape (height, width, channels); None where it varies.
    cached: Whether decoded images stay in memory.
  """

  def __init__(
    self,
    source: Sequence[Any],
    shape: tuple[int | None, int | None, int],
    cache_bytes: int = _CACHE_BYTES,
    classes: int | None = None,
  ):
    self._source, self._classes = source, classes
    self._changed = threading.Condition()
    self.shape = shape
    height, width, channels = shape
    self.cached = False
    if height is not None and width is not None:
      whole = (len(source), height, width, channels)
      self.cached = math.prod(whole) <= cache_bytes
      if self.cached:
        self._images = np.empty(whole, np.uint8)
        self._labels = np.empty(len(source), np.int32)
        self._seen = np.zeros(len(source), bool)
        self._claimed = np.zeros(len(source), bool)  # by a thread

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
    if not self.cached:
      images, labels = zip(*(self._read(i) for i in indices))
      return list(images), np.array(labels, np.int32)
    self._decode(indices)
    return self._images[indices], self._labels[indices]

  def decode_ahead(
    self, chunks: Iterable[np.ndarray]
  ) -> Callable[[], None] | None:
    """Starts a thread that decodes images before they are read.

    Args:
      chunks: Example numbers in the order in which they will be read, perhaps
        without end; negative ones are padding.

    Returns:
      A function that ends the thread, or None if there is nothing to decode.
    """
    if not self.cached or self._seen.all():
      return None
    stopped = threading.Event()

    def run() -> None:
      for chunk in chunks:
        for start in range(0, len(chunk), _AHEAD):
          if stopped.is_set() or self._seen.all():
            return
          some = chunk[start : start + _AHEAD]
          try:
            self._decode(some[some >= 0], wait=False)
          except Exception:  # raised once more where the example is read
            return

    thread = threading.Thread(target=run, name="decode ahead", daemon=True)
    thread.start()

    def stop() -> None:
      stopped.set()
      thread.join()

    return stop

  def _decode(self, indices: np.ndarray, wait: bool = True) -> None:
    """Decodes what no other thread decodes, and waits for the rest."""
    while not self._seen[indices].all():
      with self._changed:
        mine = indices[~self._claimed[indices]]
        self._claimed[mine] = True
        if not len(mine):
          if not wait:
            return
          self._changed.wait_for(
            lambda: (self._seen | ~self._claimed)[indices].all()
          )
      try:
        for i in mine:
          self._images[i], self._labels[i] = self._read(i)
          self._seen[i] = True
      finally:
        if len(mine):
          with self._changed:
            self._claimed[mine] = self._seen[mine]
            self._changed.notify_all()

  def __getstate__(self) -> dict[str, Any]:
    """For worker processes, in which no thread goes ahead."""
    state = vars(self) | {"_changed": None}
    if self.cached:
      state["_claimed"] = self._seen.copy()
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    vars(self).update(state)
    self._changed = threading.Condition()

  def _read(self, index: np.integer) -> tuple[np.ndarray, int]:
    example = self._source[int(index)]
    label = int(example["label"])
    if label < 0:
      raise sources.DataError(
        f"{self._source!r}: example {index} has label {label}; the labels of"
        " this split are hidden; choose another split, such as 'validation'"
      )
    if self._classes is not None and label >= self._classes:
      raise sources.DataError(
        f"{self._source!r}: example {index} has label {label}; expected labels"
        f" from 0 to {self._classes - 1}, the {self._classes} classes of the"
        " data set; prepare it again with correct labels"
      )
    return example["image"], label


@dataclasses.dataclass(frozen=True)
class Order:
  """The example numbers of the stream, `chunk` at a time.

  >>> order = Order(num_examples=5, chunk=2, seed=0)
  >>> sorted(np.concatenate([order[i] for i in range(5)]).tolist())
  [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  """

  num_examples: int
  chunk: int
  seed: int

  def __len__(self) -> int:
    return sys.maxsize // self.chunk  # without end

  def __getitem__(self, index: int) -> np.ndarray:
    first = index * self.chunk
    places = np.arange(first, first + self.chunk)
    epoch, rank = np.divmod(places, self.num_examples)
    if epoch[0] == epoch[-1]:
      return self._permutation(int(epoch[0]))[rank]
    return np.array([self._permutation(int(e))[r] for e, r in zip(epoch, rank)])

  def __reduce__(self) -> tuple[Any, ...]:  # without permutations
    return Order, dataclasses.astuple(self)

  @functools.cached_property
  def _permutation(self) -> Callable[[int], np.ndarray]:
    """The permutation of an epoch; each order keeps its last ones."""

    # Two epochs are in use at a boundary; prefetching threads may look ahead.
    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
      rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
      return rng.permutation(self.num_examples)

    return permutation


class Shard(grain.MapDataset):
  """The elements of one shard: its block of each global batch, from one on.

  Args:
    parent: Elements of all shards in order.
    rows: Number of elements of a batch of the shard.
    shard_index: Index of the shard.
    num_shards: Number of shards.
    start: Number of the first batch.

  >>> numbers = grain.MapDataset.range(12)
  >>> list(Shard(numbers, rows=2, shard_index=1, num_shards=3))
  [2, 3, 8, 9]
  """

  def __init__(
    self,
    parent: grain.MapDataset,
    rows: int,
    shard_index: int = 0,
    num_shards: int = 1,
    start: int = 0,
  ):
    super().__init__(parent)
    self._rows, self._start = rows, start
    self._shard = shard_index, num_shards

  def __len__(self) -> int:
    rows = self._rows
    batches = len(self._parent) // (rows * self._shard[1])
    return max(batches - self._start, 0) * rows

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    return self._parent[self.place(index)]

  def place(self, index: int) -> int:
    """The index among the elements of all shards.

    Args:
      index: Index among those of the shard.
    """
    batch, row = divmod(index, self._rows)
    shard, shards = self._shard
    return ((self._start + batch) * shards + shard) * self._rows + row


def stacked(batches: Sequence[Batch], axis: int = 0) -> Batch:
  """Each field of some batches or examples, stacked along a new axis.

  >>> stacked([{"label": np.arange(3)}] * 2, axis=1)["label"].shape
  (3, 2)
  """
  return {k: np.stack([b[k] for b in batches], axis) for k in batches[0]}


def seed_axis(streams: Sequence[grain.MapDataset]) -> grain.MapDataset:
  """The streams of several seeds as one, with a leading axis of seeds.

  Args:
    streams: Streams of dicts of arrays, of equal shapes.

  >>> one = grain.MapDataset.range(4).map(lambda i: {"label": np.full(2, i)})
  >>> seed_axis([one, one.map(lambda x: {"label": -x["label"]})])[3]
  {'label': array([[ 3,  3], [-3, -3]])}
  """
  return ZipMapDataset(streams).map(stacked)


class TrainBatches(grain.DatasetIterator):
  """An endless iterator of batches; its state is a position in the stream.

  `get_state()` returns {"next_example": k}, which JSON and
  `grain.checkpoint.CheckpointSave` can store: k examples were read by all
  shards together. After `set_state` the stream goes on bit for bit, with any
  number of threads, workers or shards; with another batch size, it goes on at
  the last start of a batch of that size, or exactly there if it is packed.

  Args:
    make: Function from the number of the first batch to an iterator.
    batch_size: Batch size over all shards.
    start: Number of the first batch.
    packed: Whether a batch counts its own examples, in its entry `COUNT`; then
      `make` takes the number of the first example.
    num_examples: Number of examples in an epoch, over all shards; None if it is
      not known.
    data_set: Name, version and size of the data set.
    ahead: Function from the number of the first batch to a function that stops
      what it has started, or None.
  """

  def __init__(
    self,
    make: Callable[[int], grain.DatasetIterator],
    batch_size: int,
    start: int = 0,
    *,
    num_examples: int | None,
    packed: bool = False,
    data_set: str = "",
    ahead: Callable[[int], Callable[[], None] | None] | None = None,
  ):
    super().__init__()
    self.num_examples, self.data_set = num_examples, data_set
    self._make, self._ahead = make, ahead
    self._batch_size, self._next = batch_size, start * batch_size
    self._packed = packed
    self._inner: Any = None
    self._stop: Any = None

  def __next__(self) -> Batch:
    batch = next(self._running())
    self._next += batch.get(COUNT, self._batch_size)
    # Fields for evaluation are not copied to the device.
    return {k: v for k, v in batch.items() if k not in _NOT_TRAINED_ON}

  def get_state(self) -> dict[str, Any]:
    return {"next_example": self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    """Moves to a saved position.

    Raises:
      ValueError: If the state did not come from `get_state`.
    """
    position = state.get("next_example")
    if not isinstance(position, int) or position < 0:
      raise ValueError(
        f"Expected a data position {{'next_example': 0 or more}}, got {state!r}"
      )
    self._drop()
    repeated = 0 if self._packed else position % self._batch_size
    self._next = position - repeated
    if repeated:
      _log.warning(
        "batches of %d do not divide the %d examples that were read; the last"
        " %d of them are read again",
        self._batch_size,
        position,
        repeated,
      )

  def start_prefetch(self) -> None:
    """Starts the threads before the first batch is requested."""
    self._running().start_prefetch()

  def close(self) -> None:
    """Stops threads and workers; the iterator can continue afterwards."""
    self._drop()

  def _running(self) -> Any:
    if self._inner is None:
      first = self._next if self._packed else self._next // self._batch_size
      ahead = self._ahead(first) if self._ahead else None
      self._inner = self._make(first)
      # At exit too: workers must stop before the interpreter unloads modules.
      self._stop = weakref.finalize(self, _close, self._inner, ahead)
    return self._inner

  def _drop(self) -> None:
    if self._inner is not None:
      self._stop()
      self._inner = None


def _close(inner: Any, ahead: Callable[[], None] | None) -> None:
  if ahead:
    ahead()
  inner.close()


def identity(builders: Sequence[Any]) -> str:
  """Full name, with version, and size in bytes of each prepared data set."""
  return ", ".join(
    f"{b.info.full_name} ({b.info.dataset_size} bytes)" for b in builders
  )


def check_stream(
  batch_size: int,
  shard_index: int,
  num_shards: int,
  start: int,
  workers: int,
  seed: int | Sequence[int],
) -> None:
  """Raises ValueError if an argument of a training stream is out of range."""
  check_shards(batch_size, shard_index, num_shards)
  seeds = [seed] if isinstance(seed, int) else seed
  if start < 0 or workers < 0 or min(seeds, default=-1) < 0:
    raise ValueError(
      "Expected start, workers and seed (or at least one seed) of 0 or more,"
      f" got start={start}, workers={workers}, seed={seed}"
    )


def check_shards(batch_size: int, shard_index: int, num_shards: int) -> None:
  """Raises ValueError if the batch size or the shard is out of range."""
  if batch_size < 1 or not 0 <= shard_index < num_shards:
    raise ValueError(
      "Expected batch_size >= 1 and 0 <= shard_index < num_shards, got"
      f" batch_size={batch_size}, shard_index={shard_index},"
      f" num_shards={num_shards}"
    )
