"""Statistics of masks and gradients, and checks of exact N:M.

Pure functions of masks, parameters and gradients, first for arrays, then for
trees. All but the exactness checks work under jit and vmap.

Counts are int32 (exact below 2^31), sums are float32 for every dtype. A NaN in
a gradient makes the statistic of its own class (kept or pruned) NaN, not that
of the other; a NaN in a weight makes `kept_magnitude` NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.core.groups import Axis, Groups, normalized
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.masks import (
  count_dtype,
  density,
  flip_rate,
  kept_magnitude,
  true_count,
)
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.core.types import Array, Bool, Float, Int, Shaped

__all__ = [
  "check_nm",
  "density",
  "first_bad_group",
  "flip_rate",
  "gradient_snr",
  "gradient_variance",
  "kept_magnitude",
  "layer_table",
  "sad",
  "sampled_snr",
  "totals",
]

Layers = dict[str, dict[str, Array]]
Pair = tuple[Array, Array]


def sad(
  old: Bool[Array, "*shape"], new: Bool[Array, "*shape"]
) -> Int[Array, ""] | Float[Array, ""]:
  """Sparse architecture divergence: the number of entries that differ.

  An int32, or a float32 for masks with more entries than an int32 counts.

  The name is from arXiv 2102.04010. Google's praxis reports the same count
  divided by the number of entries, which here is `flip_rate`.

  Raises:
    ValueError: If the shapes differ.

  >>> int(sad(jnp.array([True, False, False]), jnp.array([False, True, False])))
  2
  """
  if old.shape != new.shape:
    raise ValueError(
      f"Expected masks of one kernel, got shapes {old.shape} and {new.shape}"
    )
  return true_count(old != new)


def gradient_variance(
  grad: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Pair:
  """Variance of the kept and of the pruned entries of a gradient (float32).

  Population variance over the entries of one gradient; 0 for an empty class.

  >>> g, m = jnp.array([1., 3., 5., 5.]), jnp.array([True, True, False, False])
  >>> [float(v) for v in gradient_variance(g, m)]
  [1.0, 0.0]
  """
  kept, pruned = (_moments(grad, where)[1] for where in (mask, ~mask))
  return kept, pruned


def gradient_snr(
  grad: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Pair:
  """|mean| / standard deviation over the kept and over the pruned entries.

  Our own definition, from a single gradient: how much the entries of a class
  agree. For n independent entries of zero mean it is about sqrt(2 / (π n)), not
  0. It does not depend on the scale of the gradient. It is 0 if the mean is 0
  (as for an empty class), and infinite up to rounding if all entries are equal.

  >>> g, m = jnp.array([1., 3., 0., 0.]), jnp.array([True, True, False, False])
  >>> [float(v) for v in gradient_snr(g, m)]
  [2.0, 0.0]
  """

  def ratio(where: Array) -> Array:
    # Scaled to unit size, so that the square of a tiny gradient is not 0.
    unit = _unit(grad, where)
    mean, variance = _moments(unit, where)
    return jnp.where(mean == 0, 0.0, jnp.abs(mean) / jnp.sqrt(variance))

  return ratio(mask), ratio(~mask)


def sampled_snr(
  grads: Float[Array, "samples ..."], mask: Bool[Array, "*shape"]
) -> Pair:
  """Signal to noise over many gradients of the same weights: mean²/variance.

  Computed per entry, with mean and population variance over the samples (for
  example one gradient per batch), then averaged over the kept and over the
  pruned entries. Our own definition. For S Gaussian samples of zero mean it is
  1 / (S - 3), not 0. It does not depend on the scale of an entry. An entry of
  zero mean counts as 0, a constant entry as infinity (up to rounding), and an
  empty class gives 0.

  Raises:
    ValueError: If there are fewer than two samples.

  >>> g = jnp.array([[1., 0.], [3., 0.]])
  >>> [float(v) for v in sampled_snr(g, jnp.array([True, False]))]
  [4.0, 0.0]
  """
  if grads.shape[0] < 2:
    raise ValueError(
      "Expected at least two samples along axis 0, got grads of shape"
      f" {grads.shape}"
    )
  unit = _unit(grads, jnp.ones((), bool), axis=0)
  mean = unit.mean(axis=0)
  variance = jnp.square(unit - mean[None]).mean(axis=0)
  ratio = jnp.where(mean == 0, 0.0, jnp.square(mean) / variance)
  return _moments(ratio, mask)[0], _moments(ratio, ~mask)[0]


def layer_table(
  masks: Any, params: Any = None, grads: Any = None, old: Any = None
) -> Layers:
  """Statistics of every masked leaf, by path.

  Args:
    masks: Tree of masks, shaped like the parameters, None at dense leaves; with
      `params` or `grads` they may be packed (`core.pack_mask`).
    params: Parameters; adds `kept_magnitude`, the share of |w| at kept entries.
    grads: Gradients; adds `grad_var_kept`, `grad_var_pruned`, `grad_snr_kept`
      and `grad_snr_pruned`. The classes are those of `old` if given, which are
      the masks of the forward pass that gave the gradient.
    old: Earlier masks; adds `flip_rate` and `sad`.

  Returns:
    {path: {statistic: scalar}}, always with `density`.

  >>> masks = {"kernel": jnp.array([True, False]), "bias": None}
  >>> layer_table(masks)
  {'kernel': {'density': Array(0.5, dtype=float32)}}
  """
  like = grads if params is None else params
  if like is not None:
    masks, old = (unpack_masks(tree, like) for tree in (masks, old))
  weights, before, slopes = flatten(params), flatten(old), flatten(grads)
  table: Layers = {}
  for path, mask in flatten(masks).items():
    if mask is None:
      continue
    row = table[path] = {"density": density(mask)}
    if old is not None:
      row["flip_rate"] = flip_rate(before[path], mask)
      row["sad"] = sad(before[path], mask)
    if params is not None:
      row["kept_magnitude"] = kept_magnitude(weights[path], mask)
    if grads is not None:
      classes = mask if old is None else before[path]
      for name, statistic in (
        ("grad_var", gradient_variance),
        ("grad_snr", gradient_snr),
      ):
        kept, pruned = statistic(slopes[path], classes)
        row |= {f"{name}_kept": kept, f"{name}_pruned": pruned}
  return table


def totals(masks: Any, old: Any = None) -> dict[str, Array]:
  """`density` of all masked leaves; with `old` also `flip_rate` and `sad`.

  Shares are those of all masked entries together, so large leaves weigh more;
  0 where nothing is masked. `sad` is the sum over the leaves, an int32, or a
  float32 if there are more masked entries than an int32 counts.

  >>> old = {"a": jnp.array([True, False]), "b": jnp.ones(2, bool)}
  >>> new = {"a": jnp.array([False, True]), "b": jnp.ones(2, bool)}
  >>> {name: float(value) for name, value in totals(new, old).items()}
  {'density': 0.75, 'flip_rate': 0.5, 'sad': 2.0}
  """
  leaves = {k: mask for k, mask in flatten(masks).items() if mask is not None}
  entries = max(sum(mask.size for mask in leaves.values()), 1)
  table = layer_table(masks, old=old)
  out = {
    name: sum(
      (
        table[path][name] * jnp.float32(mask.size / entries)
        for path, mask in leaves.items()
      ),
      start=jnp.zeros((), jnp.float32),
    )
    for name in ("density", *(() if old is None else ("flip_rate",)))
  }
  if old is not None:
    changes = (row["sad"] for row in table.values())
    dtype = count_dtype(entries)
    out["sad"] = sum(
      (change.astype(dtype) for change in changes), start=jnp.zeros((), dtype)
    )
  return out


def first_bad_group(
  array_or_mask: Shaped[Array | np.ndarray, "*shape"],
  pattern: NM | str,
  axis: Axis = -2,
) -> tuple[tuple[int, ...], int] | None:
  """The first group that breaks the pattern, or None if there is none.

  Not for use under jit. Denormal numbers count as non-zeros here, while `is_nm`
  on a device may treat them as zeros.

  Returns:
    The index of the group's first entry, and the number of entries that the
    group keeps: True entries of a Boolean mask, non-zeros (including NaN) of
    any other array.

  Raises:
    ValueError: If the axis does not fit the shape, see `nm_mask`.

  >>> first_bad_group(jnp.array([[0.], [1.], [2.], [3.]]), "1:2")
  ((2, 0), 2)
  """
  pattern = NM.parse(pattern)
  # Not on a device: XLA flushes denormal numbers and narrows 64 bits to 32.
  array = np.asarray(array_or_mask)
  mask = array if array.dtype == bool else array != 0
  Groups.of(array.shape, pattern.m, axis)
  axes = normalized(array.shape, axis)
  rest = [a for a in range(array.ndim) if a not in axes]
  turned = mask.transpose(*rest, *axes)
  counts = turned.reshape(*(array.shape[a] for a in rest), -1, pattern.m).sum(
    -1
  )
  exact = array.dtype == bool
  bad = np.argwhere(counts != pattern.n if exact else counts > pattern.n)
  if not len(bad):
    return None
  within = np.unravel_index(
    bad[:, -1] * pattern.m, [array.shape[a] for a in axes]
  )
  starts = np.empty((len(bad), array.ndim), np.int64)
  starts[:, rest] = bad[:, :-1]
  starts[:, axes] = np.stack(within, axis=-1)
  first = np.lexsort(starts.T[::-1])[0]
  where = tuple(int(i) for i in starts[first])
  return where, int(counts[tuple(bad[first])])


def check_nm(tree_or_masks: Any, leaves: Mapping[str, MaskedKernel]) -> None:
  """Raises unless every listed leaf is exactly N:M. Not for use under jit.

  Boolean leaves must keep exactly n in every group, others at most n non-zeros.

  Args:
    tree_or_masks: Parameters or masks, nested or by path.
    leaves: Path -> `MaskedKernel` of every masked kernel.

  Raises:
    ValueError: If a leaf is missing, has another shape, or breaks its pattern.
      The message names the leaf, its first bad group and both counts.

  >>> leaves = {"kernel": MaskedKernel((4, 1), NM(1, 2))}
  >>> try:
  ...   check_nm({"kernel": jnp.array([[0.], [1.], [2.], [3.]])}, leaves)
  ... except ValueError as error:
  ...   print(error)
  kernel: the group of 2 along axis -2 that starts at entry (2, 0) keeps 2,
  expected at most 1 (1:2); multiply it by its mask
  """
  arrays = flatten(tree_or_masks)
  for path, leaf in leaves.items():
    array = arrays.get(path)
    if array is None or jnp.shape(array) != leaf.shape:
      got = "nothing" if array is None else jnp.shape(array)
      raise ValueError(
        f"{path}: expected an array of shape {leaf.shape}, got {got}; pass the"
        " tree that these leaves belong to"
      )
    bad = first_bad_group(array, leaf.pattern, leaf.axis)
    if bad is not None:
      mask = array.dtype == bool
      raise ValueError(
        f"{path}: the group of {leaf.pattern.m} along axis {leaf.axis} that"
        f" starts at entry {bad[0]} keeps {bad[1]}, expected"
        f" {'exactly' if mask else 'at most'} {leaf.pattern.n}"
        f" ({leaf.pattern}); "
        + ("take it from nm_mask" if mask else "multiply it by its mask")
      )


def _moments(values: Array, where: Array) -> Pair:
  """Mean and population variance of the chosen entries; 0 if there are none."""
  x = values.astype(jnp.float32)
  count = jnp.maximum(true_count(where), 1).astype(jnp.float32)
  mean = jnp.sum(x, where=where) / count
  variance = jnp.sum(jnp.square(x - mean), where=where) / count
  return mean, variance


def _unit(values: Array, where: Array, axis: int | None = None) -> Array:
  """The values, scaled so that the largest chosen one is in [1/2, 1)."""
  x = values.astype(jnp.float32)
  size = jnp.max(jnp.abs(x), axis=axis, keepdims=True, where=where, initial=0.0)
  # Times powers of two, so without rounding. Two of them, since one may exceed
  # the largest float; of scalars, since an ldexp of the array is not fused.
  power = -jnp.frexp(size)[1]
  one = jnp.ones((), jnp.float32)
  return x * jnp.ldexp(one, power // 2) * jnp.ldexp(one, power - power // 2)
