"""A model for `transformers`: its weights by name and its config.json.

Options that the library cannot express are refused: it would load the model
silently and compute something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.core.tree import MaskedKernel
from figs_jax.models import stack
from figs_jax.models.pretrained.files import PretrainedError
from figs_jax.models.pretrained.matching import TABLES, place_of, published
from figs_jax.models.swin_v2 import SwinV2
from figs_jax.models.swin_v2_stage import EPSILON
from figs_jax.models.t5 import EOS, PAD, T5
from figs_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Published:
  """The contents of a model directory for `from_pretrained`.

  Attributes:
    tensors: Weights by the library's names, in its layout.
    leaves: Pattern and group axes of the sparse weights, by the same names.
    config: Contents of config.json.
  """

  tensors: dict[str, np.ndarray]
  leaves: dict[str, MaskedKernel]
  config: dict[str, Any]


def for_transformers(model: nnx.Module) -> Published:
  """Converts a model to the names and layouts of `transformers`.

  Kernels are taken as stored; after `finished()` they have their zeros.

  Args:
    model: A ViT, Swin-V2 or T5, sparse or dense, scanned or not.

  Raises:
    PretrainedError: If the model has another family or an option that the
      library lacks, which the message names.

  >>> from figs_jax import models
  >>> model = models.create(
  ...   "vit", "custom/2", width=8, depth=1, heads=2, image_size=4)
  >>> converted = for_transformers(nn.sparsify(model, "ff: 1:8"))
  >>> converted.config["architectures"], converted.config["hidden_size"]
  (['ViTForImageClassification'], 8)
  >>> converted.leaves["vit.encoder.layer.0.intermediate.dense.weight"]
  MaskedKernel(shape=(32, 8), pattern=NM(n=1, m=8), axis=(1,))
  """
  name = type(model).__name__
  if name not in _CONFIGS:
    raise PretrainedError(
      f"Expected a model that transformers has ({', '.join(TABLES)}), got"
      f" {name}"
    )
  config = _CONFIGS[name](model)
  tensors = published(model)
  if isinstance(model, ViT) and model.pos == "sincos":
    # transformers has learned positions only: store the fixed table as such.
    table = np.asarray(model.positions(), tensors["classifier.weight"].dtype)
    tensors["vit.embeddings.position_embeddings"] = table
  config["dtype"] = next(iter(tensors.values())).dtype.name
  return Published(tensors, published_leaves(model), config)


def published_leaves(model: nnx.Module) -> dict[str, MaskedKernel]:
  """Shape, pattern and group axes of the sparse tensors of `published`.

  Raises:
    PretrainedError: If the model's family is unknown.
  """
  leaves = {}
  for path, leaf in nn.masked_leaves(model).items():
    place = place_of(model, path, leaf.shape)
    ours = leaf.shape[1:] if place.stacked else leaf.shape
    axes = (leaf.axis,) if isinstance(leaf.axis, int) else leaf.axis
    order = place.layout.order or tuple(range(len(ours)))
    # Counted from the end: a stacked kernel's axes are those of one block.
    turned = tuple(order.index(a % len(ours)) for a in axes)
    shape = place.layout.of(ours, 1)
    for name in place.names:
      leaves[name] = MaskedKernel(shape, leaf.pattern, turned)
  return leaves


def _vit(model: ViT) -> dict[str, Any]:
  if model.pool != "cls":
    raise PretrainedError(
      "ViTForImageClassification reads a class token: expected pool='cls', got"
      f" pool={model.pool!r}; train with pool='cls' or export another format"
    )
  ((_, block, _), *_) = stack.named("blocks", model.blocks)
  return {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_attention_heads": model.heads,
    "intermediate_size": block.mlp.fc1.out_features,
    "hidden_act": {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}[model.gelu],
    "layer_norm_eps": model.norm.epsilon,
    "image_size": _side(model.image_size),
    "patch_size": _side(model.patch),
    "num_channels": model.in_channels,
    "qkv_bias": block.attn.q.bias is not None,
    **_labels(model.num_classes),
  }


def _swin_v2(model: SwinV2) -> dict[str, Any]:
  ((_, block, _), *_) = stack.named("blocks", model.stages[0].blocks)
  return {
    "architectures": ["Swinv2ForImageClassification"],
    "model_type": "swinv2",
    "embed_dim": model.width,
    "depths": list(model.depths),
    "num_heads": [model.heads << i for i in range(len(model.depths))],
    "window_size": model.window,
    "pretrained_window_sizes": list(model.pretrained_windows),
    "mlp_ratio": float(model.mlp_ratio),
    "qkv_bias": block.attn.q.bias is not None,
    "hidden_act": "gelu",
    "layer_norm_eps": EPSILON,
    "drop_path_rate": float(model.drop_path),
    "image_size": _side(model.image_size),
    "patch_size": model.patch,
    "num_channels": model.in_channels,
    **_labels(model.num_classes),
  }


def _t5(model: T5) -> dict[str, Any]:
  ((_, block, _), *_) = stack.named("blocks", model.encoder.blocks)
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "vocab_size": model.vocab,
    "d_model": model.width,
    "d_kv": model.head_dim,
    "d_ff": model.mlp_dim,
    "num_layers": model.depth,
    "num_decoder_layers": model.decoder_depth,
    "num_heads": model.heads,
    "relative_attention_num_buckets": model.num_buckets,
    "relative_attention_max_distance": model.max_distance,
    "feed_forward_proj": "relu" if "wi" in block.mlp.names else "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": float(block.dropout.rate),
    # The library also scales the output depending on this.
    "tie_word_embeddings": model.tied,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
  }


_CONFIGS: dict[str, Callable[[Any], dict[str, Any]]] = {
  "SwinV2": _swin_v2,
  "T5": _t5,
  "ViT": _vit,
}


def _side(sides: tuple[int, int]) -> int | list[int]:
  height, width = sides
  return height if height == width else [height, width]


def _labels(count: int) -> dict[str, Any]:
  """The names of the classes; transformers takes their number from them."""
  names = [f"LABEL_{i}" for i in range(count)]
  return {
    "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
  }
