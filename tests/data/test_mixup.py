"""Laws of the blends: convex, of mass one, undone by alpha = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.data.mixup import cutmix, mixup

CLASSES = 5
cases = given(
  seed=st.integers(0, 2**31 - 1),
  batch=st.sampled_from([1, 2, 5]),
  alpha=st.sampled_from([0.1, 1.0]),
)
few = settings(deadline=None, max_examples=25)


def batch_of(seed, batch, size=6):
  keys = jax.random.split(jax.random.key(seed), 3)
  images = jax.random.normal(keys[0], (batch, size, size + 2, 3))
  labels = jax.random.randint(keys[1], (batch,), 0, CLASSES)
  return keys[2], images, jax.nn.one_hot(labels, CLASSES)


@few
@cases
@pytest.mark.parametrize("blend", [mixup, cutmix])
def test_labels_keep_their_mass(blend, seed, batch, alpha):
  key, images, labels = batch_of(seed, batch)
  mixed, soft = blend(key, images, labels, alpha)
  assert mixed.shape == images.shape
  assert mixed.dtype == images.dtype
  np.testing.assert_allclose(soft.sum(axis=-1), 1, rtol=1e-6)
  assert bool((soft >= 0).all())


@few
@cases
def test_mixup_is_one_convex_combination_of_neighbours(seed, batch, alpha):
  key, images, _ = batch_of(seed, batch)
  # Labels that are distinct rows show the share.
  labels = np.eye(batch, dtype=np.float32)
  mixed, soft = mixup(key, images, jnp.asarray(labels), alpha)
  share = float(soft[0, 0])
  assert 0.5 <= share <= 1
  images = np.asarray(images)
  neighbour = np.roll(images, 1, axis=0)
  np.testing.assert_allclose(
    mixed, share * images + (1 - share) * neighbour, atol=1e-5
  )
  np.testing.assert_allclose(
    soft, share * labels + (1 - share) * np.roll(labels, 1, axis=0), atol=1e-6
  )


@few
@cases
def test_cutmix_pastes_one_box_and_counts_its_pixels(seed, batch, alpha):
  key = batch_of(seed, batch)[0]
  shape = (batch, 6, 8, 1)
  numbers = np.arange(batch, dtype=np.float32).reshape(-1, 1, 1, 1)
  images = np.broadcast_to(numbers, shape)
  mixed, soft = cutmix(key, jnp.asarray(images), jnp.eye(batch), alpha)
  pasted = np.asarray(mixed) != images
  if batch == 1:
    return
  assert (pasted == pasted[:1]).all(), "the same box everywhere"
  rows, columns = pasted[0, ..., 0].any(1), pasted[0, ..., 0].any(0)
  np.testing.assert_array_equal(
    pasted[0, ..., 0], rows[:, None] & columns[None, :]
  )
  for edge in (rows, columns):
    assert np.abs(np.diff(edge.astype(int), prepend=0, append=0)).sum() in (
      0,
      2,
    )
  np.testing.assert_allclose(soft[0, 0], 1 - pasted[0].mean(), atol=1e-6)


@pytest.mark.parametrize("blend", [mixup, cutmix])
def test_alpha_zero_changes_nothing(blend):
  key, images, labels = batch_of(0, 4)
  mixed, soft = blend(key, images, labels, 0.0)
  assert mixed is images
  assert soft is labels


@pytest.mark.parametrize("blend", [mixup, cutmix])
def test_the_key_decides_and_jit_agrees(blend):
  key, images, labels = batch_of(1, 4)
  first = blend(key, images, labels, 1.0)
  again = blend(key, images, labels, 1.0)
  other = blend(jax.random.key(99), images, labels, 1.0)
  jitted = jax.jit(blend, static_argnums=3)(key, images, labels, 1.0)
  for a, b, c, d in zip(first, again, other, jitted):
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    np.testing.assert_allclose(a, d, atol=1e-6)


def test_shares_follow_the_folded_beta():
  alpha, draws = 0.5, 2000
  labels = jnp.eye(2)
  images = jnp.zeros((2, 1, 1, 1))
  keys = jax.random.split(jax.random.key(0), draws)
  shares = jax.vmap(lambda k: mixup(k, images, labels, alpha)[1][0, 0])(keys)
  # E max(b, 1-b) for Beta(.5, .5), the arcsine law, is 1/2 + 1/pi.
  assert abs(float(shares.mean()) - (0.5 + 1 / np.pi)) < 0.015


def test_bfloat16_stays_bfloat16():
  key, images, labels = batch_of(2, 3)
  mixed, soft = mixup(key, images.astype(jnp.bfloat16), labels, 0.5)
  assert mixed.dtype == jnp.bfloat16
  assert soft.dtype == jnp.float32


@pytest.mark.parametrize("blend", [mixup, cutmix])
def test_a_negative_alpha_is_refused(blend):
  with pytest.raises(ValueError, match="alpha=-1"):
    blend(*batch_of(0, 2), -1.0)
