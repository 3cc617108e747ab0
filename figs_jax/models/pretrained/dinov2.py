"""DINOv2's parameters in published files, and the keys of its config.json.

Files hold the two kernels of SwiGLU's hidden layer as one, gate first. Their
mask token is for pretraining only: it is neither read nor kept, and written as
zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from figs_jax.models import stack
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  COUNT,
  FLAG,
  NUMBER,
  SIDES,
  Fields,
  Fixed,
  Given,
  Key,
  Table,
)
from figs_jax.models.pretrained.names import Dialect, Row, under
from figs_jax.models.pretrained.vit import (
  ACTIVATION,
  ATTENTION,
  ATTENTION_5,
  FIXES,
  REFUSED,
  ends,
  learned,
  model_keys,
)

_REGISTERS = "dinov2_with_registers"
_PACKED: tuple[Row, ...] = (
  ("fused", "mlp.weights_in", ("mlp/gate", "mlp/up")),
  ("dense", "mlp.weights_out", "mlp/down"),
)
_UNPACKED: tuple[Row, ...] = tuple(
  ("dense", f"mlp.{part}_proj", f"mlp/{part}")
  for part in ("gate", "up", "down")
)


def _blocks(
  attention: tuple[Row, ...], mlp: tuple[Row, ...], scale: str
) -> tuple[Row, ...]:
  return (
    ("norm", "norm1", "norm1"),
    *attention,
    ("plain", scale.format(1), "layer_scale1/scale"),
    ("norm", "norm2", "norm2"),
    ("dense", "mlp.fc1", "mlp/fc1"),
    ("dense", "mlp.fc2", "mlp/fc2"),
    *mlp,
    ("plain", scale.format(2), "layer_scale2/scale"),
  )


def _dialect(name: str, rows: tuple[Row, ...], mask_token: str) -> Dialect:
  return Dialect(
    name,
    rows,
    duplicates=((rf"({mask_token})?mask_token", None),),
    refused=REFUSED,
    fixes=FIXES,
  )


def _hugging_face(kind: str, attention: tuple[Row, ...], mlp: tuple[Row, ...]):
  prefix = f"{kind}."
  token = ("plain", f"{prefix}embeddings.register_tokens", "register_tokens")
  rows = (
    *ends(prefix),
    *((token,) if kind == _REGISTERS else ()),
    *under(
      f"{prefix}encoder.layer.{{i}}.",
      "blocks/{i}/",
      *_blocks(attention, mlp, "layer_scale{}.lambda1"),
    ),
    ("dense", "classifier", "head"),
  )
  name = kind if mlp is _PACKED else f"{kind}, transformers 5"
  return _dialect(name, rows, rf"({kind}\.)?embeddings\.")


_FILES = [_hugging_face(k, ATTENTION, _PACKED) for k in ("dinov2", _REGISTERS)]
_MODELS = [
  _hugging_face(k, ATTENTION_5, _UNPACKED) for k in ("dinov2", _REGISTERS)
]
# As the authors name them; also the blocks of several files of others.
_AUTHORS = _dialect(
  "dinov2 of facebookresearch",
  (
    ("plain", "cls_token", "cls_token"),
    ("plain", "register_tokens", "register_tokens"),
    ("plain", "pos_embed", "pos_embed"),
    ("conv", "patch_embed.proj", "patch_embed"),
    *under(
      "blocks.{i}.",
      "blocks/{i}/",
      *_blocks(
        (
          ("fused", "attn.qkv", ("attn/q", "attn/k", "attn/v")),
          ("dense", "attn.proj", "attn/o"),
        ),
        (
          ("fused", "mlp.w12", ("mlp/gate", "mlp/up")),
          ("dense", "mlp.w3", "mlp/down"),
        ),
        "ls{}.gamma",
      ),
    ),
    ("norm", "norm", "norm"),
    ("dense", "head", "head"),
  ),
  "",
)

DIALECTS = (
  *_FILES,
  *_MODELS,
  *(
    each.bare(f"{kind}.")
    for pair in (_FILES, _MODELS)
    for each, kind in zip(pair, ("dinov2", _REGISTERS))
  ),
  _AUTHORS,
)


def _hidden(width: int, ratio: int | float, swiglu: bool) -> int:
  """The width of the feed-forward layers, as the library derives it."""
  hidden = int(width * ratio)
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def _mlp_dim(
  fields: Fields, options: Mapping[str, Given], tensors: Mapping[str, Tensor]
) -> dict[str, Given]:
  ratio, width = options["mlp_dim"], options["width"].value
  hidden = _hidden(width, ratio.value, options["swiglu"].value)
  return {
    **learned(),
    "mlp_dim": ratio._replace(value=max(hidden, 1)),
    # 0 is a learned LayerScale that starts at 0, in the library.
    "layer_scale": options["layer_scale"]._replace(
      value=min(options["layer_scale"].value, 1.0) or 1.0
    ),
  }


def _ratio(model: Any) -> int:
  """The `mlp_ratio` of a model, an integer in the library.

  Raises:
    PretrainedError: If none gives its width of the feed-forward layers.
  """
  rounded = 1.5 if model.swiglu else 1.0
  ratio = max(round(model.mlp_dim * rounded / model.width), 1)
  hidden = _hidden(model.width, ratio, model.swiglu)
  if hidden != model.mlp_dim:
    raise PretrainedError(
      f"Dinov2ForImageClassification: expected mlp_dim={hidden}, which follows"
      f" from an integer mlp_ratio={ratio}, got mlp_dim={model.mlp_dim}; train"
      " with that or export another format"
    )
  return ratio


def _constants(model: Any) -> dict[str, np.ndarray]:
  """The mask token, and LayerScales of a model without them."""
  kind = _REGISTERS if model.registers else "dinov2"
  result = {f"{kind}.embeddings.mask_token": np.zeros((1, model.width))}
  if not model.layer_scale:
    count = sum(count for *_, count in stack.named("blocks", model.blocks))
    result |= {
      f"{kind}.encoder.layer.{i}.layer_scale{j}.lambda1": np.ones(model.width)
      for i in range(count)
      for j in (1, 2)
    }
  if model.pos != "learned":
    name = f"{kind}.embeddings.position_embeddings"
    result[name] = np.asarray(model.positions())
  return result


def _table(kind: str, architecture: str) -> Table:
  registers = Key("num_register_tokens", "registers", 4, COUNT)
  alone = kind == "dinov2"
  return Table(
    architecture=architecture,
    types={kind: {}},
    keys=(
      *model_keys(1e-6),
      *(() if alone else (registers,)),
      Key("patch_size", "patch", 14 if alone else 16, SIDES),
      Key("mlp_ratio", "mlp_dim", 4, NUMBER, _ratio),
      Key("use_swiglu_ffn", "swiglu", False, FLAG),
      *ACTIVATION,
      Key("layerscale_value", "layer_scale", 1.0, NUMBER, trains=True),
      Key("drop_path_rate", "drop_path", 0.0, NUMBER, trains=True),
    ),
    fixed=(Fixed("use_mask_token", True, (False,)),) if alone else (),
    follows=(CLASS_COUNT,),
    # Of backbones.
    harmless=(
      "apply_layernorm",
      "out_features",
      "out_indices",
      "reshape_hidden_states",
      "stage_names",
      "use_mask_token",
    ),
    implied={
      "pool": "cls_gap",
      "distillation": "none",
      **({"registers": 0} if alone else {}),
    },
    more=_mlp_dim,
    dialects=(kind,),
    constants=_constants,
  )


CONFIGS = (
  _table("dinov2", "Dinov2ForImageClassification"),
  _table(_REGISTERS, "Dinov2WithRegistersForImageClassification"),
)
