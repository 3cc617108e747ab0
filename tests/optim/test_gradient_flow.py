"""gradient_flow: kept entries get u, pruned ones D(t) * u, exactly 0 at D=0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import gradient_flow

MASK = np.array([[True, False, True], [False, False, True]])
MASKS = {"w": jnp.asarray(MASK), "b": None}


def test_twenty_steps_equal_numpy():
  decay = lambda t: jnp.maximum(1 - t.astype(jnp.float32) / 10, 0)  # noqa: E731
  tx = gradient_flow(decay)
  rng = np.random.default_rng(0)
  state, update = tx.init({}), jax.jit(tx.update)
  for t in range(20):
    gw, gb = rng.normal(size=(2, 3)), rng.normal(size=4)
    grads = {"w": jnp.float32(gw), "b": jnp.float32(gb)}
    updates, state = update(grads, state, masks=MASKS)
    d = max(1 - t / 10, 0)
    np.testing.assert_allclose(updates["w"], gw * (MASK + d * ~MASK), rtol=1e-5)
    np.testing.assert_array_equal(updates["b"], np.float32(gb))
    if t >= 10:
      assert not np.any(np.asarray(updates["w"])[~MASK])


def test_at_zero_even_nan_gradients_are_gone():
  grads = {"w": jnp.array([jnp.nan, jnp.inf, 1.0])}
  masks = {"w": jnp.array([False, False, True])}
  tx = gradient_flow(0.0)
  updates, _ = tx.update(grads, tx.init(grads), masks=masks)
  np.testing.assert_array_equal(updates["w"], [0.0, 0.0, 1.0])


def test_usable_without_our_layers():
  """Masked weights stay as they are, in a plain loop with plain optax."""
  tx = optax.chain(gradient_flow(0.0), optax.sgd(0.1))
  params, masks = {"w": jnp.ones(4)}, {"w": jnp.arange(4) < 2}
  state = tx.init(params)
  for _ in range(3):
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
    updates, state = tx.update(grads, state, params, masks=masks)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["w"], [0.512, 0.512, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_decay_outside_the_unit_interval(decay):
  with pytest.raises(ValueError, match=r"\[0, 1\]"):
    gradient_flow(decay)
