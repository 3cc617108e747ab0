"""Checks of model sizes that all families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def pair(family: str, name: str, size: int | Sequence[int]) -> tuple[int, int]:
  """(height, width); one number means a square.

  Raises:
    ValueError: If there are neither one nor two numbers.

  >>> pair("ViT", "patch", 16), pair("ViT", "image_size", (8, 4))
  ((16, 16), (8, 4))
  """
  both = (size, size) if isinstance(size, int) else tuple(size)
  if len(both) != 2:
    raise ValueError(
      f"{family}: expected one or two numbers, got {name}={size!r}"
    )
  return int(both[0]), int(both[1])


def check_positive(model: Any, *names: str) -> None:
  """Raises ValueError at the first of these attributes that is below 1."""
  for name in names:
    if getattr(model, name) < 1:
      raise ValueError(
        f"{type(model).__name__}: expected {name} of 1 or more, got"
        f" {getattr(model, name)}"
      )


def check_heads(family: str, width: int, heads: int) -> None:
  """Raises ValueError unless the number of heads divides the width."""
  if heads < 1 or width % heads:
    divisors = (d for d in range(1, width + 1) if width % d == 0)
    near = min(divisors, key=lambda d: abs(d - heads))
    raise ValueError(
      f"{family}: {heads} heads do not divide width {width}; the nearest valid"
      f" number is heads={near}"
    )


def check_images(
  images: Any, image_size: tuple[int, int], channels: int
) -> None:
  """Raises ValueError unless images have the shape that a model expects.

  Bytes are refused too, since they would be read unscaled.

  The batch may be symbolic (`jax.export`), so it is not always an int.
  """
  shape, expected = images.shape, (*image_size, channels)
  if images.dtype == np.uint8:
    raise ValueError(
      "Expected images of floats, got uint8; scale them as for the weights, as"
      " in images.astype('float32') / 127.5 - 1"
    )
  if shape[1:] != expected:
    fix = "set image_size= and in_channels="
    if shape[1:] == (channels, *image_size):
      fix = "move the channels last, as in images.transpose(0, 2, 3, 1)"
    raise ValueError(
      f"Expected images of shape [batch, {', '.join(map(str, expected))}], got"
      f" {shape}; {fix}"
    )
