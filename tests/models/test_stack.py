"""Scanned blocks are the listed ones, stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

from figs_jax import models, nn, recipes
from figs_jax.core.masks import is_nm
from figs_jax.core.tree import flatten
from figs_jax.models import stack
from figs_jax.train.run_rows import layers_of
from figs_jax.train.state import TrainState, train_step

RULES = "ff: 1:4, qk: 2:4"


def vit(depth=2, rules=RULES, **options):
  sizes = {"width": 8, "depth": depth, "heads": 2, "image_size": 4}
  model = models.create("vit", "custom/2", **sizes, num_classes=5, **options)
  return nn.sparsify(model, rules) if rules else model


def stacked_from(listed, scanned):
  """The scanned model with the listed one's parameters and masks."""
  depth = len(listed.blocks)
  graphdef, params, masks, rest = nn.split(scanned)

  def gather(tree, source):
    source = flatten(source)

    def leaf(path, old):
      name = "/".join(path)
      if name in source:
        return source[name]
      names = [name.replace("blocks/", f"blocks/{i}/") for i in range(depth)]
      return jnp.stack([source[n] for n in names])

    return jax.tree_util.tree_map_with_path(
      lambda path, old: leaf([str(getattr(k, "key", k)) for k in path], old),
      tree,
    )

  _, given, mask, _ = nn.split(listed)
  return nn.merge(
    graphdef, gather(params, given), gather(masks, mask), 0.0, rest
  )


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_kept_for_the_backward_pass(scan):
  depth, tokens, width = 3, 17, 8  # mlp_dim is 32

  def kept(options):
    sizes = {"width": width, "depth": depth, "heads": 2, "image_size": 8}
    model = models.create("vit", "custom/2", **sizes, scan=scan, **options)
    graphdef, params, masks, rest = nn.split(model)

    def backward(params, x):
      def loss(params):
        return nn.merge(graphdef, params, masks, 0.0, rest)(x).sum()

      return jax.vjp(loss, params)[1]  # a tree of what it keeps

    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(backward, params, images))
    return sum(leaf.size for leaf in leaves)

  everything, block, dots = map(kept, SAVING)
  # q, k, v, o, and the hidden layer; fc2 may be left out.
  products = depth * 4 * tokens * (4 * width + 32)
  assert products <= dots - block <= products * 1.25
  assert everything - dots > depth * 4 * 2 * tokens**2  # attention weights


def test_an_unknown_policy_is_refused():
  with pytest.raises(ValueError, match="'block' or 'dots', got 'none'"):
    vit(remat_policy="none")


def images(batch=2):
  return jax.random.normal(jax.random.key(1), (batch, 4, 4, 3))


SAVING = [
  {},
  {"remat": True},  # all but the inputs of blocks
  {"remat": True, "remat_policy": "dots"},
]


@pytest.mark.parametrize("options", SAVING)
def test_a_scanned_model_is_the_listed_one(options):
  listed = vit()
  scanned = stacked_from(listed, vit(scan=True, **options))
  assert scanned.blocks.mlp.fc1.kernel.shape == (2, 8, 32)

  def slope(model):
    graphdef, params, masks, rest = nn.split(model)

    def loss(params):
      logits = nn.merge(graphdef, params, masks, 0.5, rest)(images())
      return (logits**2).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return logits, flatten(grads)

  (logits, one), (again, all_at_once) = slope(listed), slope(scanned)
  np.testing.assert_allclose(logits, again, atol=1e-6)
  for path, grad in all_at_once.items():
    if path.startswith("blocks/"):
      want = jnp.stack(
        [one[path.replace("blocks/", f"blocks/{i}/")] for i in range(2)]
      )
    else:
      want = one[path]
    np.testing.assert_allclose(grad, want, atol=1e-5, err_msg=path)


def test_the_program_does_not_grow_with_depth():
  def size(depth, scan):
    model = nnx.eval_shape(lambda: vit(depth, scan=scan))
    graphdef, state = nnx.split(model)
    call = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    return len(call.lower(state, images()).as_text().splitlines())

  assert size(24, True) == size(4, True)
  assert size(24, False) > 3 * size(4, False)


def test_every_layer_draws_its_own_numbers():
  def block(rngs):
    return nnx.Dropout(0.5, rngs=rngs)

  for scan in (False, True):
    blocks = stack.build_blocks(block, 2, scan=scan, rngs=nnx.Rngs(0))
    x = jnp.ones((4096,))
    first, _ = stack.run_blocks(blocks, x)
    again, _ = stack.run_blocks(blocks, x)
    # A value survives both with probability 1/4, and calls differ.
    assert abs(float((first > 0).mean()) - 0.25) < 0.03
    assert not jnp.array_equal(first, again)


@pytest.mark.parametrize("scan", [False, True])
def test_slices_go_in_and_results_come_out_per_layer(scan):
  class Block(nnx.Module):
    def __init__(self, rngs):
      self.w = nnx.Param(rngs.params.normal((1,)))

    def __call__(self, x, shared, mine):
      x = x + shared * mine["a"] * self.w[...]
      return x, {"x": x}

  blocks = stack.build_blocks(Block, 3, scan=scan, rngs=nnx.Rngs(0))
  w = blocks.w[...] if scan else jnp.stack([b.w[...] for b in blocks])
  mine = {"a": jnp.arange(1.0, 4.0)}
  x, ys = stack.run_blocks(blocks, jnp.zeros(1), 2.0, per_layer=mine)
  want = np.cumsum(2 * np.arange(1, 4)[:, None] * np.asarray(w), axis=0)
  np.testing.assert_allclose(ys["x"], want, rtol=1e-6)
  np.testing.assert_allclose(x, want[-1], rtol=1e-6)


@pytest.mark.parametrize("remat", [False, True])
def test_jit_may_close_over_a_model_that_draws_nothing(remat):
  model = vit(scan=True, remat=remat, dropout=0.5)
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  model.eval()
  first, second = (jax.jit(lambda x: model(x))(images) for _ in range(2))
  np.testing.assert_array_equal(first, second)
  # One that draws must not: its next numbers would be lost.
  model.train()
  with pytest.raises(errors.TraceContextError, match="Cannot mutate"):
    jax.jit(lambda x: model(x))(images)


def test_drop_path_rises_over_scanned_blocks():
  model = vit(depth=4, rules=None, scan=True, drop_path=0.9)
  for path in ("o", "fc2"):
    layer = model.blocks.attn.o if path == "o" else model.blocks.mlp.fc2
    layer.bias[...] = jnp.full_like(layer.bias[...], 1e4)
  alike = jnp.ones((64, 4, 4, 3))
  out = nnx.jit(lambda model: model(alike))(model)
  assert len(np.unique(np.asarray(out).round(3), axis=0)) > 8
  model.eval()
  assert len(np.unique(np.asarray(model(alike)).round(3), axis=0)) == 1


# Each keeps state of another kind per kernel.
@pytest.mark.parametrize("name", ["figs", "s_ste"])
def test_recipes_train_scanned_blocks(name):
  pattern = "ff: 1:4"
  recipe = recipes.create(name, pattern, total_steps=3)
  model = vit(2, pattern if recipe.sparse else None, scan=True, dropout=0.1)
  with jax.numpy_dtype_promotion("standard"):
    tx = recipe.adamw(1e-3)
    state = TrainState.create(model, recipe, tx)
    batch = {"image": images(4), "label": jnp.arange(4)}
    for _ in range(3):
      state, metrics = train_step(state, batch)
  assert np.isfinite(metrics["loss"])
  kernel = state.finished().blocks.mlp.fc1.kernel[...]
  assert kernel.shape == (2, 8, 32)
  assert not recipe.sparse or bool(is_nm(kernel, "1:4", axis=-2))


def test_the_engine_sees_every_layer():
  listed = vit()
  scanned = stacked_from(listed, vit(scan=True))
  rows = {row["name"]: row for row in layers_of(listed)}
  result = {row["name"]: row for row in layers_of(scanned)}
  for i in range(2):
    one, other = rows[f"blocks/{i}/mlp/fc1"], result[f"blocks/mlp/fc1[{i}]"]
    np.testing.assert_array_equal(one.pop("mask"), other.pop("mask"))
    assert one | {"name": ""} == other | {"name": ""}
  macs = [
    sum(r["M"] * r["N"] * r["K"] * r["count"] for r in models.gemms_of(model))
    for model in (listed, scanned)
  ]
  assert macs[0] == macs[1]
