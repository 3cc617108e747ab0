"""Batch statistics in training: whose they are, and that they are exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import models, nn, recipes
from figs_jax.cli.export import export_run
from figs_jax.core.tree import flatten
from figs_jax.models import own_model
from figs_jax.train import default_config, evaluate, seeds
from figs_jax.train.loop import train
from figs_jax.train.losses import cross_entropy
from figs_jax.train.recalibration import is_stale, recalibrated
from figs_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from figs_jax.train.state import TrainState, update
from figs_jax.train.workdir import finished_model, restore

pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
SIZES = {"block": "basic", "depths": (1,), "width": 4, "stem": "cifar"}
RNG = np.random.default_rng(0)


def network(seed, **options):
  sizes = SIZES | {"image_size": 5, "in_channels": 1, "num_classes": 3}
  rngs = nnx.Rngs(jax.random.key(seed))
  return models.create("resnet", "custom", rngs=rngs, **sizes | options)


class Net(nnx.Module):
  """Of one's own, with the layer of Flax: conv -> norm -> head."""

  def __init__(self, num_classes, in_channels, *, rngs):
    self.conv = nnx.Conv(in_channels, 4, (3, 3), rngs=rngs)
    self.mix = nnx.Conv(4, 4, (1, 1), rngs=rngs)
    self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(4, num_classes, rngs=rngs)

  def __call__(self, images):
    x = self.norm(self.mix(nnx.relu(self.conv(images))))
    return self.head(self.dropout(nnx.relu(x).mean((1, 2))))


@pytest.fixture(autouse=True)
def no_trace_is_left():
  own_model.REGISTERED.clear()
  yield
  own_model.REGISTERED.clear()


def batch_of(i, size=8):
  image = np.random.default_rng(i).normal(2.0, 1.0, (size, 5, 5, 1))
  return {"image": image.astype(np.float32), "label": np.arange(size) % 3}


def state_of(seed=0, name="ste", dense=0.0, model=None, **options):
  shares = {"dense": dense, "finetune": 0.0}
  recipe = recipes.create(name, "hidden: 1:4", total_steps=10, **shares)
  model = figs.sparsify(model or network(seed), recipe)
  tx = recipe.transform(optax.sgd(0.1))
  return TrainState.create(
    model, recipe, tx, loss=cross_entropy, seed=seed, **options
  )


step = jax.jit(update)


def trained(state, count=2, first=0):
  for i in range(first, first + count):
    state, _ = step(state, batch_of(i))
  return state


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one, other, rtol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6),
    one,
    other,
  )


def stem_moments(state, image):
  """Mean and unbiased variance of the stem's outputs, by NumPy."""
  kernel = np.asarray(state.params["stem_conv"]["kernel"], np.float64)[
    ..., 0, :
  ]
  pad = np.pad(np.asarray(image, np.float64)[..., 0], ((0, 0), (1, 1), (1, 1)))
  out = sum(
    pad[:, i : i + 5, j : j + 5, None] * kernel[i, j]
    for i in range(3)
    for j in range(3)
  ).reshape(-1, 4)
  return out.mean(0), out.var(0, ddof=1)


def test_a_step_moves_the_statistics_by_their_momentum():
  before = state_of()
  after = trained(before, 1)
  mean, variance = stem_moments(before, batch_of(0)["image"])
  norm = after.rest["stem_norm"]
  np.testing.assert_allclose(norm["mean"], 0.1 * mean, rtol=1e-4)
  np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * variance, rtol=1e-4)


def test_every_micro_batch_has_its_own_statistics():
  """They move once per micro-batch, in order."""
  state = state_of(grad_accum_steps=2)
  batch = batch_of(0)
  after, _ = step(state, batch)
  mean, variance = np.zeros(4), np.ones(4)
  for part in range(2):
    new = stem_moments(state, batch["image"][part::2])
    mean, variance = 0.9 * mean + 0.1 * new[0], 0.9 * variance + 0.1 * new[1]
  norm = after.rest["stem_norm"]
  np.testing.assert_allclose(norm["mean"], mean, rtol=1e-4)
  np.testing.assert_allclose(norm["var"], variance, rtol=1e-4)


def test_statistics_are_those_of_the_batch_of_all_devices():
  alone = trained(state_of())
  mesh = make_mesh(data=8)
  state = state_of()
  state = jax.device_put(state, state_shardings(state, mesh, state.bound))
  for i in range(2):
    batch = jax.device_put(batch_of(i), batch_sharding(mesh))
    state, _ = step(state, batch)
  assert_close(state.rest, alone.rest)
  assert_close(state.params, alone.params, rtol=1e-4)


def test_seeds_have_statistics_of_their_own():
  together = seeds.create_states(state_of, [0, 1])
  for i in range(2):
    together, _ = jax.jit(seeds.step_seeds)(together, batch_of(i))
  for index in range(2):
    one = seeds.take(together, index)
    assert_close(one.rest, trained(state_of(index)).rest)


@pytest.mark.parametrize("scan", [False, True])
def test_averaged_weights_have_averaged_statistics(scan):
  model = network(0, depths=(2,), scan=scan)
  state = state_of(model=model, ema_decay=0.5)
  average = jax.tree.map(np.asarray, state.rest)
  for i in range(2):
    state = trained(state, 1, i)
    average = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, average, state.rest)
  assert_close(state.ema_statistics, average)
  net = state.finished(ema=True)
  assert_equal(
    net.stem_norm.mean[...], state.ema_statistics["stem_norm"]["mean"]
  )
  net = state.finished()
  assert_equal(net.stem_norm.mean[...], state.rest["stem_norm"]["mean"])


def test_finished_weights_are_stale_if_masks_or_the_leak_come_last():
  assert not is_stale(trained(state_of()))
  assert is_stale(trained(state_of(dense=1.0)))
  leaking = trained(state_of(name="mdgf_linear"))
  assert leaking.recipe.at(leaking.step).leak > 0 and is_stale(leaking)
  recipe = recipes.create("dense", "1:4", total_steps=10)
  state = TrainState.create(
    network(0), recipe, recipe.transform(optax.sgd(0.1)), loss=cross_entropy
  )
  assert not is_stale(trained(state))


def test_recalibrated_statistics_are_those_of_the_finished_weights():
  """Per batch, of the layer's inputs in training mode; then their mean."""
  state = trained(state_of(dense=1.0, ema_decay=0.5))
  batches = [batch_of(i) for i in range(5, 8)]
  after = recalibrated(state, batches)
  for ema in (False, True):
    net = state.finished(ema=ema)
    expected = []
    for batch in batches:
      conv = net.stages[0].first.conv3x3_1
      x = nnx.relu(by_batch(net.stem_norm, net.stem_conv(batch["image"]))[0])
      _, one = by_batch(net.stages[0].first.norm1, conv(x))
      expected.append(one)
    norm = after.finished(ema=ema).stages[0].first.norm1
    mean, variance = np.mean(expected, axis=0)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.var[...], variance, rtol=1e-4)
  assert_equal(after.params, state.params)


def by_batch(norm, x):
  """A norm with the statistics of its batch, and those, by NumPy."""
  x = np.asarray(x, np.float64)
  flat = x.reshape(-1, x.shape[-1])
  mean, count = flat.mean(0), len(flat)
  scaled = (x - mean) / np.sqrt(flat.var(0) + norm.epsilon)
  out = scaled * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
  out = jnp.asarray(out, jnp.float32)
  return out, (mean, flat.var(0) * count / (count - 1))


DATA = [
  {"image": RNG.integers(0, 256, (5, 5), np.uint8), "label": i % 3}
  for i in range(48)
]
TEST = DATA[:12]


def config_of(family, recipe="ste", **fields):
  config = default_config(recipe, family)
  config.total_steps = config.checkpoint_every = 2
  config.batch_size, config.data.eval_batch_size = 8, 6
  config.data.image_size = 5
  config.diagnose_every = 0
  config.optimizer.learning_rate = 0.1
  config.recalibrate_batch_norm = 3
  config.pattern = "hidden: 1:4"
  config.recipe.dense, config.recipe.finetune = 1.0, 0.0  # masks come last
  if family == "resnet":
    config.variant = "custom"
    config.model.update(SIZES)
  else:
    config.pattern = "mix/kernel: 1:4"
  with config.unlocked():
    config.update(fields)
  return config


def run(config, workdir):
  own = Net if config.family == "Net" else None
  return train(config, workdir, data=(DATA, TEST), model=own)


def forward(net, images):
  """Logits of the weights of a model as they are stored."""
  net = nnx.clone(net)
  net.eval()
  return net(images)


@pytest.mark.parametrize("family", ["resnet", Net])
def test_what_is_evaluated_is_what_is_exported(family, tmp_path):
  """After one-shot pruning: weights, statistics, loss and accuracy."""
  result = run(config_of(family), tmp_path / "run")
  kind = None if family == "resnet" else family
  net = finished_model(tmp_path / "run", data=(DATA, TEST), model=kind)
  image = np.stack([each["image"] for each in TEST])[..., None] / 127.5 - 1
  label = np.array([each["label"] for each in TEST])
  export_run(
    tmp_path / "run", tmp_path / "a.safetensors", "packed", data=(DATA, TEST)
  )
  fresh = (
    network(9)
    if family == "resnet"
    else Net(num_classes=3, in_channels=1, rngs=nnx.Rngs(9))
  )
  fresh = models.own_weights.load_own(fresh, tmp_path / "a.safetensors")
  logits = forward(fresh, jnp.asarray(image, jnp.float32))
  assert_equal(logits, forward(net, jnp.asarray(image, jnp.float32)))
  lost = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
  assert result["eval/loss"] == pytest.approx(float(lost), rel=1e-5)
  right = (np.argmax(logits, -1) == label).mean()
  assert result["eval/accuracy"] == pytest.approx(right)
  again = evaluate(tmp_path / "run", data=(DATA, TEST), model=kind)
  assert again["loss"] == pytest.approx(float(lost), rel=1e-5)


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_a_run_recalibrates_its_seeds_from_the_start_of_their_data(
  mode, tmp_path
):
  """Each as in a run of its own; without the field, nothing moves."""
  options = {"seeds": 2, "seeds_mode": mode, "ema_decay": 0.5}
  many, alone, off = (tmp_path / name for name in ("many", "alone", "off"))
  run(config_of("resnet", **options), many)
  run(config_of("resnet", seed=1, ema_decay=0.5), alone)
  options = {"seed": 1, "ema_decay": 0.5, "recalibrate_batch_norm": 0}
  run(config_of("resnet", **options), off)
  data = (DATA, TEST)
  for ema in (False, True):
    one = finished_model(many, seed=1, data=data, ema=ema)
    two = finished_model(alone, data=data, ema=ema)
    running = finished_model(off, data=data, ema=ema)
    assert_close(statistics(one), statistics(two), rtol=1e-4)
    a, b = statistics(two), statistics(running)
    assert all(not np.allclose(a[path], b[path], rtol=1e-3) for path in a)
    weights = nnx.to_pure_dict(nnx.state(two, nnx.Param))
    assert_equal(weights, nnx.to_pure_dict(nnx.state(running, nnx.Param)))


def statistics(net):
  return flatten(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  options = {"total_steps": 4, "ema_decay": 0.5}
  run(config_of("resnet", **options), whole)
  config = config_of("resnet", **options, checkpoint_every=2)
  run(config, parts)
  for path in (parts / "checkpoints").iterdir():
    if path.name == "4":  # as if the run had been killed at step 3
      path.rename(parts / "gone")
  run(config, parts)
  for ema in (False, True):
    a, b = (
      finished_model(path, data=(DATA, TEST), ema=ema)
      for path in (whole, parts)
    )
    assert_equal(*(nnx.to_pure_dict(nnx.state(net)) for net in (a, b)))
  states = [restore(path, data=(DATA, TEST))[1] for path in (whole, parts)]
  for field in ("params", "rest", "ema", "ema_statistics", "opt_state"):
    assert_equal(*(getattr(state, field) for state in states))


def test_own_statistics_that_no_layer_knows_stay(tmp_path):
  class Counted(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(4, 3, (1, 1), rngs=rngs)
      self.norm = nn.BatchNorm(3, rngs=rngs)
      self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, images):
      self.calls.set_value(self.calls[...] + 1)
      return self.norm(self.conv(images)).mean((1, 2))

  shares = {"dense": 1.0, "finetune": 0.0}
  recipe = recipes.create("ste", "1:4", total_steps=10, **shares)
  model = figs.sparsify(Counted(nnx.Rngs(0)), recipe)
  tx = recipe.transform(optax.sgd(0.1))
  state = TrainState.create(
    model, recipe, tx, loss=cross_entropy, ema_decay=0.5
  )
  batch = batch_of(0)
  batch["image"] = batch["image"].repeat(4, axis=-1)
  state, _ = step(state, batch)
  assert int(state.rest["calls"]) == int(state.ema_statistics["calls"]) == 1
  after = recalibrated(state, [batch])
  assert int(after.rest["calls"]) == 1
  assert not np.array_equal(
    after.rest["norm"]["mean"], state.rest["norm"]["mean"]
  )


def test_no_batches_are_one_clear_error():
  with pytest.raises(ValueError, match="Expected at least one batch"):
    recalibrated(trained(state_of(dense=1.0)), [])
