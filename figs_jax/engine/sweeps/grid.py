"""A product of axes, of any size, walked in blocks on devices.

Points are numbered as in `itertools.product`: the last axis turns fastest.
Every quantity is an open table, an array with one dimension per axis, of the
axis's length where the quantity depends on it and 1 elsewhere; nothing as long
as the product exists. A block holds the last axes entirely and a part of the
axis before them, so that all that changes within it is a dense vector (made
once if it stays the same from block to block) and the rest are scalars, which
are computed with once per block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

# Points of a block: its vectors stay in a core's cache, and a loop over them is
# long enough for several cores to share.
BLOCK = 2**15
_MOST_BLOCKS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Grid:
  """How a product is cut into blocks.

  Attributes:
    sizes: the length of each axis.
    axis: the axis of which a block holds a part, `tile` values; it holds one
      value of those before and all of those after.
    tile: a last part may be shorter, and is filled up.

  >>> grid = Grid.of((4, 10, 8), 32)
  >>> grid.axis, grid.tile, grid.slots, grid.blocks
  (1, 4, 32, 12)
  """

  sizes: tuple[int, ...]
  axis: int
  tile: int

  @classmethod
  def of(cls, sizes: Sequence[int], most: int = BLOCK) -> Grid:
    """Blocks of at most `most` points.

    Raises:
      ValueError: there would be too many.
    """
    axis, inner = len(sizes) - 1, 1
    while axis > 0 and inner * sizes[axis] <= most:
      inner *= sizes[axis]
      axis -= 1
    parts = math.ceil(sizes[axis] / max(most // inner, 1))
    grid = cls(tuple(sizes), axis, math.ceil(sizes[axis] / parts))
    if grid.blocks > _MOST_BLOCKS:
      raise ValueError(
        f"sweep: {grid.points} points are more than {_MOST_BLOCKS} blocks of"
        f" {grid.slots}; sweep fewer values at a time"
      )
    return grid

  @property
  def points(self) -> int:
    return math.prod(self.sizes)

  @property
  def inner(self) -> int:
    """Points per value of the divided axis."""
    return math.prod(self.sizes[self.axis + 1 :])

  @property
  def slots(self) -> int:
    """Points of a block, those that fill it up included."""
    return self.tile * self.inner

  @property
  def parts(self) -> int:
    return math.ceil(self.sizes[self.axis] / self.tile)

  @property
  def blocks(self) -> int:
    return math.prod(self.sizes[: self.axis]) * self.parts

  def number(self, block: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """The numbers of points, -1 for what only fills a block up."""
    before, part = np.divmod(block, self.parts)
    along = part * self.tile + slot // self.inner
    number = (before * self.sizes[self.axis] + along) * self.inner
    number = number + slot % self.inner
    real = (along < self.sizes[self.axis]) & (block < self.blocks)
    return np.where(real, number, -1)

  def filled(self, table: np.ndarray) -> np.ndarray:
    """The table with its divided axis filled up to whole blocks."""
    if table.shape[self.axis] == 1:
      return table
    more = self.parts * self.tile - table.shape[self.axis]
    pad = [(0, more if a == self.axis else 0) for a in range(table.ndim)]
    return np.pad(table, pad, mode="edge")

  def stays(self, table: Any) -> bool:
    """Whether all blocks see the same of a table."""
    outer = table.shape[: self.axis]
    return max(outer, default=1) == 1 and (
      self.parts == 1 or table.shape[self.axis] == 1
    )

  def place(self, table: Any, block: Any) -> Any:
    """What a block sees of a filled table: (slots,), or () if it is one value.

    Args:
      table: filled.
      block: the block's number, int32.
    """
    digits, rest = [], block // self.parts
    for size in reversed(self.sizes[: self.axis]):
      digits.append(rest % size)
      rest = rest // size
    starts = [*reversed(digits), block % self.parts * self.tile]
    starts += [0] * (len(self.sizes) - len(starts))
    lengths = [1] * self.axis + [self.tile, *self.sizes[self.axis + 1 :]]
    starts = [jnp.int32(s if n > 1 else 0) for s, n in zip(starts, table.shape)]
    taken = [min(a, b) for a, b in zip(lengths, table.shape)]
    seen = lax.dynamic_slice(table, starts, taken)
    if math.prod(taken) == 1:
      return seen.reshape(())
    return jnp.broadcast_to(seen, lengths).reshape(self.slots)

  def real(self, block: Any) -> Any:
    """Which slots are points, Bool (slots,) or ()."""
    inside = block < self.blocks
    if self.parts * self.tile == self.sizes[self.axis]:
      return inside
    along = jnp.arange(self.slots, dtype=jnp.int32) // self.inner
    along = along + block % self.parts * self.tile
    return inside & (along < self.sizes[self.axis])
