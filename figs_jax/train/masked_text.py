"""The task of an encoder of text: masked tokens, or labels of texts."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import config_dict

from figs_jax import data
from figs_jax.data import masked_text, text
from figs_jax.data.masked_text import LabelledTexts, MaskedTokens
from figs_jax.data.opened import Options
from figs_jax.data.python_data import PythonData
from figs_jax.data.wordpiece import WordPiece
from figs_jax.train import losses
from figs_jax.train.config import stream_seed
from figs_jax.train.label_scores import MaskedAccuracy, TextLabelScore

# A vocabulary without published weights is padded to a multiple of this.
_ROWS = 128


@dataclasses.dataclass(frozen=True)
class MaskedText:
  """Predicts masked tokens of texts, or their labels."""

  config: config_dict.ConfigDict
  texts: MaskedTokens | LabelledTexts

  @classmethod
  def of(
    cls, config: config_dict.ConfigDict, given: PythonData | None
  ) -> MaskedText:
    options = config.data
    texts = masked_text.find_masked_texts(
      given or options.name,
      objective=options.objective,
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
    rows = 1 if isinstance(vocabulary.codec, WordPiece) else _ROWS
    options: dict[str, Any] = {
      "vocab": -(-vocabulary.size // rows) * rows,
      "input_length": self.texts.input_length,
      "output": "tokens",
    }
    if isinstance(self.texts, LabelledTexts):
      options |= {"output": "classes", "num_classes": len(self.texts.names)}
    return options

  @property
  def loss(self) -> losses.MaskedTokens | losses.TextLabels:
    smoothing = self.config.label_smoothing
    if isinstance(self.texts, LabelledTexts):
      return losses.TextLabels(smoothing)
    return losses.MaskedTokens(smoothing)

  @property
  def measure(self) -> MaskedAccuracy | TextLabelScore:
    if isinstance(self.texts, LabelledTexts):
      return TextLabelScore(len(self.texts.names), self.texts.task)
    return MaskedAccuracy()

  def train_batches(self, batch_size: int, **shard: int) -> data.TrainBatches:
    """Training batches of a shard; see `figs_jax.data.text.train_batches`."""
    options = self.config.data
    return text.train_batches(
      self.texts,
      options.train_split,
      batch_size,
      seed=stream_seed(self.config),
      workers=options.workers,
      **shard,
    )

  def eval_batches(
    self, batch_size: int | None = None, **shard: int
  ) -> text.TextEvalBatches:
    """Evaluation batches of a shard, of the configured size by default."""
    options = self.config.data
    return text.eval_batches(
      self.texts,
      options.eval_split,
      batch_size or options.eval_batch_size,
      **shard,
    )
