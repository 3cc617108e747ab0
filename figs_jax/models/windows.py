"""Square windows over a feature map, their shift, and offsets within one."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.core.types import Array, Bool, Float


def padding(length: int, side: int) -> int:
  """The padding that extends a length to a multiple of the side.

  >>> padding(5, 4), padding(8, 4)
  (3, 0)
  """
  return -length % side


def split_windows(
  x: Float[Array, "batch height width channels"], side: int
) -> Float[Array, "batch windows tokens channels"]:
  """Splits a map into windows, row by row; the side divides both lengths.

  >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
  >>> split_windows(x, 2)[0, :, :, 0].tolist()
  [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
  """
  batch, height, width, channels = x.shape
  shape = (batch, height // side, side, width // side, side, channels)
  x = x.reshape(shape).swapaxes(2, 3)
  return x.reshape(batch, -1, side * side, channels)


def join_windows(
  x: Float[Array, "batch windows tokens channels"],
  side: int,
  height: int,
  width: int,
) -> Float[Array, "batch height width channels"]:
  """Joins windows into a map: the inverse of `split_windows`.

  >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
  >>> bool((join_windows(split_windows(x, 2), 2, 2, 4) == x).all())
  True
  """
  batch, _, _, channels = x.shape
  shape = (batch, height // side, width // side, side, side, channels)
  return x.reshape(shape).swapaxes(2, 3).reshape(batch, height, width, channels)


def apart(
  height: int, width: int, side: int, shift: Any
) -> Bool[Array, "windows tokens tokens"]:
  """True for pairs of tokens that share a window only due to a cyclic shift.

  Args:
    height: Height of the map, a multiple of the side.
    width: Width of the map, a multiple of the side.
    side: Side of a window.
    shift: Distance by which the map was rolled up and left, possibly traced; 0
      separates no tokens.

  >>> apart(4, 2, 2, 0).any(), apart(4, 2, 2, 1).sum(axis=(1, 2)).tolist()
  (Array(False, dtype=bool), [8, 12])
  """

  def region(length: int) -> Array:
    at = jnp.arange(length, dtype=jnp.int32)
    last = (at >= length - side).astype(jnp.int32)
    return last + (at >= length - shift).astype(jnp.int32)

  rows, columns = region(height), region(width)
  regions = rows[:, None] * 3 + columns[None, :]
  regions = regions.reshape(height // side, side, width // side, side)
  regions = regions.swapaxes(1, 2).reshape(-1, side * side)
  return regions[:, :, None] != regions[:, None, :]


def log_offsets(side: int, pretrained: int = 0) -> np.ndarray:
  """All offsets within a window on a signed logarithmic scale.

  sign(x) log2(1 + |x|) / log2(8) for x = 8 offset / (pretrained - 1), equations
  4 and 5 of arXiv 2111.09883 normalized as in the authors' code: a window of
  the pretrained side spans [-log8(9), log8(9)].

  Args:
    side: Side of the window.
    pretrained: Side of the window that the weights were trained with; 0 stands
      for `side`.

  Returns:
    float32 [(2 side - 1)², 2], rows first.

  >>> log_offsets(2).tolist()[0] == log_offsets(3).tolist()[0]
  True
  >>> log_offsets(1).tolist()
  [[0.0, 0.0]]
  """
  offsets = np.arange(1 - side, side, dtype=np.float32)
  scaled = 8 * offsets / max((pretrained or side) - 1, 1)
  logs = np.sign(scaled) * np.log2(1 + np.abs(scaled)) / math.log2(8)
  grid = np.meshgrid(logs, logs, indexing="ij")
  return np.stack(grid, axis=-1).reshape(-1, 2).astype(np.float32)


def offset_index(side: int) -> np.ndarray:
  """The row of `log_offsets` for each pair of tokens: int32 [tokens, tokens].

  >>> offset_index(2)[0].tolist()
  [4, 3, 1, 0]
  """
  at = np.indices((side, side), dtype=np.int32).reshape(2, -1)
  down, right = at[:, :, None] - at[:, None, :] + (side - 1)
  return down * (2 * side - 1) + right
