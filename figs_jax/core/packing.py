"""Finished N:M weights without their zeros, exact to the last bit.

A packed array consists of its kept values and their positions, in one of two
layouts. Everything here is NumPy on the host.

Order. The group axes are moved behind all others (flattened in the given
order), and the array is read in C order, one group of m after the other. Every
group keeps exactly n slots in ascending order: the entries whose bits are not
all zero (so -0.0 and NaN count) and, if these are fewer than n, the first zero
entries. `values` holds the kept slots, [*other axes, groups, n].

`metadata`, uint8, is a stream of bits: bit k of the stream is bit k % 8 of byte
k // 8, counted from the least significant. The unused bits of the last byte are
0.

* `indices`: bits s*b to s*b + b-1 hold the position in its group, 0..m-1, of
  slot s of `values` (C order), least significant first, with b = ceil(log2 m).
* `bitmask`: bit e is 1 where entry e of the reordered array is kept.

If n = m, only the values are stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np

from figs_jax.core.bitstream import pack_bits, unpack_bits
from figs_jax.core.diagnostics import first_bad_group
from figs_jax.core.groups import Axis, Groups, axis_length, normalized
from figs_jax.core.pattern import NM
from figs_jax.core.rules import nearest
from figs_jax.core.tree import MaskedKernel, flatten, path_str
from figs_jax.core.types import Array, Shaped

Layout = Literal["indices", "bitmask"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """One packed array; a pytree of `values` and `metadata`.

  Attributes:
    values: Kept values, `[*other axes, groups, n]`, in the array's dtype.
    metadata: Positions of the values, uint8, one axis (see the module).
    shape: Shape of the array.
    pattern: Pattern of the array.
    axis: Group axes, non-negative, in the order of flattening.
    layout: `indices` or `bitmask`.
    name: Path of the leaf, for error messages.
  """

  values: Any
  metadata: Any
  shape: tuple[int, ...]
  pattern: NM
  axis: tuple[int, ...]
  layout: Layout
  name: str = ""

  @property
  def nbytes(self) -> int:
    """Bytes of the values, and of the metadata in whole bytes."""
    return self.values.size * self.values.dtype.itemsize + self.metadata.size


jax.tree_util.register_dataclass(
  Packed,
  data_fields=["values", "metadata"],
  meta_fields=["shape", "pattern", "axis", "layout", "name"],
)


def pack(
  array: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
  *,
  layout: Layout = "indices",
  name: str = "",
) -> Packed:
  """Packs an array without the zeros of its pattern; inverse of `unpack`.

  Takes every dtype of 1 to 8 bytes: floats (including 8-bit), integers, bool.
  A -0.0 counts as a zero; if any group needs its place, `unpack` gives 0.0.

  Args:
    array: Finished weights, at most n non-zeros per group.
    pattern: `NM` or "n:m".
    axis: Group axis, see `nm_mask`.
    layout: `indices` or `bitmask`.
    name: Name of the array in error messages.

  Raises:
    TypeError: If the dtype has more than 8 bytes.
    ValueError: If a group holds more than n entries, m does not divide the
      length of the group axis, or the layout is unknown.

  >>> w = np.array([[0.], [7.], [0.], [5.]], np.float32)
  >>> packed = pack(w, "2:4")
  >>> packed.values, packed.metadata, packed.nbytes
  (array([[[7., 5.]]], dtype=float32), array([13], dtype=uint8), 9)
  >>> unpack(packed).tolist()
  [[0.0], [7.0], [0.0], [5.0]]
  """
  nm, name = NM.parse(pattern), name or "array"
  if layout not in LAYOUTS:
    raise ValueError(
      f"{name}: unknown layout {layout!r}, {nearest(layout, LAYOUTS)}"
    )
  host = np.asarray(array)
  words = host.view(_word(host.dtype, name))
  axes = _axes(host.shape, nm, axis, name)
  rest = _rest(host.shape, axes)
  groups = host.size // nm.m
  rows = np.ascontiguousarray(words.transpose(*rest, *axes)).reshape(-1)
  shape = (
    *(host.shape[a] for a in rest),
    axis_length(host.shape, axes) // nm.m,
    nm.n,
  )
  if nm.is_dense:
    values, metadata = rows, np.zeros(0, np.uint8)
  else:
    kept = _slots(rows.reshape(groups, nm.m) != 0, nm.n)
    if kept is None:  # -0.0 is a zero where it finds no place
      kept = _slots(rows.view(host.dtype).reshape(groups, nm.m) != 0, nm.n)
    if kept is None:
      raise _too_many(host, nm, axis, name)
    flat = np.flatnonzero(kept)
    values = rows[flat]
    if layout == "bitmask":
      metadata = np.packbits(kept.reshape(-1), bitorder="little")
    else:
      metadata = pack_bits(flat % nm.m, nm.metadata_bits)
  values = values.view(host.dtype).reshape(shape)
  return Packed(values, metadata, host.shape, nm, axes, layout, name)


def unpack(packed: Packed) -> Shaped[np.ndarray, "*shape"]:
  """Restores the array that was packed, bit for bit, on the host.

  Args:
    packed: Result of `pack`.

  Raises:
    ValueError: If values or metadata are not what `pack` writes for this shape
      and pattern (a damaged or mixed-up file).

  >>> unpack(pack(np.array([0., -2., 0., 5.]), "2:4", axis=0)).tolist()
  [0.0, -2.0, 0.0, 5.0]
  """
  nm, shape, axes = packed.pattern, packed.shape, packed.axis
  values, metadata = np.asarray(packed.values), np.asarray(packed.metadata)
  words = np.ascontiguousarray(values).view(_word(values.dtype, packed.name))
  words = words.reshape(-1)
  groups = math.prod(shape) // nm.m
  bits = _metadata_bits(packed, groups)
  if words.size != groups * nm.n or metadata.size != -(-bits // 8):
    raise ValueError(
      f"{packed.name}: expected {groups * nm.n} values and"
      f" {-(-bits // 8)} bytes of {packed.layout} for {nm} of shape {shape},"
      f" got {words.size} and {metadata.size}; read it again"
    )
  if nm.is_dense:
    rows = words
  else:
    rows = np.zeros(groups * nm.m, words.dtype)
    rows[_places(packed, metadata, groups)] = words
  rest = _rest(shape, axes)
  order = (*rest, *axes)
  turned = rows.reshape([shape[a] for a in order])
  return np.ascontiguousarray(turned.transpose(np.argsort(order))).view(
    values.dtype
  )


def pack_tree(
  tree: Any, leaves: Mapping[str, MaskedKernel], *, layout: Layout = "indices"
) -> Any:
  """Packs every listed leaf of a tree; the others stay as they are.

  Args:
    tree: Finished parameters.
    leaves: Path -> `MaskedKernel`, as from `masked_leaves`.
    layout: `indices` or `bitmask`.

  Raises:
    ValueError: If a leaf is missing, has another shape, or cannot be packed
      (see `pack`). The message names the leaf.

  >>> leaves = {"kernel": MaskedKernel((2, 1), NM(1, 2))}
  >>> tree = {"kernel": np.array([[0.], [3.]]), "bias": np.zeros(1)}
  >>> packed = pack_tree(tree, leaves)
  >>> packed["kernel"].values.tolist(), packed["bias"].tolist()
  ([[[3.0]]], [0.0])
  """
  arrays = flatten(tree)
  for path, leaf in leaves.items():
    if arrays.get(path) is None:
      raise ValueError(f"{path}: no such array, {nearest(path, arrays)}")
    if np.shape(arrays[path]) != leaf.shape:
      raise ValueError(
        f"{path}: expected shape {leaf.shape}, got {np.shape(arrays[path])};"
        " pass the leaves of this tree"
      )

  def one(path: tuple[Any, ...], x: Any) -> Any:
    name = path_str(path)
    if name not in leaves:
      return x
    leaf = leaves[name]
    return pack(x, leaf.pattern, leaf.axis, layout=layout, name=name)

  return jax.tree_util.tree_map_with_path(one, tree)


def unpack_tree(tree: Any) -> Any:
  """Unpacks every `Packed` of a tree.

  Args:
    tree: Result of `pack_tree`; other leaves stay as they are.

  Raises:
    ValueError: If a leaf is damaged, see `unpack`.

  >>> leaves = {"k": MaskedKernel((2, 2), NM(1, 2))}
  >>> packed = pack_tree({"k": np.eye(2)}, leaves)
  >>> unpack_tree(packed)["k"].tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  return jax.tree.map(
    lambda x: unpack(x) if isinstance(x, Packed) else x,
    tree,
    is_leaf=lambda x: isinstance(x, Packed),
  )


def _word(dtype: np.dtype, name: str) -> type[np.unsignedinteger]:
  """The unsigned integer with the size of a dtype, to read its bits."""
  if dtype.itemsize not in _WORDS or dtype.kind in "OSU":
    raise TypeError(
      f"{name}: expected a dtype of 1, 2, 4 or 8 bytes, got {dtype}"
    )
  return _WORDS[dtype.itemsize]


def _axes(
  shape: tuple[int, ...], pattern: NM, axis: Axis, name: str
) -> tuple[int, ...]:
  """The group axes, non-negative, in order."""
  try:
    Groups.of(shape, pattern.m, axis)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  return normalized(shape, axis)


def _rest(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(a for a in range(len(shape)) if a not in axes)


def _slots(used: np.ndarray, n: int) -> np.ndarray | None:
  """n slots per row, used ones first; None if a row uses more than n."""
  counts = np.count_nonzero(used, axis=1)
  if (counts > n).any():
    return None
  short = np.flatnonzero(counts < n)
  if short.size:
    free = ~used[short]
    place = np.cumsum(free, axis=1, dtype=np.int32)
    used[short] |= free & (place <= (n - counts[short])[:, None])
  return used


def _too_many(host: np.ndarray, nm: NM, axis: Axis, name: str) -> ValueError:
  # As uint8, since a Boolean array must hold exactly n.
  bad = first_bad_group((host != 0).astype(np.uint8), nm, axis)
  where, count = bad if bad is not None else ("?", "too many")
  return ValueError(
    f"{name}: the group of {nm.m} along axis {axis} that starts at entry"
    f" {where} holds {count} entries, expected at most {nm.n} ({nm}); multiply"
    " the array by its mask (NaN counts as an entry)"
  )


def _metadata_bits(packed: Packed, groups: int) -> int:
  nm = packed.pattern
  if nm.is_dense:
    return 0
  if packed.layout == "bitmask":
    return groups * nm.m
  return groups * nm.n * nm.metadata_bits


def _places(packed: Packed, metadata: np.ndarray, groups: int) -> np.ndarray:
  """The kept entries' positions in the flat reordered array, ascending."""
  nm = packed.pattern
  if packed.layout == "bitmask":
    kept = np.unpackbits(metadata, count=groups * nm.m, bitorder="little")
    kept = kept.reshape(groups, nm.m)
    good = bool((np.count_nonzero(kept, axis=1) == nm.n).all())
    places = np.flatnonzero(kept)
  else:
    index = unpack_bits(metadata, nm.metadata_bits, groups * nm.n)
    starts = np.repeat(np.arange(groups) * nm.m, nm.n)
    places = starts + index
    good = bool((index < nm.m).all() and (np.diff(places) > 0).all())
  if not good:
    raise ValueError(
      f"{packed.name}: expected {packed.layout} with {nm.n} places of every"
      f" {nm.m} in ascending order, got others; read it again"
    )
  return places
