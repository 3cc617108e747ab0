"""Rank-ordered arrays against loops of NumPy: every prefix, bit for bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import (
  NM,
  nm_mask,
  pack_ranks,
  rank_in_group,
  rank_matmul,
  unpack_ranks,
)

SHAPES = [((24, 5), -2), ((5, 24), -1), ((2, 12, 3), -2), ((2, 3, 4, 5), 0)]
SHAPES += [((2, 3, 4, 5), (-4, -3, -2)), ((2, 3, 4, 5), (2, 0))]


def lines(array, axis):
  """The groups' lines as rows of a copy, and the axes in that order."""
  axes = [a % array.ndim for a in ((axis,) if isinstance(axis, int) else axis)]
  order = [a for a in range(array.ndim) if a not in axes] + axes
  length = math.prod(array.shape[a] for a in axes)
  return array.transpose(order).reshape(-1, length), order


def cut(array, n, m, axis):
  """The n largest |w| of every group, by a sort of Python."""
  rows, order = lines(array, axis)
  result = np.zeros_like(rows)
  for row, new in zip(rows, result):
    for start in range(0, len(row), m):
      group = range(start, start + m)
      for i in sorted(group, key=lambda i: (-abs(float(row[i])), i))[:n]:
        new[i] = row[i]
  turned = result.reshape([array.shape[a] for a in order])
  return turned.transpose(np.argsort(order))


@settings(deadline=None, max_examples=40)
@given(
  place=st.integers(0, len(SHAPES) - 1),
  seed=st.integers(0, 99),
  dtype=st.sampled_from(["float64", "float32", "bfloat16", "float8_e4m3fn"]),
  data=st.data(),
)
def test_every_prefix_is_the_cut_array(place, seed, dtype, data):
  shape, axis = SHAPES[place]
  length = lines(np.zeros(shape), axis)[0].shape[1]
  m = data.draw(st.sampled_from([m for m in range(2, 25) if length % m == 0]))
  most = data.draw(st.integers(1, m))
  rng = np.random.default_rng(seed)
  whole = rng.normal(size=shape)
  whole[rng.random(shape) < 0.2] = 0.5  # ties
  array = cut(whole.astype(jnp.dtype(dtype)), most, m, axis)
  packed = pack_ranks(array, NM(most, m), axis)
  for n in range(1, most + 1):
    got = unpack_ranks(packed.prefix(n))
    assert got.dtype == array.dtype
    assert got.tobytes() == cut(array, n, m, axis).tobytes()
  assert packed.values.size == array.size // m * most
  assert packed.nbytes >= packed.prefix(1).nbytes * most


def test_the_order_is_that_of_ranks_and_masks():
  rng = np.random.default_rng(0)
  w = rng.integers(-3, 4, (16, 3)).astype(np.float32)
  packed = pack_ranks(w, "8:8")
  ranks = np.asarray(rank_in_group(jnp.abs(w), 8)).reshape(2, 8, 3)
  for rank in range(8):
    values, places = packed.values[rank], packed.places()[rank]
    for out in range(3):
      for group in range(2):
        i = places[out, group]
        assert ranks[group, i, out] == rank
        assert values[out, group] == w[group * 8 + i, out]
  for n in range(1, 9):
    mask = np.asarray(nm_mask(jnp.abs(w), NM(n, 8)))
    np.testing.assert_array_equal(
      unpack_ranks(packed.prefix(n)), np.where(mask, w, 0)
    )


def test_the_metadata_is_what_the_documentation_says():
  """Bits decoded by hand: 3 per place, each rank begins at a byte."""
  w = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
  packed = pack_ranks(w, "8:8")
  assert packed.metadata.shape == (8, 4)  # 9 groups of 3 bits
  for row, wanted in zip(packed.metadata, packed.places()):
    stream = sum(int(byte) << (8 * k) for k, byte in enumerate(row))
    got = [stream >> (3 * g) & 7 for g in range(9)]
    assert got == wanted.ravel().tolist()
    assert stream >> 27 == 0


def test_the_product_of_a_prefix_is_that_of_the_masked_kernel():
  rng = np.random.default_rng(2)
  w = rng.normal(size=(32, 5)).astype(np.float32)
  x = rng.normal(size=(2, 3, 32)).astype(np.float32)
  packed = pack_ranks(w, "8:8")
  for n in (1, 3, 8):
    dense = np.where(np.asarray(nm_mask(jnp.abs(w), NM(n, 8))), w, 0)
    got = jax.jit(lambda x, n=n: rank_matmul(x, packed.prefix(n)))(x)
    np.testing.assert_allclose(got, x @ dense, rtol=1e-5, atol=1e-5)


def test_signs_of_zeros_and_nan_survive_at_full_density():
  w = np.array([[np.nan], [-0.0], [2], [0]], np.float32)
  packed = pack_ranks(w, "4:4")
  assert unpack_ranks(packed).tobytes() == w.tobytes()
  with pytest.raises(ValueError, match="no NaN"):
    pack_ranks(np.where(w == 2, 0, w).astype(np.float32), "2:4")


@pytest.mark.parametrize(
  ("array", "pattern", "message"),
  [
    (np.ones((4, 2)), "2:4", "w: expected at most 2 entries"),
    (np.ones((6, 2)), "2:4", "w: .*not a multiple of m=4"),
    (np.ones((4, 2)), "1:1", "w: expected m of at least 2, got 1:1"),
  ],
)
def test_bad_arrays_are_named(array, pattern, message):
  with pytest.raises(ValueError, match=message):
    pack_ranks(array, pattern, name="w")


def test_integers_are_refused():
  with pytest.raises(TypeError, match="expected floats, got int64"):
    pack_ranks(np.ones((4, 2), np.int64), "2:4")


def test_other_prefixes_and_shapes_are_named():
  packed = pack_ranks(np.eye(4), "2:4", name="w")
  with pytest.raises(ValueError, match="w: expected n from 1 to 2, got 3"):
    packed.prefix(3)
  with pytest.raises(ValueError, match="w: expected x of length 4, got 3"):
    rank_matmul(jnp.ones(3), packed)
  sideways = pack_ranks(np.eye(4), "2:4", axis=-1, name="w")
  with pytest.raises(ValueError, match="groups along axis 0"):
    rank_matmul(jnp.ones(4), sideways)


def test_damaged_places_are_refused():
  packed = pack_ranks(np.eye(8, dtype=np.float32), "2:8", name="w")
  metadata = np.array(packed.metadata)
  metadata[1] = metadata[0]
  twice = type(packed)(
    packed.values, metadata, packed.shape, packed.pattern, packed.axis, "w"
  )
  with pytest.raises(ValueError, match="2 different places of every 8"):
    unpack_ranks(twice)
