"""One tiny model of every family, for the tests that all of them pass."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax import models
from figs_jax.train.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class Tiny:
  """A variant with its options, and a batch that it trains on.

  inputs: names of the batch's entries that the model is called with. stacked:
  where its blocks are, so that `scan` is known to have stacked them.
  """

  variant: str
  options: dict[str, Any]
  batch: Callable[[int], dict[str, Any]]
  inputs: tuple[str, ...]
  loss: Callable
  kernels: int
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


TINY = {
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


def create(family: str, **options: Any) -> Any:
  """The dense tiny model of a family."""
  tiny = TINY[family]
  return models.create(family, tiny.variant, **{**tiny.options, **options})
