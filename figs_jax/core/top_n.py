"""The n largest of every group of m, exactly, without sorting.

Scores become ordered integers (`ordered`), so that one integer comparison
also settles signed zeros and NaN. Four ways then find the n largest along an
axis of length m; all agree to the last tie, which goes to the lowest index:

* comparison: rank_i = #{j: s_j > s_i, or s_j = s_i and j < i} < n. It takes m
  operations per entry and fuses into one pass without temporaries.
* maximum: the largest key, for n = 1.
* network: a tree of Batcher's merges finds the n-th largest key as
  straight-line code, up to twenty operations per entry.
* search: the n-th largest key two bits at a time, sixteen passes for float32
  whatever m is.

The choice depends on n, m and the width of the scores, not on the axis or the
size. Time to compute and apply a mask on a CPU, in copies of the array:

  n       m          way         float32      16 bits
  any     1..8       comparison  1.0 .. 1.6   (slower than the network)
  static  1..128     network     1.5 .. 2.2   1.5 .. 3.5
  1       9..16      maximum     1.4 .. 1.6   1.5 .. 1.9
  1       from 128   maximum     1.7 .. 2.1   2.1 .. 2.8
  static  from 129   search      2.6 .. 4.8   4.2 .. 6
  traced  1..64      network     1.1 .. 2.1   1.7 .. 3.6
  traced  from 65    search      2.6 .. 4.8   4.2 .. 6

The first fitting row applies, but maximum comes before network. The limit of
the network is its compilation: 1 second for 16:128, 2 for 64:128, but 7 for
16:256 and minutes for 32:256.

All but the first compute a threshold per group. `_keep` turns it into exactly n
entries by bit counts on one word per 16 entries, without a branch on ties, so
everything vmaps and shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.types import Array, Bool, Int, Shaped

_COMPARE, _MAXIMUM, _NETWORK, _NETWORK_TRACED = 8, 16, 128, 64
_WORD = 16
_BLOCK = 16

Compare = Callable[[Array, Array], Array]


def compares(dtype: jnp.dtype, m: int) -> bool:
  """Whether to rank by comparison: m is small, and key + 1 cannot overflow."""
  half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2
  return m <= _COMPARE and not overflows(dtype) and not half


def overflows(dtype: jnp.dtype) -> bool:
  """Whether key + 1 may overflow for scores of this dtype."""
  return jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize >= 4


def ordered(scores: Shaped[Array, "*shape"]) -> Int[Array, "*shape"]:
  """Signed integers in the order of the scores: NaN < -inf < ... < -0 = 0.

  NaN is one above the lowest integer, which is reserved for excluded entries.

  IEEE floats are sign and magnitude, and the bits of the magnitude are ordered,
  so the key is the magnitude with the sign applied in two's complement.

  Raises:
    TypeError: If scores are Boolean or complex.

  >>> ordered(jnp.array([-1., -0., 0., jnp.nan])).tolist()
  [-1065353216, 0, 0, -2147483647]
  """
  dtype = scores.dtype
  if jnp.issubdtype(dtype, jnp.signedinteger):
    return scores if dtype.itemsize >= 4 else scores.astype(jnp.int32)
  if jnp.issubdtype(dtype, jnp.unsignedinteger):
    if dtype.itemsize < 4:
      return scores.astype(jnp.int32)
    return flip_top(scores, jnp.dtype(f"int{8 * dtype.itemsize}"))
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"Expected real scores, got dtype {dtype}; pass"
      " nm_mask(jnp.abs(kernel), pattern), for example"
    )
  if dtype.itemsize == 1:
    scores = scores.astype(jnp.float32)
  signed = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[scores.dtype.itemsize]
  bits = lax.bitcast_convert_type(scores, signed)
  magnitude = bits & jnp.iinfo(signed).max
  key = jnp.where(bits < 0, -magnitude, magnitude)
  infinity = np.array(np.inf, scores.dtype).view(signed)
  return jnp.where(magnitude > infinity, jnp.iinfo(signed).min + 1, key)


def by_comparison(
  keys: Int[Array, "*shape"],
  n: int | Int[Array, ...],
  axis: int,
  inside: Bool[Array, "*shape"] | None = None,
) -> Bool[Array, "*shape"]:
  """True at the n largest keys along `axis`, where key + 1 must not overflow.

  rank_i = sum_j [k_j + [j < i] > k_i]: one comparison includes the tie rule.
  An array n has one count per group, with length 1 along `axis`.
  Only entries `inside` are kept; the others, and only they, hold the lowest
  integer.

  >>> by_comparison(jnp.array([1, 3, 3, 2]), 1, 0)
  Array([False,  True, False, False], dtype=bool)
  """
  rival, own = jnp.expand_dims(keys, axis), jnp.expand_dims(keys, axis + 1)
  m = keys.shape[axis]
  square = tuple(m if d in (axis, axis + 1) else 1 for d in range(rival.ndim))
  # Iotas fuse on the last axis, a constant table does not.
  i = lax.broadcasted_iota(jnp.int32, square, axis)
  j = lax.broadcasted_iota(jnp.int32, square, axis + 1)
  beats = rival + (j < i).astype(keys.dtype) > own
  kept = jnp.sum(beats, axis + 1, dtype=jnp.int32) < n
  return kept if inside is None else kept & inside


def ranks(
  keys: Int[Array, "*shape"], axis: int, overflows: bool
) -> Int[Array, "*shape"]:
  """The rank of every key along `axis`: 0 = largest, ties by lowest index.

  rank_i = sum_j [k_j > k_i or (k_j = k_i and j < i)], m operations per entry.
  Wide groups meet their rivals in blocks, since XLA vectorizes a reduction over
  16 of them, but not over 64.

  Args:
    keys: Ordered integers.
    axis: Non-negative axis of the group.
    overflows: Whether key + 1 may overflow, so that two comparisons are needed.

  >>> ranks(jnp.array([1, 3, 3, 2]), 0, overflows=False)
  Array([3, 0, 1, 2], dtype=int32)
  """
  m = keys.shape[axis]
  keys = fence(keys)
  if m <= _BLOCK:
    return _rivals_ahead(keys, keys, 0, axis, overflows)
  blocks = -(-m // _BLOCK)
  # The lowest key behind all others is ahead of none.
  padding = [(0, 0, 0)] * keys.ndim
  padding[axis] = (0, blocks * _BLOCK - m, 0)
  lowest = jnp.array(jnp.iinfo(keys.dtype).min, keys.dtype)
  rivals = lax.pad(keys, lowest, padding)

  def add(b, rank):
    block = lax.dynamic_slice_in_dim(rivals, b * _BLOCK, _BLOCK, axis)
    return rank + _rivals_ahead(keys, block, b * _BLOCK, axis, overflows)

  return lax.fori_loop(0, blocks, add, jnp.zeros_like(keys, jnp.int32))


def _rivals_ahead(
  keys: Array, rivals: Array, first: int | Array, axis: int, overflows: bool
) -> Array:
  """How many rivals, at `first` and after, are ahead of each key."""
  rival, own = jnp.expand_dims(rivals, axis), jnp.expand_dims(keys, axis + 1)
  ones = (1,) * rival.ndim
  i = lax.broadcasted_iota(
    jnp.int32, ones[:axis] + (keys.shape[axis],) + ones[axis + 1 :], axis
  )
  j = first + lax.broadcasted_iota(
    jnp.int32,
    ones[: axis + 1] + (rivals.shape[axis],) + ones[axis + 2 :],
    axis + 1,
  )
  if overflows:
    ahead = (rival > own) | ((rival == own) & (j < i))
  else:
    ahead = rival + (j < i).astype(keys.dtype) > own
  return jnp.sum(ahead, axis + 1, dtype=jnp.int32)


def by_threshold(
  keys: Int[Array, "*shape"],
  n: int | Int[Array, ...],
  axis: int,
  inside: Bool[Array, "*shape"] | None = None,
) -> Bool[Array, "*shape"]:
  """True at the n largest keys along `axis`, for any m and any keys.

  An array n has one count per group, with length 1 along `axis`. Only entries
  `inside` are kept; the others hold the lowest integer.

  >>> by_threshold(jnp.array([1, 3, 3, 2]), 1, 0)
  Array([False,  True, False, False], dtype=bool)
  """
  m, static = keys.shape[axis], isinstance(n, int)
  if static and n == 1 and not _MAXIMUM < m < _NETWORK:
    threshold = jnp.max(keys, axis, keepdims=True)
  elif m <= (_NETWORK if static else _NETWORK_TRACED):
    threshold = _network(keys, n, axis)
  else:
    threshold = _search(keys, n, axis)
  return _keep(keys, threshold, n, axis, inside)


def _keep(
  keys: Int[Array, "*shape"],
  threshold: Int[Array, "*group"],
  n: int | Int[Array, ...],
  axis: int,
  inside: Bool[Array, "*shape"] | None,
) -> Bool[Array, "*shape"]:
  """Exactly n per group: all keys above the threshold, then the first ties.

  Args:
    keys: Ordered integers.
    threshold: Key of rank n in each group, with length 1 along `axis`.
    n: Number of keys to keep.
    axis: Non-negative axis of the group.
    inside: Mask of the entries that may be kept; others hold the lowest
      integer.
  """
  m = keys.shape[axis]
  width = max(d for d in range(1, _WORD + 1) if m % d == 0)
  words = keys.shape[:axis] + (m // width, width) + keys.shape[axis + 1 :]
  keys, threshold = keys.reshape(words), jnp.expand_dims(threshold, axis)
  if jnp.ndim(n):
    n = jnp.expand_dims(n, axis)
  place = lax.broadcasted_iota(
    jnp.uint32,
    tuple(width if d == axis + 1 else 1 for d in range(keys.ndim)),
    axis + 1,
  )
  bit, zero = jnp.uint32(1) << place, jnp.uint32(0)
  # One word per `width` entries: the keys above the threshold in the low half,
  # the ties in the high half. Everything below reads these words only.
  equal = keys == threshold
  if inside is not None:
    equal &= inside.reshape(words)
  equal = jnp.where(equal, bit << _WORD, zero)
  word = jnp.sum(
    jnp.where(keys > threshold, bit, equal),
    axis + 1,
    keepdims=True,
    dtype=jnp.uint32,
  )
  above, equal = word & jnp.uint32((1 << _WORD) - 1), word >> _WORD
  room = n - jnp.sum(_count(above), axis, keepdims=True, dtype=jnp.int32)
  if width < m:
    ties = _count(equal)
    room = room - (jnp.cumsum(ties, axis, dtype=jnp.int32) - ties)
  before = _count(equal & (bit - jnp.uint32(1)))
  kept = ((above & bit) != 0) | (((equal & bit) != 0) & (before < room))
  return kept.reshape(words[:axis] + (m,) + words[axis + 2 :])


def _network(
  keys: Int[Array, "*shape"],
  n: int | Int[Array, ...],
  axis: int,
) -> Int[Array, "*group"]:
  """The n-th largest key of each group, length 1 along `axis`."""
  m = keys.shape[axis]
  wires = [lax.index_in_dim(keys, j, axis, keepdims=True) for j in range(m)]
  if isinstance(n, int) and n > m - n + 1:
    # The n-th largest is the (m-n+1)-th smallest.
    return fence(_best(wires, m - n + 1, lax.min, lax.max)[m - n])
  if isinstance(n, int):
    return fence(_best(wires, n, lax.max, lax.min)[n - 1])
  first, *rest = _best(wires, m, lax.max, lax.min)
  for place, wire in enumerate(rest, 2):
    first = jnp.where(n >= place, wire, first)
  return fence(first)


def _best(wires: list, count: int, best: Compare, worst: Compare) -> list:
  """At least the best `count` wires, best first."""
  size = 1 << (len(wires) - 1).bit_length()
  padding = [None] * (size - len(wires))
  limit = 1 << (count - 1).bit_length()
  return _first(wires + padding, limit, best, worst)[: len(wires)]


def _first(wires: list, count: int, best: Compare, worst: Compare) -> list:
  """The best `count` wires (or all, if fewer), best first.

  Two sorted lists are merged odd with even if all their entries are needed. If
  only the better half is, each entry meets its mirror image in the other list,
  and the winners, a bitonic list, are sorted by halves (Batcher, 1968). All
  lengths are powers of two. None is a wire that is worse than all others.
  """
  if len(wires) == 1:
    return wires
  half = len(wires) // 2
  left = _first(wires[:half], count, best, worst)
  right = _first(wires[half:], count, best, worst)
  if len(left) < count:
    return _merge(left, right, best, worst)
  winners = [_pick(best, x, y) for x, y in zip(left, right[::-1])]
  return _clean(winners, best, worst)


def _merge(left: list, right: list, best: Compare, worst: Compare) -> list:
  """Merges two sorted lists of equal length."""
  if len(left) == 1:
    return [_pick(best, *left, *right), _drop(worst, *left, *right)]
  even = _merge(left[::2], right[::2], best, worst)
  odd = _merge(left[1::2], right[1::2], best, worst)
  pairs = list(zip(even[1:], odd[:-1]))
  inner = [(_pick(best, x, y), _drop(worst, x, y)) for x, y in pairs]
  return [even[0], *(x for pair in inner for x in pair), odd[-1]]


def _clean(wires: list, best: Compare, worst: Compare) -> list:
  """Sorts a bitonic list."""
  if len(wires) == 1:
    return wires
  half = len(wires) // 2
  pairs = list(zip(wires[:half], wires[half:]))
  return _clean([_pick(best, x, y) for x, y in pairs], best, worst) + _clean(
    [_drop(worst, x, y) for x, y in pairs], best, worst
  )


def _pick(best: Compare, x: Array | None, y: Array | None) -> Array | None:
  return y if x is None else x if y is None else best(x, y)


def _drop(worst: Compare, x: Array | None, y: Array | None) -> Array | None:
  return None if x is None or y is None else worst(x, y)


def fence(x: Array) -> Array:
  """Returns x as the result of a reduction.

  XLA recomputes a cheap producer inside every consumer: a network once per
  entry, a key once per comparison. But it computes a reduction once
  (optimization_barrier is removed before fusion). Without this a network of m =
  64 takes 3 to 10 times as long.
  """
  first = lax.broadcasted_iota(jnp.int32, (2,) + (1,) * x.ndim, 0) == 0
  return jnp.max(jnp.where(first, x[None], jnp.iinfo(x.dtype).min), 0)


def _search(
  keys: Int[Array, "*shape"],
  n: int | Int[Array, ...],
  axis: int,
) -> Int[Array, "*group"]:
  """The n-th largest key of each group.

  The three counts of a pass are one variadic reduction. It is fast only along
  the last axis, so the keys are moved there.
  """
  unsigned = jnp.dtype(f"uint{8 * keys.dtype.itemsize}")
  last = jnp.moveaxis(flip_top(keys, unsigned), axis, -1)
  zero = jnp.zeros((), jnp.int32)

  def counts(trials):
    each = count_reached(last, trials, zero, (last.ndim - 1,))
    return tuple(count[..., None] for count in each)

  threshold = largest_reached(jnp.zeros_like(last[..., :1]), counts, n)
  return jnp.moveaxis(flip_top(threshold, keys.dtype), -1, axis)


def largest_reached(
  zero: Array, counts: Callable, n: int | Int[Array, ""]
) -> Array:
  """The largest t with #{k >= t} >= n, two bits per pass, highest first.

  Args:
    zero: Zeros of the unsigned dtype and the shape of the result.
    counts: Function of three trial values t that returns each #{k >= t}.
    n: Number of keys to reach; t is 0 for n = 0.
  """
  unsigned, bits = zero.dtype, 8 * zero.dtype.itemsize

  def narrow(i, reached):
    shift = (bits - 2 - 2 * i).astype(unsigned)
    trials = [reached | (jnp.asarray(d, unsigned) << shift) for d in (1, 2, 3)]
    for trial, count in zip(trials, counts(trials)):
      reached = jnp.where(count >= n, trial, reached)
    return reached

  return lax.fori_loop(0, bits // 2, narrow, zero)


def count_reached(
  keys: Array, trials: list[Array], zero: Array, axes: tuple[int, ...]
) -> tuple[Array, ...]:
  """#{k >= t} along `axes` for three t in one pass, in the dtype of `zero`."""
  return lax.reduce(
    tuple((keys >= t).astype(zero.dtype) for t in trials),
    (zero,) * 3,
    lambda a, b: tuple(x + y for x, y in zip(a, b)),
    axes,
  )


def flip_top(x: Array, dtype: Any) -> Array:
  """Converts signed to unsigned integers of equal width or back, in order."""
  signed = jnp.dtype(f"int{8 * x.dtype.itemsize}")
  flipped = lax.bitcast_convert_type(x, signed) ^ jnp.iinfo(signed).min
  return lax.bitcast_convert_type(flipped, dtype)


def _count(word: Array) -> Array:
  return lax.population_count(word).astype(jnp.int32)
