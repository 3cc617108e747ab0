"""What is read, in which order and how far: examples, order, position.

Training reads an endless stream of examples: epoch e is the e-th permutation
of a seed, and shard s of S takes positions s, s + S, ... of that stream. So a
global batch holds the same examples however many processes share it, every
example comes once per epoch, and a position in the stream is one integer.

Images of one small shape are decoded once, kept as uint8 and augmented a whole
batch at a time; others are decoded and augmented one by one in threads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from figs_jax.data import sources
from figs_jax.data.augment import Images

Batch = dict[str, np.ndarray]
# Decoded sets up to this many bytes stay in memory: cifar10 is 154 MB.
_CACHE_BYTES = 256 * 2**20
_OF_EVALUATION = ("valid", "task")


class Examples:
  """A split as (images, labels) by index arrays; decodes once what is small.

  Attributes:
    shape: (height, width, channels), None where it varies.
    cached: whether decoded images stay in memory.
  """

  def __init__(
    self,
    source: Sequence[Any],
    shape: tuple[int | None, int | None, int],
    cache_bytes: int = _CACHE_BYTES,
  ):
    self._source = source
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

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
    if not self.cached:
      found = [self._read(i) for i in indices]
      return [image for image, _ in found], np.array(
        [label for _, label in found], np.int32
      )
    # Threads may decode the same image twice; they write the same bytes.
    for i in indices[~self._seen[indices]]:
      self._images[i], self._labels[i] = self._read(i)
      self._seen[i] = True
    return self._images[indices], self._labels[indices]

  def _read(self, index: np.integer) -> tuple[np.ndarray, int]:
    example = self._source[int(index)]
    label = int(example["label"])
    if label < 0:
      raise sources.DataError(
        f"{self._source!r}: example {index} has label {label}, so this split"
        " hides its labels; choose another, such as 'validation'"
      )
    return example["image"], label


@dataclasses.dataclass(frozen=True)
class Order:
  """The stream of example numbers of one shard, `chunk` at a time.

  >>> order = Order(num_examples=5, chunk=2, seed=0)
  >>> sorted(np.concatenate([order[i] for i in range(5)]).tolist())
  [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  """

  num_examples: int
  chunk: int
  seed: int
  shard_index: int = 0
  num_shards: int = 1

  def __len__(self) -> int:
    return sys.maxsize // (self.chunk * self.num_shards)  # without end

  def __getitem__(self, index: int) -> np.ndarray:
    first = index * self.chunk
    within = np.arange(first, first + self.chunk)
    epoch, rank = np.divmod(
      within * self.num_shards + self.shard_index, self.num_examples
    )
    if epoch[0] == epoch[-1]:
      return _permutation(self.num_examples, self.seed, int(epoch[0]))[rank]
    return np.array(
      [
        _permutation(self.num_examples, self.seed, int(e))[r]
        for e, r in zip(epoch, rank)
      ]
    )


# Two epochs are alive at a boundary; prefetching threads may look ahead.
@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
  return rng.permutation(num_examples)


class TrainBatches(grain.DatasetIterator):
  """An endless iterator of batches whose state is the number handed out.

  `get_state()` is {"next_batch": k}; it fits JSON and
  `grain.checkpoint.CheckpointSave`. Setting it makes the next batch the k-th of
  the stream, bit-equal, whatever was read before and with any number of
  threads or workers.
  """

  def __init__(
    self, make: Callable[[int], grain.DatasetIterator], start: int = 0
  ):
    super().__init__()
    self._make = make
    self._next_batch = start
    self._inner: Any = None
    self._stop: Any = None

  def __next__(self) -> Batch:
    batch = next(self._running())
    self._next_batch += 1
    # What says how to evaluate would only be copied to the device.
    return {k: v for k, v in batch.items() if k not in _OF_EVALUATION}

  def get_state(self) -> dict[str, Any]:
    return {"next_batch": self._next_batch}

  def set_state(self, state: dict[str, Any]) -> None:
    """Moves to a saved position.

    Raises:
      ValueError: the state is not one of `get_state`.
    """
    position = state.get("next_batch")
    if not isinstance(position, int) or position < 0:
      raise ValueError(
        f"data position {state!r}: expected {{'next_batch': 0 or more}}"
      )
    self._drop()
    self._next_batch = position

  def start_prefetch(self) -> None:
    """Starts the threads before the first batch is asked for."""
    self._running().start_prefetch()

  def close(self) -> None:
    """Stops threads and workers; the iterator can go on afterwards."""
    self._drop()

  def _running(self) -> Any:
    if self._inner is None:
      self._inner = self._make(self._next_batch)
      # Also when the program ends: workers must stop before modules vanish.
      self._stop = weakref.finalize(self, self._inner.close)
    return self._inner

  def _drop(self) -> None:
    if self._inner is not None:
      self._stop()
      self._inner = None


def parse_flags() -> None:
  """grain's worker processes read absl flags, which a library never parses."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def check_shards(batch_size: int, shard_index: int, num_shards: int) -> None:
  """Raises ValueError if there is no such shard, or no batch."""
  if batch_size < 1 or not 0 <= shard_index < num_shards:
    raise ValueError(
      f"batch_size={batch_size}, shard_index={shard_index},"
      f" num_shards={num_shards}: need batch_size >= 1 and"
      " 0 <= shard_index < num_shards"
    )
