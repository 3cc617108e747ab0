"""What holds between masks: of scaled, permuted, nested, strided scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import NM, density, is_nm, nm_mask

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
# Every way of ranking (core.top_n): comparison, maximum, network, search.
PATTERNS = ("2:4", "3:7", "1:16", "4:16", "8:32", "1:160", "5:130")
SEEDS = st.integers(0, 2**32 - 1)


def tied(seed, shape, dtype=jnp.float32):
  """Normal powers of two with both signs, zeros, infinities and NaN; ties."""
  rng = np.random.default_rng(seed)
  x = np.exp2(rng.integers(-3, 4, shape)) * rng.choice([-1, 1], shape)
  for value in (np.nan, np.inf, -np.inf, -0.0, 0.0):
    x[rng.random(shape) < rng.choice([0, 0.2])] = value
  return jnp.asarray(x.astype(dtype))


def distinct(seed, shape):
  """No two equal, and products with a scale stay apart in float32."""
  rng = np.random.default_rng(seed)
  values = rng.permutation(int(np.prod(shape))) - np.prod(shape) // 2
  return jnp.asarray(values.reshape(shape).astype(np.float32))


@settings(deadline=None, max_examples=12)
@given(
  m=st.sampled_from([1, 2, 3, 4, 8, 16, 24]),
  k=st.integers(2, 4),
  dtype=st.sampled_from(FLOATS),
  seed=SEEDS,
)
def test_a_mask_of_1_m_is_one_of_k_km(m, k, dtype, seed):
  mask = nm_mask(tied(seed, (2 * k * m, 3), dtype), NM(1, m))
  assert is_nm(mask, NM(1, m)) and is_nm(mask, NM(k, k * m))
  assert float(density(mask)) == pytest.approx(1 / m)


@settings(deadline=None, max_examples=12)
@given(
  pattern=st.sampled_from(PATTERNS),
  dtype=st.sampled_from(FLOATS),
  exponent=st.integers(-10, 10),
  seed=SEEDS,
)
def test_scaling_by_a_power_of_two_changes_nothing(
  pattern, dtype, exponent, seed
):
  """Exactly, ties included: nothing rounds, nothing under- or overflows."""
  scores = tied(seed, (2 * NM.parse(pattern).m, 3), dtype)
  scaled = scores * jnp.asarray(2.0**exponent, dtype)
  np.testing.assert_array_equal(
    nm_mask(scores, pattern), nm_mask(scaled, pattern)
  )


@settings(deadline=None, max_examples=12)
@given(
  pattern=st.sampled_from(PATTERNS),
  scale=st.floats(-30, 30).map(lambda e: 10.0**e),
  seed=SEEDS,
)
def test_positive_scaling_changes_nothing_away_from_ties(pattern, scale, seed):
  scores = distinct(seed, (2 * NM.parse(pattern).m, 3))
  np.testing.assert_array_equal(
    nm_mask(scores, pattern), nm_mask(scores * jnp.float32(scale), pattern)
  )


@settings(deadline=None, max_examples=12)
@given(pattern=st.sampled_from(PATTERNS), seed=SEEDS)
def test_a_permuted_group_has_the_permuted_mask(pattern, seed):
  m = NM.parse(pattern).m
  order = np.random.default_rng(seed).permutation(m)
  scores = distinct(seed, (3, m))
  np.testing.assert_array_equal(
    nm_mask(scores[:, order], pattern, -1),
    nm_mask(scores, pattern, -1)[:, order],
  )
  # With ties other entries may be kept, but never other values.
  scores = tied(seed, (3, m))
  kept = [
    jnp.sort(jnp.where(nm_mask(s, pattern, -1), s + 0.0, -jnp.inf), -1)
    for s in (scores, scores[:, order])
  ]
  np.testing.assert_array_equal(*kept)


@settings(deadline=None, max_examples=10)
@given(m=st.sampled_from([4, 8, 16, 21, 64]), seed=SEEDS)
def test_one_more_keeps_all_that_fewer_keep(m, seed):
  """Across the ways of ranking too, whose ties must go to the same entry."""
  scores, fewer = tied(seed, (2 * m, 3)), jnp.zeros((2 * m, 3), bool)
  for n in sorted({1, 2, m // 2, m - 1, m}):
    mask = nm_mask(scores, NM(n, m))
    assert not jnp.any(fewer & ~mask)
    assert jnp.array_equal(mask, nm_mask(scores, NM(m, m), n=jnp.int32(n)))
    fewer = mask


@settings(deadline=None, max_examples=8)
@given(
  m=st.sampled_from([4, 8, 16, 40, 130]),
  dtype=st.sampled_from(FLOATS),
  seed=SEEDS,
)
def test_masks_nest(m, dtype, seed):
  """Each stage inside the one before, whatever the scores have become."""
  inside = None
  for stage, n in enumerate((m, m // 2, m // 4, 1)):
    scores = tied(seed + stage, (2 * m, 3), dtype)
    mask = nm_mask(scores, NM(n, m), inside=inside)
    assert is_nm(mask, NM(n, m))
    if inside is not None:
      assert not jnp.any(mask & ~inside)
      # The same scores choose inside their own mask what they choose alone.
      again = nm_mask(scores, NM(1, m), inside=mask)
      np.testing.assert_array_equal(
        again, nm_mask(scores, NM(1, m), inside=inside)
      )
    inside = mask


@pytest.mark.parametrize("pattern", ["4:4", "2:4", "4:16", "1:16", "5:130"])
def test_inside_of_all_and_of_nothing(pattern):
  scores = tied(0, (2 * NM.parse(pattern).m, 3))
  every = np.ones(scores.shape, bool)
  alone = nm_mask(scores, pattern)
  np.testing.assert_array_equal(nm_mask(scores, pattern, inside=every), alone)
  assert not nm_mask(scores, pattern, inside=~every).any()
  # NaN and the lowest integer, too, rank above what is outside.
  for worst in (jnp.float32(jnp.nan), jnp.int32(-(2**31)), jnp.uint8(0)):
    few = every & (np.arange(len(every)) % NM.parse(pattern).m > 1)[:, None]
    mask = nm_mask(jnp.full(scores.shape, worst), pattern, inside=few)
    assert not jnp.any(mask & ~few)
    n = min(NM.parse(pattern).n, NM.parse(pattern).m - 2)
    assert is_nm(mask, NM(n, NM.parse(pattern).m))


@settings(deadline=None, max_examples=8)
@given(
  pattern=st.sampled_from(PATTERNS),
  stride=st.integers(2, 5),
  seed=SEEDS,
)
def test_a_stride_is_a_reshape(pattern, stride, seed):
  m, groups = NM.parse(pattern).m, 2
  scores = tied(seed, (3, groups * m * stride))
  mask = nm_mask(scores, pattern, -1, stride=stride)
  boxes = nm_mask(scores.reshape(3, groups, m, stride), pattern, 2)
  np.testing.assert_array_equal(mask, boxes.reshape(scores.shape))
  assert is_nm(mask, pattern, -1, stride=stride)
  assert is_nm(boxes, pattern, 2)


def test_a_stride_over_lanes_and_a_tuple_of_axes():
  """One lane's entries belong to one group, and only with this stride."""
  scores = distinct(0, (2, 512))
  mask = nm_mask(scores, "1:4", -1, stride=128)
  assert jnp.all(mask.reshape(2, 4, 128).sum(1) == 1)
  assert not is_nm(mask, "1:4", -1)
  flat = nm_mask(scores.reshape(-1), "1:4", 0, stride=256)
  both = nm_mask(scores, "1:4", (0, 1), stride=256)
  np.testing.assert_array_equal(both.reshape(-1), flat)
  np.testing.assert_array_equal(
    nm_mask(scores, "1:4", (1, 0), stride=128),
    nm_mask(scores.T.reshape(-1), "1:4", 0, stride=128).reshape(512, 2).T,
  )


@pytest.mark.parametrize("pattern", ["2:4", "4:16", "3:36", "5:160"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_stacked_and_convolution_kernels_are_many_kernels(pattern, dtype):
  nm = NM.parse(pattern)
  stack = tied(
    0, (2, 3, nm.m, 4), dtype
  )  # scanned layers, or [kh, kw, in, out]
  each = [[nm_mask(kernel, nm) for kernel in row] for row in stack]
  np.testing.assert_array_equal(nm_mask(stack, nm), np.asarray(each))
  lines = nm_mask(stack.reshape(-1, 4), nm, 0)
  np.testing.assert_array_equal(
    nm_mask(stack, nm, (0, 1, 2)).reshape(-1, 4), lines
  )


@pytest.mark.parametrize(
  "pattern", ["64:128", "33:127", "1:128", "16:256", "100:300", "9:4096"]
)
@pytest.mark.parametrize("traced", [False, True])
def test_the_program_stays_short(pattern, traced):
  """Beyond 3000 operations a network takes XLA half a minute and more."""
  nm = NM.parse(pattern)
  scores = jax.ShapeDtypeStruct((nm.m, 4), jnp.float32)
  if traced:
    program = jax.make_jaxpr(lambda s, n: nm_mask(s, nm, n=n))(
      scores, jax.ShapeDtypeStruct((), jnp.int32)
    )
  else:
    program = jax.make_jaxpr(lambda s: nm_mask(s, nm))(scores)
  assert str(program).count(" = ") < 3000
