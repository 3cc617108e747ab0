"""MVUE: unbiased, n of m, and of the least variance that there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from figs_jax.core import NM, is_nm
from figs_jax.core._mvue import mvue, mvue_probabilities

PATTERNS = ("1:2", "2:4", "1:4", "3:4", "3:7", "1:16", "5:8", "8:32")


def brute_probabilities(group, n):
  """Sorted, tau from the suffix sums, in float64."""
  a = np.abs(np.asarray(group, np.float64))
  if (a > 0).sum() <= n:
    return (a > 0).astype(np.float64)
  order = np.argsort(-a)
  for sure in range(n):
    tau = a[order[sure:]].sum() / (n - sure)
    if a[order[sure]] <= tau:
      break
  return np.minimum(a / tau, 1)


def groups_of(rng, m, count=40):
  """Gaussian, heavy-tailed, tied and mostly-zero groups, as columns."""
  x = rng.normal(size=(m, count))
  x[:, ::4] = np.exp(4 * x[:, ::4])
  x[:, 1::4] = np.round(x[:, 1::4])
  x[:, 2::4] *= rng.random((m, x[:, 2::4].shape[1])) < 2 / m
  return x.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1))
def test_probabilities_equal_the_definition(pattern, seed):
  nm = NM.parse(pattern)
  x = groups_of(np.random.default_rng(seed), nm.m)
  want = np.stack([brute_probabilities(c, nm.n) for c in x.T], axis=1)
  p = np.asarray(mvue_probabilities(jnp.asarray(x), nm))
  np.testing.assert_allclose(p, want, rtol=2e-5, atol=1e-7)
  few = np.minimum((x != 0).sum(0), nm.n)
  np.testing.assert_allclose(p.sum(0), few, rtol=1e-5)
  assert ((p > 0) == (x != 0)).all() and (p <= 1).all()


def test_one_of_two_is_the_papers_formula():
  x = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
  want = np.abs(x) / np.abs(x).sum(0)
  np.testing.assert_allclose(mvue_probabilities(x_(x), "1:2"), want, rtol=1e-6)
  draw = np.asarray(mvue(jax.random.key(0), x_(x), "1:2"))
  kept = draw != 0
  assert (kept.sum(0) == 1).all()
  signed = np.sign(x) * np.abs(x).sum(0)  # a_i / p_i
  np.testing.assert_allclose(draw[kept], signed[kept], rtol=1e-6)


def x_(x):
  return jnp.asarray(x)


def draws(x, pattern, count, seed=0):
  """[count, m, columns], one compilation."""
  keys = jax.random.split(jax.random.key(seed), count)
  return jax.jit(jax.vmap(lambda k: mvue(k, x, pattern)))(keys)


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1:4", "3:7"])
def test_unbiased_with_the_variance_of_the_formula(pattern):
  nm = NM.parse(pattern)
  x = groups_of(np.random.default_rng(3), nm.m, 6)
  x[:, 0] = x[:, 4] = np.linspace(-1, 2, nm.m)  # no heavy tail: 4 s.e. hold
  count = 100_000
  sample = np.asarray(draws(x_(x), nm, count), np.float64)
  p = np.stack([brute_probabilities(c, nm.n) for c in x.T], axis=1)
  a = x.astype(np.float64)
  with np.errstate(divide="ignore", invalid="ignore"):
    variance = np.where(p > 0, a**2 * (1 / p - 1), 0)
  error = np.abs(sample.mean(0) - a)
  assert (error <= 4 * np.sqrt(variance / count) + 1e-6 * np.abs(a)).all()
  # Where p is small the sample variance is noisy: its own error is known.
  fourth = np.where(p > 0, a**4 / np.where(p > 0, p, 1) ** 3, 0)
  noise = 4 * np.sqrt(fourth / count) + 1e-5 * a**2
  assert (np.abs(sample.var(0) - variance) <= noise).all()
  nonzero = (sample != 0).sum(1)
  assert (nonzero == np.minimum((x != 0).sum(0), nm.n)).all()


@settings(deadline=None, max_examples=25)
@example("1:2", 849807825)  # p rounds to less than a / sum(a), near 1
@given(st.sampled_from(["1:2", "1:3", "2:4", "3:4"]), st.integers(0, 2**31))
def test_no_other_choice_of_supports_has_less_variance(pattern, seed):
  """Every unbiased x on n entries: P over all supports, best value on each."""
  nm, rng = NM.parse(pattern), np.random.default_rng(seed)
  a = np.exp(2 * rng.normal(size=nm.m))
  p = np.asarray(
    mvue_probabilities(x_(a.astype(np.float32)), nm, 0), np.float64
  )
  ours = (a**2 * (1 / p - 1)).sum()
  rounding = (a**2 / p).sum() * np.finfo(np.float32).eps  # of p, float32
  supports = list(itertools.combinations(range(nm.m), nm.n))
  member = np.array([[i in s for i in range(nm.m)] for s in supports])
  weights = rng.dirichlet(np.full(len(supports), 0.5), size=20_000)
  inclusion = weights @ member
  # Near our own optimum as well, where a wrong tau would be beaten.
  scale = rng.uniform(0.9, 1.1, size=(2000, nm.m))
  near = np.minimum(p * scale, 1)
  near *= nm.n / np.maximum(near.sum(1, keepdims=True), nm.n)
  for q in (inclusion, near):
    theirs = (a**2 * (1 / np.maximum(q, 1e-12) - 1)).sum(1)
    assert theirs.min() >= ours * (1 - 1e-5) - rounding


@pytest.mark.parametrize("pattern", PATTERNS)
def test_at_most_n_are_kept_in_adverse_groups(pattern):
  """Ties, tiny beside huge, and sums that round."""
  nm = NM.parse(pattern)
  rng = np.random.default_rng(1)
  x = np.concatenate(
    [
      np.full((nm.m, 50), 1 / 3),
      10.0 ** rng.uniform(-15, 15, (nm.m, 200)),
      rng.choice([0.1, 0.3, 1e-8], (nm.m, 200)),
      1 + 1e-7 * rng.integers(0, 3, (nm.m, 50)),
    ],
    axis=1,
  ).astype(np.float32)
  p = np.asarray(mvue_probabilities(x_(x), nm))
  assert (p.sum(0) <= nm.n * (1 + 1e-5)).all() and (p >= 0).all()
  sample = np.asarray(draws(x_(x), nm, 200))
  assert np.isfinite(sample).all()
  assert ((sample != 0).sum(1) == nm.n).mean() > 0.9999
  assert ((sample != 0).sum(1) <= nm.n).all()


def test_what_is_certain_is_returned_to_the_bit():
  x = jnp.array([[0.0, 0, 0, 0], [0, -3.3, 0, 0], [1e-30, 0, 0, 2]]).T
  np.testing.assert_array_equal(mvue(jax.random.key(0), x, "2:4"), x)
  assert mvue(jax.random.key(0), x, "4:4") is x
  zeros = mvue_probabilities(jnp.zeros((4, 2)), "1:4")
  np.testing.assert_array_equal(zeros, jnp.zeros((4, 2)))
  big = jnp.array([[3e38, 3e38, 3e38, 3e38]]).T
  np.testing.assert_allclose(mvue_probabilities(big, "2:4"), 0.5)


def test_an_overflow_stays_visible():
  inf, nan = jnp.inf, jnp.nan
  x = jnp.array([[inf, 1, 2, 3], [nan, 1, -inf, 0], [nan, nan, inf, 1]]).T
  for seed in range(5):
    out = mvue(jax.random.key(seed), x, "2:4")
    assert is_nm(out, "2:4")
    assert (~jnp.isfinite(out)).sum(0).tolist() == [1, 2, 2]
    assert not out[1:, 0].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_drawn_in_float32(dtype):
  x = jax.random.normal(jax.random.key(0), (8, 16)).astype(dtype)
  out = mvue(jax.random.key(1), x, "2:4")
  wide = mvue(jax.random.key(1), x.astype(jnp.float32), "2:4")
  assert out.dtype == dtype
  np.testing.assert_array_equal(out, wide.astype(dtype))


def test_axes_keys_and_vmap():
  x = jax.random.normal(jax.random.key(0), (4, 3, 4))
  key = jax.random.key(1)
  for axis in (0, -1, (0, 2), (2, 0)):
    assert is_nm(mvue(key, x, "1:4", axis), "1:4", axis)
  np.testing.assert_array_equal(
    mvue(key, x[:, :, 0], "2:4", 0), mvue(key, x[:, :, 0], "2:4", 0)
  )
  other = mvue(jax.random.key(2), x, "1:4", 0)
  assert not jnp.array_equal(mvue(key, x, "1:4", 0), other)
  many = jax.vmap(lambda k: mvue(k, x, "1:4", 0))(jnp.stack([key] * 2))
  np.testing.assert_allclose(many[1], mvue(key, x, "1:4", 0), rtol=1e-6)
  with pytest.raises(ValueError, match="not a multiple of m=4"):
    mvue(key, jnp.ones((6, 2)), "2:4")
