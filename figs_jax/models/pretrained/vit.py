"""Names of ViT's parameters in published files, and keys of its config.json."""

from __future__ import annotations

from typing import Any

from figs_jax.models import stack
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  CLASSES,
  COUNT,
  FLAG,
  GELU,
  NUMBER,
  SIDES,
  Key,
  Table,
)
from figs_jax.models.pretrained.names import Dialect, Row, under

_ENDS: tuple[Row, ...] = (
  ("plain", "vit.embeddings.cls_token", "cls_token"),
  ("plain", "vit.embeddings.position_embeddings", "pos_embed"),
  ("conv", "vit.embeddings.patch_embeddings.projection", "patch_embed"),
  ("norm", "vit.layernorm", "norm"),
  ("dense", "classifier", "head"),
)
_POOLER = r"(vit\.)?pooler\.dense\.(weight|bias)"
_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    *_ENDS,
    *under(
      "vit.encoder.layer.{i}.",
      "blocks/{i}/",
      ("norm", "layernorm_before", "norm1"),
      ("dense", "attention.attention.query", "attn/q"),
      ("dense", "attention.attention.key", "attn/k"),
      ("dense", "attention.attention.value", "attn/v"),
      ("dense", "attention.output.dense", "attn/o"),
      ("norm", "layernorm_after", "norm2"),
      ("dense", "intermediate.dense", "mlp/fc1"),
      ("dense", "output.dense", "mlp/fc2"),
    ),
  ),
  heads=_POOLER,
)
_TRANSFORMERS_5 = Dialect(
  "transformers 5",
  (
    *_ENDS,
    *under(
      "vit.layers.{i}.",
      "blocks/{i}/",
      ("norm", "layernorm_before", "norm1"),
      ("dense", "attention.q_proj", "attn/q"),
      ("dense", "attention.k_proj", "attn/k"),
      ("dense", "attention.v_proj", "attn/v"),
      ("dense", "attention.o_proj", "attn/o"),
      ("norm", "layernorm_after", "norm2"),
      ("dense", "mlp.fc1", "mlp/fc1"),
      ("dense", "mlp.fc2", "mlp/fc2"),
    ),
  ),
  heads=_POOLER,
)
_TIMM = Dialect(
  "timm",
  (
    ("plain", "cls_token", "cls_token"),
    ("plain", "pos_embed", "pos_embed"),
    ("conv", "patch_embed.proj", "patch_embed"),
    *under(
      "blocks.{i}.",
      "blocks/{i}/",
      ("norm", "norm1", "norm1"),
      ("fused", "attn.qkv", ("attn/q", "attn/k", "attn/v")),
      ("dense", "attn.proj", "attn/o"),
      ("norm", "norm2", "norm2"),
      ("dense", "mlp.fc1", "mlp/fc1"),
      ("dense", "mlp.fc2", "mlp/fc2"),
    ),
    ("norm", "norm", "norm"),
    ("dense", "head", "head"),
  ),
  heads=r"pre_logits\.fc\.(weight|bias)",
  class_position=False,
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
  _TIMM,
  _flax("big_vision", "pos_embedding", *_NEW),
  _flax("big_vision before 2022", "Transformer/pos_embedding", *_NEW),
  _flax("vision_transformer", _POSEMBED, *_NEW),
  _flax("vision_transformer, first", _POSEMBED, *_OLD),
)


def _attention_dropout(model: Any) -> float:
  ((_, block, _), *_) = stack.named("blocks", model.blocks)
  return float(block.attn.dropout.rate)


CONFIG = Table(
  architecture="ViTForImageClassification",
  types={"vit": {}},
  keys=(
    Key("hidden_size", "width", 768, COUNT),
    Key("num_hidden_layers", "depth", 12, COUNT),
    Key("num_attention_heads", "heads", 12, COUNT),
    Key("intermediate_size", "mlp_dim", 3072, COUNT),
    Key("patch_size", "patch", 16, SIDES),
    Key("image_size", "image_size", 224, SIDES),
    Key("num_channels", "in_channels", 3, COUNT),
    Key("qkv_bias", "qkv_bias", True, FLAG),
    Key("layer_norm_eps", "norm_epsilon", 1e-12, NUMBER),
    Key("hidden_act", "gelu", "gelu", GELU),
    CLASSES,
    Key(
      "hidden_dropout_prob",
      "dropout",
      0.0,
      NUMBER,
      lambda model: float(model.dropout.rate),
      trains=True,
    ),
    Key(
      "attention_probs_dropout_prob",
      "attention_dropout",
      0.0,
      NUMBER,
      _attention_dropout,
      trains=True,
    ),
  ),
  follows=(CLASS_COUNT,),
  # Of models without a head and for masked images.
  harmless=("encoder_stride", "pooler_act", "pooler_output_size"),
  implied={"pool": "cls", "pos": "learned"},
)
