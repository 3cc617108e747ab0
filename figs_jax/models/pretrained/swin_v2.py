"""Names of Swin-V2's parameters in published files."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.models import windows
from figs_jax.models.pretrained.names import Dialect, under

_HINT = (
  "the windows have another size; set window= to the file's, or"
  " pretrained_windows= to those it was trained with"
)


def _places(model: Any, tensors: Any, name: str, **stage: str) -> bool:
  """Checks [s², s²], the row of the table for each pair of tokens."""
  shape = tensors[name].shape
  side = math.isqrt(max(shape, default=0))
  if side < 1 or shape != (side**2, side**2):
    return False
  return np.array_equal(tensors[name].read(), windows.offset_index(side))


def _offsets(model: Any, tensors: Any, name: str, s: str) -> bool:
  """Checks [1, 2s-1, 2s-1, 2], the offsets on the scale of this model."""
  tensor = tensors[name]
  side = (max(tensor.shape, default=0) + 1) // 2
  if tensor.shape != (1, 2 * side - 1, 2 * side - 1, 2):
    return False
  if int(s) >= len(model.stages) or tensor.dtype.kind == "i":
    return False
  stage = model.stages[int(s)].shape
  want = windows.log_offsets(side, stage.pretrained or stage.window)
  precision = 8 * float(jnp.finfo(tensor.dtype).eps)
  got = tensor.read().astype(np.float32).reshape(want.shape)
  return np.allclose(got, want, rtol=precision, atol=precision)


_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    *under(
      "swinv2.",
      "",
      ("conv", "embeddings.patch_embeddings.projection", "patch_embed"),
      ("norm", "embeddings.norm", "patch_norm"),
      ("norm", "layernorm", "norm"),
    ),
    *under(
      "swinv2.encoder.layers.{s}.blocks.{i}.",
      "stages/{s}/blocks/{i}/",
      *under(
        "attention.",
        "attn/",
        ("dense", "self.query", "q"),
        ("dense", "self.key", "k"),
        ("dense", "self.value", "v"),
        ("dense", "output.dense", "o"),
        ("column", "self.logit_scale", "logit_scale"),
        ("dense", "self.continuous_position_bias_mlp.0", "cpb/fc1"),
        ("dense", "self.continuous_position_bias_mlp.2", "cpb/fc2"),
      ),
      ("norm", "layernorm_before", "norm1"),
      ("dense", "intermediate.dense", "mlp/fc1"),
      ("dense", "output.dense", "mlp/fc2"),
      ("norm", "layernorm_after", "norm2"),
    ),
    *under(
      "swinv2.encoder.layers.{s}.downsample.",
      "stages/{s}/merge/",
      ("dense", "reduction", "reduction"),
      ("norm", "norm", "norm"),
    ),
    ("dense", "classifier", "head"),
  ),
  duplicates=tuple(
    (
      rf"(?:swinv2\.)?encoder\.layers\.(?P<s>\d+)\.blocks\.\d+\.attention"
      rf"\.self\.{buffer}",
      expected,
    )
    for buffer, expected in (
      ("relative_position_index", _places),
      ("relative_coords_table", _offsets),
    )
  ),
  hint=_HINT,
)


def _original(name: str, merge: str, head: str) -> Dialect:
  return Dialect(
    name,
    (
      ("conv", "patch_embed.proj", "patch_embed"),
      ("norm", "patch_embed.norm", "patch_norm"),
      *under(
        "layers.{s}.blocks.{i}.",
        "stages/{s}/blocks/{i}/",
        # Listed before the fused kernel, since the key has no bias.
        ("plain", "attn.q_bias", "attn/q/bias"),
        ("plain", "attn.v_bias", "attn/v/bias"),
        ("fused", "attn.qkv", ("attn/q", "attn/k", "attn/v")),
        ("dense", "attn.proj", "attn/o"),
        ("column", "attn.logit_scale", "attn/logit_scale"),
        ("dense", "attn.cpb_mlp.0", "attn/cpb/fc1"),
        ("dense", "attn.cpb_mlp.2", "attn/cpb/fc2"),
        ("norm", "norm1", "norm1"),
        ("dense", "mlp.fc1", "mlp/fc1"),
        ("dense", "mlp.fc2", "mlp/fc2"),
        ("norm", "norm2", "norm2"),
      ),
      *under(
        merge,
        "stages/{s}/merge/",
        ("dense", "reduction", "reduction"),
        ("norm", "norm", "norm"),
      ),
      ("norm", "norm", "norm"),
      ("dense", head, "head"),
    ),
    duplicates=(
      (
        r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
        _places,
      ),
      (
        r"layers\.(?P<s>\d+)\.blocks\.\d+\.attn\.relative_coords_table",
        _offsets,
      ),
      # A function of the image size only.
      (r"layers\.\d+\.blocks\.\d+\.attn_mask", None),
    ),
    hint=_HINT,
  )


DIALECTS = (
  _HUGGING_FACE,
  _HUGGING_FACE.bare("swinv2."),
  _original("Swin-Transformer", "layers.{s}.downsample.", "head"),
  _original("timm", "layers.{s+1}.downsample.", "head.fc"),
)
