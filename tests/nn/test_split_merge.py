"""split and merge inside every transform, and seeded random streams."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from figs_jax import nn
from figs_jax.core import tree


class Foreign(nnx.Module):
  """A model that knows nothing of us, with every kind of state."""

  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    for layer in self.layers:
      x = self.dropout(nnx.relu(self.norm(layer(x))))
    return self.head(x)


def foreign():
  model = Foreign(nnx.Rngs(0))
  return nn.sparsify(model, r"layers/.*: 1:4, head: dense")


def batch():
  return jax.random.normal(jax.random.key(1), (16, 8))


def test_the_trees_are_plain_and_keyed_alike():
  _, params, masks, rest = nn.split(foreign())
  assert type(params) is dict and type(params["layers"][0]) is dict
  flat, flat_masks = tree.flatten(params), tree.flatten(masks)
  assert set(flat) == set(flat_masks)
  kept = {path for path, mask in flat_masks.items() if mask is not None}
  assert kept == {"layers/0/kernel", "layers/1/kernel"}
  assert kept == set(nn.masked_leaves(foreign()))
  assert set(tree.flatten(rest)) == {
    "norm/mean",
    "norm/var",
    "dropout/rngs/key",
    "dropout/rngs/count",
  }


def test_merge_inverts_split_and_sets_the_leak():
  model = foreign()
  graphdef, params, masks, rest = nn.split(model)
  back = nn.merge(graphdef, params, masks, 0.25, rest)
  again = nn.split(back)
  assert again[0] == graphdef and hash(again[0]) == hash(graphdef)
  jax.tree.map(np.testing.assert_array_equal, again[1:3], (params, masks))
  assert {float(layer.leak[...]) for layer in back.layers} == {0.25}
  assert {float(layer.leak[...]) for layer in model.layers} == {0.0}


def test_dropout_and_batch_norm_train_under_every_transform():
  model = foreign()
  model.train()
  graphdef, params, masks, rest = nn.split(model)
  traces = []

  def loss(params, masks, rest, leak, key):
    traces.append(None)
    net = nn.merge(graphdef, params, masks, leak, nn.reseed(rest, key))
    value = (net(batch()) ** 2).mean()
    return value, nn.split(net)[3]

  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  key = jax.random.key(0)
  (value, new), grads = step(params, masks, rest, 0.5, key)
  (again, _), _ = step(params, masks, rest, 0.5, key)
  (other, _), _ = step(params, masks, rest, 0.5, jax.random.key(1))
  assert float(value) == float(again) != float(other)
  assert len(traces) == 1
  assert int(new["dropout"]["rngs"]["count"]) == 2
  assert not jnp.array_equal(new["norm"]["mean"], rest["norm"]["mean"])
  assert set(tree.flatten(grads)) == set(tree.flatten(params))

  several = jax.vmap(
    jax.value_and_grad(loss, has_aux=True), in_axes=(0, 0, 0, None, 0)
  )
  stack = jax.tree.map(
    lambda leaf: jnp.stack([leaf] * 2), (params, masks, rest)
  )
  keys = jnp.stack([key, jax.random.key(1)])
  (values, rests), _ = jax.jit(several)(*stack, 0.5, keys)
  np.testing.assert_allclose(values, [value, other], rtol=1e-5)
  np.testing.assert_allclose(
    rests["norm"]["mean"][0], new["norm"]["mean"], rtol=1e-5, atol=1e-6
  )

  def scanned(rest, key):
    (value, rest), _ = jax.value_and_grad(loss, has_aux=True)(
      params, masks, rest, 0.5, key
    )
    return rest, value

  _, values = jax.lax.scan(scanned, rest, keys)
  np.testing.assert_allclose(values[0], value, rtol=1e-5)


def test_streams_depend_on_the_key_and_their_place_alone():
  class Two(nnx.Module):
    def __init__(self, rngs):
      self.a, self.b = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

  rests = [nn.split(Two(nnx.Rngs(seed)))[3] for seed in (0, 1)]
  rests[1]["a"]["rngs"]["count"] += 5
  first, second = (nn.reseed(rest, jax.random.key(9)) for rest in rests)
  jax.tree.map(np.testing.assert_array_equal, *map(_data, (first, second)))
  keys = _data(first)
  assert not np.array_equal(keys["a"]["rngs"]["key"], keys["b"]["rngs"]["key"])
  assert int(first["a"]["rngs"]["count"]) == 0


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_reseeding_keeps_the_generator_and_the_shape(impl):
  stream = jax.random.split(jax.random.key(0, impl=impl), 3)
  rest = {"rngs": {"key": stream, "count": jnp.ones(3, jnp.uint32)}}
  new = jax.jit(nn.reseed)(rest, jax.random.key(1))["rngs"]
  assert new["key"].dtype == stream.dtype and new["key"].shape == (3,)
  assert len(np.unique(jax.random.key_data(new["key"]), axis=0)) == 3
  assert jnp.array_equal(new["count"], jnp.zeros(3, jnp.uint32))


def test_reseeding_touches_nothing_else():
  _, _, _, rest = nn.split(foreign())
  new = nn.reseed(rest, jax.random.key(1))
  assert new["norm"]["mean"] is rest["norm"]["mean"]
  assert jax.tree.structure(new) == jax.tree.structure(rest)


def test_masks_take_the_sharding_of_their_kernels():
  mesh = jax.make_mesh(
    (2,),
    ("model",),
    devices=jax.devices()[:2],
    axis_types=(jax.sharding.AxisType.Auto,),
  )
  metadata = {"out_sharding": (None, "model")}
  with jax.set_mesh(mesh):
    model = nnx.Linear(8, 4, kernel_metadata=metadata, rngs=nnx.Rngs(0))
    sparse = nn.sparsify(model, "1:4")
    kernel, mask = sparse.kernel[...], sparse.kernel_mask[...]
    assert mask.sharding.is_equivalent_to(kernel.sharding, 2)
    assert sparse.kernel_mask.get_metadata("out_sharding") == (None, "model")
    graphdef, params, masks, rest = nn.split(sparse)
    out = jax.jit(
      lambda p: nn.merge(graphdef, p, masks, 0.0, rest)(jnp.ones((2, 8)))
    )(params)
  want = np.where(mask, kernel, 0).sum(0)
  np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.standard_promotion
def test_a_sparse_network_learns():
  graphdef, params, masks, rest = nn.split(
    nn.sparsify(foreign(), "layers/.*: 1:2")
  )
  tx = optax.adam(1e-2)
  x = batch()
  y = jnp.argmax(x[:, :3], axis=1)

  def step(carry, key):
    params, state, rest = carry

    def loss(params):
      net = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
      value = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
      return value, nn.split(net)[3]

    (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state, rest), value

  keys = jax.random.split(jax.random.key(0), 200)
  _, losses = jax.lax.scan(step, (params, tx.init(params), rest), keys)
  assert losses[-20:].mean() < 0.7 * losses[:20].mean()


def _data(rest):
  return jax.tree.map(
    lambda leaf: (
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    rest,
  )
