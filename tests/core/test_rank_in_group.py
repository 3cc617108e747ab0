"""One rank array gives the mask of every n, and where masks nest across m."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from figs_jax.core import NM, is_nm, nm_mask, rank_in_group

from .test_mask_shards import check
from .test_masks import FLOATS, INTEGERS, brute, planted

SEEDS = st.integers(0, 2**32 - 1)
# One block of rivals, a padded second one, several.
SIZES = (1, 2, 3, 4, 8, 16, 17, 40)


def brute_ranks(scores, m, axes, stride=1):
  """The rank of an entry is the number of n at which it is not kept."""
  kept = [brute(scores, n, m, axes, stride) for n in range(1, m + 1)]
  return m - np.sum(kept, 0)


@settings(deadline=None, max_examples=20)
@given(
  m=st.sampled_from(SIZES),
  dtype=st.sampled_from(FLOATS + INTEGERS),
  axes=st.sampled_from([(0,), (1,), (2,), (0, 2), (2, 1)]),
  stride=st.sampled_from([1, 1, 2]),
  seed=SEEDS,
)
def test_equals_the_definition(m, dtype, axes, stride, seed):
  shape = [2, 3, 2]
  shape[axes[-1]] = m * stride
  scores = planted(np.random.default_rng(seed), tuple(shape), dtype)
  axis = axes if len(axes) > 1 else axes[0]
  ranks = rank_in_group(scores, m, axis, stride=stride)
  assert ranks.dtype == jnp.int32 and ranks.shape == scores.shape
  np.testing.assert_array_equal(ranks, brute_ranks(scores, m, axes, stride))


@settings(deadline=None, max_examples=12)
@given(
  m=st.sampled_from([1, 3, 8, 17]),
  dtype=st.sampled_from(FLOATS + INTEGERS),
  seed=SEEDS,
)
def test_masks_of_every_n_are_nm_masks_and_nest(m, dtype, seed):
  scores = planted(np.random.default_rng(seed), (2 * m, 2), dtype)
  ranks = np.asarray(rank_in_group(scores, m))
  fewer = np.zeros(scores.shape, bool)
  for n in range(1, m + 1):
    mask = ranks < n
    assert (mask.reshape(2, m, 2).sum(1) == n).all()
    assert not np.any(fewer & ~mask)
    # A traced n: one compilation for all.
    same = nm_mask(scores, NM(m, m), n=jnp.int32(n))
    np.testing.assert_array_equal(mask, same)
    fewer = mask
  one = nm_mask(scores, NM(m // 2 + 1, m))
  np.testing.assert_array_equal(ranks < m // 2 + 1, one)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
@pytest.mark.parametrize("m", [4, 24])
def test_64_bits_are_ranked_exactly(m, dtype):
  with jax.enable_x64(True):
    limits = jnp.finfo(dtype) if dtype == "float64" else jnp.iinfo(dtype)
    rng = np.random.default_rng(0)
    values = [limits.min, limits.max, limits.max - 1, 0, 1, 2]
    scores = rng.choice(np.array(values, dtype), (m, 3))
    expected = brute_ranks(scores, m, (0,))
    np.testing.assert_array_equal(rank_in_group(scores, m), expected)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_the_largest_integers_do_not_overflow(dtype):
  top = np.iinfo(dtype).max
  scores = np.array([top - 1, top, top, np.iinfo(dtype).min], dtype)
  assert rank_in_group(scores, 4, 0).tolist() == [2, 0, 1, 3]


def test_vmap_jit_and_grad():
  scores = jax.random.normal(jax.random.key(0), (3, 34, 2))
  expected = [rank_in_group(s, 17) for s in scores]
  ranks = jax.jit(jax.vmap(lambda s: rank_in_group(s, 17)))(scores)
  np.testing.assert_array_equal(ranks, np.asarray(expected))
  loss = lambda s: jnp.sum(jnp.where(rank_in_group(s, 17) < 2, s, 0.0))  # noqa: E731
  np.testing.assert_array_equal(
    jax.grad(loss)(scores[0]), (ranks[0] < 2).astype(jnp.float32)
  )
  assert rank_in_group(jnp.zeros((0, 4)), 2).shape == (0, 4)


@pytest.mark.parametrize("m", [4, 40])
@pytest.mark.parametrize("sharded", [0, 1])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_scores_are_ranked_locally(m, sharded, kind):
  spec = PartitionSpec(*("x" if d == sharded else None for d in range(2)))
  scores = jax.random.normal(jax.random.key(0), (8 * m, 16)).round(1)
  expected = brute_ranks(scores, m, (0,))
  check(lambda s: rank_in_group(s, m), scores, spec, expected, kind)


def kept(scores, pattern):
  return set(np.flatnonzero(nm_mask(scores, pattern, 0)).tolist())


@settings(deadline=None, max_examples=12)
@given(
  m=st.sampled_from([2, 4, 8]),
  k=st.integers(2, 3),
  dtype=st.sampled_from(FLOATS[:2]),
  seed=SEEDS,
)
def test_across_m_masks_nest_at_equal_n(m, k, dtype, seed):
  """And ranks in the wide group are bounded on both sides."""
  scores = planted(np.random.default_rng(seed), (2 * k * m, 2), dtype)
  narrow = np.asarray(rank_in_group(scores, m))
  wide = np.asarray(rank_in_group(scores, k * m))
  assert np.all((narrow <= wide) & (wide <= narrow + (k - 1) * m))
  for n in range(1, m + 1):
    assert not np.any((wide < n) & ~(narrow < n))


def test_across_m_masks_do_not_nest_at_equal_density():
  """They are equal for 16 of the 24 orders of four scores."""
  assert kept(jnp.array([4, 3, 2, 1]), "1:2") == {0, 2}
  assert kept(jnp.array([4, 3, 2, 1]), "2:4") == {0, 1}
  orders = jnp.array(list(itertools.permutations(range(4)))).T
  narrow, wide = rank_in_group(orders, 2) < 1, rank_in_group(orders, 4) < 2
  assert int(jnp.sum(jnp.all(narrow == wide, 0))) == 16
  assert is_nm(narrow, "2:4")  # while the feasible sets do nest


@pytest.mark.parametrize("m", [0, -4, 2.5, True])
def test_bad_sizes_are_named(m, unchecked):
  with pytest.raises(ValueError, match="expected integers"):
    rank_in_group(jnp.ones((4, 4)), m)


def test_other_bad_input_is_named(unchecked):
  with pytest.raises(ValueError, match="not a multiple of m=3"):
    rank_in_group(jnp.ones((4, 4)), 3)
  with pytest.raises(TypeError, match="Expected real scores"):
    rank_in_group(jnp.ones((4, 4), bool), 4)
