"""The recipe nested in a training run: passes, points, seeds, resuming."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from figs_jax import export, models, nn, recipes
from figs_jax.cli.export import export_run
from figs_jax.core import NM
from figs_jax.models.flops import forward_flops, train_flops
from figs_jax.models.own_weights import own_weights
from figs_jax.models.phases import phases_of
from figs_jax.train import seeds
from figs_jax.train._evaluate import evaluate
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.config import default_config
from figs_jax.train.log_writer import read_log
from figs_jax.train.loop import train
from figs_jax.train.losses import cross_entropy
from figs_jax.train.recalibration import recalibrated
from figs_jax.train.state import TrainState, finish, gradients, update
from figs_jax.train.workdir import restore

pytestmark = pytest.mark.standard_promotion
FOUR = "1:8,2:8,4:8,8:8"


class Net(nnx.Module):
  """Two sparse layers, with batch norm between them if asked for."""

  def __init__(self, rngs, norm=False):
    self.a = nnx.Linear(16, 32, rngs=rngs)
    self.norm = nnx.BatchNorm(32, momentum=0.5, rngs=rngs) if norm else None
    self.b = nnx.Linear(32, 4, rngs=rngs)

  def __call__(self, x):
    x = self.a(x)
    return self.b(jnp.tanh(self.norm(x) if self.norm else x))


def loss(model, batch, key):
  del key
  return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


def batch(seed=0):
  x = np.random.default_rng(seed).normal(size=(8, 16)).astype(np.float32)
  return {"x": x, "y": np.tanh(x[:, :4])}


def state_of(seed=0, *, norm=False, loss=loss, recipe="nested", **options):
  own = {"patterns": FOUR} if recipe == "nested" else {}
  made = recipes.create(recipe, "1:8", 20, **own)
  model = nn.sparsify(Net(nnx.Rngs(0), norm), made)
  tx = made.transform(optax.sgd(0.1))
  return TrainState.create(model, made, tx, loss=loss, seed=seed, **options)


def at_point(state, nm):
  """Gradient of the loss of the model that is masked to n:m, by NNX alone."""
  index = state.recipe.points.patterns.index(nm)
  rest = {
    name: {k: v[index] for k, v in each.items()} if name == "norm" else each
    for name, each in state.rest.items()
  }
  masks = state.bound.cut(state.params, nm.n)
  model = nn.merge(state.graphdef, state.params, masks, 0.0, rest)
  grads = nnx.grad(lambda model: loss(model, batch(), None)[0])(model)
  return nnx.to_pure_dict(grads), model


def test_the_gradient_is_the_mean_of_three_passes():
  state = state_of()
  drawn = state.recipe.points.draw(0, 0).tolist()
  assert len(drawn) == 3
  each = [at_point(state, state.recipe.points.patterns[i])[0] for i in drawn]
  want = jax.tree.map(lambda *g: sum(g) / 3, *each)
  got = gradients(state, batch(), jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got,
               want)  # fmt: skip


def labelled(classes=4):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(8, 16)).astype(np.float32)
  return {"image": images, "label": rng.integers(0, classes, 8).astype("int32")}


def soft_cross_entropy(logits, targets):
  return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))


def test_sparser_points_learn_from_the_densest():
  """Of the outputs of its own pass, without a gradient through them."""
  options = {"patterns": FOUR, "distill": True}
  made = recipes.create("nested", "1:8", 20, **options)
  assert "outputs of 8:8" in made.describe()
  model = nn.sparsify(Net(nnx.Rngs(0)), made)
  tx = made.transform(optax.sgd(0.1))
  state = TrainState.create(model, made, tx, loss=cross_entropy)
  data = labelled()
  new, metrics = jax.jit(update)(state, data)

  def logits(params, n):
    masks = state.bound.cut(state.params, n)
    model = nn.merge(state.graphdef, params, masks, 0.0, state.rest)
    return model(data["image"])

  def mean_loss(params):
    soft = jax.nn.softmax(logits(state.params, 8))
    hard = jax.nn.one_hot(data["label"], 4)
    losses = [soft_cross_entropy(logits(params, 8), hard)]
    entropy = soft_cross_entropy(jnp.log(soft), soft)
    for index in made.points.draw(0, 0).tolist()[1:]:
      n = made.points.counts[index]
      losses.append(soft_cross_entropy(logits(params, n), soft) - entropy)
    return sum(losses) / 3

  value, grads = jax.value_and_grad(mean_loss)(state.params)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  for layer in ("a", "b"):
    moved = state.params[layer]["kernel"] - new.params[layer]["kernel"]
    np.testing.assert_allclose(
      moved, 0.1 * grads[layer]["kernel"], atol=1e-6
    )  # fmt: skip
  with pytest.raises(ValueError, match="distill=True: expected a loss that is"):
    TrainState.create(model, made, tx, loss=loss)


def test_distillation_in_micro_batches_is_that_of_the_batch():
  made = recipes.create("nested", "1:8", 20, patterns=FOUR, distill=True)
  model = nn.sparsify(Net(nnx.Rngs(0)), made)
  tx = made.transform(optax.sgd(0.1))
  states = [
    TrainState.create(
      model, made, tx, loss=cross_entropy, grad_accum_steps=parts
    )
    for parts in (1, 2)
  ]
  ends = [update(state, labelled())[0].params for state in states]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_one_compilation_for_all_draws():
  traces = []

  def counting(model, batch, key):
    traces.append(1)
    return loss(model, batch, key)

  state, step = state_of(loss=counting), jax.jit(update)
  drawn = {int(state.recipe.points.draw(t, 0)[2]) for t in range(8)}
  assert drawn == {1, 2}
  state, _ = step(state, batch())
  first = len(traces)
  for _ in range(7):
    state, _ = step(state, batch())
  assert len(traces) == first


@pytest.mark.parametrize("norm", [False, True])
def test_micro_batches_are_the_whole_batch(norm):
  whole, parts = state_of(), state_of(grad_accum_steps=2)
  for _ in range(4):
    whole, one = update(whole, batch())
    parts, two = update(parts, batch())
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               whole.params, parts.params)  # fmt: skip
  if norm:  # statistics move in each micro-batch, the points stay
    state, _ = update(state_of(norm=True, grad_accum_steps=2), batch())
    assert state.rest["norm"]["mean"].shape == (4, 32)


def test_seeds_are_the_runs_of_each():
  together = seeds.create_states(lambda seed: state_of(seed), [3, 4])
  alone = [state_of(3), state_of(4)]
  for _ in range(4):
    together, _ = seeds.step_seeds(together, batch())
    alone = [update(state, batch())[0] for state in alone]
  for i, state in enumerate(alone):
    single = seeds.take(together, i)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 single.params, state.params)  # fmt: skip
  drawn = [[int(s.recipe.points.draw(t, s.seed)[2]) for t in range(8)]
           for s in alone]  # fmt: skip
  assert drawn[0] != drawn[1]


def test_a_point_is_the_model_with_its_mask():
  state = state_of()
  for _ in range(3):
    state, _ = update(state, batch())
  x = batch()["x"]
  for n in range(1, 9):
    model = state.finished(point=f"{n}:8")
    want = at_cut(state, n)
    np.testing.assert_allclose(model(x), want(x), atol=1e-6)
    leaves = nn.masked_leaves(model)
    assert {str(leaf.pattern) for leaf in leaves.values()} <= {f"{n}:8"}
    kept = np.asarray(model.a.kernel[...]) != 0
    assert (kept.reshape(2, 8, 32).sum(1) == n).all()
  np.testing.assert_array_equal(
    state.finished().a.kernel[...], state.finished(point="1:8").a.kernel[...]
  )


def at_cut(state, n):
  masks = state.bound.cut(state.params, n)
  model = nn.merge(state.graphdef, state.params, masks, 0.0, state.rest)
  model.eval()
  return model


def test_averaged_weights_are_cut_too_and_a_lone_layer():
  made = recipes.create("nested", "1:8", 20, patterns=FOUR)
  model = nn.sparsify(nnx.Linear(16, 4, rngs=nnx.Rngs(0)), made)
  tx = made.transform(optax.sgd(0.1))
  state = TrainState.create(
    model, made, tx, loss=lambda m, b, k: (jnp.mean(m(b)), {}), ema_decay=0.5
  )
  state, _ = update(state, jnp.ones((4, 16)))
  for point, kept in ((None, 1), ("1:8", 1), ("4:8", 4)):
    kernel = state.finished(ema=True, point=point).kernel[...]
    assert int((kernel != 0).sum()) == 8 * kept


def test_points_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="point 1:4: expected the m of a/kernel"):
    state_of().finished(point="1:4")
  with pytest.raises(ValueError, match="rescales weights for its own pattern"):
    state_of(recipe="s_ste").finished(point="2:8")
  model = Net(nnx.Rngs(0))
  dense = recipes.create("dense", "1:8", 20)
  state = TrainState.create(model, dense, optax.sgd(0.1), loss=loss)
  with pytest.raises(ValueError, match="expected a model with masked kernels"):
    state.finished(point="2:8")
  cut = state_of(recipe="figs").finished(point="2:8")
  assert str(nn.masked_leaves(cut)["a/kernel"].pattern) == "2:8"


def test_batch_statistics_are_those_of_each_point():
  state = state_of(norm=True)
  assert state.rest["norm"]["var"].shape == (4, 32)
  drawn = state.recipe.points.draw(0, 0).tolist()
  wanted = np.array(state.rest["norm"]["mean"])
  for index in drawn:
    _, model = at_point(state, state.recipe.points.patterns[index])
    wanted[index] = model.norm.mean[...]
  new, _ = update(state, batch())
  np.testing.assert_allclose(new.rest["norm"]["mean"], wanted, atol=1e-6)
  (left,) = {0, 1, 2, 3} - set(drawn)
  assert not np.any(new.rest["norm"]["mean"][left])
  for index, nm in enumerate(state.recipe.points.patterns):
    model = new.finished(point=nm)
    np.testing.assert_array_equal(
      model.norm.mean[...], new.rest["norm"]["mean"][index]
    )
  np.testing.assert_array_equal(
    new.finished().norm.mean[...], new.rest["norm"]["mean"][0]
  )
  with pytest.raises(ValueError, match="3:8: .* which have batch statistics"):
    new.finished(point="3:8")


def test_averaged_weights_have_averaged_statistics_of_each_point():
  state = state_of(norm=True, ema_decay=0.75)
  wanted = jax.tree.map(np.asarray, state.ema_statistics)
  assert wanted["norm"]["var"].shape == (4, 32)
  for seed in range(3):
    state, _ = update(state, batch(seed))
    for name, old in wanted["norm"].items():
      wanted["norm"][name] = old + 0.25 * (state.rest["norm"][name] - old)
  for index, nm in enumerate(state.recipe.points.patterns):
    model = state.finished(ema=True, point=nm)
    for name, values in wanted["norm"].items():
      got = getattr(model.norm, name)[...]
      np.testing.assert_allclose(got, values[index], rtol=1e-5, err_msg=name)
      own = getattr(state.finished(point=nm).norm, name)[...]
      np.testing.assert_array_equal(own, state.rest["norm"][name][index])
      assert not np.allclose(own, got)
  assert recalibrated(state, iter(())) is state


@pytest.mark.slow
def test_a_resnet_of_averaged_weights_goes_on_bit_for_bit(tmp_path):
  config = default_config("nested", "resnet")
  config.variant, config.pattern = "custom", "hidden: 1:4"
  config.model.update(
    {"block": "basic", "depths": (1,), "width": 8, "stem": "cifar"}
  )
  config.update_from_flattened_dict(
    {"recipe.patterns": "1:4,2:4,4:4", "total_steps": 4, "batch_size": 8,
     "checkpoint_every": 2, "diagnose_every": 0, "progress": False,
     "ema_decay": 0.5, "data.eval_split": "test[:64]",
     "optimizer.warmup_steps": 1}
  )  # fmt: skip
  train(config, tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "part")
  shutil.rmtree(tmp_path / "part" / "checkpoints" / "4")
  train(config, tmp_path / "part")
  whole, part = (
    named_leaves(restore(tmp_path / run)[1]) for run in ("whole", "part")
  )
  assert whole.keys() == part.keys()
  for name, leaf in whole.items():
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(leaf, part[name], name)
  losses = []
  for ema in (False, True):
    points = evaluate(tmp_path / "part", ema=ema)["points"]
    assert list(points) == ["1:4", "2:4", "4:4"]
    assert all(point["exact_nm"] for point in points.values())
    losses += [point["loss"] for point in points.values()]
  assert len(set(losses)) == 6
  file = tmp_path / "n.safetensors"
  export_run(tmp_path / "part", file, "nested", ema=True)
  state = restore(tmp_path / "part")[1]
  for nm in ("1:4", "2:4", "4:4"):
    weights = own_weights(state.finished(ema=True, point=nm))
    read = export.read(file, point=nm)
    assert read.keys() == weights.keys()
    for name, value in weights.items():
      np.testing.assert_array_equal(read[name], value, err_msg=name)
  assert not np.array_equal(*(
    export.read(file, point=nm)["stages/0/first/norm1/mean"]
    for nm in ("1:4", "4:4")
  ))  # fmt: skip


def test_a_step_costs_its_passes():
  sizes = {"width": 16, "depth": 1, "heads": 2, "image_size": 8}
  model = models.create("vit", "custom/4", num_classes=3, **sizes)
  model = nn.sparsify(model, "ff: 1:8")
  recipe = recipes.create("nested", "ff: 1:8", 101, patterns=FOUR, finetune=0.0)
  phases = phases_of(model, recipe, batch=2)
  assert [phase.steps for phase in phases] == [101, 50, 51, 101]
  rows = models.gemms_of(model, 2)
  total = 0
  for steps, n in zip((101, 50, 51, 101), (1, 2, 4, 8)):
    at = [row | {"pattern": row["pattern"] and NM(n, 8)} for row in rows]
    dense = [row | {"pattern": None} for row in rows]
    total += steps * (forward_flops(at) + 2 * forward_flops(dense))
  flops = train_flops(model, recipe, batch=2)
  assert flops.total == total
  assert flops.dense == 3 * 303 * forward_flops(dense)
  warm = recipes.create("nested", "ff: 1:8", 100, patterns=FOUR, dense=0.5)
  (first, *_) = phases_of(model, warm, batch=2)
  assert not first.forward and first.steps == 50


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A short run of two seeds, its configuration and its end."""
  config = default_config("nested")
  config.family, config.variant = "vit", "custom/4"
  config.model.update(
    {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64, "pool": "gap",
     "dropout": 0.1}
  )  # fmt: skip
  config.recipe.patterns = FOUR
  config.update_from_flattened_dict(
    {"pattern": "ff: 1:8", "total_steps": 20, "batch_size": 16, "seeds": 2,
     "data.data_dir": data_dir, "data.eval_batch_size": 90, "log_every": 5,
     "checkpoint_every": 10, "progress": False, "ema_decay": 0.5,
     "optimizer.warmup_steps": 2}
  )  # fmt: skip
  workdir = tmp_path_factory.mktemp("nested") / "run"
  return config, workdir, train(config, workdir)


def test_a_resumed_run_is_bit_equal(run, tmp_path):
  config, workdir, _ = run
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "20")
  assert train(config, again)["finished"]
  ends = [named_leaves(restore(path)[1]) for path in (workdir, again)]
  assert ends[0].keys() == ends[1].keys()
  for name, leaf in ends[0].items():
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf, ends[1][name] = map(
        jax.random.key_data, (leaf, ends[1][name])
      )  # fmt: skip
    np.testing.assert_array_equal(leaf, ends[1][name], name)


def test_every_point_is_reported_with_its_seeds(run):
  _, workdir, last = run
  result = evaluate(workdir)
  json.dumps(result, allow_nan=False)
  assert list(result["points"]) == FOUR.split(",")
  experiment, state, _ = restore(workdir)
  for name, point in result["points"].items():
    assert len(point["accuracies"]) == 2 and point["exact_nm"]
    mean, error = seeds.mean_and_se(point["accuracies"])
    assert (point["accuracy"], point["accuracy_se"]) == (mean, error)
    n = NM.parse(name).n
    assert point["sparsity"] == 1 - n / 8
    for i, single in enumerate(seeds.singles(state)):
      model = single.finished(point=name)
      hits = seen = 0
      for each in experiment.task.eval_batches(90):
        logits = np.asarray(model(each["image"]))
        right = np.argmax(logits, -1) == each["label"]
        hits, seen = (
          hits + (right & each["valid"]).sum(),
          seen + sum(each["valid"]),
        )
      assert point["accuracies"][i] == pytest.approx(hits / seen, abs=1e-6)
  sparsest = result["points"]["1:8"]
  for key in ("accuracies", "loss", "bytes_packed", "flops"):
    assert sparsest[key] == result[key]
  assert result["points"]["8:8"]["flops"] == result["flops_dense"]
  assert last["eval/8:8/accuracy"] == result["points"]["8:8"]["accuracy"]
  logged = [row for row in read_log(workdir) if "eval/2:8/loss_se" in row]
  assert len(logged) == 2
  averaged = evaluate(workdir, ema=True)["points"]["2:8"]
  assert averaged["loss"] != result["points"]["2:8"]["loss"]


def test_points_may_be_named(run):
  _, workdir, _ = run
  points = evaluate(workdir, points="3:8, 5:8")["points"]
  assert list(points) == ["3:8", "5:8"]
  with pytest.raises(ValueError, match="point 1:4: expected the m of"):
    evaluate(workdir, points="1:4")


def test_the_exported_prefix_is_the_model_at_each_point(run, tmp_path):
  _, workdir, _ = run
  out = tmp_path / "n.safetensors"
  lines = export_run(workdir, out, "nested", seed=1)
  assert "2 of them by rank" in lines[0]
  _, state, _ = restore(workdir, seed=1)
  state = next(seeds.singles(state))
  sizes = []
  for nm in state.recipe.points.patterns:
    arrays = export.read(out, point=nm)
    params = named_leaves(finish(state, n=nm.n)[0])
    for name, want in params.items():
      got = arrays[name.replace(".", "/")]
      np.testing.assert_array_equal(got, want, name)
    sizes.append(sum(w.stored for w in export.weights(out, point=nm)))
  kernels = sum(math.prod(leaf.shape) for leaf in state.bound.leaves.values())
  steps = np.diff(sizes)  # 4 bytes and 3 bits each
  assert steps.tolist() == [kernels // 8 * k * 35 // 8 for k in (1, 2, 4)]
  with pytest.raises(export.ExportError, match="expected n to ascend"):
    export_run(workdir, tmp_path / "m.safetensors", "nested", points="2:8,1:8")
