"""Masks at one bit per weight.

Eight entries along one axis share a byte, the first in its lowest bit. A packed
mask is a uint8 array whose length along that axis is an eighth of the kernel's,
so the kernel's shape says which axis that is. Packing and unpacking only touch
bytes of their own, hence a sharded array needs no communication if every shard
holds whole bytes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, UInt8

BITS = 8


def pack_mask(
  mask: Bool[Array, "*shape"], axis: int = -2
) -> UInt8[Array, "*packed"]:
  """The mask as uint8, with eight entries along `axis` in each byte.

  Args:
    mask: Boolean mask.
    axis: Axis whose length is a multiple of 8.

  Raises:
    ValueError: If 8 does not divide the length of the axis.

  >>> pack_mask(jnp.arange(16) % 3 == 0, axis=0)
  Array([ 73, 146], dtype=uint8)
  """
  axis %= mask.ndim
  if mask.shape[axis] % BITS:
    raise ValueError(
      f"axis {axis} of shape {mask.shape}: expected a length that {BITS}"
      " divides; keep this mask Boolean"
    )
  octets = mask.reshape(_octets(mask.shape, axis)).astype(jnp.uint8)
  return jnp.sum(octets << _places(octets.ndim, axis), axis + 1, jnp.uint8)


def unpack_mask(
  mask: Bool[Array, ...] | UInt8[Array, ...], shape: tuple[int, ...]
) -> Bool[Array, ...]:
  """The Boolean mask of a packed one; a Boolean mask is returned as it is.

  Args:
    mask: Packed or Boolean mask.
    shape: Shape of the kernel.

  Raises:
    ValueError: If the mask is neither of this shape nor an eighth of it.

  >>> packed = pack_mask(jnp.arange(16) % 3 == 0, axis=0)
  >>> unpack_mask(packed, (16,)).nonzero()[0].tolist()
  [0, 3, 6, 9, 12, 15]
  """
  if mask.dtype == bool and mask.shape == shape:
    return mask
  axes = [i for i, (a, b) in enumerate(zip(mask.shape, shape)) if a != b]
  axis = axes[0] if axes else 0
  if (
    mask.dtype != jnp.uint8
    or mask.ndim != len(shape)
    or len(axes) != 1
    or mask.shape[axis] * BITS != shape[axis]
  ):
    raise ValueError(
      f"Expected a mask of the kernel's shape {shape}, got {mask.shape} of"
      f" {mask.dtype}; take it from nm_mask of this kernel, or from pack_mask"
      " of that mask"
    )
  octets = jnp.expand_dims(mask, axis + 1) >> _places(len(shape) + 1, axis)
  return (octets & 1).astype(bool).reshape(shape)


def unpack_masks(masks: Any, params: Any) -> Any:
  """A tree of masks with every packed mask unpacked; None stays, also for all.

  Args:
    masks: Tree like the parameters, None at dense leaves.
    params: Parameter tree.

  >>> masks = {"w": pack_mask(jnp.ones((8, 2), bool)), "b": None}
  >>> bools = unpack_masks(masks, {"w": jnp.ones((8, 2)), "b": jnp.ones(2)})
  >>> bools["w"].shape, str(bools["w"].dtype), bools["b"]
  ((8, 2), 'bool', None)
  """
  if masks is None:
    return None
  return jax.tree.map(
    lambda mask, leaf: None if mask is None else unpack_mask(mask, leaf.shape),
    masks,
    params,
    is_leaf=lambda x: x is None,
  )


def _octets(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
  return (*shape[:axis], shape[axis] // BITS, BITS, *shape[axis + 1 :])


def _places(ndim: int, axis: int) -> Array:
  """0 to 7 along the axis behind `axis`."""
  shape = tuple(BITS if i == axis + 1 else 1 for i in range(ndim))
  return jax.lax.broadcasted_iota(jnp.uint8, shape, axis + 1)
