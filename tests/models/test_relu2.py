"""Squared ReLU as the feed-forward activation, and inputs pruned after it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import export, models, nn
from figs_jax.models import pretrained
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.models.pretrained.keys import with_end

from . import families

CASES = {
  "vit": ({}, ("fc1",), "hidden_act", "relu2"),
  "bert": ({}, ("fc1",), "hidden_act", "relu2"),
  "gpt2": ({}, ("fc1",), "activation_function", "relu2"),
  "llama": ({}, ("gate", "up"), "hidden_act", "relu2"),
  "t5": ({"gated": False}, ("wi",), "feed_forward_proj", "relu2"),
  "t5 gated": (
    {"gated": True}, ("wi_0", "wi_1"), "feed_forward_proj", "gated-relu2"
  ),
}  # fmt: skip
LAST = {"fc1": "fc2", "gate": "down", "wi": "wo", "wi_0": "wo"}


def build(case, **more):
  family, options = case.split()[0], CASES[case][0]
  return families.create(family, **options, **more)


def linear(layer, x):
  y = x @ np.asarray(layer.kernel[...], np.float64)
  return y if layer.bias is None else y + np.asarray(layer.bias[...])


@pytest.mark.parametrize("case", CASES)
def test_feed_forward_layers_by_hand(case):
  model = build(case, relu2=True)
  layers = [m for path, m in nnx.iter_modules(model) if path[-1:] == ("mlp",)]
  first, *gate = CASES[case][1]
  x = np.random.default_rng(0).normal(
    size=(2, 3, layers[0].__dict__[first].in_features)
  )
  for mlp in layers:
    hidden = np.maximum(linear(getattr(mlp, first), x), 0) ** 2
    hidden = hidden * linear(getattr(mlp, gate[0]), x) if gate else hidden
    wanted = linear(getattr(mlp, LAST[first]), hidden)
    mlp.eval()
    np.testing.assert_allclose(
      mlp(jnp.float32(x)), wanted, rtol=2e-4, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_usual_activation(case):
  usual, model = build(case), build(case, relu2=True)
  assert models.gemms_of(model, 2) == models.gemms_of(usual, 2)
  rows, wanted = (models.non_gemms_of(net, 2) for net in (model, usual))
  names = [row["name"] for row in rows if row["kind"] == "activation"]
  assert any(name.endswith("mlp/relu2") for name in names)
  assert [row | {"name": ""} for row in rows] == [
    row | {"name": ""} for row in wanted
  ]


@pytest.mark.parametrize("case", CASES)
def test_config_json_both_ways(case, tmp_path):
  _, _, key, word = CASES[case]
  made = for_transformers(build(case, relu2=True))
  assert made.config[key] == word
  export.write_dense(tmp_path / "m", made.tensors, made.leaves, made.config)
  options = pretrained.config_of(tmp_path / "m").options
  assert options["relu2"].value is True
  assert for_transformers(build(case)).config[key] != word


@pytest.mark.parametrize("case", CASES)
def test_inputs_that_fit_lose_nothing(case):
  """Where squared ReLUs leave 2 of 4 anyway, the outputs are equal."""
  model = build(case, relu2=True)
  args = families.TINY[case.split()[0]].args(2)
  pruned = nn.prune_inputs(model, "ff_input: 2:4")
  patterns = nn.input_patterns(pruned)
  assert patterns and all(
    path.split("/")[-2] == LAST[CASES[case][1][0]] for path in patterns
  )
  assert np.any(np.asarray(pruned(*args)) != np.asarray(model(*args)))
  first = CASES[case][1][0]
  for net in (model, pruned):
    for path, layer in nnx.iter_modules(net):
      if path[-1:] == (first,):  # two of every four are 0
        kernel = layer.kernel[...]
        sign = jnp.where(jnp.arange(kernel.shape[-1]) % 4 < 2, 1.0, 0.0)
        layer.kernel[...] = kernel * jnp.expand_dims(
          sign, range(kernel.ndim - 1)
        )
        if layer.bias is not None:
          layer.bias[...] = layer.bias[...] * sign
  np.testing.assert_array_equal(pruned(*args), model(*args))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_config_json_names_the_end_of_our_texts(family):
  config = for_transformers(families.create(family)).config
  assert config["eos_token_id"] == 1
  assert with_end({"vocab_size": 50257})["eos_token_id"] == 50256


def test_relu2_does_not_go_with_swiglu():
  with pytest.raises(ValueError, match="expected swiglu=False with relu2=True"):
    families.create("vit", relu2=True, swiglu=True)
