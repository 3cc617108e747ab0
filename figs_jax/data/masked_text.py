"""Batches for BERT: masked tokens, or labels or scores of texts and pairs.

Batches are dicts of NumPy arrays: `inputs` and `types` int32 [batch,
input_length], padded with 0, and `targets` of the same shape (the ids to
predict, 0 elsewhere), `label` int32 [batch] or `score` float32 [batch];
evaluation adds `valid` bool [batch]. `figs_jax.data.text_batches` makes them.

A sequence begins with [CLS], and each text in it ends with [SEP]. Vocabularies
of bytes and of sentencepiece have no such ids: there, sentinel 1 begins, the
end token ends, and sentinel 0 is the mask.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.data import sources, text_to_text
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.own_vocabulary import vocabulary_of
from figs_jax.data.packing import Fields, Group
from figs_jax.data.python_data import Builder, PythonData
from figs_jax.data.segments import (
  Segments,
  document_segments,
  segments_of,
)
from figs_jax.data.vocabulary import EOS, Vocabulary
from figs_jax.data.wordpiece import WordPiece

# The texts of GLUE's tasks, in the order of the published models.
_FIELDS: dict[str, tuple[str, ...]] = {
  "cola": ("sentence",), "sst2": ("sentence",),
  "mrpc": ("sentence1", "sentence2"), "stsb": ("sentence1", "sentence2"),
  "qqp": ("question1", "question2"), "mnli": ("premise", "hypothesis"),
  "mnli_matched": ("premise", "hypothesis"),
  "mnli_mismatched": ("premise", "hypothesis"),
  "qnli": ("question", "sentence"), "rte": ("sentence1", "sentence2"),
  "wnli": ("sentence1", "sentence2"),
}  # fmt: skip


class Special(NamedTuple):
  """Ids of a vocabulary with a meaning in sequences.

  Attributes:
    begin: Id before the first text.
    end: Id after each text.
    mask: Id in the place of a masked token.
    ordinary: Ids that random replacements are drawn from, int32 [n].

  >>> from figs_jax.data.vocabulary import byte_vocabulary
  >>> len(Special.of(byte_vocabulary()).ordinary)  # the bytes
  256
  """

  begin: int
  end: int
  mask: int
  ordinary: np.ndarray

  @classmethod
  def of(cls, vocabulary: Vocabulary) -> Special:
    """The ids of a vocabulary.

    >>> from figs_jax.data.vocabulary import byte_vocabulary
    >>> Special.of(byte_vocabulary())[:3]
    (382, 1, 383)
    """
    codec = vocabulary.codec
    if isinstance(codec, WordPiece):
      return cls(codec.cls, codec.sep, codec.mask, codec.ordinary())
    ordinary = np.arange(EOS + 2, codec.size, dtype=np.int32)
    mask, begin = vocabulary.sentinel(0), vocabulary.sentinel(1)
    return cls(begin, EOS, mask, ordinary)


def masked(
  ids: np.ndarray, density: float, rng: np.random.Generator, special: Special
) -> tuple[np.ndarray, np.ndarray]:
  """Masks tokens as BERT does (arXiv 1810.04805, 3.1).

  Of n tokens, round(density * n) are chosen, but at least one, without those
  that end a text. A chosen token becomes the mask with probability .8, a random
  id with .1, and stays with .1.

  Args:
    ids: Ids of a text, int32 [n].
    density: Share of tokens to choose.
    rng: Generator that draws the places and the replacements.
    special: Ids of the vocabulary.

  Returns:
    The ids with replacements, and the chosen ids in their places, 0 elsewhere.

  >>> from figs_jax.data.vocabulary import byte_vocabulary
  >>> vocabulary, rng = byte_vocabulary(), np.random.default_rng(0)
  >>> ids = vocabulary.encode("To be, or not to be")
  >>> inputs, targets = masked(ids, 0.15, rng, Special.of(vocabulary))
  >>> int((targets > 0).sum()), int((inputs != ids).sum())
  (3, 2)
  """
  places = np.flatnonzero(ids != special.end)
  count = min(max(round(density * len(places)), 1), len(places))
  chosen = rng.choice(places, count, replace=False)
  draw = rng.random(count)
  random = rng.choice(special.ordinary, count)
  inputs, targets = ids.copy(), np.zeros_like(ids)
  targets[chosen] = ids[chosen]
  inputs[chosen] = np.where(
    draw < 0.8, special.mask, np.where(draw < 0.9, random, ids[chosen])
  )
  return inputs, targets


def joined(
  texts: Sequence[np.ndarray], length: int, special: Special
) -> tuple[np.ndarray, np.ndarray]:
  """One or two texts as a sequence, and its token types.

  Texts that are too long together are cut at their ends, the longest one first.

  Args:
    texts: Ids of each text.
    length: Most tokens of the sequence, special ones included.
    special: Ids of the vocabulary.

  >>> special = Special(2, 3, 4, np.arange(5, 9))
  >>> joined([np.array([5, 6, 7, 8]), np.array([5])], 6, special)
  (array([2, 5, 6, 3, 5, 3]), array([0, 0, 0, 0, 1, 1]))
  """
  sizes = [len(text) for text in texts]
  while sum(sizes) > length - 1 - len(texts):
    sizes[int(np.argmax(sizes[::-1])) * -1 - 1] -= 1
  ids, types = [special.begin], [0]
  for number, (text, size) in enumerate(zip(texts, sizes)):
    ids += [*text[:size].tolist(), special.end]
    types += [number] * (size + 1)
  return np.array(ids), np.array(types)


@dataclasses.dataclass(frozen=True)
class MaskedTokens:
  """Masked tokens of whole rows of a data set's `text`.

  Attributes:
    builder: The data set.
    vocabulary: Vocabulary of the texts.
    input_length: Tokens of a row, with those that begin and end it.
    density: Share of masked tokens.
  """

  builder: Builder
  vocabulary: Vocabulary
  input_length: int
  density: float

  @property
  def builders(self) -> tuple[Builder, ...]:
    return (self.builder,)

  def examples(
    self, split: str, *, ordered: bool, whole: bool = False
  ) -> Segments:
    source = sources.source_of(self.builder, split)
    if whole:
      return self.examples_of(source, whole=True)
    end = Special.of(self.vocabulary).end
    length, encode = self.input_length - 2, self.vocabulary.encode
    return segments_of(source, length, encode, whole=ordered, end=end)

  def examples_of(self, source: Any, *, whole: bool) -> Segments:
    """Segments that begin with each document, or whole ones."""
    end = Special.of(self.vocabulary).end
    length, encode = self.input_length - 2, self.vocabulary.encode
    return document_segments(source, length, encode, whole=whole, end=end)

  def arrays(
    self, example: np.ndarray | None, rng: np.random.Generator
  ) -> dict[str, Any]:
    """The fields of an example, int32 [input_length]; all 0 for None."""
    fields = np.zeros((3, self.input_length), np.int32)
    if example is not None:
      for row, field in zip(fields, self.fields(example, rng).values()):
        row[: len(field)] = field
    return dict(zip(("inputs", "types", "targets"), fields))

  def fields(self, example: np.ndarray, rng: np.random.Generator) -> Fields:
    """The fields of an example, without padding."""
    length = self.input_length - 2
    if len(example) > length:
      at = rng.integers(len(example) - length + 1)
      example = example[at : at + length]
    special = Special.of(self.vocabulary)
    if (example == special.end).all():  # empty documents
      nothing = np.zeros(0, np.int32)
      return dict.fromkeys(("inputs", "types", "targets"), nothing)
    inputs, targets = masked(example, self.density, rng, special)
    inputs = np.array([special.begin, *inputs, special.end], np.int32)
    targets = np.pad(targets, 1)
    return {"inputs": inputs, "types": 0 * inputs, "targets": targets}

  @property
  def groups(self) -> tuple[Group, ...]:
    """Inputs, types and targets, which share their segments."""
    return (Group(("inputs", "types", "targets"), self.input_length),)


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
  """Texts, or pairs of texts, with one label each.

  Attributes:
    builder: The data set.
    vocabulary: Vocabulary of the texts.
    input_length: Tokens of a sequence; longer ones are cut, see `joined`.
    fields: Names of the texts of an example.
  """

  builder: Builder
  vocabulary: Vocabulary
  input_length: int
  fields: tuple[str, ...]

  @property
  def builders(self) -> tuple[Builder, ...]:
    return (self.builder,)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the classes."""
    return tuple(self.builder.info.features["label"].names)

  @property
  def task(self) -> str:
    """Name of the task of GLUE, or ""."""
    is_glue = self.builder.name == "glue"
    return self.builder.builder_config.name if is_glue else ""

  def examples(self, split: str, *, ordered: bool, whole: bool = False) -> Rows:
    del ordered
    return self.examples_of(sources.source_of(self.builder, split), whole=whole)

  def examples_of(self, source: Any, *, whole: bool) -> Rows:
    """The examples of a source."""
    del whole
    return Rows(source, self._least)

  @property
  def _least(self) -> float:
    return 0.0  # hidden labels are -1

  def arrays(
    self, example: Mapping[str, Any] | None, rng: np.random.Generator
  ) -> dict[str, Any]:
    """The fields of an example, int32 [input_length], and its label.

    Args:
      example: Entry of `examples`; None gives zeros only.
      rng: Not used.
    """
    del rng
    fields, label = np.zeros((2, self.input_length), np.int32), 0
    if example is not None:
      texts = [
        self.vocabulary.encode(sources.as_text(example[field]))
        for field in self.fields
      ]
      special = Special.of(self.vocabulary)
      ids, types = joined(texts, self.input_length, special)
      fields[:, : len(ids)] = ids, types
      label = example["label"]
    inputs, types = fields
    return {"inputs": inputs, "types": types, **self._labelled(label)}

  def _labelled(self, label: Any) -> dict[str, Any]:
    return {"label": np.int32(int(label))}


class ScoredTexts(LabelledTexts):
  """Texts, or pairs of texts, with one score each, the float `label`."""

  @property
  def _least(self) -> float:
    # GLUE's scores are from 0 to 5, and -1 where they are hidden.
    return 0.0 if self.task else -math.inf

  def _labelled(self, label: Any) -> dict[str, Any]:
    return {"score": np.float32(label)}


class Rows(Sequence):
  """Examples of a split; one without a known label raises a DataError.

  Args:
    source: Examples with a `label`.
    least: Smallest label that is known.

  >>> rows = Rows([{"label": 1}, {"label": -1}], 0.0)
  >>> len(rows), rows[0]
  (2, {'label': 1})
  """

  cached = False

  def __init__(self, source: Sequence[Any], least: float):
    self._source, self._least = source, least

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    example = self._source[int(index)]
    if example["label"] < self._least:
      raise sources.DataError(
        f"{self._source!r}: example {index} has no label; the labels of this"
        " split are hidden; choose another split, such as 'validation'"
      )
    return example


def find_masked_texts(
  name: str | PythonData,
  *,
  objective: str = "auto",
  vocabulary: str = "bytes",
  input_length: int,
  density: float = 0.15,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
) -> MaskedTokens | LabelledTexts:
  """Finds a text data set and what a BERT learns from it.

  Args:
    name: "stdlib_text", "text:FILE", "glue/sst2", "c4", any data set with a
      `text` feature, or data of a program.
    objective: "masked" predicts masked tokens, "labels" the labels of texts,
      "scores" their scores, floats; "auto" takes the labels where there are
      some.
    vocabulary: "bytes", "wordpiece:FILE", or as for
      `figs_jax.data.find_texts`.
    input_length: Tokens of a sequence, with those that begin and end it.
    density: Share of masked tokens.
    data_dir: Directory of the data sets, see `figs_jax.data.load`.
    download: Whether to download and prepare a missing data set.
    options: How data of one's own are read.

  Raises:
    DataError: If the data set has neither text nor labels, as asked for, or as
      in `figs_jax.data.load`.
    ValueError: If the length or the vocabulary does not fit.

  >>> rows = [{"text": "so good", "label": label} for label in ("yes", "no")]
  >>> texts = find_masked_texts(PythonData((rows * 5, rows)), input_length=8)
  >>> texts.names
  ('no', 'yes')
  >>> example = texts.examples("test", ordered=True)[0]
  >>> texts.arrays(example, np.random.default_rng(0))["inputs"].tolist()
  [382, 118, 114, 35, 106, 114, 114, 1]
  """
  if input_length < 5:
    raise ValueError(
      "Expected input_length of 5 or more (two texts, a beginning and two"
      f" ends), got {input_length}"
    )
  builder = sources.find(
    name,
    data_dir=data_dir,
    download=download,
    options=options.for_objective(objective),
  )
  features = builder.info.features
  fields = _FIELDS.get(_task_of(builder), ("text",))
  has_text = not text_to_text.is_translation(builder) and all(
    field in features for field in fields
  )
  has_label = has_text and "label" in features
  has_labels = has_label and hasattr(features["label"], "names")
  has_scores = has_label and features["label"].np_dtype == np.float32
  if objective == "scores" and not has_scores:
    raise sources.DataError(
      f"Data set {builder.name!r}: expected texts with a float as score, got"
      f" {', '.join(sorted(features))}; choose text:FILE with a column of"
      " scores, or glue/stsb"
    )
  if objective in ("auto", "labels") and has_scores:
    raise sources.DataError(
      f"Data set {builder.name!r}: expected labels of classes, got scores; set"
      " --config.loss=mse to learn them"
    )
  if objective == "auto":
    objective = "labels" if has_labels else "masked"
  if objective == "labels" and not has_labels:
    raise sources.DataError(
      f"Data set {builder.name!r}: expected texts with labels of classes, got"
      f" {', '.join(sorted(features))}; choose text:FILE with a column of"
      " labels, or a task of glue such as glue/sst2"
    )
  if objective == "masked" and (
    "text" not in features or text_to_text.is_translation(builder)
  ):
    raise sources.DataError(
      f"Data set {builder.name!r}: expected a 'text' feature, got"
      f" {', '.join(sorted(features))}; choose stdlib_text, text:FILE or c4"
    )
  codec = vocabulary_of(
    vocabulary, (builder,), sources.root_of(data_dir), wordpiece=True
  )
  if objective == "scores":
    return ScoredTexts(builder, codec, input_length, fields)
  if objective == "labels":
    return LabelledTexts(builder, codec, input_length, fields)
  return MaskedTokens(builder, codec, input_length, density)


def _task_of(builder: Builder) -> str:
  return builder.builder_config.name if builder.name == "glue" else ""
