"""with_flow: gradients derived by hand, and every way of building a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import nn
from figs_jax.core import NM, is_nm, tree
from figs_jax.core._flow import Flow
from figs_jax.core._mvue import mvue

LEAK = 0.25


def rngs():
  return nnx.Rngs(0)


LAYERS = {
  "linear": lambda: nn.SparseLinear(8, 5, pattern="1:4", rngs=rngs()),
  "vector": lambda: nn.SparseLinear(8, 5, pattern="1:4", rngs=rngs()),
  "general": lambda: nn.SparseLinearGeneral(
    (2, 4), (3, 2), axis=(-2, -1), pattern="2:4", rngs=rngs()
  ),
  "batched": lambda: nn.SparseLinearGeneral(
    4, 3, axis=-1, batch_axis={0: 2}, pattern="1:4", rngs=rngs()
  ),
  "einsum": lambda: nn.SparseEinsum(
    "bthd,hdo->bot", (2, 4, 3), pattern="1:4", rngs=rngs()
  ),
  "conv": lambda: nn.SparseConv(
    4, 3, (3,), padding="VALID", pattern="2:4", rngs=rngs()
  ),
}
INPUTS = {
  "linear": (2, 3, 8),
  "vector": (8,),
  "general": (5, 2, 4),
  "batched": (2, 5, 4),
  "einsum": (2, 3, 2, 4),
  "conv": (2, 6, 4),
}
# dy as [tokens, the rest], and back.
TO_TOKENS = {
  "linear": lambda dy: dy.reshape(6, 5),
  "vector": lambda dy: dy.reshape(1, 5),
  "general": lambda dy: dy.reshape(5, 6),
  "batched": lambda dy: dy.transpose(1, 0, 2).reshape(5, 6),
  "einsum": lambda dy: dy.transpose(0, 2, 1).reshape(6, 3),
  "conv": lambda dy: dy.reshape(8, 3),
}


def by_hand(name, x, dy, pruned, kernel):
  """(dW, dx, db) of the plain layer, dW from the pruned [tokens, rest]."""
  if name in ("linear", "vector"):
    flat = x.reshape(-1, 8)
    dx = (TO_TOKENS[name](dy) @ kernel.T).reshape(x.shape)
    return flat.T @ pruned, dx, dy.reshape(-1, 5).sum(0)
  if name == "general":
    pruned = pruned.reshape(5, 3, 2)
    dw = np.einsum("tab,tcd->abcd", x, pruned)
    return dw, np.einsum("tcd,abcd->tab", dy, kernel), dy.sum(0)
  if name == "batched":
    pruned = pruned.reshape(5, 2, 3)
    dw = np.einsum("eti,teo->eio", x, pruned)
    return dw, np.einsum("eto,eio->eti", dy, kernel), dy.sum(1)
  if name == "einsum":
    pruned = pruned.reshape(2, 3, 3)
    dw = np.einsum("bthd,bto->hdo", x, pruned)
    return dw, np.einsum("bot,hdo->bthd", dy, kernel), None
  pruned = pruned.reshape(2, 4, 3)
  dw = np.stack(
    [np.einsum("bpi,bpo->io", x[:, k : k + 4], pruned) for k in range(3)]
  )
  dx = np.zeros_like(x)
  for k in range(3):
    dx[:, k : k + 4] += dy @ kernel[k].T
  return dw, dx, dy.sum((0, 1))


def gradients(model, x, dy, leak=LEAK, key=None):
  """(out, {kernel, bias}, dx, rest) under <out, dy>, and the rest it used."""
  graphdef, params, masks, rest = nn.split(model)
  rest = rest if key is None else nn.reseed(rest, key)

  @jax.jit
  def run(params, x):
    def loss(params, x):
      net = nn.merge(graphdef, params, masks, leak, rest)
      out = net(x)
      return jnp.sum(out * dy), (out, nn.split(net)[3])

    grads, (out, after) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return out, grads, after

  out, (grads, dx), after = run(params, x)
  return out, grads, dx, (rest, after)


def example(name):
  keys = jax.random.split(jax.random.key(7), 2)
  model, x = LAYERS[name](), jax.random.normal(keys[0], INPUTS[name])
  dy = jax.random.normal(keys[1], model(x).shape)
  return model, x, dy


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_gradient_alone_is_pruned(name):
  model, x, dy = example(name)
  flow = Flow("damped", decay=0.1, mvue=NM(2, 4))
  plain = nn.with_flow(model, Flow("damped"))
  pruned = nn.with_flow(model, flow)
  out, grads, dx, (rest, after) = gradients(pruned, x, dy)
  np.testing.assert_array_equal(out, gradients(plain, x, dy)[0])

  kernel, mask = np.asarray(model.kernel[...]), model.kernel_mask[...]
  effective = np.where(mask, kernel, LEAK * kernel)
  stream = rest["neural_gradient"]["rngs"]
  key = jax.random.fold_in(stream["key"], 0)
  flat = TO_TOKENS[name](np.asarray(dy))
  padded = np.pad(flat, ((0, -len(flat) % 4), (0, 0)))
  kept = mvue(key, jnp.asarray(padded), "2:4", 0)
  assert is_nm(kept, "2:4", 0)
  dw, want_dx, db = by_hand(
    name,
    np.asarray(x),
    np.asarray(dy),
    np.asarray(kept)[: len(flat)],
    effective,
  )
  want = np.where(mask, dw, LEAK * dw + 0.1 * kernel)
  np.testing.assert_allclose(grads["kernel"], want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-5)
  if model.bias is not None:
    np.testing.assert_allclose(grads["bias"], db, rtol=1e-5, atol=1e-5)
  assert int(after["neural_gradient"]["rngs"]["count"]) == 1

  # The same by hand without pruning: the derivation itself is right.
  _, grads, dx, _ = gradients(plain, x, dy)
  dw, _, _ = by_hand(name, np.asarray(x), np.asarray(dy), flat, effective)
  want = np.where(mask, dw, LEAK * dw)
  np.testing.assert_allclose(grads["kernel"], want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-5)


def test_the_weight_gradient_is_unbiased_and_follows_its_key():
  model, x, dy = example("linear")
  exact = np.asarray(gradients(model, x, dy, 0.0)[1]["kernel"])
  pruned = nn.with_flow(model, Flow(mvue=NM(1, 2)))
  graphdef, params, masks, rest = nn.split(pruned)
  traces = []

  def one(key):
    traces.append(None)

    def loss(params):
      net = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
      return jnp.sum(net(x) * dy)

    return jax.grad(loss)(params)

  keys = jax.random.split(jax.random.key(0), 4000)
  many = jax.jit(jax.vmap(one))
  grads = many(keys)
  sample = np.asarray(grads["kernel"], np.float64)
  error = np.abs(sample.mean(0) - exact)
  assert (error <= 4 * sample.std(0) / np.sqrt(4000) + 1e-5).all()
  assert (sample.std(0) > 0).any()
  assert np.ptp(grads["bias"], axis=0).max() == 0
  again = many(keys)["kernel"]
  np.testing.assert_array_equal(again, grads["kernel"])
  many(jax.random.split(jax.random.key(1), 4000))
  assert len(traces) == 1


def test_nothing_is_computed_twice():
  """Forward, input gradient, weight gradient: three products, as without."""
  model, x, dy = example("linear")

  def products(flow):
    graphdef, params, masks, rest = nn.split(nn.with_flow(model, flow))

    def loss(params, x):
      out = nn.merge(graphdef, params, masks, 0.0, rest)(x)
      return jnp.sum(jnp.tanh(out) * dy)

    run = jax.jit(jax.grad(loss, (0, 1)))
    return run.lower(params, x).compile().as_text().count(" dot(")

  assert products(Flow(mvue=NM(1, 2))) == products(Flow()) > 0


def test_soft_layers_by_hand():
  model, x, dy = example("linear")
  soft = nn.with_flow(model, Flow(soft=True))
  kernel, mask = (np.asarray(v[...]) for v in (model.kernel, model.kernel_mask))
  size = np.abs(kernel).reshape(2, 4, 5)
  t = np.where(mask.reshape(2, 4, 5), 0, size).max(1, keepdims=True)
  s = np.sign(kernel) * np.maximum(size - t, 0).reshape(8, 5)
  beta = (kernel * s).sum() / (s * s).sum()
  assert float(soft.scale[...]) == pytest.approx(beta, rel=1e-5)
  assert set(tree.flatten(nn.split(soft)[3])) == {"scale"}
  out, grads, dx, _ = gradients(soft, x, dy, 0.0)
  want = np.asarray(x) @ (beta * s) + np.asarray(model.bias[...])
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
  flat_x, flat_dy = np.asarray(x).reshape(-1, 8), np.asarray(dy).reshape(-1, 5)
  np.testing.assert_allclose(  # straight through: no beta, no mask
    grads["kernel"], flat_x.T @ flat_dy, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(dx, dy @ (beta * s).T, rtol=1e-5, atol=1e-5)
  dense = gradients(soft, x, dy, 1.0)[0]
  want = np.asarray(x) @ kernel + np.asarray(model.bias[...])
  np.testing.assert_allclose(dense, want, rtol=1e-5, atol=1e-5)
  # The scale is fixed: another kernel keeps it.
  graphdef, params, masks, rest = nn.split(soft)
  params["kernel"] = 3 * params["kernel"]
  moved = nn.merge(graphdef, params, masks, 0.0, rest)
  assert jnp.array_equal(moved.scale[...], soft.scale[...])


def test_a_plain_flow_takes_everything_away_again():
  model, x, _ = example("linear")
  every = nn.with_flow(model, Flow(soft=True, mvue=NM(1, 2)))
  assert set(tree.flatten(nn.split(every)[3])) == {
    "scale",
    "neural_gradient/rngs/key",
    "neural_gradient/rngs/count",
  }
  assert every.kernel_mask[...] is model.kernel_mask[...]
  assert not hasattr(model, "scale") and model.flow == Flow()
  back = nn.with_flow(every, Flow())
  assert nn.split(back)[0] == nn.split(model)[0] and nn.split(back)[3] == {}
  assert nn.split(nn.sparsify(every, "1:4"))[0] == nn.split(model)[0]
  assert jnp.array_equal(back(x), model(x))
  dense = nn.with_flow(nn.SparseLinear(8, 5, rngs=rngs()), Flow(soft=True))
  assert nn.split(dense)[3] == {}


def test_evaluation_neither_draws_nor_prunes():
  model, x, dy = example("linear")
  pruned = nn.with_flow(model, Flow(mvue=NM(1, 2)))
  pruned.eval()
  _, grads, _, (_, after) = gradients(pruned, x, dy)
  np.testing.assert_array_equal(
    grads["kernel"], gradients(model, x, dy)[1]["kernel"]
  )
  assert int(after["neural_gradient"]["rngs"]["count"]) == 0
  pruned.train()
  pruned(x)
  assert int(pruned.neural_gradient.rngs.count[...]) == 1


class Tied(nnx.Module):
  def __init__(self):
    self.a = nnx.Linear(8, 8, rngs=rngs())
    self.b = nnx.Linear(8, 8, rngs=rngs())
    self.b.kernel = self.a.kernel

  def __call__(self, x):
    return self.b(self.a(x))


EVERY = Flow(soft=True, mvue=NM(1, 2))


def test_a_tied_kernel_has_one_scale_and_two_streams():
  model = nn.with_flow(nn.sparsify(Tied(), "1:4"), EVERY)
  assert model.a.scale is model.b.scale
  streams = [x.neural_gradient.rngs.key[...] for x in (model.a, model.b)]
  assert streams[0] != streams[1]
  x = jnp.ones((4, 8))
  _, grads, _, _ = gradients(model, x, jnp.ones((4, 8)), 0.0)
  assert jnp.isfinite(grads["a"]["kernel"]).all()


def test_abstract_models():
  def build():
    return nn.sparsify(Tied(), "1:4")

  inside = nnx.eval_shape(lambda: nn.with_flow(build(), EVERY))
  outside = nn.with_flow(nnx.eval_shape(build), EVERY)
  real = nn.with_flow(build(), EVERY)
  shapes = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nn.split(model)[1:])
    for model in (inside, outside, real)
  ]
  assert shapes[0] == shapes[1] == shapes[2]
  assert nn.split(outside)[0] == nn.split(real)[0]


def test_stacked_layers_are_scanned_with_scales_and_streams_of_their_own():
  @nnx.vmap
  def stack(key):
    return nn.SparseLinear(8, 8, pattern="1:4", rngs=nnx.Rngs(key))

  layers = nn.with_flow(stack(jax.random.split(jax.random.key(0), 3)), EVERY)
  assert layers.scale.shape == layers.leak.shape == (3,)
  assert layers.neural_gradient.rngs.key.shape == (3,)
  graphdef, params, masks, rest = nn.split(layers)
  x = jax.random.normal(jax.random.key(1), (4, 8))

  @jax.jit
  def run(params, key):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
      return layer(x)

    def loss(params):
      net = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
      out = forward(x, net)
      return (out**2).sum(), out

    return jax.grad(loss, has_aux=True)(params)

  grads, out = run(params, jax.random.key(0))
  want = x
  for i in range(3):
    one = nn.SparseLinear(8, 8, pattern="1:4", rngs=rngs())
    one.kernel[...] = params["kernel"][i]
    one.kernel_mask[...] = masks["kernel"][i]
    one = nn.with_flow(one, Flow(soft=True))
    np.testing.assert_allclose(one.scale[...], rest["scale"][i], rtol=1e-6)
    want = one(want)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
  other, _ = run(params, jax.random.key(1))
  differ = jnp.abs(grads["kernel"] - other["kernel"]).max((1, 2))
  assert (differ > 0).all()


def test_many_seeds_at_once():
  def build(seed):
    model = nn.SparseLinear(8, 5, pattern="1:4", rngs=nnx.Rngs(seed))
    return nn.with_flow(model, EVERY)

  models = [nn.split(build(seed)) for seed in range(2)]
  graphdef, keys = models[0][0], jax.random.split(jax.random.key(3), 2)
  x = jax.random.normal(jax.random.key(1), (4, 8))

  @jax.jit
  def step(params, masks, rest, key):
    def loss(params):
      net = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
      return (net(x) ** 2).sum()

    return jax.grad(loss)(params)["kernel"]

  stacked = jax.tree.map(lambda *a: jnp.stack(a), *(m[1:] for m in models))
  many = jax.vmap(step)(*stacked, keys)
  for i, (model, key) in enumerate(zip(models, keys)):
    np.testing.assert_allclose(many[i], step(*model[1:], key), rtol=1e-4)


def test_a_layer_with_noise_of_its_own_sees_the_same_in_both_branches():
  class Noisy(nnx.Linear):
    def __init__(self, *args, rngs):
      super().__init__(*args, rngs=rngs)
      self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
      return self.dropout(super().__call__(x))

  model = Noisy(8, 5, rngs=nnx.Rngs(params=0, dropout=1))
  model = nn.with_flow(nn.sparsify(model, "1:4"), Flow(mvue=NM(3, 4)))
  x = jnp.ones((1, 8))  # one token: pruning keeps it as it is
  out, grads, _, (_, after) = gradients(model, x, jnp.ones((1, 5)), 0.0)
  kept = np.asarray(out[0] != 0)
  assert 0 < kept.sum() < 5
  np.testing.assert_allclose(grads["kernel"], np.tile(2.0 * kept, (8, 1)))
  assert int(after["dropout"]["rngs"]["count"]) == 1
