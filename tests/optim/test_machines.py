"""Every transform under donation, on eight devices, and stopped and resumed."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

PARAMS = {"w": jnp.linspace(-1, 1, 128).reshape(16, 8), "b": jnp.ones(8)}
MASKS = {"w": jnp.arange(128).reshape(16, 8) % 3 == 0, "b": None}


def grads_at(t, params=PARAMS):
  return jax.tree.map(lambda p: jnp.sin(p * (t + 1)), params)


def masks_at(t):
  mask = np.arange(128).reshape(16, 8) % 3 == t // 2 % 3
  return {"w": jnp.asarray(mask), "b": None}


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_donated_state_gives_the_same(make):
  tx = make()
  plain = jax.jit(lambda s, g, m: tx.update(g, s, PARAMS, masks=m))
  donated = jax.jit(
    lambda s, g, m: tx.update(g, s, PARAMS, masks=m), donate_argnums=0
  )
  a, b = tx.init(PARAMS), tx.init(PARAMS)
  for t in range(6):
    before = b
    x, a = plain(a, grads_at(t), masks_at(t))
    y, b = donated(b, grads_at(t), masks_at(t))  # unusable donation warns
    same((x, a), (y, b))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


@pytest.mark.parametrize("spec", [("d", None), (None, "d")])
def test_shards_without_collectives(row, spec):
  """None at all, but for the scalar mean of STEP's criterion."""
  mesh = jax.make_mesh((8,), ("d",))
  rows = NamedSharding(mesh, PartitionSpec(*spec))
  whole = NamedSharding(mesh, PartitionSpec())

  def place(x):
    return jax.device_put(x, rows if x.shape == (16, 8) else whole)

  tx = row.make()
  state, plain = jax.tree.map(place, tx.init(PARAMS)), tx.init(PARAMS)
  params, masks = jax.tree.map(place, (PARAMS, MASKS))
  update = jax.jit(lambda g, s, p, m: tx.update(g, s, p, masks=m))
  grads = jax.tree.map(place, grads_at(0))
  hlo = update.lower(grads, state, params, masks).compile().as_text()
  collectives = re.findall(
    r"= (\S+) (all-reduce|all-gather|all-to-all|reduce-scatter"
    r"|collective-permute)(?:-start)?\(",
    hlo,
  )
  if row.collectives:
    assert collectives and {shape for shape, _ in collectives} == {"f32[]"}
  else:
    assert not collectives
  for t in range(6):
    grads = grads_at(t)
    updates, state = update(jax.tree.map(place, grads), state, params, masks)
    wanted, plain = update(grads, plain, PARAMS, MASKS)
    assert updates["w"].sharding.is_equivalent_to(rows, 2)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      updates,
      wanted,
    )


def test_resumes_at_any_step(make):
  """From the arrays of the state alone, bit for bit."""
  tx = make()
  update = jax.jit(lambda g, s, m: tx.update(g, s, PARAMS, masks=m))
  state, saved, out = tx.init(PARAMS), [], []
  for t in range(8):
    saved.append(pickle.dumps([np.asarray(x) for x in jax.tree.leaves(state)]))
    updates, state = update(grads_at(t), state, masks_at(t))
    out.append((updates, state))
  for start in range(8):
    treedef = jax.tree.structure(tx.init(PARAMS))
    resumed = treedef.unflatten(map(jnp.asarray, pickle.loads(saved[start])))
    for t in range(start, 8):
      updates, resumed = update(grads_at(t), resumed, masks_at(t))
      same((updates, resumed), out[t])
