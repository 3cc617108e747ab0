"""Every kind of layer that `sparsify` takes, by one table of contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import export, nn
from figs_jax.core import tree

pytestmark = pytest.mark.standard_promotion


def rngs():
  return nnx.Rngs(0)


class Tied(nnx.Module):
  """A language model whose head is its embedding, by `attend` or by hand."""

  def __init__(self, by_hand=False):
    self.embed = nnx.Embed(6, 8, rngs=rngs())
    self.mix = nnx.Linear(8, 8, rngs=nnx.Rngs(1))
    self.by_hand = by_hand

  def __call__(self, ids):
    x = self.mix(self.embed(ids))
    if self.by_hand:
      return x @ self.embed.embedding[...].T
    return self.embed.attend(x)


def adapted():
  base = nnx.Linear(8, 4, rngs=rngs())
  return nnx.LoRA(8, 4, 4, base_module=base, rngs=nnx.Rngs(1))


X, IMAGE = (2, 3, 8), (2, 5, 5, 4)
FACTORS = "lora_./kernel: 2:4"
# Model, rules, input shape (None: token ids), and the group axis of each
# masked kernel; the products are counted by hand from the shapes.
KINDS = {
  "linear": (
    lambda: nnx.Linear(8, 4, rngs=rngs()),
    "2:4", X, {"kernel": -2}, {"kernel": (6, 8, 4)},
  ),
  "linear_general": (
    lambda: nnx.LinearGeneral((3, 8), 4, axis=(-2, -1), rngs=rngs()),
    "2:4", X, {"kernel": (-3, -2)}, {"kernel": (2, 24, 4)},
  ),
  "einsum": (
    lambda: nnx.Einsum("bti,ihd->bthd", (8, 2, 4), rngs=rngs()),
    "2:4", X, {"kernel": -3}, {"kernel": (6, 8, 8)},
  ),
  "einsum_of_groups": (
    lambda: nnx.Einsum("bgi,gio->bgo", (3, 8, 4), rngs=rngs()),
    "2:4", X, {"kernel": -2}, {"kernel": (2, 8, 4)},
  ),
  "attention": (
    lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs()),
    "o: 2:4, qk: 1:4", X,
    {"query/kernel": -3, "key/kernel": -3, "out/kernel": (-3, -2)},
    {"query/kernel": (6, 8, 8), "key/kernel": (6, 8, 8),
     "out/kernel": (6, 8, 8)},
  ),
  "conv": (
    lambda: nnx.Conv(4, 8, (3, 3), rngs=rngs()),
    "2:4", IMAGE, {"kernel": -2}, {"kernel": (50, 36, 8)},
  ),
  "conv_transpose": (
    lambda: nnx.ConvTranspose(4, 8, (2, 2), (2, 2), rngs=rngs()),
    "2:4", IMAGE, {"kernel": -2}, {"kernel": (50, 4, 32)},
  ),
  "conv_transpose_transposed": (
    lambda: nnx.ConvTranspose(
      4, 8, (2, 2), (2, 2), transpose_kernel=True, rngs=rngs()
    ),
    "2:4", IMAGE, {"kernel": -1}, {"kernel": (50, 4, 32)},
  ),
  "lora": (
    adapted,
    "2:4", X, {"base_module/kernel": -2}, {"base_module/kernel": (6, 8, 4)},
  ),
  "lora_factors": (
    adapted,
    f"base_module/kernel: 1:4, {FACTORS}", X,
    {"base_module/kernel": -2, "lora_a/kernel": -2, "lora_b/kernel": -2},
    {"base_module/kernel": (6, 8, 4), "lora_a/kernel": (6, 8, 4),
     "lora_b/kernel": (6, 4, 4)},
  ),
  "lora_linear": (
    lambda: nnx.LoRALinear(8, 4, lora_rank=4, rngs=rngs()),
    "2:4", X, {"kernel": -2}, {"kernel": (6, 8, 4)},
  ),
  "embed": (
    Tied, "embed/embedding: 2:4", None, {"embed/embedding": -1},
    {"embed/embedding": (6, 8, 6)},
  ),
  "embed_by_hand": (
    lambda: Tied(by_hand=True),
    "embed/embedding: 2:4", None, {"embed/embedding": -1},
    {"embed/embedding": (6, 8, 6)},
  ),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind):
  build, rules, shape, axes, products = KINDS[kind]
  model = build()
  for _, layer in nnx.iter_modules(model):
    if isinstance(layer, nnx.LoRA):  # its second factor starts at zero
      size = layer.lora_b.shape
      layer.lora_b[...] = jax.random.normal(jax.random.key(5), size)
  x = jnp.arange(6).reshape(2, 3)
  if shape is not None:
    x = jax.random.normal(jax.random.key(1), shape)
  return model, nn.sparsify(model, rules), x, axes, products


def renamed(path):
  """The path of a parameter before the factors of LoRA were layers."""
  return path.replace("lora_a/kernel", "lora_a").replace(
    "lora_b/kernel", "lora_b"
  )


def masked(model, sparse):
  """The dense model with the masked entries of the sparse one at 0."""
  graphdef, params, _, rest = nn.split(model)
  masks = tree.flatten(nn.split(sparse)[2])
  masks = {renamed(path): mask for path, mask in masks.items()}

  def zeroed(keys, leaf):
    mask = masks.get(tree.path_str(keys))
    return leaf if mask is None else jnp.where(mask, leaf, 0)

  params = jax.tree_util.tree_map_with_path(zeroed, params)
  return nnx.merge(graphdef, params, rest), params, graphdef, rest


@kinds
def test_masks_lie_on_the_contracted_axes(kind):
  model, sparse, _, axes, _ = made(kind)
  leaves = nn.masked_leaves(sparse)
  assert {path: leaf.axis for path, leaf in leaves.items()} == axes
  _, params, masks, _ = nn.split(sparse)
  params, masks = tree.flatten(params), tree.flatten(masks)
  for path, leaf in leaves.items():
    assert masks[path].shape == params[path].shape == leaf.shape
    assert figs.is_nm(masks[path], leaf.pattern, axis=leaf.axis)
  assert {renamed(p) for p in params} == set(tree.flatten(nn.split(model)[1]))
  assert not nn.masked_leaves(nn.sparsify(sparse, ".*: dense"))


@kinds
def test_forward_and_gradients_are_those_of_the_masked_kernel(kind):
  """A kept entry has the gradient of the masked model, a pruned one none."""
  model, sparse, x, _, _ = made(kind)
  reference, params, graphdef, rest = masked(model, sparse)
  out = sparse(x)
  np.testing.assert_allclose(out, reference(x), rtol=1e-6, atol=1e-6)
  assert not np.allclose(out, model(x), atol=1e-3)

  def wanted(params):
    return (nnx.merge(graphdef, params, rest)(x) ** 2).sum()

  sparse = nn.with_flow(sparse, figs.core.Flow("masked"))
  own, own_params, masks, own_rest = nn.split(sparse)

  def got(params):
    return (nn.merge(own, params, masks, 0.0, own_rest)(x) ** 2).sum()

  want = tree.flatten(jax.grad(wanted)(params))
  flat = tree.flatten(masks)
  for path, leaf in tree.flatten(jax.grad(got)(own_params)).items():
    mask = flat.get(path)
    each = want[renamed(path)]
    each = each if mask is None else jnp.where(mask, each, 0)
    np.testing.assert_allclose(leaf, each, rtol=1e-4, atol=1e-5, err_msg=path)


@kinds
def test_rows_are_products_with_their_pattern(kind):
  _, sparse, x, axes, products = made(kind)
  rows = figs.layers_of(sparse, example=x)
  leaves = nn.masked_leaves(sparse)
  masked_rows = [row for row in rows if row["pattern"] is not None]
  names = {path: path.removesuffix("/kernel") for path in products}
  assert {row["name"].split("[")[0] for row in masked_rows} == set(
    names.values()
  )
  for path, sizes in products.items():
    m, n = leaves[path].pattern.m, leaves[path].pattern.n
    for row in masked_rows:
      if row["name"].split("[")[0] == names[path]:
        assert row["pattern"] == leaves[path].pattern
        assert (row["M"], row["K"], row["N"]) == sizes
        if kind != "conv_transpose_transposed":  # its taps are reversed
          kept = row["mask"].reshape(-1, m, row["N"]).sum(1)
          assert (kept == n).all()


@kinds
def test_packed_weights_come_back(kind, tmp_path):
  model, sparse, _, _, _ = made(kind)
  leaves, params = nn.masked_leaves(sparse), masked(model, sparse)[1]
  flat = {renamed(path): path for path in tree.flatten(nn.split(sparse)[1])}
  params = {flat[path]: leaf for path, leaf in tree.flatten(params).items()}
  path = tmp_path / "model.safetensors"
  export.write_packed(path, params, leaves)
  back = export.read(path)
  assert back.keys() == params.keys()
  for name, leaf in params.items():
    np.testing.assert_array_equal(back[name], leaf, err_msg=name)


def test_embeddings_and_factors_are_masked_for_rules_that_name_them():
  assert set(nn.masked_leaves(nn.sparsify(Tied(), "*: 2:4"))) == {"mix/kernel"}
  assert set(nn.masked_leaves(nn.sparsify(adapted(), ".*: 2:4"))) == {
    "base_module/kernel"
  }
  both = nn.sparsify(adapted(), FACTORS)
  assert set(nn.masked_leaves(nn.sparsify(both, "*: 2:4"))) == {
    "base_module/kernel"
  }


def test_a_named_embedding_can_be_dense_before_a_rule_of_everything():
  rules = "embed/embedding: dense, .*: 2:4"
  assert set(nn.masked_leaves(nn.sparsify(Tied(), rules))) == {"mix/kernel"}


def test_a_masked_table_is_an_ordinary_parameter():
  """Its updates, states and copies are those of the raw table."""
  sparse = nn.sparsify(Tied(), "embed/embedding: 2:4")
  raw = nn.split(sparse)[1]["embed"]["embedding"]
  assert not (raw == 0).any()
  assert int((sparse.embed.embedding[...] == 0).sum()) == 24
  state = nnx.state(sparse, nnx.Param)
  nnx.update(sparse, jax.tree.map(lambda x: 2 * x, state))
  twice = nn.split(sparse)[1]["embed"]["embedding"]
  np.testing.assert_array_equal(twice, 2 * raw)
  np.testing.assert_array_equal(
    nn.split(nnx.clone(sparse))[1]["embed"]["embedding"], twice
  )


def test_a_kernel_that_is_also_a_table_is_refused():
  """A square table as the kernel of a linear layer: two group axes."""

  class Square(nnx.Module):
    def __init__(self):
      self.embed = nnx.Embed(8, 8, rngs=rngs())
      self.head = nnx.Linear(8, 8, rngs=rngs())
      self.head.kernel = self.embed.embedding

  with pytest.raises(ValueError, match="axes -1 and -2.*nnx.Embed.attend"):
    nn.sparsify(Square(), "2:4")


def test_factors_of_a_subclass_of_lora_are_refused():
  class Other(nnx.LoRA):
    pass

  with pytest.raises(ValueError, match="Other: expected nnx.LoRA itself"):
    nn.sparsify(Other(8, 4, 4, rngs=rngs()), FACTORS)


def test_t5_counts_the_pattern_of_its_tied_head():
  sizes = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}
  lengths = {"vocab": 48, "input_length": 4, "target_length": 4}
  model = figs.models.create("t5", "custom", **sizes, **lengths)
  sparse = figs.sparsify(model, "shared/embedding: 2:4")
  listed = figs.layers_of(sparse)[-1]
  traced = figs.layers_of(sparse, example=sparse.example(1))[-1]
  for name in ("M", "N", "K", "pattern"):
    assert listed[name] == traced[name]
  assert listed["pattern"] == figs.NM(2, 4)
