"""Traced products: our own tables, hand counts, XLA's counts, real masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import models, nn, recipes
from figs_jax.core import Flow
from figs_jax.core.masks import is_nm
from figs_jax.core.pattern import NM
from figs_jax.models.stack import build_blocks, run_blocks

pytestmark = pytest.mark.standard_promotion

VIT = {"width": 16, "depth": 2, "heads": 2, "image_size": 8, "num_classes": 5}
RESNET = {
  "block": "basic",
  "depths": (1, 3),
  "width": 8,
  "image_size": (21, 16),
  "num_classes": 5,
}
SWIN = {
  "width": 16, "depths": (2, 2), "heads": 2, "window": 4, "image_size": 24,
  "num_classes": 5, "pretrained_windows": (0, 0),
}  # fmt: skip
T5 = {
  "width": 16, "depth": 2, "decoder_depth": 1, "heads": 2, "head_dim": 4,
  "mlp_dim": 24, "vocab": 40, "input_length": 7, "target_length": 5,
}  # fmt: skip
BERT = {
  "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "vocab": 40,
  "length": 9, "input_length": 7,
}  # fmt: skip


def shape(*sizes, dtype="float32"):
  return jax.ShapeDtypeStruct(sizes, dtype)


def rngs():
  return nnx.Rngs(0)


def flops(rows):
  return sum(2 * r["M"] * r["N"] * r["K"] * r["count"] for r in rows)


def sizes(rows):
  keys = ("name", "M", "K", "N", "count")
  return [tuple(row[key] for key in keys) for row in rows]


@pytest.mark.parametrize(
  ("family", "variant", "options"),
  [
    ("vit", "custom/4", VIT),
    ("vit", "custom/4", VIT | {"pool": "gap", "pos": "sincos", "scan": True}),
    ("vit", "custom/4", VIT | {"remat": True, "dtype": "bfloat16"}),
    ("resnet", "custom", RESNET),
    ("resnet", "custom", RESNET | {"block": "bottleneck", "scan": True}),
    ("resnet", "custom", RESNET | {"stem": "cifar", "shortcut": "identity"}),
    ("swin_v2", "custom/4", SWIN),
    ("swin_v2", "custom/4", SWIN | {"scan": True}),
    ("bert", "custom", BERT),
    ("bert", "custom", BERT | {"scan": True, "output": "classes"}),
    ("bert", "custom", BERT | {"output": "embedding"}),
    ("t5", "custom", T5),
    ("t5", "custom", T5 | {"scan": True, "gated": True, "tied": False}),
  ],
)
def test_the_trace_has_the_products_that_our_families_list(
  family, variant, options
):
  net = models.abstract(family, variant, **options)
  own = {"resnet": "stages/1/.*/conv3x3_2/kernel: 1:2, hidden: 2:4"}
  net = nn.sparsify(net, own.get(family, "ff: 2:4, q: 1:4, v: 1:2"))
  rows = {row["name"]: row for row in models.gemms_of(net, 3)}
  traced = {p.name: p.row for p in models.products_of(net, 3)}
  # A tied head multiplies by the embedding, whose path is its own.
  if "shared/embedding" in traced:
    traced["head"] = traced.pop("shared/embedding") | {"name": "head"}
  if "token_embed/embedding" in traced:
    head = traced.pop("token_embed/embedding") | {"name": "token_head"}
    traced["token_head"] = head
  assert traced == rows
  assert len(rows) == len(models.products_of(net, 3))


class CNN(nnx.Module):
  """Plain, strided, depthwise and grouped convolutions; norm and dropout."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.depthwise = nnx.Conv(
      16, 16, (3, 3), feature_group_count=16, padding="VALID", rngs=rngs
    )
    self.grouped = nnx.Conv(16, 32, (1, 3), feature_group_count=2, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.fc = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x):
    x = self.depthwise(nnx.relu(self.norm(self.stem(x))))
    return self.fc(self.dropout(self.grouped(x).mean((1, 2))))


def test_a_hand_count_of_convolutions():
  net = nn.sparsify(CNN(rngs()), "grouped/kernel: 2:4, fc/kernel: 1:8")
  rows = figs.layers_of(net, example=shape(2, 12, 12, 3))
  assert sizes(rows) == [
    ("stem", 2 * 6 * 6, 3 * 3 * 3, 16, 1),
    ("depthwise", 2 * 4 * 4, 3 * 3, 1, 16),
    # Every group has a kernel, and a mask, of its own.
    ("grouped[0]", 2 * 4 * 4, 3 * 8, 16, 1),
    ("grouped[1]", 2 * 4 * 4, 3 * 8, 16, 1),
    ("fc", 2, 32, 10, 1),
  ]
  patterns = [str(row["pattern"]) for row in rows]
  assert patterns == ["None", "None", "2:4", "2:4", "1:8"]
  mask = np.asarray(net.grouped.kernel_mask[...])
  np.testing.assert_array_equal(rows[3]["mask"], mask[..., 16:].reshape(-1, 16))
  table = figs.engine.Layers.of(rows)
  assert figs.engine.report(table, ["ws:8x8"]).totals[0].speedup > 1


class Einsums(nnx.Module):
  """Products of two kernels each way, batched experts, and no weight."""

  def __init__(self, rngs):
    self.heads = nnx.Einsum("bti,hdi->bthd", (2, 4, 8), rngs=rngs)
    self.out = nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), rngs=rngs)
    self.experts = nnx.Param(jnp.ones((3, 6, 5)))

  def __call__(self, x):
    x = self.out(self.heads(x))
    each = jnp.einsum("bti,eio->ebto", x, self.experts[...])
    return jnp.einsum("ebto,ebso->ebts", each, each)


def test_a_hand_count_of_einsums():
  net = nn.sparsify(Einsums(rngs()), "heads/kernel: 2:4, out/kernel: 1:8")
  rows = figs.layers_of(net, example=shape(2, 7, 8))
  assert sizes(rows) == [
    ("heads", 14, 8, 8, 1),
    ("out", 14, 8, 6, 1),
    ("experts", 14, 6, 15, 1),
    ("matmul", 7, 5, 7, 6),
  ]
  heads = np.asarray(net.heads.kernel_mask[...]).reshape(8, 8).T
  np.testing.assert_array_equal(rows[0]["mask"], heads)
  out = np.asarray(net.out.kernel_mask[...]).reshape(8, 6)
  np.testing.assert_array_equal(rows[1]["mask"], out)
  assert is_nm(rows[0]["mask"], "2:4") and is_nm(rows[1]["mask"], "1:8")


class Stacked(nnx.Module):
  """A scanned stack whose blocks apply one shared layer as well."""

  def __init__(self, rngs):
    self.blocks = build_blocks(
      lambda rngs: nnx.Linear(8, 8, rngs=rngs), 4, scan=True, rngs=rngs
    )
    self.shared = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    x, _ = run_blocks(self.blocks, x, remat=True)
    return jax.lax.fori_loop(0, 3, lambda _, x: self.shared(x), x)


def test_loops_multiply():
  net = nn.sparsify(Stacked(rngs()), "blocks/kernel: 2:4, shared/kernel: 1:4")
  rows = figs.layers_of(net, example=shape(5, 8))
  assert sizes(rows) == [
    *((f"blocks[{i}]", 5, 8, 8, 1) for i in range(4)),
    ("shared", 5, 8, 8, 3),
  ]
  mask = net.blocks.kernel_mask[...]
  for i in range(4):
    np.testing.assert_array_equal(rows[i]["mask"], mask[i])
  abstract = nnx.eval_shape(lambda: Stacked(rngs()))
  abstract = nn.sparsify(abstract, "2:4")
  rows = figs.layers_of(abstract, example=shape(5, 8))
  assert sizes(rows) == [("blocks", 5, 8, 8, 4), ("shared", 5, 8, 8, 3)]


class Call(nnx.Module):
  """A layer, called as a test says."""

  def __init__(self, call):
    self.layer = nnx.Linear(8, 8, rngs=rngs())
    self.call = call

  def __call__(self, *args, **kwargs):
    return self.call(self.layer, *args, **kwargs)


def counting(layer, x):
  _, x = jax.lax.while_loop(
    lambda c: c[0] < 6, lambda c: (c[0] + 2, layer(c[1])), (0, x)
  )
  return x


def branching(layer, x):
  once, twice = layer, lambda x: layer(layer(x))
  return jax.lax.cond(x.sum() > 0, twice, once, x)


def test_while_and_cond():
  (row,) = figs.layers_of(Call(counting), example=shape(3, 8))
  assert row["count"] == 3
  (row,) = figs.layers_of(Call(branching), example=shape(3, 8))
  assert row["count"] == 2

  def endless(layer, x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, layer, x)

  with pytest.raises(ValueError, match="^Call: expected a while loop that cou"):
    figs.layers_of(Call(endless), example=shape(3, 8))


@pytest.mark.parametrize("shared", [False, True])
def test_a_transposed_use_is_dense(shared):
  """2:4 along the inputs says nothing of the products with the transpose."""

  def both(layer, x):
    kernel = layer.effective_kernel()
    return (layer(x) if shared else x) @ kernel.T

  rows = figs.layers_of(nn.sparsify(Call(both), "2:4"), example=shape(3, 8))
  assert [row["pattern"] for row in rows] == [NM(2, 4)] * shared + [None]
  assert ["mask" in row for row in rows] == [True] * shared + [False]
  recipe = recipes.create("ste", "2:4", 10, dense=0)
  made = figs.train_flops(
    nn.sparsify(Call(both), "2:4"), recipe, example=shape(3, 8)
  )
  one = 2 * 3 * 8 * 8 * 10
  assert made.forward == one + shared * one // 2


@pytest.mark.parametrize(
  "use",
  [
    lambda kernel, mask: jnp.where(mask, kernel, 0).astype(jnp.bfloat16),
    lambda kernel, mask: (kernel.T * mask.T * 3.0).T,
    lambda kernel, mask: (kernel * mask).reshape(2, 4, 8).reshape(8, 8),
    lambda kernel, mask: (
      kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True) * mask
    ),
    lambda kernel, mask: jax.checkpoint(jnp.multiply)(kernel, mask),
  ],
)
def test_masking_by_hand_is_followed(use):
  def call(layer, x):
    return x.astype(jnp.bfloat16) @ use(
      layer.kernel[...], layer.kernel_mask[...]
    )

  net = nn.sparsify(Call(call), "2:4")
  (row,) = figs.layers_of(net, example=shape(3, 8))
  assert row["name"] == "layer" and row["pattern"] == NM(2, 4)
  np.testing.assert_array_equal(row["mask"], net.layer.kernel_mask[...])


@pytest.mark.parametrize(
  "flow", [Flow(soft=True), Flow(mvue=NM(1, 2)), Flow("masked"), Flow("damped")]
)
def test_every_flow_is_followed(flow):
  net = nn.with_flow(nn.sparsify(nnx.Linear(8, 4, rngs=rngs()), "2:4"), flow)
  (row,) = figs.layers_of(net, example=shape(3, 8))
  np.testing.assert_array_equal(row["mask"], net.kernel_mask[...])


def test_slices_keep_the_pattern_and_lose_the_mask():
  def half(layer, x):
    return x @ layer.effective_kernel()[:, :4]

  (row,) = figs.layers_of(nn.sparsify(Call(half), "2:4"), example=shape(3, 8))
  assert row["N"] == 4 and row["pattern"] == NM(2, 4) and "mask" not in row

  def sorted_kernel(layer, x):
    return x @ layer.effective_kernel().repeat(2, 0)[::2]

  with pytest.raises(ValueError, match="layer/kernel: expected casts"):
    figs.layers_of(nn.sparsify(Call(sorted_kernel), "2:4"), example=shape(3, 8))


def test_attention_is_paired():
  net = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs())
  rows = figs.layers_of(net, example=shape(2, 7, 32))
  by_name = {row["name"]: row for row in rows}
  assert list(by_name) == ["query", "key", "value", "qk", "av", "out"]
  assert sizes([by_name["qk"], by_name["av"]]) == [
    ("qk", 7, 8, 7, 8),
    ("av", 7, 7, 8, 8),
  ]
  fused = figs.engine.report(rows, ["ws:8x8:dram_bw=1"], fuse="flat")
  assert fused.totals[0].fused == 1
  # Keys of another length, and fewer of them than lines.
  rows = figs.layers_of(net, example=(shape(2, 7, 32), shape(2, 5, 32)))
  by_name = {row["name"]: row for row in rows}
  assert sizes([by_name["qk"], by_name["av"]]) == [
    ("qk", 7, 8, 5, 8),
    ("av", 7, 5, 8, 8),
  ]


@pytest.mark.parametrize(
  ("net", "inputs"),
  [
    (nnx.Linear(8, 24, use_bias=False, rngs=rngs()), (5, 8)),
    (nnx.Einsum("bti,ihd->bthd", (8, 2, 4), rngs=rngs()), (2, 5, 8)),
    (nnx.Conv(4, 8, (3, 3), padding="VALID", use_bias=False, rngs=rngs()),
     (2, 9, 9, 4)),
    (nnx.Conv(4, 8, 3, 2, padding="VALID", use_bias=False,
              feature_group_count=2, rngs=rngs()), (2, 9, 4)),
    (nnx.ConvTranspose(4, 8, (2, 2), strides=(2, 2), padding="VALID",
                       use_bias=False, rngs=rngs()), (2, 5, 5, 4)),
  ],
)  # fmt: skip
def test_products_alone_are_what_xla_counts(net, inputs):
  assert flops(figs.layers_of(net, example=shape(*inputs))) == xla(net, inputs)


def test_a_whole_net_is_what_xla_counts_but_for_elementwise_work():
  net = models.create("vit", "custom/4", **VIT | {"width": 64})
  rows = figs.layers_of(net, example=shape(2, 8, 8, 3))
  counted = xla(net, (2, 8, 8, 3))
  assert 1 < counted / flops(rows) < 1.1


def xla(net, inputs):
  graphdef, state = nnx.split(net)
  compiled = (
    jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    .lower(state, shape(*inputs))
    .compile()
  )
  return compiled.cost_analysis()["flops"]


def test_training_flops_of_ones_own_model():
  net, image = CNN(rngs()), shape(4, 12, 12, 3)
  dense = recipes.create("dense", "1:8", 50)
  forward = 50 * flops(figs.layers_of(net, example=image))
  assert figs.train_flops(net, dense, example=image) == (
    *[forward] * 3, 3 * forward
  )  # fmt: skip
  recipe = recipes.create("ste", "fc/kernel: 1:8", 50, dense=0, finetune=0)
  net = nn.sparsify(net, recipe.pattern)
  made = figs.train_flops(net, recipe, example=image)
  assert forward - made.forward == 50 * 2 * 4 * 10 * (32 - 4)
  # A model of ours counts the same when it is traced.
  net = nn.sparsify(models.create("vit", "custom/4", **VIT), "ff: 1:8")
  recipe = recipes.create("figs", "ff: 1:8", 50)
  assert figs.train_flops(
    net, recipe, example=shape(3, 8, 8, 3)
  ) == figs.train_flops(net, recipe, batch=3)


def test_arguments():
  def call(layer, x, *, skip=False, y=None):
    return x if skip else layer(x) + (0 if y is None else layer(y))

  net, x = Call(call), shape(3, 8)
  for example in (x, (x,), {"x": x}, {"x": np.ones((3, 8), np.float32)}):
    assert sizes(figs.layers_of(net, example=example)) == [
      ("layer", 3, 8, 8, 1)
    ]
  # Leaves other than arrays stay Python values.
  assert figs.layers_of(net, example={"x": x, "skip": True}) == []
  (row,) = figs.layers_of(net, example={"x": x, "y": x})
  assert row["count"] == 2


def test_a_subclass_of_ours_is_traced():
  class Headless(models.ViT):
    def __call__(self, images):
      return super().__call__(images) @ jnp.ones((5, 2))

  net = Headless.from_variant("custom/4", rngs=rngs(), **VIT)
  rows = figs.layers_of(net, batch=3)
  assert sizes(rows)[-1] == ("matmul", 3, 5, 2, 1)


def test_errors():
  net, x = nnx.Linear(8, 4, rngs=rngs()), shape(3, 8)
  with pytest.raises(
    ValueError, match="not of our families .*: expected an ex"
  ):
    figs.layers_of(net)
  with pytest.raises(ValueError, match="batch or example, got batch=2 and an"):
    figs.layers_of(net, batch=2, example=x)
  with pytest.raises(
    ValueError, match=r"Linear: .* \(float32\[3, 7\]\), got TypeError: dot_gen"
  ) as caught:
    figs.layers_of(net, example=shape(3, 7))
  assert len(str(caught.value).splitlines()) == 1
  with pytest.raises(ValueError, match="no seq, since example decides"):
    models.gemms_of(net, seq=7, example=x)
  recipe = recipes.create("ste", "1:4", 10)
  unused = nn.sparsify(Call(lambda layer, x: x), "1:4")
  with pytest.raises(ValueError, match="layer/kernel: expected a product with"):
    figs.train_flops(unused, recipe, example=x)
