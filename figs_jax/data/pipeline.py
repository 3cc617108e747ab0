"""Image batches for training and evaluation, deterministic and resumable.

Batches are dicts of NumPy arrays: `image` float32 [batch, size, size, c], in
[-1, 1] by default, and `label` int32 [batch]; evaluation adds `valid` bool
[batch].
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from figs_jax.data import augment as augment_lib
from figs_jax.data import sources
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.pixels import HALF, PixelScale
from figs_jax.data.python_data import PythonData
from figs_jax.data.stream import (
  Batch,
  Examples,
  Order,
  Shard,
  TrainBatches,
  check_shards,
  check_stream,
  identity,
  seed_axis,
)
from figs_jax.data.workers import in_processes

_DEFAULT_SIZE = 224
_THREADS = 16
_DRAWS = 2**63  # in keys of draws; in those of orders it is the epoch


@dataclasses.dataclass(frozen=True)
class _Prepare(grain.transforms.RandomMap):
  """Turns example numbers into a batch; the number -1 stands for padding."""

  examples: Examples
  augment: augment_lib.Augment
  scale: PixelScale

  def random_map(self, element: np.ndarray, rng: np.random.Generator) -> Any:
    images, labels = self.examples[np.maximum(element, 0)]
    image = self.scale(self.augment(images, rng))
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
class _PrepareChunk(grain.experimental.MapWithIndexTransform):
  """As `_Prepare`, of a chunk whose images take a block of Philox each."""

  prepare: _Prepare
  chunk: int
  seed: int

  def map_with_index(self, index: int, element: np.ndarray) -> Any:
    key = np.array([self.seed, _DRAWS], np.uint64)
    bits = np.random.Philox(key=key, counter=index * self.chunk)
    return self.prepare.random_map(element, np.random.Generator(bits))


def _concatenate(batches: Sequence[Batch], axis: int) -> Batch:
  return {k: np.concatenate([b[k] for b in batches], axis) for k in batches[0]}


@dataclasses.dataclass(frozen=True)
class _Pipeline:
  """Builds grain iterators over chunks of example numbers."""

  examples: Examples
  augment: augment_lib.Augment
  scale: PixelScale
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

  @property
  def _per_batch(self) -> int:
    return self.batch_size // self.chunk

  def prepared(self, chunks: Any, seed: int) -> grain.MapDataset:
    """Chunks of example numbers as arrays.

    The random numbers of an example depend on its place among the chunks of all
    shards, and on nothing else.
    """
    source = grain.MapDataset.source(chunks).seed(seed)
    prepare = _Prepare(self.examples, self.augment, self.scale)
    if self.vectorised:
      return source.map_with_index(_PrepareChunk(prepare, self.chunk, seed))
    return source.random_map(prepare)

  def shard(
    self, chunks: grain.MapDataset, shard: tuple[int, int], start: int
  ) -> Shard:
    """The chunks of a shard (index, number of shards), from a batch on."""
    return Shard(chunks, self._per_batch, *shard, start)

  def iterate(
    self, dataset: grain.MapDataset, seeds: int | None = None
  ) -> grain.DatasetIterator:
    """Iterates over batches of prepared chunks.

    Args:
      dataset: Chunks from `prepared`, or the `seed_axis` of several.
      seeds: Number of seeds, or None without an axis of seeds.
    """
    per_batch = self._per_batch
    join = functools.partial(_concatenate, axis=0 if seeds is None else 1)
    if self.workers:
      # Batching before the split over workers keeps the order.
      if per_batch > 1:
        dataset = dataset.batch(per_batch, batch_fn=join)
      return in_processes(dataset, self.workers)
    if self.vectorised:
      # Faster than passing finished batches between threads.
      inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      return iter(dataset.to_iter_dataset(inline))
    ahead = grain.ReadOptions(
      num_threads=self.threads,
      prefetch_buffer_size=max(
        2 * self.batch_size // (seeds or 1), self.threads
      ),
    )
    single = dataset.to_iter_dataset(ahead)
    return iter(single.batch(per_batch, batch_fn=join))


def train_batches(
  name: str | PythonData,
  split: str,
  batch_size: int,
  *,
  seed: int | Sequence[int],
  augment: str = "standard",
  image_size: int | None = None,
  scale: PixelScale = HALF,
  start: int = 0,
  shard_index: int = 0,
  num_shards: int = 1,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
  threads: int = _THREADS,
  workers: int = 0,
) -> TrainBatches:
  """An endless, shuffled, augmented stream of batches.

  Args:
    name: Data set, see `load`, or data of a program.
    split: Split, see `load`.
    batch_size: Batch size of this shard: the global batch size divided by
      `num_shards`.
    seed: Seed of the order and of the augmentation. Several give batches with
      a leading axis of seeds: entry i is the batch that seed i gives alone.
    augment: "none", "standard" or "rand-m15-n2"; see `augment.standard`.
    image_size: Side of the images in pixels. Defaults to the data set's, or to
      224 if its images vary in size.
    scale: Mean and standard deviation of the pixels.
    start: Number of the first batch, as `set_state` would set it.
    shard_index: Index of the shard that this process reads.
    num_shards: Number of shards.
    data_dir: Directory of the data sets, see `load`.
    download: Whether to download and prepare a missing data set, see `load`.
    options: How data of one's own are read.
    threads: Number of decoding threads if the images do not fit into memory.
    workers: Number of worker processes that replace the threads if it is above
      0. Each opens the data set by itself; none may touch a device.

  Returns:
    Batches of `image`, float32 [batch_size, side, side, channels], and `label`,
    int32 [batch_size].

  Raises:
    DataError: If the data cannot be read, see `load`.
    ValueError: If an argument is out of range.

  >>> rows = [{"image": np.full((8, 8), i), "label": i % 2} for i in range(5)]
  >>> rows = [{**row, "image": np.uint8(row["image"])} for row in rows]
  >>> data = PythonData((rows, rows))
  >>> batches = train_batches(data, "train", 5, seed=0, augment="none")
  >>> batch = next(batches)
  >>> batch["image"].shape, sorted(batch["label"].tolist())  # one epoch
  ((5, 8, 8, 1), [0, 0, 0, 1, 1])
  >>> batches.get_state()
  {'next_example': 5}
  >>> batches.close()
  """
  check_stream(batch_size, shard_index, num_shards, start, workers, seed)
  examples, train, _, size, data_set = _open(
    name, split, image_size, augment, scale, data_dir, download, options
  )
  pipeline = _Pipeline(
    examples, train, scale, size, batch_size, threads, workers
  )
  shard = (shard_index, num_shards)

  def order_of(seed: int) -> Order:
    return Order(len(examples), pipeline.chunk, seed)

  def ahead(first: int) -> Callable[[], None] | None:
    if workers:
      return None
    orders = [order_of(one) for one in np.atleast_1d(seed).tolist()]
    place = pipeline.shard(grain.MapDataset.range(0), shard, first).place
    return examples.decode_ahead(
      order[place(i)]
      for i in itertools.count(1)  # the reader itself begins with the first
      for order in orders
    )

  def of_seed(seed: int, first: int) -> grain.MapDataset:
    return pipeline.shard(pipeline.prepared(order_of(seed), seed), shard, first)

  def make(first: int) -> grain.DatasetIterator:
    if isinstance(seed, int):
      return pipeline.iterate(of_seed(seed, first))
    streams = [of_seed(one, first) for one in seed]
    return pipeline.iterate(seed_axis(streams), len(streams))

  return TrainBatches(
    make,
    batch_size * num_shards,
    start,
    num_examples=len(examples),
    data_set=data_set,
    ahead=ahead,
  )


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """A re-iterable pass over a split; see `eval_batches`.

  Attributes:
    num_examples: Number of examples in the split, over all shards.
  """

  num_examples: int
  _chunks: np.ndarray
  _pipeline: _Pipeline

  def __len__(self) -> int:
    return self._chunks.size // self._pipeline.batch_size

  def __iter__(self) -> Iterator[Batch]:
    chunks = self._pipeline.prepared(self._chunks, seed=0)
    stop = self._pipeline.examples.decode_ahead(iter(self._chunks[1:]))
    try:
      yield from self._pipeline.iterate(chunks)
    finally:
      if stop:
        stop()


def eval_batches(
  name: str | PythonData,
  split: str,
  batch_size: int,
  *,
  image_size: int | None = None,
  scale: PixelScale = HALF,
  shard_index: int = 0,
  num_shards: int = 1,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
  threads: int = _THREADS,
) -> EvalBatches:
  """Reads a whole split in order, in batches of one shape.

  Incomplete batches, and shards with fewer batches, are padded with zeros and
  `valid` False, so that one compilation serves all batches.

  Args:
    name: Data set, see `load`, or data of a program.
    split: Split, see `load`.
    batch_size: Batch size of this shard.
    image_size: Side of the images, see `train_batches`.
    scale: Mean and standard deviation of the pixels.
    shard_index: Index of the shard that this process reads.
    num_shards: Number of shards.
    data_dir: Directory of the data sets, see `load`.
    download: Whether to download and prepare a missing data set, see `load`.
    options: How data of one's own are read.
    threads: Number of decoding threads if the images do not fit into memory.

  Raises:
    DataError: If the data cannot be read, see `load`.
    ValueError: If an argument is out of range.

  >>> rows = [{"image": np.zeros((8, 8), np.uint8), "label": i} for i in (0, 1)]
  >>> data = PythonData((rows, [*rows, rows[0]]))
  >>> for batch in eval_batches(data, "test", 2):
  ...   print(batch["label"].tolist(), batch["valid"].tolist())
  [0, 1] [True, True]
  [0, 0] [True, False]
  """
  check_shards(batch_size, shard_index, num_shards)
  examples, _, evaluate, size, _ = _open(
    name, split, image_size, "none", scale, data_dir, download, options
  )
  pipeline = _Pipeline(examples, evaluate, scale, size, batch_size, threads)
  count = len(examples)
  batches = -(-count // (batch_size * num_shards))
  numbers = np.full(batches * batch_size, -1)
  mine = np.arange(shard_index, count, num_shards)
  numbers[: len(mine)] = mine
  return EvalBatches(count, numbers.reshape(-1, pipeline.chunk), pipeline)


def _open(name, split, image_size, augment, scale, data_dir, download, options):
  """Opens a split: (examples, train and eval preprocessing, side, name)."""
  builder = sources.find(
    name, data_dir=data_dir, download=download, options=options
  )
  info = sources.describe_builder(builder)
  shape = info.image_shape
  fixed = shape[0] if shape[0] == shape[1] else None
  size = image_size or fixed or _DEFAULT_SIZE
  train, evaluate = augment_lib.standard(builder.name, shape, size, augment)
  scale.check(shape[-1])
  source = sources.source_of(builder, split)
  examples = Examples(source, shape, classes=info.num_classes)
  return examples, train, evaluate, size, identity([builder])
