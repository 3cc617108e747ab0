"""Weights in and out: every family, every naming, and files that lie."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx
from safetensors.numpy import load_file, save_file

from figs_jax import nn
from figs_jax.core import tree
from figs_jax.core.masks import is_nm
from figs_jax.models import pretrained
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.resizing import resized

from .families import TINY, create


def abstract(family, **options):
  """A tiny model without arrays: loading asks for shapes and dtypes."""
  return nnx.eval_shape(lambda: create(family, **options))


def made(family, seed=0, **options):
  """A tiny model whose every parameter and batch statistic is random."""
  draw, model = np.random.default_rng(seed), abstract(family, **options)
  weights = {
    path: draw.normal(size=leaf.shape).astype(leaf.dtype)
    for path, leaf in parameters(model).items()
  }
  return pretrained.fill(model, weights)


def store(weights, path):
  # The library writes other numbers where an array is not contiguous.
  whole = {name: np.ascontiguousarray(v) for name, v in weights.items()}
  save_file(whole, path)


def parameters(model):
  """Parameters and batch statistics, which are weights of a file too."""
  state = nnx.state(model, (nnx.Param, nnx.BatchStat))
  return tree.flatten(nnx.to_pure_dict(state))


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for path, leaf in a.items():
    assert leaf.dtype == b[path].dtype, path
    assert np.array_equal(leaf, b[path]), path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", sorted(TINY))
def test_weights_out_and_in_are_bit_equal(family, scan, dtype, tmp_path):
  path = tmp_path / "model.safetensors"
  model = made(family, scan=scan, param_dtype=dtype)
  pretrained.save(model, path)
  # Into a model of other weights, whose blocks are stored the other way.
  other = made(family, 1000, scan=not scan, param_dtype=dtype)
  before = parameters(other)
  loaded = pretrained.load(other, tmp_path)
  assert_equal(before, parameters(other))
  again = tmp_path / "again.safetensors"
  pretrained.save(loaded, again)
  first, second = load_file(path), load_file(again)
  assert_equal(first, second)
  # Statistics stay in float32, and PyTorch's counters are in the file alone.
  counters = [name for name in first if name.endswith("num_batches_tracked")]
  assert bool(counters) == (family == "resnet")
  weights = {name: x for name, x in first.items() if name not in counters}
  assert {
    x.dtype for name, x in weights.items() if ".running_" not in name
  } == {jnp.dtype(dtype)}
  sizes = (sum(x.size for x in each.values()) for each in (weights, before))
  assert len(set(sizes)) == 1
  assert_equal(parameters(model), parameters(pretrained.load(model, again)))


@pytest.mark.parametrize("family", sorted(TINY))
def test_masks_are_those_of_the_loaded_weights(family, tmp_path):
  path = tmp_path / "model.safetensors"
  model = made(family)
  pretrained.save(model, path)
  rules = TINY[family].rules
  expected = nn.sparsify(model, rules)
  loaded = pretrained.load(nn.sparsify(made(family, 1000), rules), path)
  assert_equal(parameters(model), parameters(loaded))
  masks = tree.flatten(nn.split(loaded)[2])
  for leaf, want in tree.flatten(nn.split(expected)[2]).items():
    if want is not None:
      assert jnp.array_equal(masks[leaf], want), leaf
  for leaf, spec in nn.masked_leaves(loaded).items():
    assert bool(is_nm(masks[leaf], spec.pattern, spec.axis)), leaf


def test_a_scanned_sparse_model_gets_masks_block_by_block(tmp_path):
  model = made("vit")
  pretrained.save(model, tmp_path / "model.safetensors")
  sparse = nn.sparsify(made("vit", 99, scan=True), "ff: 1:4")
  loaded = pretrained.load(sparse, tmp_path)
  masks = nn.split(loaded)[2]["blocks"]["mlp"]["fc1"]["kernel"]
  listed = nn.split(nn.sparsify(model, "ff: 1:4"))[2]["blocks"]
  for i, mask in enumerate(masks):
    assert jnp.array_equal(mask, listed[i]["mlp"]["fc1"]["kernel"])


@pytest.mark.parametrize(
  "stored", ["float64", "float32", "float16", "bfloat16"]
)
def test_every_floating_dtype_is_cast_to_that_of_the_parameters(
  stored, tmp_path
):
  model = made("vit")
  weights = {
    name: value.astype(jnp.dtype(stored))
    for name, value in pretrained.published(model).items()
  }
  store(weights, tmp_path / "model.safetensors")
  for dtype in ("float32", "bfloat16"):
    loaded = pretrained.load(made("vit", 9, param_dtype=dtype), tmp_path)
    kernel = np.asarray(loaded.head.kernel[...])
    assert kernel.dtype == jnp.dtype(dtype)
    want = weights["classifier.weight"].T.astype(jnp.dtype(dtype))
    assert np.array_equal(kernel, want)


def test_shards_and_their_index_are_one_file(tmp_path):
  model = made("vit")
  weights = pretrained.published(model)
  write_shards(tmp_path, weights)
  for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
    loaded = pretrained.load(made("vit", 99), path)
    assert_equal(parameters(model), parameters(loaded))


def write_shards(folder, weights, **changes):
  names = sorted(weights)
  parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
  for part, held in parts.items():
    store({name: weights[name] for name in held}, folder / part)
  places = {name: part for part, held in parts.items() for name in held}
  index = {"metadata": {}, "weight_map": places | changes}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"extra": "a.safetensors"}, r"a.safetensors: lacks extra"),
    ({"classifier.bias": "b.safetensors"}, r"a.safetensors: holds classifier"),
    ({"classifier.bias": "c.safetensors"}, r"part 'c.safetensors' is missing"),
    ({"classifier.bias": "../a.safetensors"}, r"parts beside the index"),
  ],
)
def test_an_index_must_say_what_its_parts_hold(tmp_path, changes, message):
  write_shards(tmp_path, pretrained.published(made("vit")), **changes)
  with pytest.raises(PretrainedError, match=message):
    pretrained.load(made("vit"), tmp_path)


def renamed(weights, pairs):
  out = {}
  for name, value in weights.items():
    for theirs, ours in pairs:
      name = name.replace(theirs, ours)
    out[name] = value
  return out


def timm_vit(weights):
  """The same tensors as timm holds them, q, k and v end to end."""
  pairs = (
    ("vit.embeddings.cls_token", "cls_token"),
    ("vit.embeddings.position_embeddings", "pos_embed"),
    ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("vit.encoder.layer", "blocks"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("vit.layernorm", "norm"),
    ("classifier", "head"),
  )
  out = renamed(weights, pairs)
  return fused(out, "attention.attention", ("weight", "bias"))


def fused(weights, attention, ends):
  out = dict(weights)
  for name in weights:
    for end in ends:
      if name.endswith(f"{attention}.query.{end}"):
        parts = [
          out.pop(name.replace("query", part))
          for part in ("query", "key", "value")
        ]
        new = name.replace(f"{attention}.query", "attn.qkv")
        out[new] = np.concatenate(parts)
  return out


def original_swin(weights, merge=0, head="head"):
  """The same tensors as in the authors' files; timm counts merges from 1."""
  pairs = (
    ("swinv2.embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("swinv2.embeddings.norm", "patch_embed.norm"),
    ("swinv2.encoder.", ""),
    ("swinv2.layernorm", "norm"),
    ("attention.output.dense", "attn.proj"),
    ("attention.self.continuous_position_bias_mlp", "attn.cpb_mlp"),
    ("attention.self.logit_scale", "attn.logit_scale"),
    ("attention.self.query.bias", "attn.q_bias"),
    ("attention.self.value.bias", "attn.v_bias"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("classifier", head),
    ("layers.0.downsample", f"layers.{merge}.downsample"),
  )
  return fused(renamed(weights, pairs), "attention.self", ("weight",))


@pytest.mark.parametrize(
  ("family", "spelled"),
  [
    ("vit", timm_vit),
    ("swin_v2", original_swin),
    ("swin_v2", lambda weights: original_swin(weights, 1, "head.fc")),
  ],
)
def test_q_k_and_v_may_be_fused(family, spelled, tmp_path):
  model = made(family)
  weights = spelled(pretrained.published(model))
  assert any("attn.qkv.weight" in name for name in weights)
  store(weights, tmp_path / "model.safetensors")
  loaded = pretrained.load(made(family, 99, scan=True), tmp_path)
  assert_equal(pretrained.published(model), pretrained.published(loaded))


def test_a_body_without_prefix_and_head_takes_a_fresh_head(tmp_path):
  model, other = made("vit"), made("vit", 99)
  weights = {
    name.removeprefix("vit."): value
    for name, value in pretrained.published(model).items()
    if not name.startswith("classifier")
  }
  pooler = {"pooler.dense.weight": np.eye(8), "pooler.dense.bias": np.ones(8)}
  store(weights | pooler, tmp_path / "model.safetensors")
  loaded = pretrained.load(other, tmp_path, head="fresh")
  head = {path for path in parameters(model) if path.startswith("head")}
  for path, leaf in parameters(loaded).items():
    source = other if path in head else model
    assert np.array_equal(leaf, parameters(source)[path]), path
  for names, message in (
    (weights | pooler, r"tensor pooler.dense.bias \[8\].*head='fresh' ignores"),
    (weights, r"classifier.* is missing.*head='fresh' keeps"),
  ):
    store(names, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError, match=message):
      pretrained.load(other, tmp_path)


def test_positions_of_another_grid_are_an_error_or_interpolated(tmp_path):
  model = made("vit", image_size=(12, 12))
  pretrained.save(model, tmp_path / "model.safetensors")
  other = made("vit", 99, image_size=(20, 8))
  with pytest.raises(PretrainedError, match="got 10; .*resize_positions=True"):
    pretrained.load(other, tmp_path)
  loaded = pretrained.load(other, tmp_path, resize_positions=True)
  old, new = (np.asarray(m.pos_embed[...])[0] for m in (model, loaded))
  assert np.array_equal(new[0], old[0])
  want = scipy.ndimage.zoom(
    old[1:].reshape(3, 3, 8), (5 / 3, 2 / 3, 1), order=1
  )
  np.testing.assert_allclose(new[1:], want.reshape(10, 8), atol=1e-6)


def test_interpolation_to_the_same_grid_changes_nothing():
  table = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
  assert np.array_equal(resized(table, (3, 4)), table)


def buffers(side, pretrained_side, stage=0):
  """As Hugging Face computed and stored them, by their formula."""
  scale = pretrained_side - 1
  at = np.arange(1 - side, side, dtype=np.float32) / scale * 8
  at = np.sign(at) * np.log2(np.abs(at) + 1) / np.log2(8)
  grid = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1)
  places = [(i, j) for i in range(side) for j in range(side)]
  index = [
    [
      (a - c + side - 1) * (2 * side - 1) + (b - d + side - 1)
      for c, d in places
    ]
    for a, b in places
  ]
  name = f"swinv2.encoder.layers.{stage}.blocks.0.attention.self."
  return {
    name + "relative_coords_table": grid[None].astype(np.float32),
    name + "relative_position_index": np.array(index, np.int64),
  }


def test_computed_buffers_are_compared_and_left_out(tmp_path):
  model = made("swin_v2")
  weights, path = pretrained.published(model), tmp_path / "model.safetensors"
  store(weights | buffers(4, 4), path)
  loaded = pretrained.load(made("swin_v2", 99), path)
  assert_equal(parameters(model), parameters(loaded))
  # Trained in windows of 3, or of 4 where the model says 3.
  store(weights | buffers(3, 3), path)
  with pytest.raises(PretrainedError, match="coords_table.*pretrained_windows"):
    pretrained.load(model, path)
  wide = made("swin_v2", 99, pretrained_windows=(3, 0))
  assert_equal(parameters(model), parameters(pretrained.load(wide, path)))
  broken = buffers(4, 4)
  for name, value in broken.items():
    if name.endswith("index"):
      value[0, 0] += 1
  store(weights | broken, path)
  with pytest.raises(PretrainedError, match="position_index"):
    pretrained.load(model, path)
  # What a header claims is compared before anything of its size is made.
  claimed = {name: np.zeros((10**6, 0), np.int64) for name in broken}
  store(weights | claimed, path)
  with pytest.raises(PretrainedError, match="relative_"):
    pretrained.load(model, path)
  store(weights | buffers(4, 4, stage=7), path)
  with pytest.raises(PretrainedError, match="layers.7"):
    pretrained.load(model, path)


def test_copies_of_t5s_embedding_must_be_copies(tmp_path):
  model, path = made("t5", tied=True), tmp_path / "model.safetensors"
  weights = pretrained.published(model)
  shared = weights["shared.weight"]
  unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
  copies = {
    f"{unused}.weight": np.ones((32, 2), np.float32),
    "encoder.embed_tokens.weight": shared.copy(),
    "decoder.embed_tokens.weight": shared.copy(),
    "lm_head.weight": shared.copy(),
  }
  store(weights | copies, path)
  loaded = pretrained.load(made("t5", 99, tied=True), path)
  assert_equal(parameters(model), parameters(loaded))
  copies["lm_head.weight"][0, 0] += 1e-6
  store(weights | copies, path)
  with pytest.raises(PretrainedError, match="lm_head.*differs from.*tied"):
    pretrained.load(model, path)
  untied = pretrained.load(made("t5", 99, tied=False), path)
  assert np.array_equal(untied.head.kernel[...], copies["lm_head.weight"].T)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda w: w.pop("vit.layernorm.bias"), "vit.layernorm.bias is missing"),
    (
      lambda w: w.update({"vit.encoder.layer.2.output.dense.bias": np.ones(8)}),
      r"layer.2.output.dense.bias \[8\]: this ViT has no",
    ),
    (
      lambda w: w.update({"classifier.weight": np.ones((7, 8))}),
      r"shape \[7, 8\], but head/kernel \[8, 5\] needs \[5, 8\].*head='fresh'",
    ),
    (
      lambda w: w.update({"vit.layernorm.bias": np.ones(8, np.int32)}),
      "floating-point weights, got .*int32",
    ),
  ],
)
def test_every_tensor_is_used_once_and_every_parameter_filled(
  tmp_path, change, message
):
  weights = pretrained.published(made("vit"))
  change(weights)
  path = tmp_path / "model.safetensors"
  store(weights, path)
  with pytest.raises(PretrainedError, match=message) as error:
    pretrained.load(made("vit"), path)
  assert str(error.value).startswith(str(path))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", sorted(TINY))
def test_another_family_is_named(family, tmp_path):
  path = tmp_path / "model.safetensors"
  pretrained.save(made(family), path)
  other = "t5" if family == "vit" else "vit"
  holds, wants = (type(abstract(name)).__name__ for name in (family, other))
  with pytest.raises(
    PretrainedError, match=f"weights of a {wants}, got .* a {holds}"
  ):
    pretrained.load(abstract(other), path)


def test_a_vocabulary_of_another_size_is_named(tmp_path):
  path = tmp_path / "model.safetensors"
  pretrained.save(made("t5"), path)
  with pytest.raises(
    PretrainedError, match=r"shared/embedding \[50, 8\] needs"
  ):
    pretrained.load(abstract("t5", vocab=50), path)


def test_options_are_checked(tmp_path):
  path = tmp_path / "model.safetensors"
  pretrained.save(made("vit"), path)
  with pytest.raises(PretrainedError, match="head of .*got 'new'"):
    pretrained.read(abstract("vit"), path, head="new")
