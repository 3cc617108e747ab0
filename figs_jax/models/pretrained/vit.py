"""Names of ViT's parameters in published files, and keys of its config.json."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  CLASSES,
  COUNT,
  FLAG,
  NUMBER,
  SIDES,
  Form,
  Given,
  Key,
  Table,
  attention_dropout,
  dropout,
  words,
)
from figs_jax.models.pretrained.names import Dialect, Fix, Row, under

# What to set if a parameter does not fit, in files of every library.
FIXES = (
  Fix("cls_token", {"pool": "gap"}, {"pool": "cls"}),
  Fix("pos_embed", {"pos": "sincos"}, {"pos": "learned"}),
  Fix("attn/[qkv]/bias", {"qkv_bias": False}, {"qkv_bias": True}),
  Fix("layer_scale", {"layer_scale": 0.0}, {"layer_scale": 1e-5}),
  Fix(
    "register_tokens", {"registers": 0}, {"registers": ...}, {"registers": ...}
  ),
  Fix("dist_token", {"distillation": "none"}, {"distillation": "token"}),
  Fix("head_dist", {"distillation": "token"}, {"distillation": "heads"}),
  Fix("mlp/(gate|up|down)", {"swiglu": False}, {"swiglu": True}),
  Fix("mlp/fc[12]", {"swiglu": True}, {"swiglu": False}),
)
# Parts of other vision transformers, for which no option has a place.
REFUSED = (
  (
    r".*relative_position_(bias_table|index)|.*rel_pos(_[hw])?\b.*",
    "a relative position bias, as in BEiT and Swin, which this ViT lacks",
  ),
  (
    r".*\battn\.[qk]_norm\..*",
    "norms of the queries and keys, which this ViT lacks",
  ),
  (
    r".*\b(rope|rotary_emb|freqs_cis)\b.*",
    "rotary positions, which this ViT lacks",
  ),
)
DECODER = (
  r"decoder\..*|decoder_(blocks|embed|norm|pos_embed|pred)\b.*|mask_token"
)


def ends(prefix: str) -> tuple[Row, ...]:
  """Rows of the layers around the blocks, in files of Hugging Face."""
  return (
    *under(
      f"{prefix}embeddings.",
      "",
      ("plain", "cls_token", "cls_token"),
      ("plain", "position_embeddings", "pos_embed"),
      ("conv", "patch_embeddings.projection", "patch_embed"),
    ),
    ("norm", f"{prefix}layernorm", "norm"),
  )


def blocks(prefix: str) -> tuple[Row, ...]:
  """Rows of the blocks of ViT, DeiT and MAE, in files of Hugging Face."""
  return under(
    f"{prefix}encoder.layer.{{i}}.",
    "blocks/{i}/",
    ("norm", "layernorm_before", "norm1"),
    *ATTENTION,
    ("norm", "layernorm_after", "norm2"),
    ("dense", "intermediate.dense", "mlp/fc1"),
    ("dense", "output.dense", "mlp/fc2"),
  )


def blocks_5(prefix: str) -> tuple[Row, ...]:
  """Rows of the same blocks, as a model of transformers 5 names them."""
  return under(
    f"{prefix}layers.{{i}}.",
    "blocks/{i}/",
    ("norm", "layernorm_before", "norm1"),
    *ATTENTION_5,
    ("norm", "layernorm_after", "norm2"),
    ("dense", "mlp.fc1", "mlp/fc1"),
    ("dense", "mlp.fc2", "mlp/fc2"),
  )


ATTENTION: tuple[Row, ...] = (
  ("dense", "attention.attention.query", "attn/q"),
  ("dense", "attention.attention.key", "attn/k"),
  ("dense", "attention.attention.value", "attn/v"),
  ("dense", "attention.output.dense", "attn/o"),
)
ATTENTION_5: tuple[Row, ...] = tuple(
  ("dense", f"attention.{part}_proj", f"attn/{part}") for part in "qkvo"
)
_ENDS = (*ends("vit."), ("dense", "classifier", "head"))
# Pooler of models without a classifier; decoder of masked autoencoders.
_TASKS = rf"(vit\.)?pooler\.dense\.(weight|bias)|{DECODER}"
_OPTIONS: dict[str, Any] = {"fixes": FIXES, "refused": REFUSED}
_HUGGING_FACE = Dialect(
  "Hugging Face", (*_ENDS, *blocks("vit.")), heads=_TASKS, **_OPTIONS
)
_TRANSFORMERS_5 = Dialect(
  "transformers 5", (*_ENDS, *blocks_5("vit.")), heads=_TASKS, **_OPTIONS
)
_TIMM = Dialect(
  "timm",
  (
    ("plain", "cls_token", "cls_token"),
    ("plain", "dist_token", "dist_token"),
    ("plain", "reg_token", "register_tokens"),
    ("plain", "pos_embed", "pos_embed"),
    ("conv", "patch_embed.proj", "patch_embed"),
    *under(
      "blocks.{i}.",
      "blocks/{i}/",
      ("norm", "norm1", "norm1"),
      ("fused", "attn.qkv", ("attn/q", "attn/k", "attn/v")),
      ("dense", "attn.proj", "attn/o"),
      ("plain", "ls1.gamma", "layer_scale1/scale"),
      ("norm", "norm2", "norm2"),
      ("dense", "mlp.fc1", "mlp/fc1"),
      ("dense", "mlp.fc2", "mlp/fc2"),
      ("fused", "mlp.fc1", ("mlp/gate", "mlp/up")),
      ("dense", "mlp.fc2", "mlp/down"),
      ("plain", "ls2.gamma", "layer_scale2/scale"),
    ),
    ("norm", "norm", "norm"),
    ("dense", "head", "head"),
    ("dense", "head_dist", "head_dist"),
  ),
  heads=rf"pre_logits\.fc\.(weight|bias)|{DECODER}",
  class_position=False,
  **_OPTIONS,
)
# An average of the patches is normalized by a layer of its own name.
_TIMM_AVERAGE = dataclasses.replace(
  _TIMM,
  name="timm, global_pool='avg'",
  rows=tuple(
    ("norm", "fc_norm", "norm") if row[1] == "norm" else row
    for row in _TIMM.rows
  ),
)


def _flax(
  name: str, positions: str, attention: str, norm2: str, mlp: str
) -> Dialect:
  return Dialect(
    name,
    (
      ("plain", "cls", "cls_token"),
      ("plain", positions, "pos_embed"),
      ("flax", "embedding", "patch_embed"),
      *under(
        "Transformer/encoderblock_{i}/",
        "blocks/{i}/",
        ("flax_norm", "LayerNorm_0", "norm1"),
        ("flax_qkv", f"{attention}/query", "attn/q"),
        ("flax_qkv", f"{attention}/key", "attn/k"),
        ("flax_qkv", f"{attention}/value", "attn/v"),
        ("flax_out", f"{attention}/out", "attn/o"),
        ("flax_norm", norm2, "norm2"),
        ("flax", f"{mlp}/Dense_0", "mlp/fc1"),
        ("flax", f"{mlp}/Dense_1", "mlp/fc2"),
      ),
      ("flax_norm", "Transformer/encoder_norm", "norm"),
      ("flax", "head", "head"),
    ),
    heads=r"pre_logits/(kernel|bias)",
    class_position=False,
    refused=(
      (
        r"MAPHead_0/.*|probe",
        "attention pooling, which this ViT lacks; it pools with 'cls' or 'gap'",
      ),
    ),
    fixes=FIXES,
  )


_ATTENTION = "MultiHeadDotProductAttention"
_NEW = (f"{_ATTENTION}_0", "LayerNorm_1", "MlpBlock_0")
_OLD = (f"{_ATTENTION}_1", "LayerNorm_2", "MlpBlock_3")
_POSEMBED = "Transformer/posembed_input/pos_embedding"

DIALECTS = (
  _HUGGING_FACE,
  _TRANSFORMERS_5,
  _HUGGING_FACE.bare("vit."),
  _TRANSFORMERS_5.bare("vit."),
)
OTHERS = (
  _TIMM,
  _TIMM_AVERAGE,
  _flax("big_vision", "pos_embedding", *_NEW),
  _flax("big_vision before 2022", "Transformer/pos_embedding", *_NEW),
  _flax("vision_transformer", _POSEMBED, *_NEW),
  _flax("vision_transformer, first", _POSEMBED, *_OLD),
)


def learned(*_: Any) -> dict[str, Given]:
  """Files hold the positions, whatever they were made from."""
  return {"pos": Given("", "learned", "learned")}


def _positions(model: Any) -> dict[str, np.ndarray]:
  """A fixed table of positions, stored as the learned ones are."""
  if model.pos == "learned":
    return {}
  name = "vit.embeddings.position_embeddings"
  return {name: np.asarray(model.positions())}


def model_keys(epsilon: float) -> tuple[Key, ...]:
  """Keys of every vision transformer of the library."""
  return (
    Key("hidden_size", "width", 768, COUNT),
    Key("num_hidden_layers", "depth", 12, COUNT),
    Key("num_attention_heads", "heads", 12, COUNT),
    Key("image_size", "image_size", 224, SIDES),
    Key("num_channels", "in_channels", 3, COUNT),
    Key("qkv_bias", "qkv_bias", True, FLAG),
    Key("layer_norm_eps", "norm_epsilon", epsilon, NUMBER),
    CLASSES,
    Key(
      "hidden_dropout_prob",
      "dropout",
      0.0,
      NUMBER,
      dropout,
      trains=True,
    ),
    Key(
      "attention_probs_dropout_prob",
      "attention_dropout",
      0.0,
      NUMBER,
      attention_dropout,
      trains=True,
    ),
  )


GELU = words(
  {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "relu2": "exact",  # whose form is of no account
  }
)


def _activation(model: Any) -> str:
  return "relu2" if model.relu2 else GELU.write(model.gelu)


# Two options that one key stands for.
ACTIVATION = (
  Key("hidden_act", "gelu", "gelu", GELU),
  Key(
    "hidden_act",
    "relu2",
    "gelu",
    Form(GELU.expected, lambda word: word == "relu2"),
    _activation,
  ),
)
KEYS = (
  *model_keys(1e-12),
  Key("patch_size", "patch", 16, SIDES),
  Key("intermediate_size", "mlp_dim", 3072, COUNT),
  *ACTIVATION,
)
# Options that only other tables have.
PLAIN = {"registers": 0, "swiglu": False}
_VIT = Table(
  architecture="ViTForImageClassification",
  types={"vit": {}},
  keys=KEYS,
  follows=(CLASS_COUNT,),
  # Of models without a head and for masked images.
  harmless=("encoder_stride", "pooler_act", "pooler_output_size"),
  implied={"pool": "cls", "distillation": "none", **PLAIN},
  more=learned,
  dialects=(_HUGGING_FACE.name,),
  constants=_positions,
)
# The encoder of a masked autoencoder, which has no classifier. It is written as
# a ViT, which computes the same.
_MAE = Table(
  architecture="ViTMAEModel",
  types={"vit_mae": {}},
  keys=KEYS,
  follows=(CLASS_COUNT,),
  # Of the decoder, and of pretraining.
  harmless=(
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "mask_ratio",
    "norm_pix_loss",
  ),
  implied={"pool": "cls", "distillation": "none", **PLAIN},
  more=learned,
  dialects=(_HUGGING_FACE.name,),
)

CONFIGS = (_VIT, _MAE)
