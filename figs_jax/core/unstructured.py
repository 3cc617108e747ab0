"""Masks without groups: the largest scores of one array, or of a whole tree.

The count-th largest key is found two bits at a time, sixteen passes over
float32 scores that only count, never a sort; then the entries that equal it
are cut at a flat index, found axis by axis. Nothing is flattened, so sharded
arrays stay as they are: shards exchange counts, not scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.top_n import (
  count_reached,
  flip_top,
  largest_reached,
  ordered,
)
from figs_jax.core.types import Array, Bool, Float, Int, PyTree, Shaped

Count = int | Int[Array, ""] | None
Density = float | int | Float[Array, ""] | None


def top_mask(
  scores: Shaped[Array | np.ndarray, "*shape"],
  count: Count = None,
  *,
  density: Density = None,
) -> Bool[Array, "*shape"]:
  """True at the `count` largest scores of one array: exactly that many.

  Scores are ranked as given: pass |w| for magnitude pruning. Among equals the
  lowest flat index wins, -0 equals +0, and NaN ranks below everything. Exact
  in every real dtype. There is no gradient through a mask.

  Args:
    scores: any shape, float or integer.
    count: how many to keep. May be traced; beyond 0..size it acts as 0 or
      size.
    density: the share to keep instead, count = round(density * size), halves
      to even. May be traced; it is then multiplied in float32.

  Raises:
    TypeError: Boolean or complex scores, or a count that is no integer.
    ValueError: not one of count and density, or a static one out of range.

  >>> top_mask(jnp.array([3., -1., 3., 3.]), 2)
  Array([ True, False,  True, False], dtype=bool)
  """
  scores = jnp.asarray(scores)
  return _masks([scores], _counted([scores], count, density))[0]


def global_masks(
  scores: PyTree, density: Density = None, *, count: Count = None
) -> PyTree:
  """`top_mask` over all leaves at once: one threshold for the whole tree.

  Among equals the earlier leaf wins, then the lowest flat index. Leaves of
  several float dtypes are compared as float32 (float64 where there is one).
  None leaves stay None. Scores of different leaves should be comparable:
  magnitudes of differently scaled layers often are not.

  Args:
    scores: a tree of arrays; larger is kept.
    density: the share of all entries that is kept, or
    count: how many are; exactly one of the two, either may be traced.

  Raises:
    TypeError: as `top_mask`, or integer leaves beside others.
    ValueError: as `top_mask`, or no leaf at all.

  >>> scores = {"a": jnp.array([1., 4.]), "b": jnp.array([3., 2.]), "c": None}
  >>> masks = global_masks(scores, 0.5)
  >>> print(masks["a"], masks["b"], masks["c"])
  [False  True] [ True False] None
  """
  leaves, treedef = jax.tree.flatten(scores)
  if not leaves:
    raise ValueError("global_masks: no scores in the tree, pass some arrays")
  leaves = [jnp.asarray(leaf) for leaf in leaves]
  masks = _masks(_alike(leaves), _counted(leaves, count, density))
  return treedef.unflatten(masks)


def _alike(leaves: Sequence[Array]) -> list[Array]:
  """The leaves in one dtype that orders them all exactly."""
  dtypes = {leaf.dtype for leaf in leaves}
  if len(dtypes) == 1:
    return list(leaves)
  if not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
    raise TypeError(
      f"global_masks: dtypes {', '.join(sorted(map(str, dtypes)))} do not"
      " compare exactly: pass leaves of one dtype, or all floats"
    )
  wide = jnp.dtype(jnp.float64) in dtypes
  return [x.astype(jnp.float64 if wide else jnp.float32) for x in leaves]


def _counted(
  leaves: Sequence[Array], count: Count, density: Density
) -> Int[Array, ""]:
  size = sum(leaf.size for leaf in leaves)
  # int64 under x64, so that a larger tree has a way out.
  dtype = jax.dtypes.canonicalize_dtype(np.int64)
  if size > jnp.iinfo(dtype).max:
    raise ValueError(
      f"{size} scores are more than int32 counts: prune per leaf with top_mask,"
      " or count in int64 under jax.enable_x64(True)"
    )
  if (count is None) == (density is None):
    raise ValueError(f"count {count}, density {density}: pass one of the two")
  if isinstance(count, Array):
    if count.ndim or not jnp.issubdtype(count.dtype, jnp.integer):
      raise TypeError(
        f"count of dtype {count.dtype} and shape {count.shape}: pass one"
        " integer scalar, or density= for a share"
      )
    return count.astype(dtype)
  if isinstance(density, Array):
    wanted = jnp.round(density.astype(jnp.float32) * jnp.float32(size))
    # float32 has no 2^31 - 1: clip after the cast, which saturates.
    return jnp.minimum(wanted.astype(dtype), jnp.asarray(size, dtype))
  if density is not None:
    if not 0 <= density <= 1:
      raise ValueError(f"density {density}: pass a share within 0..1")
    return jnp.asarray(round(density * size), dtype)
  if count is None or not 0 <= count <= size:
    raise ValueError(f"count {count} of {size} scores: pass one within 0..size")
  return jnp.asarray(count, dtype)


@jax.jit
def _masks(leaves: list[Array], count: Int[Array, ""]) -> list[Array]:
  keys = [ordered(lax.stop_gradient(leaf)) for leaf in leaves]
  threshold = _threshold(keys, count)
  above = [key > threshold for key in keys]
  equal = [key == threshold for key in keys]
  room = count - sum(_total(mask, count.dtype) for mask in above)
  masks = []
  for more, same in zip(above, equal):
    masks.append(more | _first(same, room))
    room = room - _total(same, count.dtype)
  return masks


def _total(mask: Array, dtype: jnp.dtype) -> Array:
  return jnp.sum(mask, dtype=dtype)


def _threshold(
  keys: Sequence[Int[Array, ...]], count: Int[Array, ""]
) -> Int[Array, ""]:
  """The count-th largest key of all leaves together."""
  signed = keys[0].dtype
  unsigned = jnp.dtype(f"uint{8 * signed.itemsize}")
  keys = [flip_top(key, unsigned) for key in keys]
  zero = jnp.zeros((), count.dtype)

  def counts(trials):
    each = [
      count_reached(key, trials, zero, tuple(range(key.ndim))) for key in keys
    ]
    return [sum(column, start=zero) for column in zip(*each)]

  found = largest_reached(jnp.zeros((), unsigned), counts, count)
  return flip_top(found, signed)


def _first(
  mask: Bool[Array, "*shape"], count: Int[Array, ""]
) -> Bool[Array, "*shape"]:
  """The first `count` True entries in the order of the flat index.

  Along one axis after the other: `cut` whole slices are kept, and `within` is
  what agrees with the cuts of all axes before.
  """
  kept = jnp.zeros_like(mask)
  within = mask
  for axis in range(mask.ndim):
    others = tuple(a for a in range(mask.ndim) if a != axis)
    slices = jnp.sum(within, others, dtype=count.dtype)
    cut, held = _cut(slices, count)
    place = lax.broadcasted_iota(jnp.int32, mask.shape, axis)
    kept = kept | (within & (place < cut))
    within = within & (place == cut)
    count = count - held
  return kept if mask.ndim else mask & (count > 0)


def _cut(
  slices: Int[Array, "*one"], count: Int[Array, ""]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """How many of the first slices sum to at most `count`, and their sum.

  Bit by bit, since a cumulative sum along a sharded axis gathers it.
  """
  place = lax.iota(jnp.int32, slices.size)

  def narrow(i, found):
    trial = found[0] | (1 << (slices.size.bit_length() - 1 - i))
    held = jnp.sum(jnp.where(place < trial, slices, 0), dtype=count.dtype)
    fits = (trial <= slices.size) & (held <= count)
    return jax.tree.map(
      lambda new, old: jnp.where(fits, new, old), (trial, held), found
    )

  start = (jnp.zeros((), jnp.int32), jnp.zeros((), count.dtype))
  return lax.fori_loop(0, slices.size.bit_length(), narrow, start)
