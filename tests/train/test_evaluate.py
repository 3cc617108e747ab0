"""The evaluator against NumPy, diverged seeds, exactness and storage."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import nn
from figs_jax.core import Flow
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten, map_paths
from figs_jax.nn.int8_kernels import round_kernels_to_int8
from figs_jax.train import schema, seeds
from figs_jax.train._evaluate import (
  Evaluator,
  check_dtype,
  evaluate,
  exact_nm,
  examples,
  storage,
)
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.metrics import LabelAccuracy, per_example
from figs_jax.train.state import evaluation_model, finish
from figs_jax.train.workdir import restore, saved_config

pytestmark = pytest.mark.standard_promotion


def batches(sizes=(16, 16), valid=(16, 5)):
  out = []
  for i, (size, count) in enumerate(zip(sizes, valid)):
    key = jax.random.key(i)
    out.append(
      {
        "image": np.asarray(jax.random.normal(key, (size, 8, 8, 1))),
        "label": np.arange(size, dtype=np.int32) % 10,
        "valid": np.arange(size) < count,
      }
    )
  return out


def by_hand(model, data):
  hits = losses = seen = 0
  for batch in data:
    keep = batch["valid"]
    logits = np.asarray(model(batch["image"]), np.float64)[keep]
    label = batch["label"][keep]
    hits += (logits.argmax(-1) == label).sum()
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses -= log_p[np.arange(len(label)), label].sum()
    seen += len(label)
  return hits / seen, losses / seen


def test_against_numpy_with_a_padded_batch(tiny_config):
  state = build(tiny_config("ste")).state()
  values = dict(
    Evaluator(LabelAccuracy(), batches(), has_seeds=False).run(state)
  )
  accuracy, loss = by_hand(state.finished(), batches())
  assert values["accuracy"] == pytest.approx(accuracy, abs=1e-6)
  assert values["loss"] == pytest.approx(loss, rel=1e-5)


def test_seeds_and_a_diverged_one(tiny_config):
  state = build(tiny_config("ste", seeds=3)).state()
  params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.params)
  state = dataclasses.replace(state, params=params)
  values = dict(
    Evaluator(LabelAccuracy(), batches(), has_seeds=True).run(state)
  )
  accuracy = values["accuracy"]
  assert math.isnan(accuracy[1])
  for i in (0, 2):
    expected, _ = by_hand(seeds.take(state, i).finished(), batches())
    assert accuracy[i] == pytest.approx(expected, abs=1e-6)
  mean, _ = seeds.mean_and_se(accuracy)
  assert mean == pytest.approx((accuracy[0] + accuracy[2]) / 2)


def test_exactness_names_the_kernel_that_is_not():
  leaves = {"a/kernel": MaskedKernel((4, 2), NM(1, 4), -2)}
  good = {"a": {"kernel": jnp.eye(4, 2)}}
  bad = {"a": {"kernel": jnp.ones((4, 2))}}
  assert exact_nm(good, leaves) == {"a/kernel": True}
  assert exact_nm(bad, leaves) == {"a/kernel": False}


def test_storage_by_hand():
  leaves = {"a/kernel": MaskedKernel((16, 4), NM(1, 8), -2)}
  kernel = jnp.zeros((16, 4)).at[0].set(1.0).at[8].set(1.0)
  params = {"a": {"kernel": kernel, "bias": jnp.ones(4)}}
  sizes = storage(params, leaves)
  assert sizes["sparsity"] == 1 - 8 / 64
  assert sizes["sparsity_all_parameters"] == 56 / 68
  assert sizes["bytes_dense"] == 68 * 4
  assert sizes["bytes_packed"] == 8 * 4 + 8 * 3 // 8 + 4 * 4


def test_storage_counts_denormal_weights():
  kernel = jnp.zeros((4, 2)).at[0].set(jnp.float32(1e-40))
  leaves = {"w": MaskedKernel((4, 2), NM(1, 4))}
  assert storage({"w": kernel}, leaves)["sparsity"] == 1 - 2 / 8


def test_a_finished_model_of_any_step_is_exact(tiny_config):
  experiment = build(tiny_config("figs"))
  state = experiment.state()
  leaves = nn.masked_leaves(state.finished())
  assert all(exact_nm(finish(state)[0], leaves).values())


def test_an_unknown_engine_is_told_before_anything_is_read(tmp_path):
  with pytest.raises(
    ValueError, match="unknown kind 'wss', did you mean 'ws:8"
  ):
    evaluate(tmp_path / "none", engine_spec="wss:8x8")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
  """Two seeds, and a split of 27 examples whose last batch is padded."""
  workdir = tmp_path_factory.mktemp("run")
  config = tiny_config("figs", seeds=2, total_steps=6, seed=3)
  config.data.eval_split, config.data.eval_batch_size = "test[:27]", 16
  train(config, workdir)
  return workdir


def logits_of(model, data):
  """Logits [n, classes] and labels [n] of the valid examples, float64."""
  keep = [batch["valid"] for batch in data]
  logits = [np.asarray(model(b["image"]))[k] for b, k in zip(data, keep)]
  labels = [b["label"][k] for b, k in zip(data, keep)]
  return np.concatenate(logits).astype(np.float64), np.concatenate(labels)


def cross_entropy(logits, labels):
  logits = logits - logits.max(-1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -log_p[np.arange(len(labels)), labels]


def test_each_example_against_numpy(run):
  experiment, state, _ = restore(run)
  data = list(experiment.task.eval_batches())
  assert not data[-1]["valid"].all()
  result = examples(run)
  assert result["seed"].tolist() == [3, 4]
  assert result["weight"].tolist() == 27 * [1.0]
  for row in range(2):
    model = seeds.take(state, row).finished()
    logits, labels = logits_of(model, data)
    right = logits.argmax(-1) == labels
    np.testing.assert_array_equal(result["correct"][row], right)
    np.testing.assert_array_equal(result["accuracy"][row], right)
    losses = cross_entropy(logits, labels)
    np.testing.assert_allclose(result["loss"][row], losses, rtol=2e-5)
  dtypes = {name: array.dtype for name, array in result.items()}
  assert dtypes["correct"].kind == "b" and dtypes["seed"].kind == "i"
  assert dtypes["loss"] == dtypes["accuracy"] == np.float32


def test_one_pass_gives_numbers_and_examples(run):
  result = evaluate(run, per_example=True)
  each = result.pop("examples")
  for name, array in examples(run).items():
    np.testing.assert_array_equal(each[name], array)
  shares = each["correct"].mean(1, dtype=np.float64)
  assert result["accuracies"] == pytest.approx(shares, abs=1e-12)
  assert result["loss"] == pytest.approx(each["loss"].mean(), rel=1e-6)
  assert "examples" not in evaluate(run)
  json.dumps(result)


def test_the_configuration_is_in_the_result(run):
  config = evaluate(run, data_dir=saved_config(run)["data"]["data_dir"])
  saved = json.loads((run / "config.json").read_text())
  assert config["config"] == schema.flat(saved)
  assert config["config"]["data.eval_split"] == "test[:27]"
  assert config["dtype"] == config["config"]["model.dtype"] == "float32"


def test_a_diverged_seed_has_no_right_example(tiny_config):
  state = build(tiny_config("ste", seeds=2)).state()
  params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.params)
  state = dataclasses.replace(state, params=params)
  split = Evaluator(LabelAccuracy(), batches(), has_seeds=True)
  _, each = split.measured(state)
  joined = {k: np.concatenate([b[k] for b in each], axis=1) for k in each[0]}
  result = per_example(joined)
  assert result["correct"].shape == (2, 21)
  assert not result["correct"][1].any() and np.isnan(result["loss"][1]).all()
  assert np.isfinite(result["loss"][0]).all()


def test_ignored_labels_are_left_out():
  seen = np.array([[1.0, 0.0, 1.0]])
  each = {"hits": seen * [1, 0, 0], "losses": seen * [0.5, 0, 2], "seen": seen}
  result = per_example(each)
  assert result["correct"].tolist() == [[True, False]]
  assert result["loss"].tolist() == [[0.5, 2.0]]


def test_bfloat16_is_the_model_built_with_that_dtype(run):
  experiment, state, _ = restore(run)
  data = list(experiment.task.eval_batches())
  config = experiment.config.copy_and_resolve_references()
  config.model.dtype = "bfloat16"
  _, params, masks, rest = nn.split(seeds.take(state, 0).finished())
  other = nn.with_flow(build(config).model(0), Flow())
  model = nn.merge(nn.split(other)[0], params, masks, 0.0, rest)
  model.eval()
  # Compiled, since XLA rounds less often than op by op.
  compiled = jax.jit(lambda images: model(images))
  result = evaluate(run, dtype="bfloat16", per_example=True)
  assert result["dtype"] == "bfloat16" and result["exact_nm"]
  losses = cross_entropy(*logits_of(compiled, data))
  each = result["examples"]["loss"]
  np.testing.assert_allclose(each[0], losses, rtol=2e-2, atol=1e-2)
  wide = evaluate(run, dtype="float32", per_example=True)["examples"]["loss"]
  difference = np.abs(each - wide)
  assert 1e-5 < difference.max() < 0.1
  np.testing.assert_array_equal(wide, examples(run)["loss"])
  assert result["config"]["model.dtype"] == "float32"


def test_int8_rounds_every_kernel(run):
  experiment, state, _ = restore(run)
  data = list(experiment.task.eval_batches())
  state = seeds.take(state, 0)
  params, masks = finish(state)
  flat = flatten(params)
  for path, leaf in flat.items():
    if path.endswith("kernel"):
      flat[path] = jnp.asarray(int8_by_hand(path, np.asarray(leaf)))
  rounded = map_paths(lambda new, _: new, params, flat)
  losses = cross_entropy(
    *logits_of(evaluation_model(state, rounded, masks), data)
  )
  result = evaluate(run, dtype="int8", per_example=True)
  assert result["dtype"] == "int8" and result["exact_nm"]
  each = result["examples"]["loss"]
  np.testing.assert_allclose(each[0], losses, rtol=1e-4)
  assert np.abs(each - examples(run)["loss"]).max() > 1e-5


def int8_by_hand(path, kernel):
  """w -> s round(w / s), with s = max |w| / 127 of each output."""
  inputs = kernel.shape[:-1]
  columns = kernel.reshape(-1, kernel.shape[-1]).copy()
  for column in columns.T:
    most = np.abs(column).max()
    if most:
      scale = np.float32(most / 127)
      column[:] = np.rint(column / scale).astype(np.int8) * scale
  return columns.reshape(*inputs, -1)


@pytest.mark.parametrize(
  ("dtype", "hint"), [("bf16", "'bfloat16'"), ("int4", ""), ("INT8", "'int8'")]
)
def test_another_dtype_is_refused_before_anything_is_read(
  tmp_path, dtype, hint
):
  message = f"dtype: expected one of .*'int8', got '{dtype}'.*{hint}"
  for function in (evaluate, examples):
    with pytest.raises(ValueError, match=message) as error:
      function(tmp_path / "none", dtype=dtype)
    assert "\n" not in str(error.value)


def test_int8_kernels_of_every_kind_by_hand():
  rngs = nnx.Rngs(0)
  model = nnx.List(
    [
      nnx.Linear(6, 3, rngs=rngs),
      nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs),
      nnx.Einsum("bti,hid->bhtd", (2, 6, 3), rngs=rngs),
      nn.SparseConv(4, 2, (3, 3), pattern="2:4", rngs=rngs),
      nn.SparseLinear(8, 4, pattern="1:4", param_dtype="bfloat16", rngs=rngs),
    ]
  )
  inputs = [(0,), (0, 1), (1,), (0, 1, 2), (0,)]
  before = [np.asarray(layer.kernel[...], np.float32) for layer in model]
  biases = [np.asarray(layer.bias[...]) for layer in model if layer.bias]
  round_kernels_to_int8(model)
  for layer, old, axes in zip(model, before, inputs):
    new = np.asarray(layer.kernel[...])
    scale = np.abs(old).max(axes, keepdims=True) / np.float32(127)
    np.testing.assert_allclose(new, np.rint(old / scale) * scale, rtol=1e-6)
    steps = new / scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max(axes) == pytest.approx(127, abs=1e-4)
  after = [np.asarray(layer.bias[...]) for layer in model if layer.bias]
  for old, new in zip(biases, after, strict=True):
    np.testing.assert_array_equal(old, new)


def test_t5_is_refused_in_float16():
  with pytest.raises(ValueError, match="dtype: expected one of 'float32', 'b"):
    check_dtype("float16", schema.legal_values("t5", "ste")["model.dtype"])
