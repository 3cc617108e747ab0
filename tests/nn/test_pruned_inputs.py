"""Inputs of layers pruned N:M per token: forward, gradients, rows, runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import nn
from figs_jax.cli.export import export_model
from figs_jax.models import own_model
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.workdir import finished_model
from tests.models.families import create

pytestmark = pytest.mark.standard_promotion


class FeedForward(nnx.Module):
  """With a squared ReLU."""

  def __init__(self):
    self.fc1 = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    self.fc2 = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.fc2(jnp.square(nnx.relu(self.fc1(x))))


def kept(x):
  """The 2 largest |x| of every 4 features, by loops; the first of equals."""
  mask = np.zeros(x.shape, bool)
  for token in np.ndindex(x.shape[:-1]):
    for start in range(0, x.shape[-1], 4):
      group = np.abs(x[token][start : start + 4])
      for i in sorted(range(4), key=lambda i: -group[i])[:2]:
        mask[(*token, start + i)] = True
  return mask


X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


@pytest.mark.parametrize("mode", ["masked", "ste"])
def test_forward_and_gradients_by_hand(mode):
  layer = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
  pruned = nn.prune_inputs(layer, "2:4", mode)
  mask, kernel = kept(X), np.asarray(layer.kernel[...])
  seen = np.where(mask, X, 0)
  np.testing.assert_allclose(pruned(jnp.asarray(X)), seen @ kernel, atol=1e-6)
  graphdef, params = nnx.split(pruned)

  def loss(params, x):
    return jnp.sum(nnx.merge(graphdef, params)(x))

  grads, dx = jax.grad(loss, (0, 1))(params, jnp.asarray(X))
  whole = np.broadcast_to(kernel.sum(-1), X.shape)
  wanted = np.where(mask, whole, 0) if mode == "masked" else whole
  np.testing.assert_allclose(dx, wanted, atol=1e-6)
  by_tokens = np.broadcast_to(seen.sum((0, 1))[:, None], (8, 3))
  np.testing.assert_allclose(grads["kernel"][...], by_tokens, rtol=1e-5)


def test_masks_of_kernels_and_inputs_go_together():
  """Either order; the input of the first layer stays whole."""
  rules, of_inputs = "fc2/kernel: 1:4", "fc2/kernel: 2:4"
  one = nn.prune_inputs(figs.sparsify(FeedForward(), rules), of_inputs)
  two = figs.sparsify(nn.prune_inputs(FeedForward(), of_inputs), rules)
  x = jnp.asarray(X[..., :4])
  np.testing.assert_array_equal(one(x), two(x))
  hidden = np.square(np.maximum(np.asarray(FeedForward().fc1(x)), 0))
  kernel = np.asarray(one.fc2.effective_kernel())
  wanted = np.where(kept(hidden), hidden, 0) @ kernel
  np.testing.assert_allclose(one(x), wanted, atol=1e-6)
  assert nn.input_patterns(one) == {"fc2/kernel": figs.NM(2, 4)}
  assert not nn.input_patterns(nn.prune_inputs(one, ".*: dense"))


def test_rows_gain_by_swapped_operands_only():
  net = nn.prune_inputs(FeedForward(), "fc2/kernel: 2:4")
  rows = figs.layers_of(net, example=jnp.asarray(X[..., :4]))
  assert [row["pattern"] for row in rows] == [None, None]
  first, second = nn.swapped_rows(rows, nn.input_patterns(net))
  assert first == rows[0]
  # Y^T [3 x 6] = W^T [3 x 8] X^T [8 x 6]
  assert (second["M"], second["K"], second["N"]) == (3, 8, 6)
  assert second["pattern"] == figs.NM(2, 4)
  dense, sparse = (
    figs.engine.report(each, engines=["vegeta-s-16-2"])
    for each in (rows, [first, second])
  )
  assert dense != sparse


def test_a_run_prunes_in_training_and_evaluation(tiny_config, tmp_path):
  config = tiny_config(
    "ste", total_steps=2, checkpoint_every=2, diagnose_every=0,
    activations=".*/fc2/kernel: 2:4",
  )  # fmt: skip
  train(config, tmp_path / "run")
  net = finished_model(tmp_path / "run")
  assert nn.input_patterns(net) == {"blocks/0/mlp/fc2/kernel": figs.NM(2, 4)}
  config.activations = "fc9: 2:4"
  with pytest.raises(ConfigError, match="--config.activations: .*'fc9'"):
    train(config, tmp_path / "other")


class Own(nnx.Module):
  def __init__(self, num_classes, *, rngs):
    self.fc1 = nnx.Linear(64, 16, rngs=rngs)
    self.fc2 = nnx.Linear(16, 8, rngs=rngs)
    self.head = nnx.Linear(8, num_classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.fc1(x.reshape(len(x), -1)))
    return self.head(nnx.relu(self.fc2(x)))


@pytest.fixture
def registered():
  yield
  own_model.REGISTERED.clear()


@pytest.mark.usefixtures("registered")
def test_the_word_hidden_of_a_class_of_ones_own():
  config = default_config("ste", Own)
  config.activations = "hidden: 2:4"
  model = build(config).model(0)
  assert nn.input_patterns(model) == {"fc2/kernel": figs.NM(2, 4)}


def test_channels_stay_where_their_order_decides():
  class Movable(FeedForward):
    movable_channels = (nn.Channels("", producers="fc1", consumer="fc2"),)

  net = nn.prune_inputs(Movable(), "fc2/kernel: 2:4")
  permuted, (entry,) = figs.permute_channels(net, "fc2/kernel: 1:4")
  assert entry.obstacle == "its input is pruned in groups of the present order"
  x = jnp.asarray(X[..., :4])
  np.testing.assert_array_equal(permuted(x), net(x))


def test_other_libraries_have_whole_inputs(tmp_path):
  net = nn.prune_inputs(create("vit", depth=1), ".*/fc2/kernel: 2:4")
  with pytest.raises(ValueError, match="blocks/0/mlp/fc2/kernel: expected who"):
    export_model(net, tmp_path / "dense", "dense")
  export_model(nn.prune_inputs(net, ".*: dense"), tmp_path / "dense", "dense")


def test_mistakes():
  layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="kernel: axis -2 has length 6"):
    nn.prune_inputs(layer, "2:4")
  with pytest.raises(ValueError, match="expected masked or ste, got 'damped'"):
    nn.prune_inputs(layer, "2:3", "damped")
  conv = nnx.Conv(4, 4, (1, 1), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="matches no kernel"):
    nn.prune_inputs(conv, "2:4")
