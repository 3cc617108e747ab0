"""Names of T5's parameters in published files."""

from __future__ import annotations

from typing import Any

import numpy as np

from figs_jax.models.pretrained.names import Dialect, Row, under


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
  return tuple(
    ("dense", f"{theirs}.{part}", f"{ours}/{part}") for part in "qkvo"
  )


def _mlp(theirs: str) -> tuple[Row, ...]:
  return tuple(
    ("dense", f"{theirs}.DenseReluDense.{part}", f"mlp/{part}")
    for part in ("wi", "wi_0", "wi_1", "wo")
  )


def _bias(stack: str) -> Row:
  """The table of a stack, which files store in its first block."""
  name = "block.0.layer.0.SelfAttention.relative_attention_bias"
  return "embed", f"{stack}.{name}", f"{stack}/position_bias"


def _is_shared(model: Any, tensors: Any, name: str) -> bool:
  shared = tensors.get("shared.weight")
  if shared is None or shared.shape != tensors[name].shape:
    return False
  return np.array_equal(shared.read(), tensors[name].read())


_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    ("embed", "shared", "shared"),
    _bias("encoder"),
    *under(
      "encoder.block.{i}.layer.",
      "encoder/blocks/{i}/",
      ("norm", "0.layer_norm", "attn_norm"),
      *_attention("0.SelfAttention", "attn"),
      ("norm", "1.layer_norm", "mlp_norm"),
      *_mlp("1"),
    ),
    ("norm", "encoder.final_layer_norm", "encoder/norm"),
    _bias("decoder"),
    *under(
      "decoder.block.{i}.layer.",
      "decoder/blocks/{i}/",
      ("norm", "0.layer_norm", "attn_norm"),
      *_attention("0.SelfAttention", "attn"),
      ("norm", "1.layer_norm", "cross_norm"),
      *_attention("1.EncDecAttention", "cross"),
      ("norm", "2.layer_norm", "mlp_norm"),
      *_mlp("2"),
    ),
    ("norm", "decoder.final_layer_norm", "decoder/norm"),
    ("dense", "lm_head", "head"),
  ),
  duplicates=(
    (r"(?:en|de)coder\.embed_tokens\.weight", _is_shared),
    # Only in tied models; otherwise it is a parameter.
    (r"lm_head\.weight", _is_shared),
    # In the first published files; cross-attention has no position bias.
    (
      r"decoder\.block\.0\.layer\.1\.EncDecAttention"
      r"\.relative_attention_bias\.weight",
      None,
    ),
  ),
  hint="it differs from shared.weight; set tied=False for an untied head",
)

DIALECTS = (_HUGGING_FACE,)
