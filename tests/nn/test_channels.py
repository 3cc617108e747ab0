"""Channels of a whole model move, and its outputs stay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.cli.export import export_model
from figs_jax.core import Flow, kept_magnitude, nm_mask, permute
from figs_jax.core.tree import flatten
from figs_jax.models.own_weights import fill_own, own_weights, read_own
from figs_jax.nn import Channels, masked_leaves, permute_channels, sparsify
from tests.models.families import TINY, create

FEWER = {
  "resnet": {"depths": (2, 2), "width": 16},
  "bert": {"width": 16, "mlp_dim": 24},
  "gpt2": {"width": 16, "mlp_dim": 24},
  "llama": {"width": 16, "mlp_dim": 24, "head_dim": 8},
  "swin_v2": {"depths": (2,), "width": 16},
  "t5": {"depth": 1, "head_dim": 8, "mlp_dim": 24},
  "vit": {"depth": 2, "width": 16, "mlp_dim": 24},
}


def small(family, **options):
  """A tiny model whose biases and norms are not those of a new one."""
  model = create(family, **FEWER[family] | options)
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  keys = iter(jax.random.split(jax.random.key(1), 500))
  params = jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), params
  )
  model = nnx.merge(graphdef, params, rest)
  model.eval()
  return model


def outputs(model, family):
  return jax.jit(lambda *args: model(*args))(*TINY[family].args(2))


def moved(model, permuted):
  """The paths of the weights that differ."""
  old, new = own_weights(model), own_weights(permuted)
  return {path for path in old if not np.array_equal(old[path], new[path])}


_ENCODER = {"mlp/fc1/kernel", "mlp/fc1/bias", "mlp/fc2/kernel"} | {
  "attn/v/kernel", "attn/v/bias", "attn/o/kernel"
}  # fmt: skip
_NORM = ("scale", "bias")  # running statistics are those of a new model
EXPECTED = {
  "resnet": {f"{conv}/kernel" for conv in ("conv1x1_1", "conv3x3_2")}
  | {"conv1x1_3/kernel"}
  | {f"norm{i}/{name}" for i in (1, 2) for name in _NORM},
  "bert": _ENCODER,
  "gpt2": _ENCODER,
  "llama": {f"mlp/{name}/kernel" for name in ("gate", "up", "down")}
  | {"attn/v/kernel", "attn/o/kernel"},
  "swin_v2": _ENCODER,
  "t5": {f"mlp/{name}/kernel" for name in ("wi", "wi_0", "wi_1", "wo")}
  | {f"{a}/{x}/kernel" for a in ("attn", "cross") for x in "vo"},
  "vit": _ENCODER,
}


@pytest.mark.parametrize(
  "family, options",
  [
    *((family, {"scan": True}) for family in models.FAMILIES),
    ("t5", {"scan": True, "gated": False, "tied": True}),
    ("vit", {}),
  ],
)
def test_outputs_stay_and_consumers_keep_more(family, options):
  model = small(family, **options)
  rules = {"resnet": "hidden: 2:4"}.get(family, "ff: 2:4, o: 1:4")
  permuted, report = permute_channels(model, rules, escapes=2)
  before = outputs(model, family)
  most = float(jnp.abs(before).max())
  np.testing.assert_allclose(
    outputs(permuted, family), before, rtol=1e-5, atol=1e-5 * max(1, most)
  )
  assert most > 0.1
  suffixes = {
    name
    for path in moved(model, permuted)
    for name in EXPECTED[family]
    if path.endswith(f"/{name}")
  }
  gated = options.get("gated", True)
  unused = (
    {"mlp/wi/kernel"} if gated else {"mlp/wi_0/kernel", "mlp/wi_1/kernel"}
  )
  assert suffixes == EXPECTED[family] - unused
  assert all(
    any(path.endswith(f"/{name}") for name in suffixes)
    for path in moved(model, permuted)
  )
  weights, old = own_weights(permuted), own_weights(model)
  for entry in report:
    assert entry.after > entry.before and not entry.obstacle, entry
    for share, tree in ((entry.before, old), (entry.after, weights)):
      kernel = jnp.asarray(tree[entry.path])
      mask = nm_mask(jnp.abs(kernel), entry.pattern)
      np.testing.assert_allclose(share, kept_magnitude(kernel, mask), rtol=1e-6)
  assert not masked_leaves(permuted)


def test_channels_of_attention_stay_in_their_heads():
  model = small("vit", depth=1)
  kernel, path = model.blocks[0].attn.o.kernel, "blocks/0/attn/o/kernel"
  kernel.set_value(jnp.arange(16.0 * 16).reshape(16, 16) + kernel[...])
  permuted, (entry,) = permute_channels(model, "o: 1:2", escapes=2)
  assert entry.path == path
  new = own_weights(permuted)[path]
  for head in range(2):
    rows = slice(8 * head, 8 * head + 8)
    own = np.asarray(kernel[rows])
    order = permute(np.abs(own), "1:2", escapes=2)
    np.testing.assert_array_equal(new[rows], own[order])
  assert not (
    moved(model, permuted)
    - {path, "blocks/0/attn/v/kernel", "blocks/0/attn/v/bias"}
  )


def test_dense_kernels_and_groups_beyond_a_head_stay():
  model = small("vit")
  permuted, report = permute_channels(model, "qk: 1:4, o: 1:16", escapes=0)
  assert moved(model, permuted) == set()
  assert [entry.obstacle for entry in report] == [
    "m=16 does not divide a head of 8"
  ] * 2
  assert str(report[0]).startswith("blocks/0/attn/o/kernel 1:16: kept 0.")


@pytest.mark.parametrize("soft", [False, True])
def test_masks_follow(soft):
  """As if the permuted weights had been sparsified."""
  model, rules = small("vit"), "ff: 2:4, v: 1:4, o: 1:2"
  flow = Flow(soft=soft)
  dense, report = permute_channels(model, rules, escapes=2)
  wanted = nn.with_flow(sparsify(dense, rules), flow)
  masked, again = permute_channels(
    nn.with_flow(sparsify(model, rules), flow), escapes=2
  )
  assert again == report
  for old, new in zip(nn.split(wanted)[1:], nn.split(masked)[1:]):
    for path, leaf in flatten(old).items():
      other = flatten(new)[path]
      if leaf is not None:
        np.testing.assert_allclose(other, leaf, rtol=1e-6, err_msg=path)


def test_a_finished_model_stays():
  model = sparsify(small("vit"), "ff: 2:4")
  for _, layer in nnx.iter_modules(model):
    if isinstance(layer, nn.Masked) and layer.pattern:
      layer.kernel.set_value(layer.effective_kernel())
  permuted, report = permute_channels(model, escapes=2)
  assert moved(model, permuted) == set()
  assert all(entry.before == entry.after == 1 for entry in report)


def test_an_exported_permuted_model_is_the_evaluated_one(tmp_path):
  model, rules = small("vit"), "ff: 2:4, o: 2:4"
  sparse = sparsify(permute_channels(model, rules, escapes=2)[0], rules)
  for _, layer in nnx.iter_modules(sparse):
    if isinstance(layer, nn.Masked) and layer.pattern:
      layer.kernel.set_value(layer.effective_kernel())
  logits = outputs(sparse, "vit")
  path = tmp_path / "a.safetensors"
  lines = export_model(sparse, path, "packed")
  assert "6 of them N:M" in lines[0]
  again = fill_own(small("vit"), read_own(model, path))
  again.eval()
  np.testing.assert_array_equal(outputs(again, "vit"), logits)


class Convolutions(nnx.Module):
  """Two convolutions with a batch norm between, and grouped heads."""

  movable_channels = (
    Channels("", producers="conv1|bn", consumer="conv2"),
    Channels("", producers="v", consumer="o", heads="heads"),
  )

  def __init__(self, rngs):
    self.heads = 6
    self.conv1 = nnx.Conv(3, 12, (3, 3), rngs=rngs)
    self.bn = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
    self.conv2 = nnx.Conv(12, 5, (3, 3), rngs=rngs)
    self.v = nnx.Linear(5, 8, rngs=rngs)  # two heads, each for three of o
    self.o = nnx.Linear(24, 5, rngs=rngs)
    for part in ("mean", "var", "scale", "bias"):
      draw = jax.random.uniform(rngs.params(), (12,), minval=0.5, maxval=2)
      getattr(self.bn, part).set_value(draw)

  def __call__(self, x):
    x = self.conv2(nnx.relu(self.bn(self.conv1(x))))
    heads = self.v(x).reshape(*x.shape[:-1], 2, 1, 4)
    heads = jnp.broadcast_to(heads, (*x.shape[:-1], 2, 3, 4))
    scale = jnp.arange(1.0, 7.0).reshape(2, 3, 1)
    return self.o((heads * scale).reshape(*x.shape[:-1], 24))


def test_statistics_of_batch_norm_and_grouped_heads_move_along():
  model = Convolutions(nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  with jax.numpy_rank_promotion("allow"):
    before = model(x)
    permuted, report = permute_channels(model, "conv2/kernel: 2:4, o: 1:2")
    np.testing.assert_allclose(permuted(x), before, rtol=1e-5, atol=1e-5)
  assert all(entry.after > entry.before for entry in report)
  assert {"bn/mean", "bn/var", "bn/bias"} <= moved(model, permuted)


@pytest.mark.parametrize(
  "change, rules, message",
  [
    ({}, None, "Convolutions: expected rules, since the model has no masks"),
    ({"masked": True}, "1:4", "expected no rules, since .* masks, whose"),
    ({"channels": ()}, "o: 1:2", "expected channels= or a class attribute"),
    ({"inside": "mlp"}, "o: 1:2", "Convolutions has no module at mlp"),
    ({"producers": "x"}, "o: 1:2", "got Linear and 0 producers"),
    ({"consumer": "bn"}, "o: 1:2", "bn: expected a linear layer or a conv"),
    ({"heads": ""}, "o: 1:2", "got 24 inputs, 8 outputs and 1 heads"),
    ({"producers": "v|bn"}, "o: 1:2", r"12 channels on the last .*\(8,\)"),
    ({}, "x: 1:2", "unknown word"),
  ],
)
def test_wrong_arguments(change, rules, message):
  model, change = Convolutions(nnx.Rngs(0)), dict(change)
  if change.pop("masked", False):
    model = sparsify(model, "o: 1:2")
  channels = change.pop("channels", None)
  if change:
    entry = dataclasses.replace(Convolutions.movable_channels[1], **change)
    channels = (entry,)
  with pytest.raises(ValueError, match=message):
    permute_channels(model, rules, channels=channels)
