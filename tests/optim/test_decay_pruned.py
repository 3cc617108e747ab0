"""decay_pruned against SR-STE written out in numpy, and where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import decay_pruned

MASK = np.array([[True, False, True], [False, False, True]])
MASKS = {"w": jnp.asarray(MASK), "b": None}


def grads_of(steps, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(steps, 2, 3)), rng.normal(size=(steps, 4))


def run(tx, steps=20, masks=MASKS):
  """Parameters after every step."""
  params = {"w": jnp.ones((2, 3)) * 0.5, "b": jnp.ones(4)}
  state, update = tx.init(params), jax.jit(tx.update)
  history = []
  for gw, gb in zip(*grads_of(steps)):
    grads = {"w": jnp.float32(gw), "b": jnp.float32(gb)}
    updates, state = update(grads, state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history


def adam_in_numpy(steps, lr, into_grad=None, decoupled=None):
  """Adam (b1 .9, b2 .999, eps 1e-8) with λ(t) * not m * w in either place."""
  w, b = np.full((2, 3), 0.5), np.ones(4)
  mw, vw, mb, vb = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(4), np.zeros(4)
  history = []
  for t, (gw, gb) in enumerate(zip(*grads_of(steps))):
    pull = ~MASK * w
    gw = gw + (into_grad(t) * pull if into_grad else 0)
    mw, vw = 0.9 * mw + 0.1 * gw, 0.999 * vw + 0.001 * gw**2
    mb, vb = 0.9 * mb + 0.1 * gb, 0.999 * vb + 0.001 * gb**2
    c1, c2 = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
    w = w - lr * (mw / c1) / (np.sqrt(vw / c2) + 1e-8)
    w = w - (lr * decoupled(t) * pull if decoupled else 0)
    b = b - lr * (mb / c1) / (np.sqrt(vb / c2) + 1e-8)
    history.append({"w": w, "b": b})
  return history


def close(got, wanted):
  for ours, theirs in zip(got, wanted, strict=True):
    for key in theirs:
      np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


def test_sgd_with_a_schedule_equals_numpy():
  tx = optax.chain(
    decay_pruned(0.3, schedule=lambda t: 1 / (1 + t)), optax.sgd(0.1)
  )
  w, b, wanted = np.full((2, 3), 0.5), np.ones(4), []
  for t, (gw, gb) in enumerate(zip(*grads_of(20))):
    w = w - 0.1 * (gw + 0.3 / (1 + t) * ~MASK * w)
    b = b - 0.1 * gb
    wanted.append({"w": w, "b": b})
  close(run(tx), wanted)


@pytest.mark.standard_promotion
def test_into_grad_goes_through_adams_moments():
  tx = optax.chain(decay_pruned(0.3), optax.adam(0.05))
  close(run(tx), adam_in_numpy(20, 0.05, into_grad=lambda t: 0.3))


@pytest.mark.standard_promotion
def test_decoupled_goes_around_them():
  tx = optax.chain(
    optax.scale_by_adam(),
    decay_pruned(0.3, "decoupled"),
    optax.scale_by_learning_rate(0.05),
  )
  close(run(tx), adam_in_numpy(20, 0.05, decoupled=lambda t: 0.3))


def test_a_pruned_nan_stays_where_it_is():
  tx = decay_pruned(1.0)
  w = {"w": jnp.array([jnp.nan, jnp.inf, 2.0])}
  masks = {"w": jnp.array([True, True, False])}
  updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(w), w, masks=masks)
  np.testing.assert_array_equal(updates["w"], [1.0, 1.0, 3.0])


def test_illegal_arguments_say_what_is_legal():
  with pytest.raises(ValueError, match="Known: into_grad, decoupled"):
    decay_pruned(mode="into_gradient")
  with pytest.raises(ValueError, match="at least 0"):
    decay_pruned(-1e-4)
  tx = decay_pruned()
  grads = {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}
  with pytest.raises(ValueError, match="needs the params"):
    tx.update(grads, tx.init(grads), masks=MASKS)
