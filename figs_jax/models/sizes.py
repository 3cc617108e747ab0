"""Variants by name, and checks of sizes, that all families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.core.rules import nearest


def of_variant(
  family: str, variant: str, sizes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """The options that the name of a variant stands for.

  Args:
    family: Name of the family's class, for the error message.
    variant: Name of the variant.
    sizes: Options of each variant.

  Raises:
    ValueError: If the variant is unknown; the nearest known one is suggested.

  >>> of_variant("T5", "small", {"small": {"width": 512}})
  {'width': 512}
  """
  if variant not in sizes:
    raise ValueError(
      f"Unknown {family} variant {variant!r}: {nearest(variant, sizes)}"
    )
  return dict(sizes[variant])


def completed(
  family: Any,
  variant: str,
  options: Mapping[str, Any],
  instead: str,
  *,
  needed: Sequence[str] = ("width", "depth", "heads"),
) -> dict[str, Any]:
  """The options of a variant, replaced by those given that are not None.

  Args:
    family: Class of the family, whose `sizes` has the options of a variant.
    variant: Name of the variant.
    options: Keyword arguments of the constructor.
    instead: What to use in place of a custom variant, for the error message.
    needed: Names of the sizes that a custom variant must be given.

  Raises:
    ValueError: If the variant is unknown or a needed size is missing.

  >>> class Family:
  ...   sizes = {"custom": {"width": 8, "depth": 1, "heads": 2}}.get
  >>> completed(Family, "custom", {"depth": 3}, "")["depth"]
  3
  """
  given = {name: value for name, value in options.items() if value is not None}
  whole = {**family.sizes(variant), **given}
  for name in needed:
    if whole.get(name) is None:
      raise ValueError(
        f"{family.__name__} variant {variant!r} needs {name}=; or use {instead}"
      )
  return whole


def published(sizes: Mapping[str, Any], of: str = "size") -> str:
  """The published variants, for `completed`.

  >>> published({"small": {}, "base": {}, "custom": {}})
  'a published size (small, base)'
  """
  names = ", ".join(name for name in sizes if name != "custom")
  return f"a published {of} ({names})"


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
