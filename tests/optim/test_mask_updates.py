"""mask_updates: pruned weights stay where they are, or become exactly 0."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import MaskUpdatesState, mask_updates

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
MASK = np.array([True, False, True, False])


def apply(tx, params, grads, masks):
  updates, _ = tx.update(grads, tx.init(params), params, masks=masks)
  return optax.apply_updates(params, updates)


@pytest.mark.standard_promotion
def test_pruned_weights_stay_under_momentum_and_weight_decay():
  tx = optax.chain(optax.adamw(0.1, weight_decay=0.5), mask_updates())
  params = {"w": jnp.ones(4), "b": jnp.ones(2)}
  masks = {"w": jnp.asarray(MASK), "b": None}
  state, update = tx.init(params), jax.jit(tx.update)
  plain = optax.adamw(0.1, weight_decay=0.5)
  free, free_state = params, plain.init(params)
  for t in range(20):
    grads = jax.tree.map(lambda p, t=t: jnp.sin(p + t), params)
    updates, state = update(grads, state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    updates, free_state = plain.update(grads, free_state, free)
    free = optax.apply_updates(free, updates)
  np.testing.assert_array_equal(params["w"][~MASK], 1.0)
  np.testing.assert_allclose(params["w"][MASK], free["w"][MASK], rtol=1e-5)
  np.testing.assert_allclose(params["b"], free["b"], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_whatever_the_update_holds(bad):
  params, grads = {"w": jnp.ones(4)}, {"w": jnp.full(4, bad)}
  masks = {"w": jnp.asarray(MASK)}
  after = apply(mask_updates(), params, grads, masks)
  np.testing.assert_array_equal(after["w"][~MASK], 1.0)
  after = apply(mask_updates(clear=True), params, grads, masks)
  np.testing.assert_array_equal(after["w"][~MASK], 0.0)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
  "weight,update", list(itertools.product(FLOATS, FLOATS))
)
def test_clear_is_exact_in_every_pair_of_dtypes(weight, update, compiled):
  tiny, big = jnp.finfo(weight).smallest_subnormal, jnp.finfo(weight).max
  values = jnp.array([1 / 3, -1 / 3, 7e-5, tiny, big, -big, 0.0, -0.0], weight)
  masks = {"w": jnp.zeros(8, bool)}
  grads = {"w": jnp.full(8, 0.1, update)}
  fn = lambda p: apply(mask_updates(clear=True), {"w": p}, grads, masks)  # noqa: E731
  after = (jax.jit(fn) if compiled else fn)(values)["w"]
  assert after.dtype == weight
  np.testing.assert_array_equal(after, np.zeros(8, weight))


def test_what_clear_cannot_do():
  """Nothing can be added to these that gives 0; their neighbours are fine."""
  params = {"w": jnp.array([jnp.inf, -jnp.inf, jnp.nan, 2.0])}
  masks = {"w": jnp.zeros(4, bool)}
  after = apply(mask_updates(clear=True), params, {"w": jnp.zeros(4)}, masks)[
    "w"
  ]
  np.testing.assert_array_equal(after, [np.nan, np.nan, np.nan, 0.0])


def test_clear_needs_the_params():
  tx, w = mask_updates(clear=True), {"w": jnp.ones(4)}
  with pytest.raises(ValueError, match="needs the params"):
    tx.update(w, tx.init(w), masks={"w": jnp.asarray(MASK)})


def test_its_state_is_empty_and_found_by_type():
  state = optax.chain(optax.sgd(0.1), mask_updates()).init({"w": jnp.ones(4)})
  is_ours = lambda node: isinstance(node, MaskUpdatesState)  # noqa: E731
  assert any(map(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))
  assert not jax.tree.leaves(state[1])
