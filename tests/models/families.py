"""One tiny model of every family, for the tests that all of them pass."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax import models
from figs_jax.train.losses import (
  cross_entropy,
  masked_tokens,
  next_token,
  teacher_forcing,
)


@dataclasses.dataclass(frozen=True)
class Tiny:
  """A variant with its options, and a batch that it trains on.

  inputs: names of the batch's entries that the model is called with. kernels:
  how many there are. fewer: options that make it quicker to compile. noise:
  options that draw random numbers in training.
  """

  variant: str
  options: dict[str, Any]
  batch: Callable[[int], dict[str, Any]]
  inputs: tuple[str, ...]
  loss: Callable
  kernels: int
  fewer: dict[str, Any] = dataclasses.field(default_factory=dict)
  noise: dict[str, float] = dataclasses.field(
    default_factory=lambda: {"drop_path": 0.2}
  )
  rules: str = "ff: 1:4, qk: 2:4"

  def args(self, size: int) -> tuple[Any, ...]:
    batch = self.batch(size)
    return tuple(batch[name] for name in self.inputs)


def _images(height, width, channels=3):
  def batch(size):
    shape = (size, height, width, channels)
    image = jax.random.normal(jax.random.key(size), shape)
    return {"image": image, "label": jnp.arange(size) % 5}

  return batch


def _text(inputs, targets):
  def batch(size):
    def ids(key, length):
      ids = jax.random.randint(key, (size, length), 3, 24)
      # Each row ends one place earlier; then comes padding.
      last = length - 1 - jnp.arange(size)[:, None]
      place = jnp.arange(length)[None]
      return jnp.where(place < last, ids, (place == last).astype(jnp.int32))

    one, two = jax.random.split(jax.random.key(size))
    return {"inputs": ids(one, inputs), "targets": ids(two, targets)}

  return batch


def _masked(length):
  def batch(size):
    rows = _text(length, length)(size)
    place = jnp.arange(length)[None]
    masked = place % 3 == jnp.arange(size)[:, None] % 3
    return {
      "inputs": rows["inputs"],
      "types": jnp.int32((place > 4) & (rows["inputs"] > 0)),
      "targets": jnp.where(masked, rows["targets"], 0),
    }

  return batch


def _rows(length):
  def batch(size):
    ids = _text(length + 1, 2)(size)["inputs"]
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:]}

  return batch


TINY = {
  "resnet": Tiny(
    "custom",
    {
      "block": "bottleneck",
      "depths": (2, 3),
      "width": 8,
      "image_size": (9, 7),
      "in_channels": 4,  # so that the stem has groups
      "num_classes": 5,
    },
    _images(9, 7, 4),
    ("image",),
    cross_entropy,
    kernels=1 + 5 * 3 + 2 + 1,
    fewer={"block": "basic"},
    noise={},
    rules="conv3x3: 1:4, downsample: 2:4",
  ),
  "bert": Tiny(
    "custom",
    {
      "width": 8,
      "depth": 2,
      "heads": 2,
      "mlp_dim": 16,
      "vocab": 24,
      "length": 10,
      "input_length": 9,
    },
    _masked(9),
    ("inputs", "types"),
    masked_tokens,
    kernels=2 * 6 + 1,
    fewer={"depth": 1},
    noise={"dropout": 0.2, "attention_dropout": 0.2},
  ),
  "gpt2": Tiny(
    "custom",
    {
      "width": 8,
      "depth": 2,
      "heads": 2,
      "vocab": 24,
      "length": 12,
      "input_length": 9,
    },
    _rows(9),
    ("inputs",),
    next_token,
    kernels=2 * 6,
    noise={"dropout": 0.2},
  ),
  "llama": Tiny(
    "custom",
    {
      "width": 8,
      "depth": 2,
      "heads": 4,
      "kv_heads": 2,
      "head_dim": 6,
      "mlp_dim": 16,
      "vocab": 24,
      "rope_factor": 8.0,
      "rope_length": 16,
      "input_length": 9,
    },
    _rows(9),
    ("inputs",),
    next_token,
    kernels=2 * 7 + 1,
    noise={"attention_dropout": 0.2},
  ),
  "swin_v2": Tiny(
    "custom/2",
    {
      "width": 8,
      "depths": (2, 1),
      "heads": 2,
      "window": 4,
      "image_size": (13, 11),  # pads patches, windows and merging
      "num_classes": 5,
    },
    _images(13, 11),
    ("image",),
    cross_entropy,
    kernels=3 * 8 + 3,
    fewer={"depths": (2,)},
  ),
  "t5": Tiny(
    "custom",
    {
      "width": 8,
      "depth": 2,
      "decoder_depth": 1,
      "heads": 2,
      "head_dim": 6,
      "mlp_dim": 16,
      "vocab": 24,
      "gated": True,
      "tied": False,
      "input_length": 9,
      "target_length": 7,
    },
    _text(9, 7),
    ("inputs", "targets"),
    teacher_forcing,
    kernels=2 * (4 + 3) + (8 + 3) + 1,
    fewer={"depth": 1, "gated": False},
    noise={"dropout": 0.2},
    rules="ff: 1:8, qk: 1:4",
  ),
  "vit": Tiny(
    "custom/4",
    {
      "width": 8,
      "depth": 2,
      "heads": 2,
      "image_size": (8, 4),
      "num_classes": 5,
    },
    _images(8, 4),
    ("image",),
    cross_entropy,
    kernels=2 * 6 + 2,
  ),
}
# Options of a family that give it other parameters, layers or names in files.
FORMS = {
  "dinov2": ("vit", {"layer_scale": 0.1, "pool": "cls_gap"}),
  "dinov2 giant": (
    "vit",
    {"layer_scale": 0.1, "pool": "cls_gap", "swiglu": True, "registers": 3},
  ),
  "deit": ("vit", {"distillation": "heads"}),
  "deit without teacher": ("vit", {"distillation": "token"}),
  "mae": ("vit", {"pool": "gap_norm"}),
}


def create(family: str, **options: Any) -> Any:
  """The dense tiny model of a family, in evaluation mode."""
  tiny = TINY[family]
  model = models.create(family, tiny.variant, **{**tiny.options, **options})
  model.eval()
  return model
