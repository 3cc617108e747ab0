"""Rows of text for a model that predicts the next token.

Targets are the inputs one place later. Data sets with a `text` feature give
rows of documents one after another, each with its end token. Those with inputs
and targets of their own (text:FILE, glue, translations) give one pair per row,
and only the target counts:

  row      i t _ i s _ s o <end> p o s i t i v e <end>
  inputs   i t _ i s _ s o <end> p o s i t i v e
  targets  0 0 0 0 0 0 0 0 p     o s i t i v e <end>
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from figs_jax.data import sources, text_to_text
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.own_vocabulary import vocabulary_of
from figs_jax.data.packing import Fields, Group
from figs_jax.data.python_data import Builder, PythonData
from figs_jax.data.segments import document_segments, segments_of
from figs_jax.data.text import (
  TextToText,
  find_builders,
  pair_arrays,
  pair_fields,
)
from figs_jax.data.vocabulary import EOS, Vocabulary


@dataclasses.dataclass(frozen=True)
class CausalText:
  """Rows of inputs, and the tokens that follow them.

  Attributes:
    builders: Data sets; several are tasks with inputs and targets.
    vocabulary: Vocabulary.
    input_length: Number of tokens of a row.
  """

  builders: tuple[Builder, ...]
  vocabulary: Vocabulary
  input_length: int

  @property
  def target_length(self) -> int:
    """Number of target tokens, those of the inputs."""
    return self.input_length

  @property
  def _has_pairs(self) -> bool:
    return text_to_text.reader(self.builders[0]) is not None

  def examples(self, split: str, *, ordered: bool, whole: bool = False) -> Any:
    """Segments of all documents, or pairs of texts."""
    if self._has_pairs:
      return self._pairs.examples(split, ordered=ordered)
    source = sources.source_of(self.builders[0], split)
    if whole:
      return self.examples_of(source, whole=True)
    length, encode = self.input_length + 1, self.vocabulary.encode
    return segments_of(source, length, encode, whole=ordered)

  def examples_of(self, source: Any, *, whole: bool) -> Any:
    """Segments that begin with each document, whole ones, or pairs of texts."""
    if self._has_pairs:
      return self._pairs.examples_of(source, whole=whole)
    length, encode = self.input_length + 1, self.vocabulary.encode
    return document_segments(source, length, encode, whole=whole)

  @property
  def _pairs(self) -> TextToText:
    length = self.input_length
    return TextToText(self.builders, self.vocabulary, length, length)

  def pair(
    self, example: Any, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, int]:
    """(inputs, targets, number of the task) of an example."""
    length = self.input_length
    if not self._has_pairs:
      if len(example) > length + 1:
        at = rng.integers(len(example) - length)
        example = example[at : at + length + 1]
      return example[:-1], example[1:], 0
    text, target, task = example
    answer = self.vocabulary.encode(target)[: length - 1]
    prompt = self.vocabulary.encode(text)[: length - 1 - len(answer)]
    end = np.array([EOS], np.int32)
    row = np.concatenate([prompt, end, answer, end]).astype(np.int32)
    targets = row[1:].copy()
    targets[: len(prompt)] = 0
    return row[:-1], targets, task

  def arrays(self, example: Any, rng: np.random.Generator) -> dict[str, Any]:
    """The fields of an example; zeros for None."""
    return pair_arrays(self, example, rng)

  def fields(self, example: Any, rng: np.random.Generator) -> Fields:
    """The fields of an example, without padding."""
    return pair_fields(self, example, rng)

  @property
  def groups(self) -> tuple[Group, ...]:
    """Inputs and targets, which share their segments."""
    return (Group(("inputs", "targets"), self.input_length),)


def find_causal_text(
  name: str | PythonData,
  *,
  vocabulary: str = "bytes",
  input_length: int,
  data_dir: str | None = None,
  download: bool = False,
  options: Options = DEFAULTS,
) -> CausalText:
  """Finds a text data set for a model that predicts the next token.

  Args:
    name, vocabulary, data_dir, download, options: Same as for
      `figs_jax.data.find_texts`.
    input_length: Number of tokens of a row. A target is cut to one less, and
      its text to what remains.

  Raises:
    DataError: If the data set has no text or as in `figs_jax.data.load`.
    ValueError: If the length is below 2, or the vocabulary does not fit.

  >>> rows = [{"text": "so good", "target": "yes"}] * 5
  >>> texts = find_causal_text(PythonData((rows, rows)), input_length=8)
  >>> texts.target_length
  8
  """
  if input_length < 2:
    raise ValueError(f"Expected input_length of 2 or more, got {input_length}")
  builders = find_builders(
    name, data_dir=data_dir, download=download, options=options
  )
  codec = vocabulary_of(vocabulary, builders, sources.root_of(data_dir))
  return CausalText(builders, codec, input_length)
