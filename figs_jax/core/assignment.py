"""The best permutation of 8 x 8 scores: the 1:8 mask with the largest sum.

One entry in each row and in each column, for the largest sum of scores, is an
assignment problem. All 40,320 permutations are compared, but not one by one:

1. two rows take two columns: the better of 2 ways, for each of 28 pairs;
2. four rows take four columns: the best of 6 ways to give two of them to either
   pair of rows, for each of 70 sets;
3. eight rows take eight columns: the best of 70 ways.

This takes some 60 operations per entry, without a branch. Scores are integers,
so that sums are exact, and the lowest bits of a sum hold its way, so that a
maximum selects both. Arrays are [8, 8, *blocks], as in `core.matching`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.types import Array, Bool, Float, Int

_PAIRS = list(itertools.combinations(range(8), 2))
_QUADS = list(itertools.combinations(range(8), 4))
_SINGLES = [(i,) for i in range(8)]
# Bits of the way of four rows: 1 for each pair of rows, 3 for the columns of
# the first pair. Of equal sums the way with the largest bits is taken.
_BITS = 5


def best_permutations(
  x: Float[Array, "8 8 *blocks"],
) -> Bool[Array, "8 8 *blocks"]:
  """The permutation with the largest sum of every block.

  Scores are rounded to 2^-23 of the largest power of two in their block (2^-55
  for float64), which is the precision of the largest score.

  Args:
    x: Scores of every block, finite.

  >>> x = jnp.eye(8)[::-1]
  >>> bool((jax.jit(best_permutations)(x) == (x > 0)).all())
  True
  """
  rows = _fixed_point(x) << _BITS
  pairs = _merge(rows, _SINGLES, _PAIRS, np.array([[1, 0], [2, 0]] * 2))
  quads = _merge(pairs, _PAIRS, _QUADS, np.array([range(20, -1, -4)] * 2))
  word = _columns(quads[0], quads[1][::-1])  # complements in reverse order
  shape = (8, 8) + (1,) * word.ndim
  row, column = (lax.broadcasted_iota(jnp.int32, shape, d) for d in (0, 1))
  return ((word[None, None] >> (3 * row)) & 7) == column


def power_of_two(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """The largest power of two up to each x >= 0; 0 for denormal numbers.

  >>> power_of_two(jnp.array([0., 1., 3.9]))
  Array([0., 1., 2.], dtype=float32)
  """
  signed = jnp.dtype(f"int{8 * x.dtype.itemsize}")
  exponent = np.array(np.inf, x.dtype).view(signed)
  bits = lax.bitcast_convert_type(x, signed) & exponent
  return lax.bitcast_convert_type(bits, x.dtype)


def _fixed_point(x: Float[Array, "8 8 *blocks"]) -> Int[Array, "8 8 *blocks"]:
  """Integers in proportion to the scores, of 24 bits (56 for float64)."""
  bits = 8 * x.dtype.itemsize
  power = power_of_two(jnp.max(jnp.abs(x), (0, 1), keepdims=True))
  unit = jnp.asarray(2.0 ** (bits - _BITS - 4), x.dtype)
  x = x / jnp.maximum(power, jnp.finfo(x.dtype).tiny) * unit
  nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
  return nearest.astype(f"int{bits}")


def _merge(
  sums: Int[Array, "two_k parts *blocks"],
  parts: Sequence[tuple[int, ...]],
  sets: Sequence[tuple[int, ...]],
  codes: np.ndarray,
) -> Int[Array, "k sets *blocks"]:
  """The best sum of every set of columns, over its splits into two parts.

  Args:
    sums: Sums of the parts; those of 2i and 2i + 1 are added.
    parts: Columns of each part.
    sets: Columns of each set.
    codes: Codes of the ways, [k, ways].
  """
  first, second = _ways(parts, sets)
  rest = (1,) * (sums.ndim - 2)
  code = jnp.asarray(codes, sums.dtype).reshape(-1, codes.shape[-1], 1, *rest)
  return jnp.max(sums[::2, first] + sums[1::2, second] + code, 1)


def _ways(
  parts: Sequence[tuple[int, ...]], sets: Sequence[tuple[int, ...]]
) -> np.ndarray:
  """Indices [2, ways, sets] of the parts that make up each set."""
  index = {part: i for i, part in enumerate(parts)}
  ways = [
    [
      (index[part], index[tuple(j for j in columns if j not in part)])
      for part in itertools.combinations(columns, len(parts[0]))
    ]
    for columns in sets
  ]
  return np.array(ways).transpose(2, 1, 0)


def _columns(
  upper: Int[Array, "sets ..."], lower: Int[Array, "sets ..."]
) -> Int[Array, "*blocks"]:
  """The columns of the best permutation, three bits for each row.

  Args:
    upper: Best sum of rows 0 to 3 in each set of columns, with its code.
    lower: Best sum of rows 4 to 7 in the other columns, with its code.
  """
  low = 2**_BITS - 1
  place = lax.broadcasted_iota(jnp.int32, upper.shape, 0)
  # Code of all eight rows: the set, the way of the upper and of the lower ones.
  ways = [(half & low).astype(jnp.int32) for half in (upper, lower)]
  codes = (place << 2 * _BITS) | (ways[0] << _BITS) | ways[1]
  sums = (upper >> _BITS) + (lower >> _BITS)
  # Two reductions take a quarter of the time of one.
  tens = (7, 10, *sums.shape[1:])
  code = _first_best(_first_best((sums.reshape(tens), codes.reshape(tens))))[1]
  table = jnp.asarray(_table())
  quad = code >> 2 * _BITS
  upper = (quad << _BITS) | ((code >> _BITS) & low)
  lower = ((len(_QUADS) - 1 - quad) << _BITS) | (code & low)

  def columns(index):
    return table.at[index].get(
      mode="promise_in_bounds", out_sharding=jax.typeof(index).sharding
    )

  return columns(upper) | (columns(lower) << 12)


def _first_best(entries: tuple[Array, Array]) -> tuple[Array, Array]:
  """The (sum, code) with the largest sum along the first axis."""
  sums, codes = entries

  def better(a, b):
    return lax.max(a[0], b[0]), lax.select(a[0] >= b[0], a[1], b[1])

  least = jnp.iinfo(sums.dtype).min
  start = jnp.asarray(least, sums.dtype), jnp.zeros((), codes.dtype)
  best, code = lax.reduce((sums, codes), start, better, (0,))
  return best, code


def _table() -> np.ndarray:
  """Columns of four rows by set and way, [70 * 32] words of 12 bits."""
  table = np.zeros((len(_QUADS), 1 << _BITS), np.int32)
  first, second = _ways(_PAIRS, _QUADS)
  for way, quad in np.ndindex(first.shape):
    for swaps in range(4):
      pairs = _PAIRS[first[way, quad]], _PAIRS[second[way, quad]]
      # The bit is set where the first row has the first column.
      columns = [
        pair if swaps >> i & 1 else pair[::-1] for i, pair in enumerate(pairs)
      ]
      word = sum(c << 3 * i for i, c in enumerate(columns[0] + columns[1]))
      table[quad, (5 - way) << 2 | swaps] = word
  return table.reshape(-1)
