"""Weights of models that are not ours: named as what they are, with the fix."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from figs_jax import models
from figs_jax.models import pretrained
from figs_jax.models.pretrained import PretrainedError

from .families import TINY, create
from .test_pretrained import abstract, made, store, write_shards

ONE = np.ones((2, 2), np.float32)


def names(*rows, layers=2):
  """Tensors by these names, of every layer."""
  every = [row.format(i=i) for row in rows for i in range(layers)]
  return dict.fromkeys(every, ONE)


def both(*rows):
  return [f"{row}.{end}" for row in rows for end in ("weight", "bias")]


_BERT = both(
  "encoder.layer.{i}.attention.self.query",
  "encoder.layer.{i}.attention.self.key",
  "encoder.layer.{i}.attention.self.value",
  "encoder.layer.{i}.attention.output.dense",
  "encoder.layer.{i}.attention.output.LayerNorm",
  "encoder.layer.{i}.intermediate.dense",
  "encoder.layer.{i}.output.dense",
  "encoder.layer.{i}.output.LayerNorm",
  "embeddings.LayerNorm",
)
_CLIP = both(
  "vision_model.encoder.layers.{i}.self_attn.k_proj",
  "vision_model.encoder.layers.{i}.layer_norm1",
  "vision_model.encoder.layers.{i}.mlp.fc1",
)
_CONVNEXT = both("stages.{i}.blocks.0.conv_dw", "stages.{i}.blocks.0.mlp.fc1")
_BEIT = [
  *both(
    "encoder.layer.{i}.attention.attention.query",
    "encoder.layer.{i}.attention.output.dense",
    "encoder.layer.{i}.intermediate.dense",
    "encoder.layer.{i}.output.dense",
    "encoder.layer.{i}.layernorm_before",
    "encoder.layer.{i}.layernorm_after",
  ),
  "encoder.layer.{i}.lambda_1",
  "encoder.layer.{i}.attention.attention.relative_position_bias"
  ".relative_position_bias_table",
]
_BEIT_TIMM = [
  *both("blocks.{i}.norm1", "blocks.{i}.attn.proj", "blocks.{i}.mlp.fc1"),
  "blocks.{i}.attn.relative_position_bias_table",
  "blocks.{i}.gamma_1",
]
_SWIN_1 = [
  *both("layers.0.blocks.{i}.norm1", "layers.0.blocks.{i}.attn.qkv"),
  "layers.0.blocks.{i}.attn.relative_position_bias_table",
]
_POSITIONS = "relative_position_bias_table belongs to a relative position bias"


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (_CLIP, "expected tensors of a ViT, got vision_model.*of a family that"),
    (_CONVNEXT, "expected tensors of a ViT, got stages"),
    (["a.b", "c"], "expected tensors of a ViT, got a.b, c, which are not"),
    (_BEIT, _POSITIONS),
    ([f"beit.{row}" for row in _BEIT], _POSITIONS),
    (_BEIT_TIMM, _POSITIONS),
    (_SWIN_1, _POSITIONS),
    (
      both("blocks.{i}.attn.q_norm", "blocks.{i}.attn.qkv"),
      "norms of the queries and keys",
    ),
  ],
)
def test_no_stranger_is_taken_for_another_family(rows, message, tmp_path):
  store(names(*rows), tmp_path / "model.safetensors")
  with pytest.raises(PretrainedError, match=message) as error:
    pretrained.load(abstract("vit"), tmp_path)
  assert "SwinV2" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_is_no_swin(prefix, tmp_path):
  """Bare encoders share names; nor is it one if BERT is not among them."""
  store(names(*(prefix + row for row in _BERT)), tmp_path / "model.safetensors")
  for family in ("vit", "swin_v2", "t5"):
    with pytest.raises(PretrainedError) as error:
      pretrained.load(abstract(family), tmp_path)
    taken = [kind.__name__ for kind in models.FAMILIES.values()]
    taken.remove(type(abstract(family)).__name__)
    taken = [name for name in taken if name.lower() != "bert"]
    assert not any(f"of a {name}" in str(error.value) for name in taken)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("family", ["swin_v2", "t5", "vit"])
def test_a_prefix_of_a_wrapper_is_named(family, prefix, tmp_path):
  weights = pretrained.published(made(family))
  wrapped = {prefix + name: value for name, value in weights.items()}
  store(wrapped, tmp_path / "model.safetensors")
  message = f"begin with '{prefix}', which a wrapper.*removeprefix"
  with pytest.raises(PretrainedError, match=message):
    pretrained.load(abstract(family), tmp_path)


def _dino(**options):
  pool = {"pool": "cls_gap"}
  return made("vit", **({"layer_scale": 0.1} | pool | options))


@pytest.mark.parametrize(
  ("theirs", "ours", "message"),
  [
    (_dino, {"pool": "cls_gap"}, "set layer_scale=1e-05"),
    (
      lambda: _dino(registers=2),
      {"pool": "cls_gap", "layer_scale": 1.0},
      r"register_tokens \[1, 2, 8\].*set registers=$",
    ),
    (
      lambda: _dino(swiglu=True),
      {"pool": "cls_gap", "layer_scale": 1.0},
      "weights_in.bias .*set swiglu=True",
    ),
    (
      lambda: made("vit", distillation="heads"),
      {},
      "distillation_token|cls_classifier",
    ),
    (
      lambda: made("vit", distillation="heads"),
      {"distillation": "token"},
      "classifier",
    ),
    (lambda: made("vit"), {"layer_scale": 0.1}, "have no .*layer_scale=0.0"),
    (lambda: made("vit"), {"registers": 2}, "have no .*set registers=0"),
    (lambda: made("vit"), {"swiglu": True}, "have no .*set swiglu=False"),
  ],
)
def test_options_of_a_vit_are_named(theirs, ours, message, tmp_path):
  pretrained.save(theirs(), tmp_path / "model.safetensors")
  with pytest.raises(PretrainedError, match=message) as error:
    pretrained.load(abstract("vit", **ours), tmp_path)
  assert "\n" not in str(error.value)


def test_a_decoder_of_a_masked_autoencoder_goes_with_a_fresh_head(tmp_path):
  model = made("vit")
  weights = {
    name: value
    for name, value in pretrained.published(model).items()
    if "classifier" not in name
  }
  decoder = names(
    "decoder.decoder_embed.weight",
    "decoder.decoder_layers.{i}.mlp.fc1.weight",
    "decoder.mask_token",
  )
  store(weights | decoder, tmp_path / "model.safetensors")
  with pytest.raises(PretrainedError, match="decoder.*head='fresh' ignores"):
    pretrained.load(made("vit", 9), tmp_path)
  loaded = pretrained.load(made("vit", 9), tmp_path, head="fresh")
  assert np.array_equal(loaded.norm.scale[...], model.norm.scale[...])


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("vit.encoder.layer.0.output.dense.lora_A.weight", "LoRA adapter; merge"),
    ("vit.encoder.layer.0.output.dense.qweight", "quantized weights"),
    ("vit.rope_embeddings.rope.inv_freq", "rotary positions"),
  ],
)
def test_what_no_option_has_is_named(name, message, tmp_path):
  weights = pretrained.published(made("vit"))
  store(weights | {name: ONE}, tmp_path / "model.safetensors")
  with pytest.raises(PretrainedError, match=f"{name} belongs to .*{message}"):
    pretrained.load(abstract("vit"), tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stacks", [("decoder",), ("encoder", "decoder")])
def test_t5s_embedding_may_have_another_name(stacks, tied, tmp_path):
  model = made("t5", tied=tied)
  weights = pretrained.published(model)
  shared = weights.pop("shared.weight")
  copies = {f"{x}.embed_tokens.weight": shared.copy() for x in stacks}
  store(weights | copies, tmp_path / "model.safetensors")
  loaded = pretrained.load(made("t5", 9, tied=tied), tmp_path)
  assert np.array_equal(loaded.shared.embedding[...], shared)
  config = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
  config |= {"num_layers": 2, "num_decoder_layers": 1}
  config["tie_word_embeddings"] = tied
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert pretrained.config_of(tmp_path).options["tied"].value == tied
  if len(stacks) == 2:
    copies["encoder.embed_tokens.weight"][0, 0] += 1
    store(weights | copies, tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(PretrainedError, match="to be equal, as both stand for"):
      pretrained.load(made("t5", 9, tied=tied), tmp_path)


def test_an_index_beside_a_single_file_must_agree(tmp_path):
  model = made("vit")
  weights = pretrained.published(model)
  write_shards(tmp_path, weights)
  store(weights, tmp_path / "model.safetensors")
  pretrained.load(made("vit", 9), tmp_path)
  other = weights["classifier.bias"].copy()
  other[0] += 1
  for changed in (
    weights | {"classifier.bias": other},
    weights | {"further": ONE},
    weights | {"classifier.bias": weights["classifier.bias"].astype("float16")},
  ):
    store(changed, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError, match="hold the same tensors, but"):
      pretrained.load(made("vit", 9), tmp_path)
    # A path of one of the two says which is meant.
    pretrained.load(made("vit", 9), tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("pytorch_model.bin", "torch.load.*weights_only=True"),
    ("best.pth", "safetensors.torch.save_file"),
    ("model.onnx", "onnx_dinov2.convert"),
    ("tf_model.h5", "from_tf=True"),
    ("flax_model.msgpack", "from_flax=True"),
    ("model.gguf", "gguf_file="),
  ],
)
def test_other_files_say_how_to_convert_them(name, message, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(PretrainedError, match=message) as error:
      pretrained.load(abstract("vit"), path)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_every_family_is_still_told_from_the_others(tmp_path):
  path = tmp_path / "model.safetensors"
  for family in TINY:
    save_file(
      {
        name: np.ascontiguousarray(value)
        for name, value in pretrained.published(create(family)).items()
      },
      path,
    )
    for other in set(TINY) - {family}:
      with pytest.raises(PretrainedError, match="expected weights of a .* got"):
        pretrained.load(abstract(other), path)
