"""Masks without groups: the largest scores of one array, or of a whole tree.

The count-th largest key is determined two bits at a time, in sixteen counting
passes over float32 scores, without sorting. Then the entries that equal it are
cut at a flat index, determined axis by axis. Nothing is flattened, so sharded
arrays stay sharded: shards exchange counts, not scores.
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

  Scores are ranked as given: pass |w| for magnitude pruning. Of equal scores
  the lowest flat index wins, -0 equals +0, and NaN ranks below everything.
  Exact in every real dtype. A mask has no gradient.

  Args:
    scores: Scores of any shape, float or integer; larger is kept.
    count: Number of entries to keep. May be traced; it is then clipped to
      0..size.
    density: Share of entries to keep instead, count = round(density * size),
      halves to even. May be traced; it is then multiplied in float32.

  Raises:
    TypeError: If scores are Boolean or complex, or count is not an integer.
    ValueError: If not exactly one of count and density is given, or a static
      one is out of range.

  >>> top_mask(jnp.array([3., -1., 3., 3.]), 2)
  Array([ True, False,  True, False], dtype=bool)
  """
  scores = jnp.asarray(scores)
  return _masks([scores], _counted([scores], count, density))[0]


def global_masks(
  scores: PyTree,
  density: Density = None,
  *,
  count: Count = None,
  normalize: bool = False,
) -> PyTree:
  """`top_mask` over all leaves at once: one threshold for the whole tree.

  Of equal scores the earlier leaf wins, then the lowest flat index. Leaves of
  several float dtypes are compared in float32 (float64 if one is float64). None
  leaves stay None. Scores of different leaves should be comparable; magnitudes
  of differently scaled layers often are not, unless normalized.

  Args:
    scores: Tree of scores; larger is kept.
    density: Share of all entries to keep; may be traced.
    count: Number of entries to keep instead; may be traced.
    normalize: Whether each leaf is first divided by its L2 norm + 1e-8, as in
      jaxpruner's `GlobalMagnitudePruning`.

  Raises:
    TypeError: If scores are Boolean or complex, integer leaves are mixed with
      others, or count is not an integer.
    ValueError: If the tree has no leaf, not exactly one of count and density is
      given, or a static one is out of range.

  >>> scores = {"a": jnp.array([1., 4.]), "b": jnp.array([3., 2.]), "c": None}
  >>> masks = global_masks(scores, 0.5)
  >>> print(masks["a"], masks["b"], masks["c"])
  [False  True] [ True False] None
  """
  leaves, treedef = jax.tree.flatten(scores)
  if not leaves:
    raise ValueError("global_masks: expected a tree with scores, got no leaf")
  leaves = [jnp.asarray(leaf) for leaf in leaves]
  if normalize:
    leaves = [_normalized(leaf) for leaf in leaves]
  masks = _masks(_alike(leaves), _counted(leaves, count, density))
  return treedef.unflatten(masks)


def _normalized(scores: Array) -> Array:
  """score / (‖score‖ + 1e-8) in float32, or float64 for such scores."""
  if jnp.issubdtype(scores.dtype, jnp.complexfloating) or scores.dtype == bool:
    raise TypeError(f"Expected real scores, got dtype {scores.dtype}")
  wide = scores.dtype == jnp.float64
  scores = scores.astype(jnp.float64 if wide else jnp.float32)
  return scores / (jnp.sqrt(jnp.sum(scores**2)) + 1e-8)


def _alike(leaves: Sequence[Array]) -> list[Array]:
  """The leaves in one dtype that orders all of them exactly."""
  dtypes = {leaf.dtype for leaf in leaves}
  if len(dtypes) == 1:
    return list(leaves)
  if not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
    raise TypeError(
      "global_masks: expected leaves of one dtype or of floats, got"
      f" {', '.join(sorted(map(str, dtypes)))}"
    )
  wide = jnp.dtype(jnp.float64) in dtypes
  return [x.astype(jnp.float64 if wide else jnp.float32) for x in leaves]


def _counted(
  leaves: Sequence[Array], count: Count, density: Density
) -> Int[Array, ""]:
  size = sum(leaf.size for leaf in leaves)
  # int64 under x64, for trees beyond int32.
  dtype = jax.dtypes.canonicalize_dtype(np.int64)
  if size > jnp.iinfo(dtype).max:
    raise ValueError(
      f"Expected fewer scores than int32 can count, got {size}; prune per leaf"
      " with top_mask, or count in int64 under jax.enable_x64(True)"
    )
  if (count is None) == (density is None):
    raise ValueError(
      f"Expected one of count and density, got count={count} and"
      f" density={density}"
    )
  if isinstance(count, Array):
    if count.ndim or not jnp.issubdtype(count.dtype, jnp.integer):
      raise TypeError(
        f"Expected count as an integer scalar, got dtype {count.dtype}, shape"
        f" {count.shape}; use density= for a share"
      )
    return count.astype(dtype)
  if isinstance(density, Array):
    wanted = jnp.round(density.astype(jnp.float32) * jnp.float32(size))
    # float32 has no 2^31 - 1: clip after the cast, which saturates.
    return jnp.minimum(wanted.astype(dtype), jnp.asarray(size, dtype))
  if density is not None:
    if not 0 <= density <= 1:
      raise ValueError(f"Expected a density within 0..1, got {density}")
    return jnp.asarray(round(density * size), dtype)
  if count is None or not 0 <= count <= size:
    raise ValueError(f"Expected a count within 0..{size}, got {count}")
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

  threshold = largest_reached(jnp.zeros((), unsigned), counts, count)
  return flip_top(threshold, signed)


def _first(
  mask: Bool[Array, "*shape"], count: Int[Array, ""]
) -> Bool[Array, "*shape"]:
  """The first `count` True entries in the order of the flat index.

  One axis after the other: `cut` whole slices are kept, and `within` marks the
  entries that lie in the cut slices of all axes before.
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
  """The number of first slices that sum to at most `count`, and their sum.

  Bit by bit, since a cumulative sum would gather a sharded axis.
  """
  place = lax.iota(jnp.int32, slices.size)

  def narrow(i, best):
    trial = best[0] | (1 << (slices.size.bit_length() - 1 - i))
    held = jnp.sum(jnp.where(place < trial, slices, 0), dtype=count.dtype)
    fits = (trial <= slices.size) & (held <= count)
    return jax.tree.map(
      lambda new, old: jnp.where(fits, new, old), (trial, held), best
    )

  start = (jnp.zeros((), jnp.int32), jnp.zeros((), count.dtype))
  return lax.fori_loop(0, slices.size.bit_length(), narrow, start)
