"""S-STE's soft threshold against a loop over groups, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import NM, is_nm, nm_mask
from figs_jax.core.soft import s_ste, soft_scale, soft_threshold

PATTERNS = ("2:4", "1:4", "1:2", "3:5", "4:4", "1:8")


def magnitude_mask(w, pattern, axis=-2):
  return nm_mask(jnp.abs(w), pattern, axis)


def brute_soft(w, mask, m):
  """Group by group along axis 0, entry by entry."""
  out = np.zeros_like(w)
  for column in range(w.shape[1]):
    for start in range(0, w.shape[0], m):
      group = range(start, start + m)
      pruned = [abs(w[i, column]) for i in group if not mask[i, column]]
      t = max(pruned, default=0)
      for i in group:
        if mask[i, column] and abs(w[i, column]) > t:
          out[i, column] = np.sign(w[i, column]) * (abs(w[i, column]) - t)
  return out


@settings(deadline=None, max_examples=30)
@given(
  pattern=st.sampled_from(PATTERNS),
  dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
  any_mask=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(pattern, dtype, any_mask, seed):
  nm, rng = NM.parse(pattern), np.random.default_rng(seed)
  w = jnp.asarray(rng.normal(size=(2 * nm.m, 3)).round(1)).astype(dtype)
  scores = rng.normal(size=w.shape) if any_mask else np.abs(w)
  mask = nm_mask(scores.astype(np.float32), nm)  # one program for all dtypes
  soft = soft_threshold(w, mask, nm)
  assert soft.dtype == dtype
  want = brute_soft(np.asarray(w), np.asarray(mask), nm.m)
  np.testing.assert_array_equal(soft, want)
  assert is_nm(soft, nm)


def test_the_threshold_is_the_papers_for_2_of_4():
  """t is the second smallest |w| of four, whatever the order."""
  w = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
  t = np.sort(np.abs(w.reshape(16, 4, 5)), axis=1)[:, 1:2]
  size = np.abs(w).reshape(16, 4, 5)
  want = (np.sign(w).reshape(16, 4, 5) * np.maximum(size - t, 0)).reshape(64, 5)
  soft = soft_threshold(jnp.asarray(w), magnitude_mask(w, "2:4"), "2:4")
  np.testing.assert_array_equal(soft, want)


@settings(deadline=None, max_examples=30)
@given(
  pattern=st.sampled_from(("2:4", "1:4", "1:2", "3:5", "1:8")),
  seed=st.integers(0, 2**32 - 1),
)
def test_is_continuous_where_the_mask_flips(pattern, seed):
  """Along any line S moves at most twice as far as w; a hard mask jumps."""
  nm, rng = NM.parse(pattern), np.random.default_rng(seed)
  start, end = rng.normal(size=(2, nm.m, 1))
  steps = 400
  line = start + np.linspace(0, 1, steps + 1)[:, None, None] * (end - start)
  line = jnp.asarray(line.astype(np.float32))
  masks = jax.vmap(lambda w: magnitude_mask(w, nm))(line)
  soft = jax.vmap(lambda w, m: soft_threshold(w, m, nm))(line, masks)
  moved = np.abs(np.diff(line, axis=0)).max()
  assert np.abs(np.diff(soft, axis=0)).max() <= 2 * moved + 1e-6
  # At every flip both entries concerned pass through zero.
  flips = np.diff(np.asarray(masks), axis=0)
  near = np.abs(np.asarray(soft))[1:] + np.abs(np.asarray(soft))[:-1]
  assert (near[flips] <= 4 * moved + 1e-6).all()


def test_the_hard_mask_would_fail_the_continuity_law():
  line = jnp.stack([jnp.array([[1.0], [0.999]]), jnp.array([[0.998], [0.999]])])
  hard = jnp.where(jax.vmap(lambda w: magnitude_mask(w, "1:2"))(line), line, 0)
  assert np.abs(np.diff(hard, axis=0)).max() > 0.9
  soft = jax.vmap(lambda w: soft_threshold(w, magnitude_mask(w, "1:2"), "1:2"))
  assert np.abs(np.diff(soft(line), axis=0)).max() < 0.01


@pytest.mark.parametrize("axis", [0, -1, (0, 2), (2, 0)])
def test_any_axis_is_the_first_one_turned(axis):
  w = jax.random.normal(jax.random.key(0), (4, 3, 4))
  axes = (axis,) if isinstance(axis, int) else axis
  axes = tuple(a % 3 for a in axes)
  rest = tuple(a for a in range(3) if a not in axes)
  turned = np.asarray(w).transpose(axes + rest)
  flat = turned.reshape(np.prod(turned.shape[: len(axes)]), -1)
  mask = magnitude_mask(flat, "1:4", 0)
  want = soft_threshold(jnp.asarray(flat), mask, "1:4", 0)
  got = soft_threshold(w, magnitude_mask(w, "1:4", axis), "1:4", axis)
  got = np.asarray(got).transpose(axes + rest).reshape(flat.shape)
  np.testing.assert_array_equal(got, want)


def test_specials_stay_where_they_are():
  inf, nan = jnp.inf, jnp.nan
  w = jnp.array([[nan, 2.0, 1.0, 0.0], [inf, -inf, inf, 3.0], [0.0] * 4]).T
  w = jnp.concatenate([w, jnp.array([[nan, nan, nan, 1.0]]).T], axis=1)
  soft = soft_threshold(w, magnitude_mask(w, "2:4"), "2:4")
  # A pruned NaN is 0 and does not move t; among infinities t is infinite.
  np.testing.assert_array_equal(soft[:, 0], [0, 2, 1, 0])
  np.testing.assert_array_equal(soft[:, 1], [0, 0, 0, 0])
  np.testing.assert_array_equal(soft[:, 2], [0, 0, 0, 0])
  # A kept NaN is seen.
  np.testing.assert_array_equal(soft[:, 3], [nan, 0, 0, 1])


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_the_scale_is_the_least_squares_one(pattern):
  w = jax.random.normal(jax.random.key(1), (32, 8))
  soft = soft_threshold(w, magnitude_mask(w, pattern), pattern)
  beta = float(soft_scale(w, soft))
  w, s = (np.asarray(x, np.float64) for x in (w, soft))
  assert beta == pytest.approx((w * s).sum() / (s * s).sum(), rel=1e-6)

  def error(b):
    return ((w - b * s) ** 2).sum()

  assert all(error(beta) < error(beta + d) for d in (-1e-2, 1e-2))
  assert beta > 1  # S shrinks what it keeps


def test_the_scale_of_nothing_and_of_low_precision():
  zero = jnp.zeros((4, 2))
  assert soft_scale(zero, zero) == 1
  ties = jnp.ones((4, 2))  # every |w| equals t
  soft = soft_threshold(ties, magnitude_mask(ties, "2:4"), "2:4")
  assert not soft.any() and soft_scale(ties, soft) == 1
  w = jnp.array([jnp.nan, 3.0, 1.0, 2.0])[:, None]
  soft = soft_threshold(w, magnitude_mask(w, "1:4"), "1:4")
  assert soft_scale(w, soft) == 3  # <w, S> / ||S||^2 = 3 * 1 / 1
  big = jnp.full((4096, 8), 3.0, jnp.float16)
  assert soft_scale(big, big) == 1  # 36864 * 8 overflows float16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("leak", [0.0, 0.25, 1.0])
def test_the_effective_weight_and_its_gradient(leak, dtype):
  w = jax.random.normal(jax.random.key(2), (8, 6)).astype(dtype)
  g = jax.random.normal(jax.random.key(3), (8, 6)).astype(dtype)
  mask = magnitude_mask(w, "2:4")
  scale = jnp.float32(1.5)

  out, back = jax.vjp(
    lambda w, s, d: s_ste(w, mask, s, "2:4", leak=d),
    w,
    scale,
    jnp.float32(leak),
  )
  soft = brute_soft(np.asarray(w), np.asarray(mask), 4)
  if leak == 1:
    np.testing.assert_array_equal(out, w)
  else:
    want = leak * np.asarray(w, np.float32)
    want += (1 - leak) * 1.5 * soft.astype(np.float32)
    tight = 1e-6 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
      out.astype(jnp.float32), want, rtol=tight, atol=tight
    )
  grads = back(g)
  assert out.dtype == grads[0].dtype == dtype
  np.testing.assert_array_equal(grads[0], g)  # pruned entries too
  assert grads[1] == 0 and grads[2] == 0


def test_leak_0_hides_what_is_pruned_and_leak_1_hides_nothing():
  w = jnp.array([[jnp.nan, 3.0, 1.0, -2.0]]).T
  mask = magnitude_mask(w, "1:4")
  np.testing.assert_array_equal(s_ste(w, mask, 2.0, "1:4")[:, 0], [0, 2, 0, 0])
  np.testing.assert_array_equal(s_ste(w, mask, jnp.nan, "1:4", leak=1), w)


def test_a_mask_of_another_shape(unchecked):
  with pytest.raises(ValueError, match=r"shape \(8, 1\), got \(4, 1\)"):
    soft_threshold(jnp.ones((8, 1)), jnp.ones((4, 1), bool), "2:4")
  with pytest.raises(ValueError, match="not a multiple of m=4"):
    soft_threshold(jnp.ones((6, 1)), jnp.ones((6, 1), bool), "2:4")
