"""Every transform against numpy, on the trees of four libraries."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytestmark = pytest.mark.standard_promotion
STEPS = 20


def plain():
  return {"a": [jnp.ones((4, 3)), jnp.ones(3)], "b": {0: jnp.ones((3, 2))}}


def linen():
  model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
  return model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]


def equinox():
  """A module whose activation is None in the filtered tree."""
  model = eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0))
  params = eqx.filter(model, eqx.is_inexact_array)
  assert params.activation is None
  return params


def nnx_dict():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.List(
        [nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)]
      )

  return nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(0)), nnx.Param))


def nnx_state():
  return nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param)


TREES = {fn.__name__: fn for fn in (plain, linen, equinox, nnx_dict, nnx_state)}


def histories(params):
  """Weights, gradients and masks of every step, as lists over flat leaves."""
  rng = np.random.default_rng(0)
  shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
  draw = lambda shape: np.float32(rng.normal(size=shape))  # noqa: E731
  weights = [[draw(s) for s in shapes] for _ in range(STEPS)]
  grads = [[draw(s) for s in shapes] for _ in range(STEPS)]
  masks = []
  for t in range(STEPS):
    changed = t % 3 == 0
    masks.append(
      [(rng.random(s) < 0.5) if len(s) > 1 else None for s in shapes]
      if changed
      else masks[-1]
    )
  return weights, grads, masks


@pytest.mark.parametrize("tree", TREES)
def test_twenty_steps_equal_numpy(row, tree):
  params = TREES[tree]()
  treedef = jax.tree.structure(params)
  weights, grads, masks = histories(params)
  tx, traces = row.make(), []

  @jax.jit
  def update(*args, masks):
    traces.append(1)
    return tx.update(*args, masks=masks)

  state = tx.init(params)
  got = []
  for w, g, m in zip(weights, grads, masks):
    as_tree = lambda leaves: treedef.unflatten(  # noqa: E731
      [None if x is None else jnp.asarray(x) for x in leaves]
    )
    updates, state = update(as_tree(g), state, as_tree(w), masks=as_tree(m))
    assert jax.tree.structure(updates) == treedef
    got.append(jax.tree.leaves(updates))
  assert len(traces) == 1

  for i in range(treedef.num_leaves):
    leaf = lambda history, i=i: [step[i] for step in history]  # noqa: E731
    wanted = row.reference(leaf(weights), leaf(grads), leaf(masks))
    for ours, theirs in zip(leaf(got), wanted, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)
