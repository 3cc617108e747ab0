"""Scores against their equations in numpy, and what becomes of NaN."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core import is_nm, nm_mask
from figs_jax.core.scores import (
  activation,
  magnitude,
  random_order,
  random_scores,
  random_words,
  saliency,
  uniform,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equations(dtype):
  rng = np.random.default_rng(0)
  w = jnp.asarray(rng.normal(size=(4, 6)).astype(dtype))
  g = jnp.asarray(rng.normal(size=(4, 6)).astype("float32"))
  norms = np.abs(rng.normal(size=4)).astype("float32")
  wide = np.asarray(w).astype("float32")
  assert magnitude(w).dtype == w.dtype
  np.testing.assert_array_equal(magnitude(w).astype("float32"), abs(wide))
  np.testing.assert_array_equal(saliency(w, g), abs(wide * np.asarray(g)))
  np.testing.assert_allclose(
    activation(w, norms), abs(wide) * norms[:, None], rtol=1e-6
  )


def test_the_least_integer_is_the_largest():
  weight = jnp.array([-128, 127, -127, 0], jnp.int8)
  assert magnitude(weight).tolist() == [128, 127, 127, 0]
  mask = nm_mask(magnitude(weight), "1:4", axis=0)
  assert mask.tolist() == [True, False, False, False]


def test_saliency_is_the_first_order_change_of_the_loss():
  w = jax.random.normal(jax.random.key(0), (3, 2))
  a = jax.random.normal(jax.random.key(1), (3, 2))

  def loss(w):  # linear, so that the first order is all of it
    return jnp.sum(a * w)

  score = saliency(w, jax.grad(loss)(w))
  for i, j in np.ndindex(3, 2):
    change = abs(loss(w.at[i, j].set(0.0)) - loss(w))
    assert float(score[i, j]) == pytest.approx(float(change), rel=1e-4)


def test_small_half_precision_products_do_not_underflow():
  w = jnp.asarray([1e-5, 3e-5], jnp.float16)
  score = saliency(w, w)
  assert score.dtype == jnp.float32 and 0 < score[0] < score[1]
  with jax.enable_x64(True):
    wide = saliency(jnp.ones(2, jnp.float64), jnp.ones(2, jnp.bfloat16))
    assert wide.dtype == jnp.float64


@pytest.mark.parametrize("axis", [0, 2, -1, (0, 2), (2, 0), (1, 0, 2)])
def test_activation_takes_any_axes(axis):
  rng = np.random.default_rng(1)
  w = rng.normal(size=(2, 3, 4)).astype("float32")
  axes = tuple(a % 3 for a in np.atleast_1d(axis))
  norms = rng.random(tuple(w.shape[a] for a in axes)).astype("float32")
  score = activation(w, norms, axis)
  for index in np.ndindex(*w.shape):
    expected = abs(w[index]) * norms[tuple(index[a] for a in axes)]
    assert score[index] == expected


def test_nan_is_pruned_first():
  nan, inf = jnp.nan, jnp.inf
  w = jnp.array([nan, 1.0, -2.0, 0.0])
  g = jnp.array([5.0, nan, 0.1, inf])
  for score, kept in (
    (magnitude(w), [1, 2]),
    (saliency(w, g), [0, 2]),  # the only number, then the first NaN
    (activation(w, jnp.array([1.0, 1.0, nan, 1.0]), 0), [1, 3]),
  ):
    mask = nm_mask(score, "2:4", 0)
    np.testing.assert_array_equal(np.flatnonzero(mask), kept)


def test_random_scores_make_uniform_masks():
  scores = random_scores(jax.random.key(0), (4, 20_000))
  assert scores.dtype == jnp.float32
  mask = nm_mask(scores, "2:4")
  assert is_nm(mask, "2:4")
  np.testing.assert_allclose(mask.mean(1), 0.5, atol=0.02)  # 5 standard errors
  again = random_scores(jax.random.key(0), (4, 20_000))
  np.testing.assert_array_equal(scores, again)
  assert (scores != random_scores(jax.random.key(1), (4, 20_000))).any()


def test_bad_shapes_are_named(unchecked):
  w = jnp.ones((4, 6))
  with pytest.raises(ValueError, match=r"shape \(4, 6\), got \(6,\)"):
    saliency(w, jnp.ones(6))
  with pytest.raises(
    ValueError, match=r"one norm per input feature, of shape \(4,\)"
  ):
    activation(w, jnp.ones(6))
  with pytest.raises(ValueError, match="within -2..1"):
    activation(w, jnp.ones(6), 2)


@pytest.mark.parametrize("n, m", [(1, 8), (2, 4), (3, 6), (2, 32)])
def test_random_order_makes_every_subset_as_likely(n, m):
  """Chi-square over all C(m, n) subsets, within 4.5 standard deviations."""
  groups = 200_000
  scores = random_order(jax.random.key(7), (m, groups), m)
  kept = np.asarray(nm_mask(scores, f"{n}:{m}"))
  subsets = {c: i for i, c in enumerate(itertools.combinations(range(m), n))}
  places = np.nonzero(kept.T)[1].reshape(groups, n)
  counts = np.bincount(
    [subsets[tuple(c)] for c in places.tolist()], minlength=len(subsets)
  )
  expected, freedom = groups / len(subsets), len(subsets) - 1
  chi = ((counts - expected) ** 2 / expected).sum()
  assert abs(chi - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_random_words_are_uniform_and_unrelated():
  """Moments of words, of neighbours and between keys, streams and steps."""
  count = 50_000
  keys = [jax.random.key(0), jax.random.key(1)]
  keys.append(jax.random.fold_in(keys[0], 1))
  words = [random_words(key, (count,)) for key in keys]
  words += [random_words(keys[0], (count,), stream=s) for s in (1, 2)]
  for word in words:
    assert len(np.unique(word)) == count
    bits = (np.asarray(word)[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(count)
  draws = np.array([uniform(word) for word in words])
  draws = np.concatenate([draws, draws[:1, np.r_[1:count, 0]]])
  spread = np.corrcoef(draws) - np.eye(len(draws))
  assert abs(spread).max() < 4.5 / np.sqrt(count)
  assert draws.min() >= 0 and draws.max() < 1
  shaped = random_words(keys[0], (4, count // 4))
  np.testing.assert_array_equal(shaped.ravel(), words[0])


def test_the_order_does_not_depend_on_the_rounding():
  """Both may share a key, as in `regrow_mask`: chi-square over 8 x 8 cells."""
  groups, key = 80_000, jax.random.key(3)
  first = np.argmax(random_order(key, (8, groups), 8), 0)
  eighth = np.asarray(uniform(random_words(key, (1, 1, groups))) * 8).astype(
    int
  )
  counts = np.bincount(first * 8 + eighth.ravel(), minlength=64)
  chi = ((counts - groups / 64) ** 2 / (groups / 64)).sum()
  assert abs(chi - 63) < 4.5 * np.sqrt(2 * 63)
