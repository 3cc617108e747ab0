"""Sound runs under jax_debug_infs and jax_debug_nans, eagerly."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel

# optax raises a float to an integer power.
pytestmark = pytest.mark.standard_promotion


@contextlib.contextmanager
def checked():
  with jax.debug_infs(True), jax.debug_nans(True):
    yield


@pytest.mark.parametrize("name", recipes.names())
def test_three_steps_without_an_infinity_or_a_nan(name):
  soon = {"refresh_every": 1} if name in ("rigl", "set") else {}
  if name == "slope":  # its other parts are those of layers
    soon = {"double_pruned": False, "rank": 0}
  recipe = recipes.create(name, "2:4", 4, **soon)
  bound = recipe.bind({"w": MaskedKernel((16, 4), NM(2, 4), 0)})
  params = {"w": jax.random.normal(jax.random.key(0), (16, 4))}
  tx = recipe.adamw(1e-3)
  with checked():
    masks, opt_state = bound.masks(0, params), tx.init(params)
    scales = bound.scales(params)
    for step in range(3):
      leak = recipe.at(step, recipe.switched(opt_state)).leak

      def loss(params, masks=masks, leak=leak):
        return jnp.sum(bound.effective(params, masks, leak, scales)["w"] ** 2)

      grads = jax.grad(loss)(params)
      updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
      params = optax.apply_updates(params, updates)
      switched = recipe.switched(opt_state)
      masks = bound.masks(step + 1, params, masks, switched, grads=grads)
    last = bound.final(params, masks, 3, switched)
    finished = bound.finish(params, last, scales)
    assert jnp.isfinite(finished["w"]).all()


def test_an_infinity_is_seen():
  with checked(), pytest.raises(FloatingPointError):
    jnp.where(jnp.array([True]), jnp.inf, 0.0)
