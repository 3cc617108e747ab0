"""sparsify on foreign models: what changes, what stays, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import nn, recipes
from figs_jax.core import tree
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules

KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv)


class Everything(nnx.Module):
  """Every candidate, in every kind of container, and what is none."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(16, 8, rngs=rngs)
    self.conv = nnx.Conv(8, 8, (3,), rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      2, 8, decode=False, dropout_rate=0.5, rngs=rngs
    )
    self.einsum = nnx.Einsum("bti,io->bto", (8, 8), (8,), rngs=rngs)
    self.list = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
    self.pair = nnx.data((nnx.Linear(8, 8, rngs=rngs), None))
    self.named = nnx.data({"a": nnx.Linear(8, 8, rngs=rngs)})
    self.shared = self.list[1]
    self.lora = nnx.LoRA(8, 2, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.head = nnx.LinearGeneral(8, (2, 2), rngs=rngs)

  def __call__(self, ids):
    x = self.attention(self.norm(self.conv(self.embed(ids))))
    x = self.einsum(x)
    for layer in (*self.list, self.pair[0], self.named["a"], self.shared):
      x = nnx.relu(layer(x))
    return self.head(x + self.lora(x))


CANDIDATES = {
  "conv/kernel",
  "attention/query/kernel",
  "attention/key/kernel",
  "attention/value/kernel",
  "attention/out/kernel",
  "einsum/kernel",
  "list/0/kernel",
  "list/1/kernel",
  "pair/0/kernel",
  "named/a/kernel",
  "head/kernel",
}


def everything():
  model = Everything(nnx.Rngs(params=0, dropout=1))
  model.eval()
  return model


def ids():
  return jnp.arange(10).reshape(2, 5)


forward = nnx.jit(lambda model, x: model(x))


def test_every_candidate_is_masked_and_shared_layers_stay_shared():
  model = nn.sparsify(everything(), NM(1, 4))
  assert set(nn.masked_leaves(model)) == CANDIDATES
  assert model.shared is model.list[1]
  _, params, masks, _ = nn.split(model)
  flat, masks = tree.flatten(params), tree.flatten(masks)
  for path, leaf in nn.masked_leaves(model).items():
    assert leaf.shape == flat[path].shape
    want = nm_mask(jnp.abs(flat[path]), leaf.pattern, leaf.axis)
    assert jnp.array_equal(masks[path], want), path
  zeroed = nnx.clone(everything())
  for path in nn.masked_leaves(model):
    layer = zeroed
    for key in path.split("/")[:-1]:
      layer = (
        layer[int(key)]
        if key.isdigit()
        else (layer[key] if isinstance(layer, dict) else getattr(layer, key))
      )
    layer.kernel[...] = jnp.where(masks[path], layer.kernel[...], 0.0)
  assert jnp.array_equal(forward(model, ids()), forward(zeroed, ids()))


def test_the_input_is_untouched_and_its_arrays_are_shared():
  model = everything()
  before = jax.tree.leaves(nnx.state(model))
  sparse = nn.sparsify(model, "1:4")
  after = jax.tree.leaves(nnx.state(model))
  assert all(a is b for a, b in zip(before, after, strict=True))
  for _, module in nnx.iter_modules(model):
    assert not isinstance(module, nn.Masked)
  assert sparse.head.kernel[...] is model.head.kernel[...]
  sparse.head.kernel[...] = jnp.zeros_like(sparse.head.kernel[...])
  assert jnp.abs(model.head.kernel[...]).max() > 0


def test_dense_rules_are_bit_equal():
  model = everything()
  same = nn.sparsify(model, ".*: dense")
  assert nn.masked_leaves(same) == {}
  assert jnp.array_equal(forward(model, ids()), forward(same, ids()))
  # Sparse and then dense again: the same layers, without masks.
  back = nn.sparsify(nn.sparsify(model, "1:4"), ".*: dense")
  assert jnp.array_equal(forward(model, ids()), forward(back, ids()))
  assert not jax.tree.leaves(nnx.state(back, (nn.Mask, nn.Leak)))


def test_the_out_projection_groups_heads_times_depth():
  rngs = nnx.Rngs(0)
  attention = nnx.MultiHeadAttention(2, 8, 12, decode=False, rngs=rngs)
  sparse = nn.sparsify(attention, "o: 1:4")
  assert nn.masked_leaves(sparse)["out/kernel"].axis == (-3, -2)
  kernel = np.abs(np.asarray(attention.out.kernel[...]))
  mask = np.asarray(sparse.out.kernel_mask[...])
  # heads 2, depth 6: a group of 4 crosses a head's end, as in the product.
  for column in range(8):
    flat, kept = kernel[..., column].reshape(12), mask[..., column].reshape(12)
    for start in range(0, 12, 4):
      group = slice(start, start + 4)
      assert kept[group].sum() == 1
      assert kept[group].argmax() == flat[group].argmax()


def test_resparsifying_replaces_patterns():
  first = nn.sparsify(everything(), "qk: 1:4, head: 2:4", "masked")
  second = nn.sparsify(first, "head: 1:8")
  assert {p: str(v.pattern) for p, v in nn.masked_leaves(second).items()} == {
    "head/kernel": "1:8"
  }
  assert int(second.head.kernel_mask[...].sum()) == 4
  assert second.head.grad_mode == "ste" and first.head.grad_mode == "masked"
  assert len(nn.masked_leaves(first)) == 3


def test_first_match_wins_and_unnamed_kernels_stay_dense():
  rules = Rules.parse("head: dense, conv: 2:4, attention/.*: 1:8")
  model = nn.sparsify(everything(), rules)
  leaves = nn.masked_leaves(model)
  assert {str(leaf.pattern) for leaf in leaves.values()} == {"2:4", "1:8"}
  assert type(model.head) is nnx.LinearGeneral
  assert type(model.conv) is nn.SparseConv


def test_a_recipe_gives_pattern_and_flow():
  recipe = recipes.create("s_ste", "qk: 2:4, head: 1:8", 10, mvue="1:2")
  model = nn.sparsify(everything(), recipe)
  by_hand = nn.sparsify(everything(), "qk: 2:4, head: 1:8")
  by_hand = nn.with_flow(by_hand, recipe.flow)
  assert nn.masked_leaves(model) == nn.masked_leaves(by_hand)
  assert model.head.flow == recipe.flow
  assert nn.split(model)[0] == nn.split(by_hand)[0]
  assert model.head.scale[...] == by_hand.head.scale[...] > 1
  with pytest.raises(ValueError, match="grad_mode='masked', got both"):
    nn.sparsify(everything(), recipe, "masked")


def test_a_recipe_that_never_masks_leaves_every_kernel_dense():
  recipe = recipes.create("dense", "head: 1:4", 10)
  assert nn.masked_leaves(nn.sparsify(everything(), recipe)) == {}
  sparse = nn.sparsify(everything(), "head: 1:4")
  assert nn.masked_leaves(nn.sparsify(sparse, recipe)) == {}


@pytest.mark.parametrize("transform", [nnx.eval_shape, jax.eval_shape])
def test_sparsify_works_on_shapes(transform):
  def build():
    model = everything()
    del model.shared  # jax.eval_shape sees a tree, where nothing is shared
    return model

  inside = transform(lambda: nn.sparsify(build(), "1:4"))
  outside = nn.sparsify(transform(build), "1:4")
  real = nn.sparsify(build(), "1:4")
  want = nn.masked_leaves(real)
  assert nn.masked_leaves(inside) == nn.masked_leaves(outside) == want
  shapes = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nn.split(model)[1:])
    for model in (inside, outside, real)
  ]
  assert shapes[0] == shapes[1] == shapes[2]


def test_a_root_layer_and_a_trace():
  layer = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
  assert set(nn.masked_leaves(nn.sparsify(layer, "1:4"))) == {"kernel"}

  @jax.jit
  def inside(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    return nn.sparsify(model, "1:4")(jnp.ones(8))

  graphdef, params, masks, rest = nn.split(layer)
  want = nn.sparsify(layer, "1:4")(jnp.ones(8))
  np.testing.assert_allclose(inside(params), want, rtol=1e-6)


class Tied(nnx.Module):
  def __init__(self, rngs, out=8):
    self.a = nnx.Linear(8, 8, rngs=rngs)
    self.b = nnx.Linear(8, 8, rngs=rngs)
    self.b.kernel = self.a.kernel

  def __call__(self, x):
    return self.b(self.a(x))


def test_a_tied_kernel_has_one_mask():
  model = nn.sparsify(Tied(nnx.Rngs(0)), "1:4")
  assert model.a.kernel_mask is model.b.kernel_mask
  assert set(nn.masked_leaves(model)) == {"a/kernel"}
  graphdef, params, masks, rest = nn.split(model)
  masks["a"]["kernel"] = jnp.zeros((8, 8), bool)
  pruned = nn.merge(graphdef, params, masks, 0.0, rest)
  assert jnp.array_equal(pruned(jnp.ones(8)), jnp.zeros(8))


def test_a_tied_kernel_with_two_axes_or_no_home_is_refused():
  model = Tied(nnx.Rngs(0))
  model.b = nnx.Einsum("bi,oi->bo", (8, 8), rngs=nnx.Rngs(0))
  model.b.kernel = model.a.kernel
  with pytest.raises(ValueError, match="one mask cannot serve both"):
    nn.sparsify(model, "1:4")
  model = Tied(nnx.Rngs(0))
  model.a_copy = nnx.data([model.a.kernel])
  model.Alias = model.a.kernel  # sorts before "a"
  with pytest.raises(ValueError, match="first found at Alias"):
    nn.sparsify(model, "1:4")


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ("qkvv: 1:4", "unknown word for this model, did you mean 'qkv'"),
    ("heads/.*: 1:4", "matches no kernel.*Nearest kernels: head/kernel"),
    (".*: 1:4, head: 1:8", "Rule 'head' is dead: earlier rules win"),
    ("head: 1:16", "head/kernel: axis -3 has length 8, not a multiple of m=16"),
    ("head: 3:2", "1 <= n <= m"),
    ("head", "Invalid rules 'head'"),
    ("embed: 1:4", "Rule 'embed' matches no kernel"),
    ("[: 1:4", "invalid regular expression"),
  ],
)
def test_rule_errors(rules, message):
  with pytest.raises(ValueError, match=message):
    nn.sparsify(everything(), rules)


def test_other_errors():
  with pytest.raises(ValueError, match="BatchNorm has no kernel that can be"):
    nn.sparsify(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), "1:4")
