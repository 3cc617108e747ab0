"""DINOv2, DeiT and MAE: options of ViT, and files of another library."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn, recipes
from figs_jax.core import tree
from figs_jax.core.masks import is_nm
from figs_jax.models import pretrained
from figs_jax.models.flops import forward_flops
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.config import TABLES, for_transformers
from figs_jax.models.pretrained.files import write_weights
from figs_jax.models.pretrained.resizing import resized
from figs_jax.train.losses import cross_entropy
from figs_jax.train.state import TrainState, update

from . import vit_forms_oracle as oracle
from .dot_flops import dot_flops
from .non_gemm_oracle import values
from .parity import ATOL, check_gradient

SIZES = {
  "width": 8, "depth": 2, "heads": 2, "image_size": (8, 4), "num_classes": 5,
}  # fmt: skip
FORMS = {
  "dinov2": {"layer_scale": 0.1, "pool": "cls_gap"},
  "giant": {
    "layer_scale": 0.1, "pool": "cls_gap", "swiglu": True, "registers": 3,
  },
  "deit": {"distillation": "heads"},
  "token": {"distillation": "token"},
  "mae": {"pool": "gap_norm"},
  "registers": {"pool": "gap", "registers": 2, "pos": "sincos"},
}  # fmt: skip
forms = pytest.mark.parametrize("form", sorted(FORMS))
cases = pytest.mark.parametrize("case", sorted(oracle.CASES))


def create(form, seed=0, **options):
  options = SIZES | FORMS[form] | options
  return models.create("vit", "custom/4", rngs=nnx.Rngs(seed), **options)


def images(batch=3):
  return jax.random.normal(jax.random.key(batch), (batch, 8, 4, 3))


@functools.cache
def stored(case):
  """What the library's model of a case holds and computes."""
  with np.load(oracle.TARGET) as data:
    start = f"{case}/"
    own = {k.removeprefix(start): data[k] for k in data if k.startswith(start)}
    return own | {"images": data["images"]}


def under(prefix, arrays):
  start = f"{prefix}/"
  return {
    k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)
  }


def write(folder, arrays, prefix="weight"):
  write_weights(folder / "model.safetensors", under(prefix, arrays))
  (folder / "config.json").write_text(str(arrays["config"]))


def head_of(case):
  return "fresh" if case == "mae" else "strict"


def compare(case, arrays, folder, **options):
  """Logits, and the direction and length of every tensor's gradient."""
  write(folder, arrays)
  head = head_of(case)
  model = models.from_pretrained(folder, head=head, **options)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    x = arrays["images"]
    out = model.features(x)[:, 0] if case == "mae" else model(x)
    return (out * arrays["cotangent"]).sum(), out

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = slope(params)
  np.testing.assert_allclose(logits, arrays["logits"], atol=ATOL, rtol=0)
  # The gradients are a file of the same names: they come in the same way.
  write(folder, arrays, "gradient")
  theirs = models.from_pretrained(folder, head=head, **options)
  theirs = tree.flatten(nn.split(theirs)[1])
  for path, got in tree.flatten(grads).items():
    if path.endswith("attn/k/bias"):
      # Adding one vector to all keys does not change a softmax.
      assert np.abs(got).max() < 1e-5
      continue
    if case == "mae" and path.startswith(("head", "pos_embed")):
      continue  # the library has no head, and its positions are fixed
    check_gradient(path, got, theirs[path])


@cases
def test_logits_and_gradients_equal_the_stored_ones(case, tmp_path):
  compare(case, stored(case), tmp_path, scan=case in ("dinov2 giant", "deit"))


@cases
def test_logits_and_gradients_equal_those_computed_now(case, tmp_path):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  x = oracle.pictures()
  compare(
    case, oracle.stored_case(case, 5, x) | {"images": x}, tmp_path, scan=True
  )


@cases
def test_files_out_and_in_are_bit_equal(case, tmp_path):
  arrays = stored(case)
  write(tmp_path, arrays)
  model = models.from_pretrained(tmp_path, head=head_of(case), scan=True)
  made = for_transformers(model)
  want = under("weight", arrays)
  if case == "mae":
    assert made.config["model_type"] == "vit"
    want = {f"vit.{name}": value for name, value in want.items()}
    want |= {k: v for k, v in made.tensors.items() if "classifier" in k}
  for name in want:
    if name.endswith("mask_token"):  # of pretraining
      want[name] = np.zeros_like(want[name])
  assert made.tensors.keys() == want.keys()
  for name, value in want.items():
    assert np.array_equal(made.tensors[name], value), name
  read = json.loads(str(arrays["config"]))
  kept = made.config.keys() & read.keys() - {"label2id", "dtype"}
  for name in kept if case != "mae" else ():
    assert made.config[name] in (read[name], {0: "LABEL_0"}), name


@pytest.mark.parametrize(
  "kind", ["deit", "dinov2", "dinov2_with_registers", "vit_mae"]
)
def test_every_key_and_default_of_the_library_is_known(kind):
  with np.load(oracle.TARGET) as data:
    every = json.loads(str(data["defaults"]))[kind]
  (table,) = (t for t in TABLES["ViT"] if kind in t.types)

  def values(fields):
    options = table.read({"model_type": kind} | fields, {})
    return {name: given.value for name, given in options.items()}

  assert values(every) == values({})


@pytest.mark.parametrize(
  ("case", "changes", "message"),
  [
    ("dinov2", {"use_swiglu_ffn": True}, "swiglu=True .*got False"),
    ("dinov2", {"mlp_ratio": 4}, "mlp_dim=32 .*mlp_ratio=4"),
    ("dinov2", {"mlp_ratio": "4"}, "mlp_ratio: expected a number from 0"),
    ("dinov2", {"hidden_act": "relu"}, 'hidden_act: expected .*got "relu"'),
    ("dinov2 registers", {"num_register_tokens": 4}, "registers=4 .*got 3"),
    (
      "dinov2 registers",
      {"num_register_tokens": 0},
      "expected an integer from",
    ),
    ("dinov2", {"layer_norm_eps": 1e-5}, "norm_epsilon=1e-05"),
    ("deit", {"intermediate_size": 16}, "mlp_dim=16"),
    ("deit", {"model_type": "vit"}, "distillation='none', got 'token'"),
    ("mae", {"num_attention_heads": 4}, "heads=4"),
    ("mae", {"decoder_depth": 4}, 'unknown key "decoder_depth"'),
  ],
)
def test_no_changed_key_loads_as_another_function(
  case, changes, message, tmp_path
):
  arrays = stored(case)
  write(tmp_path, arrays)
  model = models.from_pretrained(tmp_path, head=head_of(case))
  config = json.loads(str(arrays["config"])) | changes
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(PretrainedError, match=message) as error:
    pretrained.load(model, tmp_path, head=head_of(case))
  assert "\n" not in str(error.value)


@cases
def test_the_library_reads_what_we_write(case, tmp_path):
  reason = "needs torch and transformers: the extra `oracles`"
  torch = pytest.importorskip("torch", reason=reason)
  transformers = pytest.importorskip("transformers", reason=reason)
  write(tmp_path, stored(case))
  model = models.from_pretrained(tmp_path, head=head_of(case))
  made = for_transformers(model)
  write_weights(tmp_path / "model.safetensors", made.tensors)
  (tmp_path / "config.json").write_text(json.dumps(made.config))
  kind = getattr(transformers, made.config["architectures"][0])
  theirs, info = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info.values()), info
  x = oracle.pictures()
  with torch.no_grad():
    want = theirs.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).logits
  with jax.default_matmul_precision("highest"):
    np.testing.assert_allclose(model(x), want.numpy(), atol=ATOL, rtol=0)


@pytest.mark.parametrize(
  ("variant", "options", "count"),
  [
    # With a head of 1000 classes for DeiT. The others are backbones; DINOv2's
    # have a mask token, which only pretraining reads.
    ("Ti/16", {}, 5_717_416),
    ("deit-Ti/16", {}, 5_910_800),
    ("deit-S/16", {}, 22_436_432),
    ("deit-B/16", {}, 87_338_192),
    ("dinov2-S/14", {"image_size": 518}, 22_056_576),
    ("dinov2-B/14", {"image_size": 518}, 86_580_480),
    ("dinov2-L/14", {"image_size": 518}, 304_368_640),
    ("dinov2-g/14", {"image_size": 518}, 1_136_480_768),
    ("dinov2_reg-S/14", {"image_size": 518}, 22_056_576 + 4 * 384),
    ("dinov2_reg-g/14", {"image_size": 518}, 1_136_480_768 + 4 * 1536),
    ("mae-B/16", {}, 85_798_656),
    ("mae-L/16", {}, 303_301_632),
    ("mae-H/14", {}, 630_764_800),
  ],
)
def test_parameter_counts_are_the_published_ones(variant, options, count):
  model = models.abstract("vit", variant, **options)
  leaves = tree.flatten(nn.split(model)[1])
  with_head = variant.startswith(("deit", "Ti"))
  sizes = {
    path: leaf.size
    for path, leaf in leaves.items()
    if with_head or not path.startswith("head")
  }
  mask_token = model.width if "dino" in variant else 0
  assert sum(sizes.values()) + mask_token == count


@forms
@pytest.mark.parametrize("scan", [False, True])
def test_rows_are_every_kernel_and_product(form, scan):
  model = create(form, scan=scan)
  rows = models.gemms_of(model, 3)
  names = [row["name"] for row in rows]
  assert len(set(names)) == len(names)
  assert forward_flops(rows) == dot_flops(lambda x: model(x), images())
  kernels = {
    path.removesuffix("/kernel"): leaf.size
    for path, leaf in tree.flatten(nn.split(model)[1]).items()
    if path.endswith("/kernel")
  }
  assert len(kernels) == len(set(kernels) & set(names))
  traced = models.products_of(model, 3)
  assert forward_flops([p.row for p in traced]) == forward_flops(rows)
  sparse = nn.sparsify(model, "ff: 1:8, qkv: 1:4, head: 1:8")
  masked = {r["name"] for r in models.gemms_of(sparse) if r["pattern"]}
  assert {f"{name}/kernel" for name in masked} == set(nn.masked_leaves(sparse))
  blocks = 1 if scan else 2
  ff = 3 if model.swiglu else 2
  assert len(masked) == blocks * (ff + 3) + 1 + (form == "deit")


@forms
def test_what_a_pass_moves_is_what_the_program_computes(form):
  model = create(form)
  rows = models.non_gemms_of(model, 3)
  traced = values(lambda x: model(x), images(), width=8)
  del traced["embedding"]  # it is no gather

  def total(kind):
    return sum(r["writes"] * r["count"] for r in rows if r["kind"] == kind)

  assert {kind: total(kind) for kind in traced} == traced


@forms
def test_scanned_blocks_and_recomputed_ones_compute_the_same(form, tmp_path):
  listed = nn.sparsify(create(form), "ff: 1:4, qk: 2:4")
  assert (
    pretrained.published(listed).keys()
    == pretrained.published(create(form, scan=True)).keys()
  )
  pretrained.save(listed, tmp_path / "model.safetensors")
  other = create(form, 9, scan=True, remat=True)
  scanned = pretrained.load(
    nn.sparsify(other, "ff: 1:4, qk: 2:4"), tmp_path / "model.safetensors"
  )
  a, b = (nnx.jit(lambda m, x: m(x))(m, images()) for m in (listed, scanned))
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.standard_promotion  # optax mixes dtypes
@pytest.mark.parametrize("form", ["giant", "deit"])
def test_recipes_train_them_and_end_with_exact_masks(form):
  recipe = recipes.create("figs", "ff: 1:4, qk: 2:4, head: 1:8", 3, dense=0.0)
  model = nn.sparsify(create(form, scan=True, drop_path=0.2), recipe)
  tx = recipe.adamw(1e-2)
  state = TrainState.create(model, recipe, tx, loss=cross_entropy)
  first = tree.flatten(state.params)
  step = jax.jit(update)
  batch = {"image": images(4), "label": jnp.arange(4)}
  for _ in range(3):
    state, _ = step(state, batch)
  finished = state.finished()
  _, params, masks, _ = nn.split(finished)
  params, masks = tree.flatten(params), tree.flatten(masks)
  for path, leaf in nn.masked_leaves(finished).items():
    assert is_nm(masks[path], leaf.pattern, leaf.axis), path
    assert not np.any(params[path][~masks[path]]), path
  for path, leaf in params.items():  # registers, scales, tokens and all heads
    if not path.endswith("attn/k/bias"):
      assert not np.array_equal(leaf, first[path]), path


@pytest.mark.parametrize("form", ["giant", "deit"])
def test_channels_move_without_a_change_of_the_outputs(form):
  model = create(form)
  moved, report = nn.permute_channels(model, "ff: 1:4, o: 1:4")
  assert {entry.path.split("/")[-2] for entry in report} == {
    "down" if form == "giant" else "fc2",
    "o",
  }
  np.testing.assert_allclose(moved(images()), model(images()), atol=1e-5)


def test_distilled_logits_are_the_mean_of_two_heads():
  model = create("deit")
  x = model.features(images())
  want = (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2
  np.testing.assert_allclose(model(images()), want, atol=1e-6)


def test_registers_have_no_position_and_are_not_averaged():
  model = create("giant")
  assert model.pos_embed.shape == (1, 3, 8)  # a class token and 2 patches
  x = model.features(images())
  want = jnp.concatenate([x[:, 0], x[:, 4:].mean(axis=1)], axis=-1)
  np.testing.assert_allclose(model(images()), model.head(want), atol=1e-6)
  # Registers may change places, since nothing tells them apart.
  other = nnx.clone(model)
  other.register_tokens.set_value(model.register_tokens[...][:, ::-1])
  np.testing.assert_allclose(other(images()), model(images()), atol=1e-5)


def test_swiglu_and_layer_scale_by_hand():
  model = create("giant")
  block = model.blocks[0]
  assert block.mlp.gate.kernel.shape == (8, 24)  # 2/3 of 32, in steps of 8
  x = jax.random.normal(jax.random.key(5), (1, 3, 8))
  w = {n: np.asarray(getattr(block.mlp, n).kernel[...]) for n in ("gate", "up")}
  h = np.asarray(x) @ w["gate"]
  want = h / (1 + np.exp(-h)) * (np.asarray(x) @ w["up"])
  want = want @ np.asarray(block.mlp.down.kernel[...])
  np.testing.assert_allclose(block.mlp(x), want, atol=1e-4)
  for layer in (block.layer_scale1, block.layer_scale2):
    layer.scale.set_value(jnp.zeros(8))
  assert jnp.array_equal(block(x), x)


@pytest.mark.parametrize("name", sorted(oracle.RESIZED))
def test_positions_are_interpolated_as_torch_does(name):
  _, grid, smooth = oracle.RESIZED[name]
  with np.load(oracle.TARGET) as data:
    table, want = (data[f"positions/{name}{x}"] for x in ("", "/resized"))
  how = "bicubic_antialias" if smooth else "bicubic"
  np.testing.assert_allclose(resized(table, grid, how), want, atol=1e-6)


def test_a_class_token_is_kept_beside_resized_positions(
  tmp_path,
):
  arrays = stored("dinov2 registers")
  write(tmp_path, arrays)
  with pytest.raises(PretrainedError, match="resize_positions=True"):
    models.from_pretrained(tmp_path, image_size=20)
  model = models.from_pretrained(
    tmp_path, image_size=20, resize_positions=True, interpolation="bicubic"
  )
  name = "dinov2_with_registers.embeddings.position_embeddings"
  old, new = arrays[f"weight/{name}"][0], model.pos_embed[...][0]
  assert np.array_equal(new[0], old[0])
  want = resized(old[1:].reshape(3, 3, -1), (5, 5), "bicubic")
  assert np.array_equal(new[1:], want.reshape(25, -1))
  with pytest.raises(PretrainedError, match="did you mean 'bicubic'"):
    models.from_pretrained(
      tmp_path, image_size=20, resize_positions=True, interpolation="cubic"
    )


def test_packed_kernels_need_one_pattern():
  options = {"registers": 0}
  same = for_transformers(nn.sparsify(create("giant", **options), "ff: 1:8"))
  name = "dinov2.encoder.layer.0.mlp.weights_in.weight"
  leaf = same.leaves[name]
  assert same.tensors[name].shape == leaf.shape == (48, 8) and leaf.axis == (1,)
  for rules in (".*gate/kernel: 1:8", ".*gate/kernel: 1:8, .*up/kernel: 2:8"):
    with pytest.raises(
      PretrainedError, match="weights_in.*one pattern for all"
    ):
      for_transformers(nn.sparsify(create("giant", **options), rules))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"distillation": "heads", "pool": "gap"}, "expected pool='cls' .*'heads'"),
    ({"distillation": "two"}, "unknown distillation='two'"),
    ({"registers": -1}, "registers and layer_scale of 0 or more, got -1"),
  ],
)
def test_options_that_do_not_fit_are_one_line(options, message):
  with pytest.raises(ValueError, match=message):
    models.create("vit", "custom/4", **(SIZES | options))


def test_unknown_forms_name_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'dinov2'"):
    models.abstract("vit", "dino2-S/14")


@pytest.mark.parametrize(
  ("form", "options", "message"),
  [
    ("dinov2", {"pool": "cls"}, "expected pool='cls_gap', .*got pool='cls'"),
    ("giant", {"mlp_dim": 20}, "expected mlp_dim=24, which follows"),
    ("mae", {}, "ViTForImageClassification: expected pool='cls'"),
    ("deit", {"layer_scale": 0.1}, "no such|another format"),
  ],
)
def test_what_the_library_lacks_is_named(form, options, message):
  with pytest.raises(PretrainedError, match=message):
    for_transformers(create(form, **options))
