"""What the sizes of a model have to satisfy, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pair(family: str, name: str, size: int | Sequence[int]) -> tuple[int, int]:
  """(height, width); one number means a square.

  Raises:
    ValueError: other than one number or two.

  >>> pair("ViT", "patch", 16), pair("ViT", "image_size", (8, 4))
  ((16, 16), (8, 4))
  """
  both = (size, size) if isinstance(size, int) else tuple(size)
  if len(both) != 2:
    raise ValueError(f"{family}: {name}={size!r}: give one number or two")
  return int(both[0]), int(both[1])


def check_positive(model: Any, *names: str) -> None:
  """Raises ValueError at the first of these attributes that is below 1."""
  for name in names:
    if getattr(model, name) < 1:
      raise ValueError(
        f"{type(model).__name__}: {name}={getattr(model, name)} is below 1"
      )


def check_heads(family: str, width: int, heads: int) -> None:
  """Raises ValueError unless there are heads and they divide the width."""
  if heads < 1 or width % heads:
    divisors = (d for d in range(1, width + 1) if width % d == 0)
    near = min(divisors, key=lambda d: abs(d - heads))
    raise ValueError(
      f"{family}: {heads} heads do not divide width {width}; the nearest that"
      f" does is heads={near}"
    )


def check_images(
  shape: tuple[Any, ...], image_size: tuple[int, int], channels: int
) -> None:
  """Raises ValueError unless images of this shape are what a model takes.

  The batch may be symbolic (`jax.export`), so it is not always an int.
  """
  expected = (*image_size, channels)
  if shape[1:] != expected:
    raise ValueError(
      f"images of shape {shape}: this model takes [batch,"
      f" {', '.join(map(str, expected))}]; set image_size= and in_channels="
    )
