"""Swin-V2's parameters in published files, and the keys of its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.models import stack, windows
from figs_jax.models.pretrained.files import PretrainedError
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  CLASSES,
  COUNT,
  FLAG,
  INTEGERS,
  NUMBER,
  SIDE,
  SIDES,
  Fields,
  Fixed,
  Follows,
  Form,
  Given,
  Key,
  Table,
  text,
)
from figs_jax.models.pretrained.names import Dialect, Fix, Wording, under
from figs_jax.models.swin_v2_stage import EPSILON

_FIXES = (Fix("attn/[qkv]/bias", {"qkv_bias": False}, {"qkv_bias": True}),)


def _hint(wording: Wording) -> str:
  return (
    f"the windows have another size; set {wording(window=...)} to the file's,"
    f" or {wording(pretrained_windows=...)} to those it was trained with"
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
  hint=_hint,
  fixes=_FIXES,
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
    hint=_hint,
    fixes=_FIXES,
  )


DIALECTS = (
  _HUGGING_FACE,
  _HUGGING_FACE.bare("swinv2."),
  _original("Swin-Transformer", "layers.{s}.downsample.", "head"),
  _original("timm", "layers.{s+1}.downsample.", "head.fc"),
)


def _first(heads: Any) -> int | None:
  """The heads of the first stage, if they double from stage to stage."""
  heads = INTEGERS.read(heads)
  if not heads or heads[0] < 1:
    return None
  doubled = tuple(heads[0] << i for i in range(len(heads)))
  return heads[0] if heads == doubled else None


def _of_stages(
  fields: Fields, options: Mapping[str, Given], tensors: Any
) -> dict[str, Given]:
  """Options with a value per stage; the library ignores further ones."""
  stages = len(options["depths"].value)
  for name in ("heads", "pretrained_windows"):
    given = options[name]
    if len(given.theirs) < stages:
      raise PretrainedError(
        f"{given.key}: expected a number for each of {stages} stages, got"
        f" {text(given.theirs)}"
      )
  sides = options["pretrained_windows"]
  return {"pretrained_windows": sides._replace(value=sides.value[:stages])}


def _dropout(model: Any, of_attention: bool) -> float:
  ((_, block, _), *_) = stack.named("blocks", model.stages[0].blocks)
  return float((block.attn if of_attention else block).dropout.rate)


CONFIG = Table(
  architecture="Swinv2ForImageClassification",
  types={"swinv2": {}},
  keys=(
    Key("embed_dim", "width", 96, COUNT),
    Key("depths", "depths", [2, 2, 6, 2], INTEGERS),
    Key(
      "num_heads",
      "heads",
      [3, 6, 12, 24],
      Form("numbers that double from stage to stage", _first),
      lambda model: [model.heads << i for i in range(len(model.depths))],
    ),
    Key("window_size", "window", 7, COUNT),
    Key(
      "pretrained_window_sizes",
      "pretrained_windows",
      [0, 0, 0, 0],
      INTEGERS,
    ),
    Key("mlp_ratio", "mlp_ratio", 4.0, NUMBER),
    Key("patch_size", "patch", 4, SIDE),
    Key("image_size", "image_size", 224, SIDES),
    Key("num_channels", "in_channels", 3, COUNT),
    Key("qkv_bias", "qkv_bias", True, FLAG),
    CLASSES,
    Key(
      "hidden_dropout_prob",
      "dropout",
      0.0,
      NUMBER,
      lambda model: _dropout(model, of_attention=False),
      trains=True,
    ),
    Key(
      "attention_probs_dropout_prob",
      "attention_dropout",
      0.0,
      NUMBER,
      lambda model: _dropout(model, of_attention=True),
      trains=True,
    ),
    Key("drop_path_rate", "drop_path", 0.1, NUMBER, trains=True),
  ),
  fixed=(
    Fixed("hidden_act", "gelu", ("gelu_python",)),
    Fixed("layer_norm_eps", EPSILON),
    Fixed("use_absolute_embeddings", False),
  ),
  follows=(
    CLASS_COUNT,
    Follows("num_layers", lambda fields: len(fields["depths"])),
    Follows(
      "hidden_size",
      lambda fields: fields["embed_dim"] << (len(fields["depths"]) - 1),
    ),
  ),
  # Of backbones and masked images; `path_norm` is not read by the library.
  harmless=(
    "encoder_stride",
    "out_features",
    "out_indices",
    "path_norm",
    "stage_names",
  ),
  more=_of_stages,
)
