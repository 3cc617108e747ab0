"""Fixed position embeddings."""

from __future__ import annotations

import numpy as np


def sincos_positions(
  grid: tuple[int, int], width: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Fixed positions [rows * columns, width] (arXiv 2205.01580).

  As in the authors' code, big_vision: the four quarters are the sine and cosine
  of the column, then of the row, at width / 4 frequencies
  temperature^(-i / (width / 4 - 1)).

  >>> sincos_positions((2, 3), 8).shape
  (6, 8)
  """
  row, column = np.mgrid[: grid[0], : grid[1]]
  quarter = width // 4
  omega = temperature ** -(np.arange(quarter) / max(quarter - 1, 1))
  x = column.reshape(-1, 1) * omega
  y = row.reshape(-1, 1) * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)
