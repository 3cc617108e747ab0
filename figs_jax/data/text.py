"""Texts for an encoder and a decoder; `text_batches` makes batches of them.

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
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from figs_jax.data import sources, text_to_text
from figs_jax.data.masked_text import LabelledTexts, MaskedTokens
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.own_vocabulary import path_of_pieces, vocabulary_of
from figs_jax.data.packing import Fields, Group
from figs_jax.data.python_data import Builder, PythonData
from figs_jax.data.segments import (
  Segments,
  document_segments,
  segments_of,
)
from figs_jax.data.span_corruption import SpanCorruption
from figs_jax.data.vocabulary import EOS, Vocabulary


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

  def examples(
    self, split: str, *, ordered: bool, whole: bool = False
  ) -> Segments:
    source = sources.source_of(self.builder, split)
    if whole:
      return self.examples_of(source, whole=True)
    length = self.corruption.segment_length
    encode = self.vocabulary.encode
    return segments_of(source, length, encode, whole=ordered)

  def examples_of(self, source: Any, *, whole: bool) -> Segments:
    length, encode = self.corruption.segment_length, self.vocabulary.encode
    return document_segments(source, length, encode, whole=whole)

  def pair(
    self, example: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, int]:
    length = self.corruption.segment_length
    if len(example) < 2:  # an empty document
      return example[:0], example[:0], 0
    if len(example) > length:
      at = rng.integers(len(example) - length + 1)
      example = example[at : at + length]
    return *self.corruption(example, rng, self.vocabulary), 0

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    return pair_arrays(self, example, rng)

  def fields(self, example: Any, rng: np.random.Generator) -> Fields:
    return pair_fields(self, example, rng)

  @property
  def groups(self) -> tuple[Group, ...]:
    return pair_groups(self)


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

  def examples(
    self, split: str, *, ordered: bool, whole: bool = False
  ) -> Tasks:
    del ordered, whole
    several = len(self.builders) > 1
    return Tasks(
      self.builders,
      [
        sources.source_of(builder, _split_of(builder, split, several))
        for builder in self.builders
      ],
    )

  def examples_of(self, source: Any, *, whole: bool) -> Tasks:
    del whole
    return Tasks(self.builders, [source])

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

  def fields(self, example: Any, rng: np.random.Generator) -> Fields:
    return pair_fields(self, example, rng)

  @property
  def groups(self) -> tuple[Group, ...]:
    return pair_groups(self)

  def _ended(self, text: str, length: int) -> np.ndarray:
    """Encodes a text, truncated to leave room for the end token."""
    ids = self.vocabulary.encode(text)[: length - 1]
    return np.append(ids, np.int32(EOS))


Texts = Denoising | TextToText | MaskedTokens | LabelledTexts


class Tasks(Sequence):
  """Concatenated examples (inputs, targets, task number) of several tasks."""

  def __init__(
    self,
    builders: Sequence[Builder],
    parts: Sequence[Sequence[Any]],
  ):
    self.cached = False
    self._builders = builders
    self._parts = parts
    self._starts = [0, *itertools.accumulate(map(len, parts))]

  def __len__(self) -> int:
    return self._starts[-1]

  @functools.cached_property
  def _readers(self) -> list[text_to_text.Reader | None]:
    return [text_to_text.reader(builder) for builder in self._builders]

  def __getstate__(self) -> dict[str, Any]:
    """Without functions, for worker processes."""
    return {k: v for k, v in vars(self).items() if k != "_readers"}

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

  >>> rows = [{"text": "so good", "label": label} for label in ("yes", "no")]
  >>> texts = find_texts(PythonData((rows * 5, rows)), input_length=16)
  >>> texts.target_length  # three bytes of "yes", and the end token
  4
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


def pair_arrays(
  texts: Any, example: Any, rng: np.random.Generator
) -> dict[str, Any]:
  """The fields of an example for an encoder and a decoder, padded with 0.

  Args:
    texts: Data with `pair`, `input_length` and `target_length`.
    example: Entry of the data; None gives zeros only.
    rng: Generator of what is drawn for the example.

  Returns:
    `inputs` and `targets`, int32 [input_length] and [target_length], and the
    number of the `task`.

  >>> rows = [{"text": "so", "target": "no"}]
  >>> texts = find_texts(
  ...   PythonData((rows, rows)), input_length=4, target_length=4)
  >>> fields = pair_arrays(texts, ("so", "no", 0), np.random.default_rng(0))
  >>> fields["inputs"].tolist()  # two bytes, and the end token
  [118, 114, 1, 0]
  """
  inputs = np.zeros(texts.input_length, np.int32)
  targets = np.zeros(texts.target_length, np.int32)
  task = 0
  if example is not None:
    given, wanted, task = texts.pair(example, rng)
    inputs[: len(given)] = given
    targets[: len(wanted)] = wanted
  return {"inputs": inputs, "targets": targets, "task": np.int32(task)}


def pair_fields(texts: Any, example: Any, rng: np.random.Generator) -> Fields:
  """The fields of an example for an encoder and a decoder, without padding.

  Args:
    texts, example, rng: Same as for `pair_arrays`; the example is not None.

  >>> rows = [{"text": "so", "target": "no"}]
  >>> texts = find_texts(
  ...   PythonData((rows, rows)), input_length=4, target_length=4)
  >>> fields = pair_fields(texts, ("so", "no", 0), np.random.default_rng(0))
  >>> {name: ids.tolist() for name, ids in fields.items()}
  {'inputs': [118, 114, 1], 'targets': [113, 114, 1]}
  """
  inputs, targets, _ = texts.pair(example, rng)
  return {"inputs": inputs, "targets": targets}


def pair_groups(texts: Any) -> tuple[Group, ...]:
  """The lengths of inputs and of targets, each with segments of its own.

  Args:
    texts: Data with `input_length` and `target_length`.

  >>> rows = [{"text": "so", "target": "no"}]
  >>> texts = find_texts(
  ...   PythonData((rows, rows)), input_length=8, target_length=4)
  >>> [(group.segments, group.length) for group in pair_groups(texts)]
  [('inputs_segments', 8), ('targets_segments', 4)]
  """
  return (
    Group(("inputs",), texts.input_length),
    Group(("targets",), texts.target_length),
  )


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
