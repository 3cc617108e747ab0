"""Batches for training and evaluation, deterministic and resumable.

Batches are dicts of numpy arrays: `image` float32 [batch, size, size, c] in
[-1, 1], that is pixel / 127.5 - 1 for every data set, and `label` int32
[batch]; evaluation adds `valid` bool [batch].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from figs_jax.data import augment as augment_lib
from figs_jax.data import sources
from figs_jax.data.stream import (
  Batch,
  Examples,
  Order,
  TrainBatches,
  check_shards,
  parse_flags,
)

_DEFAULT_SIZE = 224
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class _Prepare(grain.transforms.RandomMap):
  """Example numbers -> a batch. Number -1 stands for padding."""

  examples: Examples
  augment: augment_lib.Augment

  def random_map(self, element: np.ndarray, rng: np.random.Generator) -> Any:
    images, labels = self.examples[np.maximum(element, 0)]
    pixels = self.augment(images, rng)
    image = pixels.astype(np.float32)
    image *= np.float32(1 / 127.5)
    image -= np.float32(1)
    valid = element >= 0
    if valid.all():
      return {"image": image, "label": labels, "valid": valid}
    image[~valid] = 0
    return {
      "image": image,
      "label": np.where(valid, labels, 0).astype(np.int32),
      "valid": valid,
    }


@dataclasses.dataclass(frozen=True)
class _Spread:
  """One shard's chunks at the places that they have among those of all."""

  chunks: Any
  num_shards: int

  def __len__(self) -> int:
    return len(self.chunks) * self.num_shards

  def __getitem__(self, index: int) -> np.ndarray:
    return self.chunks[index // self.num_shards]


def _concatenate(batches: Sequence[Batch]) -> Batch:
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@dataclasses.dataclass(frozen=True)
class _Pipeline:
  """(augmentation, examples) as grain iterators over chunks of numbers."""

  examples: Examples
  augment: augment_lib.Augment
  size: int
  batch_size: int
  threads: int = _THREADS
  workers: int = 0

  @property
  def vectorised(self) -> bool:
    return self.examples.cached and augment_lib.is_vectorised(
      self.augment, self.examples.shape, self.size
    )

  @property
  def chunk(self) -> int:
    return self.batch_size if self.vectorised else 1

  def iterate(
    self,
    chunks: Any,
    seed: int,
    start: int,
    shard_index: int = 0,
    num_shards: int = 1,
  ) -> grain.DatasetIterator:
    """Batches from number `start` on; `chunks` are arrays of `self.chunk`.

    What is drawn for a chunk follows from its place among those of all shards,
    so that no two shards draw the same.
    """
    per_batch = self.batch_size // self.chunk
    dataset = (
      grain.MapDataset.source(_Spread(chunks, num_shards))
      .seed(seed)
      .random_map(_Prepare(self.examples, self.augment))
    )[shard_index::num_shards][start * per_batch :]
    if self.workers:
      parse_flags()
      # Batched before the split over workers, so that the order stays.
      if per_batch > 1:
        dataset = dataset.batch(per_batch, batch_fn=_concatenate)
      one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
      options = grain.MultiprocessingOptions(num_workers=self.workers)
      return iter(dataset.to_iter_dataset(one).mp_prefetch(options))
    if self.vectorised:
      # Faster than handing a finished batch from one thread to another.
      inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      return iter(dataset.to_iter_dataset(inline))
    ahead = grain.ReadOptions(
      num_threads=self.threads,
      prefetch_buffer_size=max(2 * self.batch_size, self.threads),
    )
    single = dataset.to_iter_dataset(ahead)
    return iter(single.batch(per_batch, batch_fn=_concatenate))


def train_batches(
  name: str,
  split: str,
  batch_size: int,
  *,
  seed: int,
  augment: str = "standard",
  image_size: int | None = None,
  start: int = 0,
  shard_index: int = 0,
  num_shards: int = 1,
  data_dir: str | None = None,
  download: bool = False,
  threads: int = _THREADS,
  workers: int = 0,
) -> TrainBatches:
  """An endless, shuffled, augmented stream of batches.

  Args:
    name, split, data_dir, download: as in `load`.
    batch_size: of this shard: the global batch divided by `num_shards`.
    seed: of the order and of the augmentation.
    augment: "none", "standard" or "rand-m15-n2"; see `augment.standard`.
    image_size: side of the images; None keeps the data set's, or 224 where
      its images vary.
    start: number of the first batch, as `set_state` would set it.
    shard_index: which shard this process reads.
    num_shards: of how many.
    threads: for decoding, where the images do not fit into memory.
    workers: processes instead of threads; 0 is none. Each opens the data set
      by itself, and none may touch a device.

  Raises:
    DataError: see `load`.
    ValueError: an argument is out of its range.
  """
  check_shards(batch_size, shard_index, num_shards)
  if start < 0 or workers < 0 or seed < 0:
    raise ValueError(
      f"start={start}, workers={workers}, seed={seed}: must be 0 or more"
    )
  examples, train, _, size = _open(
    name, split, image_size, augment, data_dir, download
  )
  pipeline = _Pipeline(examples, train, size, batch_size, threads, workers)
  order = Order(len(examples), pipeline.chunk, seed, shard_index, num_shards)

  def make(first: int) -> grain.DatasetIterator:
    return pipeline.iterate(order, seed, first, shard_index, num_shards)

  return TrainBatches(make, start)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """One pass over a split, as often as wanted; see `eval_batches`.

  Attributes:
    num_examples: of the split, over all shards.
  """

  num_examples: int
  _chunks: np.ndarray
  _pipeline: _Pipeline

  def __len__(self) -> int:
    return self._chunks.size // self._pipeline.batch_size

  def __iter__(self) -> Iterator[Batch]:
    return self._pipeline.iterate(self._chunks, seed=0, start=0)


def eval_batches(
  name: str,
  split: str,
  batch_size: int,
  *,
  image_size: int | None = None,
  shard_index: int = 0,
  num_shards: int = 1,
  data_dir: str | None = None,
  download: bool = False,
  threads: int = _THREADS,
) -> EvalBatches:
  """The whole split in order, in batches of one shape.

  What is missing to full batches, and to equally many batches per shard, is
  padded with zeros and has `valid` False, so that one compilation serves all.

  Args:
    batch_size: of this shard.
    name, split, image_size, data_dir, download: as in `train_batches`.
    shard_index, num_shards, threads: as there.

  Raises:
    DataError: see `load`.
    ValueError: an argument is out of its range.
  """
  check_shards(batch_size, shard_index, num_shards)
  examples, _, evaluate, size = _open(
    name, split, image_size, "none", data_dir, download
  )
  pipeline = _Pipeline(examples, evaluate, size, batch_size, threads)
  count = len(examples)
  batches = -(-count // (batch_size * num_shards))
  numbers = np.full(batches * batch_size, -1)
  mine = np.arange(shard_index, count, num_shards)
  numbers[: len(mine)] = mine
  return EvalBatches(count, numbers.reshape(-1, pipeline.chunk), pipeline)


def _open(name, split, image_size, augment, data_dir, download):
  """(examples, train augmentation, eval preprocessing, size)."""
  builder = sources.find(name, data_dir=data_dir, download=download)
  shape = sources.describe_builder(builder).image_shape
  fixed = shape[0] if shape[0] == shape[1] else None
  size = image_size or fixed or _DEFAULT_SIZE
  train, evaluate = augment_lib.standard(builder.name, shape, size, augment)
  examples = Examples(sources.source_of(builder, split), shape)
  return examples, train, evaluate, size
