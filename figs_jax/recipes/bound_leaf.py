"""One masked kernel of a model that a recipe is bound to."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from figs_jax.core.mask_bits import BITS, pack_mask
from figs_jax.core.pattern import NM, VNM
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array, Bool

# Where only n changes, one selection with a traced n can serve all stages. Up
# to this group length that costs nothing; wider groups are selected faster with
# a static n, but a branch per stage multiplies the compilation (1:128 stepwise:
# 8 s against .6 s per kernel).
_TRACED_M = 16
_BRANCHES = 2
MASK_STORAGES = ("bool", "bits")


@dataclasses.dataclass(frozen=True)
class BoundLeaf:
  """One masked kernel with the patterns of its stages.

  Attributes:
    path: Path of the kernel in the parameter tree.
    leaf: Shape, target pattern and group axis.
    stages: Patterns of the stages 1..S; the dense stage 0 is left out.
    mask_storage: How the mask is kept, see `Recipe.bind`.

  Raises:
    ValueError: If `mask_storage` is unknown.

  >>> leaf = MaskedKernel((16, 4), NM(1, 4))
  >>> kernel = BoundLeaf("fc", leaf, (NM(1, 4),), "bits")
  >>> kernel.byte_axis, kernel.mask_shape  # 8 entries of a column in a byte
  (-2, (2, 4))
  """

  path: str
  leaf: MaskedKernel
  stages: tuple[NM, ...]
  mask_storage: str = MASK_STORAGES[0]

  def __post_init__(self):
    if self.mask_storage not in MASK_STORAGES:
      raise ValueError(
        f"mask_storage: expected one of {', '.join(MASK_STORAGES)}, got"
        f" {self.mask_storage!r}"
      )

  @property
  def traced(self) -> bool:
    """Whether one selection with a traced n should serve all stages."""
    if isinstance(self.leaf.pattern, VNM):
      return False
    lengths = {self.leaf.pattern.m, *(stage.m for stage in self.stages)}
    many = len(self.stages) > _BRANCHES
    return len(lengths) == 1 and (many or max(lengths) <= _TRACED_M)

  def all_kept(self) -> Bool[Array, "*shape"]:
    """The mask of the dense phase: all True."""
    return jnp.ones(self.leaf.shape, jnp.bool)

  @property
  def byte_axis(self) -> int | None:
    """Axis along which the mask is packed, negative; None of a Boolean mask."""
    if self.mask_storage != "bits":
      return None
    shape, axis = self.leaf.shape, self.leaf.axis
    axis = axis if isinstance(axis, int) else axis[-1]
    axis = axis % len(shape) - len(shape)
    return None if shape[axis] % BITS else axis

  @property
  def mask_shape(self) -> tuple[int, ...]:
    """Shape of the mask as it is kept."""
    shape, axis = list(self.leaf.shape), self.byte_axis
    if axis is not None:
      shape[axis] //= BITS
    return tuple(shape)

  def keep(self, mask: Array) -> Array:
    """A Boolean mask as it is kept.

    Args:
      mask: Mask of the kernel, or of one kernel of a stack.

    >>> leaf = MaskedKernel((8, 2), NM(1, 4))
    >>> kernel = BoundLeaf("fc", leaf, (NM(1, 4),), "bits")
    >>> kernel.keep(kernel.all_kept())
    Array([[255, 255]], dtype=uint8)
    """
    if self.byte_axis is None or mask.dtype != bool:
      return mask
    return pack_mask(mask, self.byte_axis)
