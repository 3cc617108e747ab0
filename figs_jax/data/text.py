"""Text batches for an encoder and a decoder, deterministic and resumable.

Batches are dicts of NumPy arrays: `inputs` int32 [batch, input_length] and
`targets` int32 [batch, target_length], each ended by 1 and padded with 0;
evaluation adds `valid` bool [batch] and `task` int32 [batch].

Data sets with a `text` feature (`stdlib_text`, `c4`, ...) are used for span
corruption; `glue` and translations provide inputs and targets of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
import tensorflow_datasets as tfds

from figs_jax.data import sources, text_to_text
from figs_jax.data.masked_text import LabelledTexts, MaskedTokens
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.own_vocabulary import path_of_pieces, vocabulary_of
from figs_jax.data.python_data import Builder, PythonData
from figs_jax.data.segments import Segments, segments_of
from figs_jax.data.span_corruption import SpanCorruption
from figs_jax.data.stream import (
  Batch,
  Shard,
  TrainBatches,
  check_shards,
  check_stream,
  identity,
  parse_flags,
  seed_axis,
  stacked,
)
from figs_jax.data.vocabulary import EOS, Vocabulary

_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Denoising:
  """Span corruption of a data set's `text`."""

  builder: Builder
  vocabulary: Vocabulary
  corruption: SpanCorruption
  names: tuple[str, ...] = ("denoising",)

  @property
  def builders(self) -> tuple[Builder, ...]:
    return (self.builder,)

  @property
  def target_length(self) -> int:
    return self.corruption.target_length

  @property
  def input_length(self) -> int:
    return self.corruption.input_length

  def examples(self, split: str, *, ordered: bool) -> Segments:
    source = sources.source_of(self.builder, split)
    length = self.corruption.segment_length
    encode = self.vocabulary.encode
    return segments_of(source, length, encode, whole=ordered)

  def pair(
    self, example: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, int]:
    length = self.corruption.segment_length
    if len(example) > length:
      at = rng.integers(len(example) - length + 1)
      example = example[at : at + length]
    return *self.corruption(example, rng, self.vocabulary), 0

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    return pair_arrays(self, example, rng)


@dataclasses.dataclass(frozen=True)
class TextToText:
  """One or several concatenated tasks as text-to-text pairs."""

  builders: tuple[Builder, ...]
  vocabulary: Vocabulary
  input_length: int
  target_length: int

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the tasks, in the order of their numbers."""
    return tuple(_task_name(builder) for builder in self.builders)

  @property
  def is_translation(self) -> bool:
    return text_to_text.is_translation(self.builders[0])

  @property
  def is_own(self) -> bool:
    return self.builders[0].name in text_to_text.OWN

  def answers(self) -> dict[str, np.ndarray]:
    """Ids of all answers by task with labels, int32 [classes, target_length].

    Raises:
      ValueError: If two answers of a task agree up to the target length.
    """
    tables = {}
    for name, builder in zip(self.names, self.builders):
      if not text_to_text.has_labels(builder):
        continue
      labels = text_to_text.labels(builder)
      table = np.zeros((len(labels), self.target_length), np.int32)
      for row, label in zip(table, labels):
        ids = self._ended(label, self.target_length)
        row[: len(ids)] = ids
      if len(np.unique(table, axis=0)) < len(table):
        longest = max(len(self.vocabulary.encode(label)) for label in labels)
        raise ValueError(
          f"target_length={self.target_length} cannot distinguish the answers"
          f" of {name}; set it to {longest + 1}"
        )
      tables[name] = table
    return tables

  def examples(self, split: str, *, ordered: bool) -> Tasks:
    del ordered
    several = len(self.builders) > 1
    return Tasks(
      self.builders,
      [
        sources.source_of(builder, _split_of(builder, split, several))
        for builder in self.builders
      ],
    )

  def pair(
    self, example: tuple[str, str, int], rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, int]:
    del rng
    inputs, targets, task = example
    return (
      self._ended(inputs, self.input_length),
      self._ended(targets, self.target_length),
      task,
    )

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    return pair_arrays(self, example, rng)

  def _ended(self, text: str, length: int) -> np.ndarray:
    """Encodes a text, truncated to leave room for the end token."""
    ids = self.vocabulary.encode(text)[: length - 1]
    return np.append(ids, np.int32(EOS))


Texts = Denoising | TextToText | MaskedTokens | LabelledTexts


@runtime_checkable
class Readable(Protocol):
  """What batches are made of: `Texts`, or `causal_text.CausalText`."""

  @property
  def builders(self) -> tuple[Builder, ...]: ...
  @property
  def input_length(self) -> int: ...

  def examples(self, split: str, *, ordered: bool) -> Any:
    """A sequence of examples, with an attribute `cached`."""

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    """The fields of an example; of padding for None."""
    ...


class Tasks(Sequence):
  """Concatenated examples (inputs, targets, task number) of several tasks."""

  def __init__(
    self,
    builders: Sequence[Builder],
    parts: Sequence[Sequence[Any]],
  ):
    self.cached = False
    self._readers = [text_to_text.reader(builder) for builder in builders]
    self._parts = parts
    self._starts = [0, *itertools.accumulate(map(len, parts))]

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: Any) -> Any:
    task = int(np.searchsorted(self._starts, index, side="right")) - 1
    example = self._parts[task][int(index) - self._starts[task]]
    read = self._readers[task]
    assert read is not None
    try:
      return *read(example), task
    except text_to_text.HiddenLabel:
      raise sources.DataError(
        f"{self._parts[task]!r}: example {index} has no label; the labels of"
        " this split are hidden; choose another split, such as 'validation'"
      ) from None


def writes_nothing(
  name: str, vocabulary: str, data_dir: str, options: Options = DEFAULTS
) -> bool:
  """Whether `find_texts` would write nothing, neither data nor a vocabulary.

  Args:
    name, vocabulary, data_dir, options: Same as in `find_texts`.

  >>> writes_nothing("stdlib_text", "bytes", "nowhere")
  False
  """
  if not sources.is_prepared(name, data_dir, options):
    return False
  kind, _, size = vocabulary.partition(":")
  if kind != "sentencepiece":
    return True
  first = _parts_of(name)[0]
  builder = sources.find(first, data_dir=data_dir, options=options)
  root = sources.root_of(data_dir)
  return os.path.exists(path_of_pieces(size, builder, root))


def _parts_of(name: str | PythonData) -> list[str | PythonData]:
  """The data sets of a name: "glue" is all tasks, tfds would take its first."""
  if name != "glue":
    return [name]
  return [f"glue/{task}" for task in text_to_text.GLUE]


def find_builders(
  name: str | PythonData,
  *,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
) -> tuple[Builder, ...]:
  """The data sets of a name, each with text or inputs and targets.

  Args:
    name, data_dir, download, options: Same as for `find_texts`.

  Raises:
    DataError: If the data set has no text or as in `figs_jax.data.load`.
  """
  builders = tuple(
    sources.find(part, data_dir=data_dir, download=download, options=options)
    for part in _parts_of(name)
  )
  builder = builders[0]
  if text_to_text.reader(builder) is None and not _has_text(builder):
    raise sources.DataError(
      f"Data set {builder.name!r}: expected a 'text' feature or a supported"
      " task; choose stdlib_text, text:FILE, c4, glue or a translation such as"
      " wmt14_translate/de-en"
    )
  return builders


def find_texts(
  name: str | PythonData,
  *,
  vocabulary: str = "bytes",
  input_length: int,
  target_length: int | None = None,
  density: float = 0.15,
  mean_span: float = 3.0,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
) -> Denoising | TextToText:
  """Finds a text data set and the task it is used for.

  Args:
    name: "stdlib_text", "text:FILE", "glue" (all tasks), "glue/sst2",
      "wmt14_translate/de-en", "c4", any data set with a `text` feature, or data
      of a program.
    vocabulary: "bytes", the path of a sentencepiece model, or
      "sentencepiece:SIZE", which trains SIZE pieces on the training split once
      and keeps them below the data directory.
    input_length: Number of input tokens, including the end token.
    target_length: Number of target tokens, including the end token; derived
      from the other arguments for span corruption, and from the longest label
      for labels of "text:FILE".
    density: Share of tokens to replace in span corruption.
    mean_span: Average number of tokens per span in span corruption.
    data_dir: Directory of the data sets, see `figs_jax.data.load`.
    download: Whether to download and prepare a missing data set.
    options: How data of one's own are read.

  Raises:
    DataError: If the data set has no text or as in `figs_jax.data.load`.
    ValueError: If the lengths or the vocabulary do not fit.
  """
  builders = find_builders(
    name, data_dir=data_dir, download=download, options=options
  )
  builder = builders[0]
  is_task = text_to_text.reader(builder) is not None
  of_labels = builder.name in text_to_text.OWN and text_to_text.has_labels(
    builder
  )
  if is_task and target_length is None and not of_labels:
    raise ValueError(
      f"Data set {name!r} needs a target_length; set"
      " --config.data.target_length"
    )
  if is_task and min(input_length, target_length or 2) < 2:
    raise ValueError(
      "Expected input_length and target_length of 2 or more (a token and the"
      f" end), got {input_length} and {target_length}"
    )
  codec = vocabulary_of(vocabulary, builders, sources.root_of(data_dir))
  if of_labels and target_length is None:
    words = text_to_text.labels(builder)
    target_length = 1 + max(len(codec.encode(word)) for word in words)
  if is_task:
    return TextToText(builders, codec, input_length, target_length or 0)
  corruption = SpanCorruption(input_length, density, mean_span)
  if target_length not in (None, corruption.target_length):
    raise ValueError(
      f"target_length={target_length}: span corruption derives"
      f" {corruption.target_length} from the other options; leave it out"
    )
  if corruption.spans > codec.sentinels:
    raise ValueError(
      f"input_length={input_length} needs {corruption.spans} sentinels, but the"
      f" vocabulary has {codec.sentinels}; shorten the inputs or increase"
      " mean_span"
    )
  return Denoising(builder, codec, corruption)


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
) -> TrainBatches:
  """An endless, shuffled stream; see `figs_jax.data.train_batches`.

  The stream is one for all shards: its position decides an example and what is
  drawn for it, and shard s takes the s-th block of each global batch.
  """
  check_stream(batch_size, shard_index, num_shards, start, workers, seed)
  examples = texts.examples(split, ordered=False)
  prepare = _Prepare(texts, examples)

  def of_seed(seed: int, first: int) -> grain.MapDataset:
    stream = (
      grain.MapDataset.range(len(examples))
      .seed(seed % 2**32)
      .shuffle()
      .repeat(None)
      .random_map(prepare)
    )
    return Shard(stream, batch_size, shard_index, num_shards, first)

  def make(first: int) -> grain.DatasetIterator:
    if isinstance(seed, int):
      stream, join = of_seed(seed, first), None
    else:
      stream = seed_axis([of_seed(one, first) for one in seed])
      join = functools.partial(stacked, axis=1)
    if workers:
      parse_flags()
      one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
      options = grain.MultiprocessingOptions(num_workers=workers)
      batches = stream.batch(batch_size, batch_fn=join).to_iter_dataset(one)
      return iter(batches.mp_prefetch(options))
    read = _read(stream, examples, threads)
    return iter(read.batch(batch_size, batch_fn=join))

  return TrainBatches(
    make,
    batch_size * num_shards,
    start,
    num_examples=len(examples),
    data_set=identity(texts.builders),
  )


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
  """
  check_shards(batch_size, shard_index, num_shards)
  examples = texts.examples(split, ordered=True)
  count, step = len(examples), batch_size * num_shards
  numbers = np.full(-(-count // step) * step, -1)
  numbers[:count] = np.arange(count)
  stream = (
    grain.MapDataset.source(numbers.tolist())
    .seed(0)
    .random_map(_Prepare(texts, examples))
  )[shard_index::num_shards]

  def make() -> Iterator[Batch]:
    return iter(_read(stream, examples, threads).batch(batch_size))

  return TextEvalBatches(count, len(numbers) // step, make)


@dataclasses.dataclass(frozen=True)
class _Prepare(grain.transforms.RandomMap):
  """Turns the number of an example into arrays; -1 stands for padding."""

  texts: Readable
  examples: Sequence[Any]

  def random_map(self, element: Any, rng: np.random.Generator) -> Any:
    example = self.examples[int(element)] if element >= 0 else None
    arrays = self.texts.arrays(example, rng)
    return arrays | {"valid": np.bool_(element >= 0)}


def pair_arrays(
  texts: Any, example: Any, rng: np.random.Generator
) -> dict[str, Any]:
  """The fields of an example for an encoder and a decoder; 0 for None."""
  inputs = np.zeros(texts.input_length, np.int32)
  targets = np.zeros(texts.target_length, np.int32)
  task = 0
  if example is not None:
    given, wanted, task = texts.pair(example, rng)
    inputs[: len(given)] = given
    targets[: len(wanted)] = wanted
  return {"inputs": inputs, "targets": targets, "task": np.int32(task)}


def _read(stream: Any, examples: Any, threads: int) -> Any:
  # If nothing is read from disk, passing data between threads does not pay.
  count = 0 if examples.cached else threads
  options = grain.ReadOptions(
    num_threads=count, prefetch_buffer_size=16 * count
  )
  return stream.to_iter_dataset(options)


def _has_text(builder: Builder) -> bool:
  features = builder.info.features
  is_dict = isinstance(features, tfds.features.FeaturesDict)
  return is_dict and "text" in features


def _task_name(builder: Builder) -> str:
  config = builder.builder_config
  return config.name if config else builder.name


def _split_of(builder: Any, split: str, several: bool) -> str:
  """The split of a builder; mixtures use the matched validation of mnli."""
  if several and _task_name(builder) == "mnli":
    return split.replace("validation", "validation_matched")
  return split
