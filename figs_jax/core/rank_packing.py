"""Kept values in the order of their ranks: a prefix is the sparser array.

The group axes are moved behind all others, as in `core.packing`. Within a group
the largest |w| has rank 0, and of equal ones the lowest index comes first
(`rank_in_group`). `values`, [n, *other axes, groups], holds the values of rank
0 of all groups, then those of rank 1, and so on. `metadata`, uint8 [n, bytes],
holds the positions in their groups of the values of each rank: ceil(log2 m)
bits each, least significant first, padded with 0 to whole bytes. The first k
rows of both are the array at k:m.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.bitstream import pack_bits, unpack_bits
from figs_jax.core.groups import Axis, Groups, axis_length, normalized
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Float, Int, Shaped


@dataclasses.dataclass(frozen=True, eq=False)
class RankPacked:
  """One array packed by rank; a pytree of `values` and `metadata`.

  Attributes:
    values: Kept values, `[n, *other axes, groups]`, in the array's dtype.
    metadata: Positions of the values, uint8 `[n, bytes]`.
    shape: Shape of the array.
    pattern: Pattern of the array.
    axis: Group axes, non-negative, in the order of flattening.
    name: Path of the leaf, for error messages.
  """

  values: Any
  metadata: Any
  shape: tuple[int, ...]
  pattern: NM
  axis: tuple[int, ...]
  name: str = ""

  @property
  def nbytes(self) -> int:
    """Bytes of the values and of the metadata."""
    return self.values.size * self.values.dtype.itemsize + self.metadata.size

  def prefix(self, n: int) -> RankPacked:
    """The array at n:m, which is the first n rows.

    Args:
      n: Number of values per group, at most that of the pattern.

    Raises:
      ValueError: If n is not within 1..`pattern.n`.
    """
    nm = NM(n, self.pattern.m)
    if n > self.pattern.n:
      raise ValueError(
        f"{self.name}: expected n from 1 to {self.pattern.n}, got {n}"
      )
    values, metadata = self.values[:n], self.metadata[:n]
    return dataclasses.replace(
      self, values=values, metadata=metadata, pattern=nm
    )

  def places(self) -> Int[np.ndarray, "*shape"]:
    """The positions of `values` in their groups, 0..m-1, in their shape.

    Raises:
      ValueError: If values and metadata are not what `pack_ranks` writes for
        this shape and pattern.
    """
    nm, values = self.pattern, np.asarray(self.values)
    metadata = np.asarray(self.metadata)
    groups, wanted = math.prod(self.shape) // nm.m, self._shape()
    size = rank_bytes(groups, nm)
    if values.shape != wanted or metadata.shape != (nm.n, size):
      raise ValueError(
        f"{self.name}: expected values {wanted} and metadata {(nm.n, size)} for"
        f" {nm} of shape {self.shape}, got {values.shape} and {metadata.shape};"
        " read it again"
      )
    bits = nm.metadata_bits
    rows = [unpack_bits(row, bits, groups) for row in metadata]
    places = np.stack(rows).astype(np.int32)
    order = np.sort(places, axis=0)
    if (places >= nm.m).any() or (np.diff(order, axis=0) == 0).any():
      raise ValueError(
        f"{self.name}: expected {nm.n} different places of every {nm.m}, got"
        " others; read it again"
      )
    return places.reshape(wanted)

  def _shape(self) -> tuple[int, ...]:
    return ranked_shape(self.shape, self.pattern, self.axis)


jax.tree_util.register_dataclass(
  RankPacked,
  data_fields=["values", "metadata"],
  meta_fields=["shape", "pattern", "axis", "name"],
)


def pack_ranks(
  array: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  name: str = "",
) -> RankPacked:
  """Packs an array by rank; `unpack_ranks` of a prefix gives a sparser one.

  Args:
    array: Finished weights, at most n non-zeros per group.
    pattern: `NM` or "n:m" of the densest array to restore; m:m keeps all.
    axis: Group axis, see `nm_mask`.
    name: Name of the array in error messages.

  Raises:
    TypeError: If the array does not hold floats.
    ValueError: If a group holds more than n entries (NaN ranks behind 0, so it
      fits at m:m only), m is below 2, or it does not divide the length of the
      group axis.

  >>> w = np.array([[0.], [7.], [-9.], [5.]], np.float32)
  >>> packed = pack_ranks(w, "3:4")
  >>> packed.values.reshape(3).tolist(), packed.places().reshape(3).tolist()
  ([-9.0, 7.0, 5.0], [2, 1, 3])
  >>> unpack_ranks(packed.prefix(1)).ravel().tolist()
  [0.0, 0.0, -9.0, 0.0]
  """
  nm, name = NM.parse(pattern), name or "array"
  host = np.asarray(array)
  if not jnp.issubdtype(host.dtype, jnp.floating):
    raise TypeError(f"{name}: expected floats, got {host.dtype}")
  if nm.m < 2:
    raise ValueError(f"{name}: expected m of at least 2, got {nm}")
  try:
    Groups.of(host.shape, nm.m, axis)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  axes = normalized(host.shape, axis)
  order, groups = _order(host.shape, axes), host.size // nm.m
  rows = host.transpose(order).reshape(groups, nm.m)
  # In double precision, which holds every float; NaN is sorted last.
  descending = -np.abs(rows.astype(np.float64))
  place = np.argsort(descending, axis=1, kind="stable")[:, : nm.n]
  values = np.ascontiguousarray(np.take_along_axis(rows, place, 1).T)
  metadata = [pack_bits(column, nm.metadata_bits) for column in place.T]
  packed = RankPacked(
    values.reshape(ranked_shape(host.shape, nm, axes)),
    np.stack(metadata),
    host.shape,
    nm,
    axes,
    name,
  )
  lost = (unpack_ranks(packed) != host) & (host == host)
  if lost.any() or (nm.n < nm.m and np.isnan(host.astype(np.float32)).any()):
    raise ValueError(
      f"{name}: expected at most {nm.n} entries in every group of {nm.m} along"
      f" axis {axis}, and no NaN, got more; cut the array to {nm} first"
    )
  return packed


def unpack_ranks(packed: RankPacked) -> Shaped[np.ndarray, "*shape"]:
  """Restores an array, or its sparser version from a prefix, on the host.

  Args:
    packed: Result of `pack_ranks`, or a prefix of it.

  Raises:
    ValueError: If values and metadata are not what `pack_ranks` writes for this
      shape and pattern (a damaged or mixed-up file).

  >>> packed = pack_ranks(np.array([0.0, -2.0, 0.0, 5.0]), "2:4", axis=0)
  >>> unpack_ranks(packed).tolist(), unpack_ranks(packed.prefix(1)).tolist()
  ([0.0, -2.0, 0.0, 5.0], [0.0, 0.0, 0.0, 5.0])
  """
  nm, shape = packed.pattern, packed.shape
  values, groups = np.asarray(packed.values), math.prod(shape) // nm.m
  places = packed.places().reshape(nm.n, groups).T
  rows = np.zeros((groups, nm.m), values.dtype)
  np.put_along_axis(rows, places, values.reshape(nm.n, groups).T, 1)
  order = _order(shape, packed.axis)
  turned = rows.reshape([shape[a] for a in order])
  return np.ascontiguousarray(turned.transpose(np.argsort(order)))


def rank_matmul(
  x: Float[Array, "*lead k"], packed: RankPacked
) -> Float[Array, "*lead out"]:
  """x @ w from a prefix, without the dense w: one gather per rank.

  Args:
    x: Inputs.
    packed: Kernel [k, out] with groups along k, or a prefix of it.

  Raises:
    ValueError: If the kernel does not have two axes with groups along the
      first, or its length is not that of x.

  >>> w = np.array([[0.], [7.], [-9.], [5.]], np.float32)
  >>> rank_matmul(jnp.arange(4.0), pack_ranks(w, "3:4").prefix(2)).tolist()
  [-11.0]
  """
  if len(packed.shape) != 2 or packed.axis != (0,):
    raise ValueError(
      f"{packed.name}: expected a kernel [k, out] with groups along axis 0, got"
      f" shape {packed.shape} and axes {packed.axis}"
    )
  if x.shape[-1] != packed.shape[0]:
    raise ValueError(
      f"{packed.name}: expected x of length {packed.shape[0]}, got"
      f" {x.shape[-1]}"
    )
  starts = np.arange(packed.shape[0] // packed.pattern.m) * packed.pattern.m
  rows = jnp.asarray(packed.places() + starts.astype(np.int32))  # [n, out, g]
  values = jnp.asarray(packed.values)

  def add(total: Array, rank: tuple[Array, Array]) -> tuple[Array, None]:
    row, value = rank
    return total + jnp.einsum("...og,og->...o", x[..., row], value), None

  zero = jnp.zeros((*x.shape[:-1], packed.shape[1]), x.dtype)
  return lax.scan(add, zero, (rows, values))[0]


def ranked_shape(
  shape: tuple[int, ...], pattern: NM, axis: tuple[int, ...]
) -> tuple[int, ...]:
  """The shape of `RankPacked.values`.

  >>> ranked_shape((16, 3), NM(4, 8), (0,))
  (4, 3, 2)
  """
  rest = (n for a, n in enumerate(shape) if a not in axis)
  return (pattern.n, *rest, axis_length(shape, axis) // pattern.m)


def rank_bytes(groups: int, pattern: NM) -> int:
  """Bytes of the metadata of one rank.

  >>> rank_bytes(3, NM(4, 8))
  2
  """
  return -(-groups * pattern.metadata_bits // 8)


def _order(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
  """All axes, those of the groups last."""
  return (*(a for a in range(len(shape)) if a not in axes), *axes)
