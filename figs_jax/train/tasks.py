"""Tasks: classifying images, text from text, the next token, whole texts.

A task holds everything that depends on it in training and evaluation: batches,
loss, evaluation metrics, and the model options that follow from the data. The
model family decides the task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from figs_jax import data, models
from figs_jax.data import masked_text, text, text_batches
from figs_jax.data.masked_text import LabelledTexts, MaskedTokens, ScoredTexts
from figs_jax.data.opened import Options
from figs_jax.data.pixels import PixelScale
from figs_jax.data.python_data import PythonData
from figs_jax.data.wordpiece import WordPiece
from figs_jax.train.config import stream_seed
from figs_jax.train.losses import MaskedTokens as MaskedTokenLoss
from figs_jax.train.losses import (
  MixedCrossEntropy,
  NextToken,
  TeacherForcing,
  TextLabels,
)
from figs_jax.train.metrics import LabelAccuracy
from figs_jax.train.score_loss import TextScores
from figs_jax.train.text_scores import (
  Bleu,
  ExactMatch,
  GlueScore,
  MaskedAccuracy,
  NextTokenLoss,
  ScoreCorrelation,
  TextLabelScore,
  TokenLoss,
)

# The vocabulary is padded to a multiple of this, as in T5 (32,100 -> 32,128).
_ROWS = 128


@dataclasses.dataclass(frozen=True)
class ImageClassification:
  """Images with one label each."""

  config: config_dict.ConfigDict
  info: data.Description
  given: PythonData | None = None

  @classmethod
  def of(
    cls, config: config_dict.ConfigDict, given: PythonData | None
  ) -> ImageClassification:
    options = config.data
    info = data.describe(
      given or options.name,
      data_dir=options.data_dir,
      source=options.source,
      options=Options.of(options),
    )
    return cls(config, info, given)

  @property
  def model_options(self) -> dict[str, Any]:
    return {
      "num_classes": self.info.num_classes,
      "image_size": self.config.data.image_size,
      "in_channels": self.info.image_shape[-1],
    }

  @property
  def loss(self) -> MixedCrossEntropy:
    config = self.config
    return MixedCrossEntropy(
      self.info.num_classes,
      config.mixup,
      config.label_smoothing,
      binary=config.loss == "bce",
    )

  @property
  def measure(self) -> LabelAccuracy:
    return LabelAccuracy()

  def train_batches(
    self,
    batch_size: int,
    seed: int | Sequence[int] | None = None,
    **shard: int,
  ) -> data.TrainBatches:
    """Training batches of a shard; see `figs_jax.data.train_batches`.

    The seeds of the stream are those of the configuration by default.
    """
    options = self.config.data
    return data.train_batches(
      self.given or options.name,
      options.train_split,
      batch_size,
      seed=stream_seed(self.config) if seed is None else seed,
      augment=options.augment,
      image_size=options.image_size,
      scale=PixelScale.parse(options.mean, options.std),
      data_dir=options.data_dir,
      download=options.download,
      options=Options.of(options),
      workers=options.workers,
      **shard,
    )

  def eval_batches(
    self, batch_size: int | None = None, **shard: int
  ) -> data.EvalBatches:
    """Evaluation batches of a shard, of the configured size by default."""
    options = self.config.data
    return data.eval_batches(
      self.given or options.name,
      options.eval_split,
      batch_size or options.eval_batch_size,
      image_size=options.image_size,
      scale=PixelScale.parse(options.mean, options.std),
      data_dir=options.data_dir,
      download=options.download,
      options=Options.of(options),
      **shard,
    )


@dataclasses.dataclass(frozen=True)
class _OfTexts:
  """A task whose batches are rows of texts."""

  config: config_dict.ConfigDict
  texts: Any

  def train_batches(
    self,
    batch_size: int,
    seed: int | Sequence[int] | None = None,
    **shard: int,
  ) -> data.TrainBatches:
    """Training batches of a shard; see `figs_jax.data.text_batches`.

    The seeds of the stream are those of the configuration by default.
    """
    options = self.config.data
    return text_batches.train_batches(
      self.texts,
      options.train_split,
      batch_size,
      seed=stream_seed(self.config) if seed is None else seed,
      workers=options.workers,
      pack=options.pack,
      shuffle_buffer=options.shuffle_buffer,
      **shard,
    )

  def eval_batches(
    self, batch_size: int | None = None, **shard: int
  ) -> text_batches.TextEvalBatches:
    """Evaluation batches of a shard, of the configured size by default."""
    options = self.config.data
    return text_batches.eval_batches(
      self.texts,
      options.eval_split,
      batch_size or options.eval_batch_size,
      **shard,
    )


@dataclasses.dataclass(frozen=True)
class Text(_OfTexts):
  """Target tokens from input tokens: span corruption, or text to text."""

  @classmethod
  def of(cls, config: config_dict.ConfigDict, given: PythonData | None) -> Text:
    options = config.data
    texts = data.find_texts(
      given or options.name,
      vocabulary=options.vocabulary,
      input_length=options.input_length,
      target_length=options.target_length,
      density=options.density,
      mean_span=options.mean_span,
      data_dir=options.data_dir,
      download=options.download,
      options=Options.of(options),
    )
    return cls(config, texts)

  @property
  def model_options(self) -> dict[str, Any]:
    known = models.options_of(self.config.family)
    options = {
      "vocab": -(-self.texts.vocabulary.size // _ROWS) * _ROWS,
      "input_length": self.texts.input_length,
      "target_length": self.texts.target_length,
    }
    return {name: v for name, v in options.items() if name in known}

  @property
  def loss(self) -> TeacherForcing:
    return TeacherForcing(self.config.label_smoothing)

  @property
  def measure(self) -> TokenLoss | GlueScore | ExactMatch | Bleu:
    texts, beams = self.texts, self.config.data.beams
    if isinstance(texts, text.TextToText):
      if texts.is_translation:
        return Bleu(texts.vocabulary.decode, beams)
      answers = texts.answers()  # raises for labels that are cut to the same
      return ExactMatch(beams) if texts.is_own else GlueScore(answers, beams)
    return TokenLoss(self._byte_lengths())

  def _byte_lengths(self) -> np.ndarray:
    """Bytes of text of each id, with the rows that pad the vocabulary."""
    lengths = self.texts.vocabulary.byte_lengths()
    rows = self.model_options["vocab"]
    return np.pad(lengths, (0, rows - len(lengths)))


@dataclasses.dataclass(frozen=True)
class NextTokenText(Text):
  """The next token of every token of a row, or of those of a target."""

  @classmethod
  def of(
    cls, config: config_dict.ConfigDict, given: PythonData | None
  ) -> NextTokenText:
    options = config.data
    texts = data.find_causal_text(
      given or options.name,
      vocabulary=options.vocabulary,
      input_length=options.input_length,
      data_dir=options.data_dir,
      download=options.download,
      options=Options.of(options),
    )
    return cls(config, texts)

  @property
  def loss(self) -> NextToken:
    return NextToken(self.config.label_smoothing)

  @property
  def measure(self) -> NextTokenLoss:
    return NextTokenLoss(self._byte_lengths())


@dataclasses.dataclass(frozen=True)
class MaskedText(_OfTexts):
  """Predicts masked tokens of texts, or their labels."""

  texts: MaskedTokens | LabelledTexts

  @classmethod
  def of(
    cls, config: config_dict.ConfigDict, given: PythonData | None
  ) -> MaskedText:
    options = config.data
    texts = masked_text.find_masked_texts(
      given or options.name,
      objective="scores" if config.loss == "mse" else options.objective,
      vocabulary=options.vocabulary,
      input_length=options.input_length,
      density=options.density,
      data_dir=options.data_dir,
      download=options.download,
      options=Options.of(options),
    )
    return cls(config, texts)

  @property
  def model_options(self) -> dict[str, Any]:
    vocabulary = self.texts.vocabulary
    # Published weights have the vocabulary's own size.
    rows = 1 if isinstance(vocabulary.codec, WordPiece) else _ROWS
    options: dict[str, Any] = {
      "vocab": -(-vocabulary.size // rows) * rows,
      "input_length": self.texts.input_length,
      "output": "tokens",
    }
    if isinstance(self.texts, ScoredTexts):
      options |= {"output": "classes", "num_classes": 1}
    elif isinstance(self.texts, LabelledTexts):
      options |= {"output": "classes", "num_classes": len(self.texts.names)}
    return options

  @property
  def loss(self) -> MaskedTokenLoss | TextLabels | TextScores:
    smoothing = self.config.label_smoothing
    if isinstance(self.texts, ScoredTexts):
      return TextScores()
    if isinstance(self.texts, LabelledTexts):
      return TextLabels(smoothing)
    return MaskedTokenLoss(smoothing)

  @property
  def measure(self) -> MaskedAccuracy | TextLabelScore | ScoreCorrelation:
    if isinstance(self.texts, ScoredTexts):
      return ScoreCorrelation(self.texts.task)
    if isinstance(self.texts, LabelledTexts):
      return TextLabelScore(len(self.texts.names), self.texts.task)
    return MaskedAccuracy()


Measure = (
  LabelAccuracy
  | TokenLoss
  | NextTokenLoss
  | GlueScore
  | ExactMatch
  | Bleu
  | MaskedAccuracy
  | TextLabelScore
  | ScoreCorrelation
)
Task = ImageClassification | Text | MaskedText
# The task of a family by the name that its class gives.
TASKS: dict[str, type[ImageClassification] | type[Text] | type[MaskedText]] = {
  "causal_text": NextTokenText,
  "images": ImageClassification,
  "masked_text": MaskedText,
  "text_to_text": Text,
}


def task_of(config: config_dict.ConfigDict, given: Any = None) -> Task:
  """The task of a configuration, with its data looked up.

  Args:
    config: Configuration of a run.
    given: Data of a program in the place of config.data.name, as in
      `figs_jax.train.loop.train`.

  Raises:
    DataError, ValueError: If `figs_jax.data.describe` or `find_texts` raises
      them.
  """
  if given is not None and not isinstance(given, PythonData):
    given = PythonData(given, Options.of(config.data))
  return TASKS[models.task_of(config.family)].of(config, given)
