"""Names of BERT's parameters in published files, and keys of its config.json.

A file may hold more than a model computes: its pooler, the head for masked
tokens or that for the next sentence. The first is ignored by name where the
model has none; a head is ignored with a fresh head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from figs_jax.models.bert import PAD
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  CLASSES,
  COUNT,
  NUMBER,
  Fields,
  Fixed,
  Given,
  Key,
  Table,
  attention_dropout,
  dropout,
  text,
)
from figs_jax.models.pretrained.names import Dialect, Fix, Row, under
from figs_jax.models.pretrained.vit import ACTIVATION

_TOKENS = "embeddings.word_embeddings.weight"


def _rows(norm: str) -> tuple[Row, ...]:
  """The table with this kind of norms."""
  return (
    *under(
      "bert.embeddings.",
      "",
      ("embed", "word_embeddings", "token_embed"),
      ("embed", "position_embeddings", "position_embed"),
      ("embed", "token_type_embeddings", "type_embed"),
      (norm, "LayerNorm", "embed_norm"),
    ),
    *under(
      "bert.encoder.layer.{i}.",
      "blocks/{i}/",
      ("dense", "attention.self.query", "attn/q"),
      ("dense", "attention.self.key", "attn/k"),
      ("dense", "attention.self.value", "attn/v"),
      ("dense", "attention.output.dense", "attn/o"),
      (norm, "attention.output.LayerNorm", "norm1"),
      ("dense", "intermediate.dense", "mlp/fc1"),
      ("dense", "output.dense", "mlp/fc2"),
      (norm, "output.LayerNorm", "norm2"),
    ),
    ("dense", "bert.pooler.dense", "pooler"),
    *under(
      "cls.predictions.",
      "token_head/",
      ("plain", "bias", "bias"),
      ("dense", "transform.dense", "transform"),
      (norm, "transform.LayerNorm", "norm"),
    ),
    ("dense", "classifier", "head"),
  )


def _same_as(*names: str) -> Any:
  """A check that a tensor repeats the first of these that the file has."""

  def check(model: Any, tensors: Any, name: str) -> bool:
    others = [tensors[other] for other in names if other in tensors]
    return bool(others) and (
      others[0].shape == tensors[name].shape
      and np.array_equal(others[0].read(), tensors[name].read())
    )

  return check


_HUGGING_FACE = Dialect(
  "Hugging Face",
  _rows("norm"),
  duplicates=(
    # Counts and zeros, which older versions saved.
    (r"(?:bert\.)?embeddings\.(?:position|token_type)_ids", None),
    (r"(?:bert\.)?pooler\.dense\.(?:weight|bias)", None),
    (r"cls\.seq_relationship\.(?:weight|bias)", None),
    (
      r"cls\.predictions\.decoder\.weight",
      _same_as(f"bert.{_TOKENS}", _TOKENS),
    ),
    (r"cls\.predictions\.decoder\.bias", _same_as("cls.predictions.bias")),
  ),
  heads=r"cls\..*",
  fixes=(
    Fix("^token_embed/", *({"vocab": ...},) * 3),
    Fix("^position_embed/", *({"length": ...},) * 3),
  ),
  hint=lambda wording: (
    "it differs from the token embedding or from cls.predictions.bias, which"
    " this head reads; convert the file to tied weights"
  ),
)
# Of files that were converted from TensorFlow.
_OLD_NORMS = dataclasses.replace(
  _HUGGING_FACE, name="gamma and beta", rows=_rows("old_norm")
)

DIALECTS = (
  _HUGGING_FACE,
  _HUGGING_FACE.bare("bert."),
  _OLD_NORMS,
  _OLD_NORMS.bare("bert."),
)

# Architecture -> output.
_OUTPUTS = {
  "BertForMaskedLM": "tokens",
  "BertForPreTraining": "tokens",
  "BertForSequenceClassification": "classes",
  "BertModel": "embedding",
}


def _output(
  fields: Fields, options: Mapping[str, Given], tensors: Mapping[str, Tensor]
) -> dict[str, Given]:
  """The output that a file is for; without an architecture, by its tensors.

  Raises:
    PretrainedError: If it is of a model that ours is not.
  """
  named = fields.get("architectures") or [None]
  name = named[0] if isinstance(named, list) else named
  if name is None:
    has_classes = "classifier.weight" in tensors
    has_tokens = "cls.predictions.bias" in tensors
    name = "BertForSequenceClassification" if has_classes else "BertModel"
    name = "BertForMaskedLM" if has_tokens else name
  if not isinstance(name, str) or name not in _OUTPUTS:
    raise PretrainedError(
      f"architectures: expected one of {', '.join(_OUTPUTS)}, got {text(name)}"
    )
  output = {"output": Given("architectures", name, _OUTPUTS[name])}
  if _OUTPUTS[name] == "classes":
    return output
  # Names of classes that no head has.
  return output | {"num_classes": Given("", None, 2)}


def architecture(model: Any) -> str:
  """The library's class for the output of a model."""
  if model.output in ("pooled", "embedding"):
    return "BertModel"
  return next(k for k, output in _OUTPUTS.items() if output == model.output)


CONFIG = Table(
  architecture=architecture,
  types={"bert": {}},
  keys=(
    Key("vocab_size", "vocab", 30522, COUNT),
    Key("hidden_size", "width", 768, COUNT),
    Key("num_hidden_layers", "depth", 12, COUNT),
    Key("num_attention_heads", "heads", 12, COUNT),
    Key("intermediate_size", "mlp_dim", 3072, COUNT),
    Key("max_position_embeddings", "length", 512, COUNT),
    Key("type_vocab_size", "token_types", 2, COUNT),
    Key("layer_norm_eps", "norm_epsilon", 1e-12, NUMBER),
    *ACTIVATION,
    CLASSES,
    Key(
      "hidden_dropout_prob",
      "dropout",
      0.1,
      NUMBER,
      dropout,
      trains=True,
    ),
    Key(
      "attention_probs_dropout_prob",
      "attention_dropout",
      0.1,
      NUMBER,
      attention_dropout,
      trains=True,
    ),
  ),
  fixed=(
    Fixed("pad_token_id", PAD),
    Fixed("is_decoder", False),
    Fixed("add_cross_attention", False),
    Fixed("tie_word_embeddings", True),
    Fixed("position_embedding_type", "absolute", (None,)),
  ),
  follows=(CLASS_COUNT,),
  # Of fine-tuning, and of the first published files.
  harmless=(
    "classifier_dropout",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
  ),
  free=("output",),
  more=_output,
)
