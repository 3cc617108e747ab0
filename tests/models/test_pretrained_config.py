"""Models for transformers: config, sparse tensors, and the same logits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import export, models, nn
from figs_jax.core import tree
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.config import for_transformers

from . import families

RULES = {
  "bert": "ff: 1:8, qk: 2:4, head: 1:4",
  "vit": "patch_embed/kernel: 2:4, ff: 1:8, q: 2:4",
  "swin_v2": "ff: 1:8, merge: 2:4, q: 1:2",
  "t5": "ff: 1:8, o: 1:4, q: 2:4",
}
# What each option says in config.json; every model is sparse and random.
CASES = {
  "vit": (
    "vit",
    {},
    {"patch_size": 4, "image_size": [8, 4], "num_channels": 3},
  ),
  "vit tanh": (
    "vit",
    {"gelu": "tanh", "norm_epsilon": 1e-5, "qkv_bias": False, "scan": True},
    {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5},
  ),
  "vit sincos": (
    "vit",
    {"pos": "sincos", "patch": (2, 4), "mlp_dim": 24, "in_channels": 4},
    {"patch_size": [2, 4], "intermediate_size": 24, "num_channels": 4},
  ),
  "swin_v2": (
    "swin_v2",
    {
      "mlp_ratio": 2.0,
      "pretrained_windows": (3, 2),
      "qkv_bias": False,
      "drop_path": 0.25,
    },
    {
      "drop_path_rate": 0.25,
      "mlp_ratio": 2.0,
      "pretrained_window_sizes": [3, 2],
      "qkv_bias": False,
      "num_heads": [2, 4],
      "image_size": [13, 11],
    },
  ),
  "bert": (
    "bert",
    {"gelu": "tanh", "norm_epsilon": 1e-5, "scan": True, "dropout": 0.25},
    {
      "architectures": ["BertForMaskedLM"],
      "hidden_act": "gelu_pytorch_tanh",
      "layer_norm_eps": 1e-5,
      "hidden_dropout_prob": 0.25,
      "max_position_embeddings": 10,
    },
  ),
  "bert classes": (
    "bert",
    {"output": "classes", "num_classes": 3, "token_types": 2},
    {
      "architectures": ["BertForSequenceClassification"],
      "type_vocab_size": 2,
      "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    },
  ),
  "t5 gated": (
    "t5",
    {"num_buckets": 8, "max_distance": 12, "scan": True, "dropout": 0.25},
    {
      "feed_forward_proj": "gated-gelu",
      "tie_word_embeddings": False,
      "dropout_rate": 0.25,
    },
  ),
  "t5": (
    "t5",
    {"gated": False, "tied": True},
    {"feed_forward_proj": "relu", "num_layers": 2, "num_decoder_layers": 1},
  ),
}


@functools.cache
def finished(case):
  """A sparse model with random weights and exact zeros, in evaluation mode."""
  family, options, _ = CASES[case]
  patch = options.get("patch")
  options = {k: v for k, v in options.items() if k != "patch"}
  tiny = families.TINY[family]
  variant = tiny.variant if patch is None else "custom/4"
  options = {**tiny.options, **options}
  options |= {"patch": patch} if patch else {}
  model = models.create(family, variant, rngs=nnx.Rngs(1), **options)
  model = nn.sparsify(model, RULES[family])
  graph, params, masks, rest = nn.split(model)
  rng = np.random.default_rng(0)

  def random(w, m):
    w = np.asarray(w) + 0.2 * rng.standard_normal(w.shape, np.float32)
    return jnp.asarray(w if m is None else np.where(m, w, np.float32(0)))

  params = jax.tree.map(random, params, masks)
  model = nn.merge(graph, params, masks, jnp.zeros((), jnp.float32), rest)
  model.eval()
  return model


@pytest.mark.parametrize("case", sorted(CASES))
def test_config_and_sparse_tensors(case, tmp_path):
  model = finished(case)
  made = for_transformers(model)
  assert made.config.items() >= CASES[case][2].items()
  assert made.config["dtype"] == "float32"
  assert not {key for key in made.config if "spars" in key or "quant" in key}
  json.dumps(made.config, allow_nan=False)
  # As many kept weights as the masks say, and groups where they lie.
  masks = tree.flatten(nn.split(model)[2])
  kept = sum(int(mask.sum()) for mask in masks.values() if mask is not None)
  assert kept == sum(
    np.count_nonzero(made.tensors[name]) for name in made.leaves
  )
  for name, leaf in made.leaves.items():
    assert made.tensors[name].shape == leaf.shape, name
  # The survey of the file finds at least what the rules asked for.
  export.write_dense(tmp_path / "m", made.tensors, made.leaves, made.config)
  survey = {each.name: each for each in export.survey(tmp_path / "m")}
  for name, leaf in made.leaves.items():
    assert survey[name].patterns[leaf.axis].density <= leaf.pattern.density


@pytest.mark.parametrize("case", sorted(CASES))
def test_transformers_computes_the_same_logits(case, tmp_path):
  reason = "needs torch and transformers: the extra `oracles`"
  torch = pytest.importorskip("torch", reason=reason)
  transformers = pytest.importorskip("transformers", reason=reason)
  model, made = finished(case), for_transformers(finished(case))
  export.write_dense(tmp_path / "m", made.tensors, made.leaves, made.config)
  kind = getattr(transformers, made.config["architectures"][0])
  theirs, info = kind.from_pretrained(tmp_path / "m", output_loading_info=True)
  assert not any(info.values()), info
  inputs = [np.asarray(x) for x in _inputs(case)]
  # Another program than the eager one, and quicker.
  graph, state = nnx.split(model)
  ours = jax.jit(lambda *a: nnx.merge(graph, state)(*a))(*inputs)
  with torch.no_grad():
    if case.startswith("t5"):
      ids, targets = (torch.from_numpy(x.copy()).long() for x in inputs)
      got = theirs.eval()(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        decoder_input_ids=torch.nn.functional.pad(targets[:, :-1], (1, 0)),
      ).logits
    elif case.startswith("bert"):
      ids, types = (torch.from_numpy(x.copy()).long() for x in inputs)
      got = theirs.eval()(
        input_ids=ids, attention_mask=(ids != 0).long(), token_type_ids=types
      ).logits
    else:
      pixels = torch.from_numpy(inputs[0].transpose(0, 3, 1, 2).copy())
      got = theirs.eval()(pixels).logits
  assert np.abs(ours).max() > 0.1
  assert np.abs(got.numpy() - np.asarray(ours)).max() < 1e-4


def _inputs(case):
  family, options, _ = CASES[case]
  if "in_channels" in options:
    return [jax.random.normal(jax.random.key(0), (3, 8, 4, 4))]
  return families.TINY[family].args(3)


def test_what_transformers_lacks_is_refused():
  with pytest.raises(
    PretrainedError, match="expected pool='cls', .*got pool='gap'"
  ):
    for_transformers(families.create("vit", pool="gap"))
  with pytest.raises(PretrainedError, match="transformers has .*got Linear"):
    for_transformers(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
