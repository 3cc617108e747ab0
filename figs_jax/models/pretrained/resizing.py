"""Position embeddings of a ViT for another grid of patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from figs_jax.core.rules import nearest
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.names import Wording

INTERPOLATIONS = ("linear", "bicubic", "bicubic_antialias")


def positions(
  model: Any,
  stored: Tensor,
  of_class: bool,
  resize: bool,
  interpolation: str,
  where: str,
  wording: Wording,
) -> np.ndarray:
  """Position embeddings [1, tokens, width] for the model's grid.

  Files that add positions before the class token have none for it, which is
  then zero. `of_class` marks dialects that always have one.

  Raises:
    PretrainedError: If the table does not fit the grid.
  """
  height, width = model.grid
  extra = model.placed
  tokens = height * width + extra
  if len(stored.shape) != 3 or stored.shape[::2] != (1, model.width):
    raise PretrainedError(
      f"{where}: expected position embeddings of shape"
      f" {[1, tokens, model.width]} for pos_embed, got {list(stored.shape)}"
    )
  count = stored.shape[1]
  if count == tokens:
    return stored.read()
  without = count == height * width or math.isqrt(count) ** 2 == count
  kept = extra if of_class or not without else 0
  grid = max(count - kept, 0)
  side = math.isqrt(grid)
  if grid != height * width and not (resize and side and side**2 == grid):
    raise PretrainedError(
      f"{where}: expected positions of {tokens} tokens (a grid of"
      f" {height} x {width}), got {count}; set {wording(image_size=...)} as in"
      f" the file, or {wording(resize_positions=True)} for a square grid"
    )
  table = stored.read()
  first = np.zeros((extra, model.width), table.dtype)
  first[:kept] = table[0, :kept]
  rest = table[0, kept:]
  if grid != height * width:
    rest = rest.reshape(side, side, -1)
    rest = resized(rest, (height, width), interpolation)
  return np.concatenate([first, rest.reshape(-1, model.width)])[None]


def resized(
  table: np.ndarray, grid: tuple[int, int], interpolation: str = "linear"
) -> np.ndarray:
  """Interpolates [height, width, channels] to another grid.

  Args:
    table: Values at the points of a grid.
    grid: Height and width of the other grid.
    interpolation: "linear" with aligned corners, as in the code of arXiv
      2010.11929. "bicubic" and "bicubic_antialias" are those of torch's
      `interpolate` with `align_corners=False`, which `transformers` uses for
      ViT, DeiT, MAE and DINOv2, and for DINOv2 with registers.

  Raises:
    PretrainedError: If the interpolation is unknown.

  >>> resized(np.array([[[0.0], [2.0]]]), (1, 3))[0, :, 0].tolist()
  [0.0, 1.0, 2.0]
  """
  if interpolation not in INTERPOLATIONS:
    hint = nearest(interpolation, INTERPOLATIONS)
    raise PretrainedError(f"Unknown interpolation={interpolation!r}: {hint}")
  make = {
    "linear": _linear,
    "bicubic": _bicubic,
    "bicubic_antialias": _bicubic_antialias,
  }[interpolation]
  down, across = (make(old, new) for old, new in zip(table.shape, grid))
  wide = np.asarray(table, np.float64)
  return np.einsum("hi,wj,ijc->hwc", down, across, wide).astype(table.dtype)


def _linear(old: int, new: int) -> np.ndarray:
  """Weights [new, old] with aligned corners."""
  at = np.linspace(0, old - 1, new)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel (Keys 1981, eq. 15)."""
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
  """Weights [new, old]; points beyond the edge have the value of the edge."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.zeros((new, old))
  for offset in (-1, 0, 1, 2):
    point = np.floor(at).astype(int) + offset
    place = np.clip(point, 0, old - 1)
    np.add.at(weights, (np.arange(new), place), _cubic(at - point, -0.75))
  return weights


def _bicubic_antialias(old: int, new: int) -> np.ndarray:
  """Weights [new, old] of a kernel as wide as the new grid is coarse."""
  scale = old / new
  stretch = max(scale, 1.0)
  center = scale * (np.arange(new)[:, None] + 0.5)
  point = np.arange(old) + 0.5
  first = np.maximum((center - 2 * stretch + 0.5).astype(int), 0)
  last = np.minimum((center + 2 * stretch + 0.5).astype(int), old)
  weights = _cubic((point - center) / stretch, -0.5)
  inside = (point > first) & (point < last)
  weights = np.where(inside, weights, 0.0)
  return weights / weights.sum(axis=1, keepdims=True)
