"""The evaluator against NumPy, diverged seeds, exactness and storage."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import nn
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.train import seeds
from figs_jax.train._evaluate import (
  Evaluator,
  evaluate,
  exact_nm,
  storage,
)
from figs_jax.train.experiment import build
from figs_jax.train.metrics import LabelAccuracy
from figs_jax.train.state import finish

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


def test_a_finished_model_of_any_step_is_exact(tiny_config):
  experiment = build(tiny_config("figs"))
  state = experiment.state()
  leaves = nn.masked_leaves(state.finished())
  assert all(exact_nm(finish(state)[0], leaves).values())


def test_an_unknown_engine_is_told_before_anything_is_read(tmp_path):
  with pytest.raises(ValueError, match="unknown kind 'wss', did you mean 'ws'"):
    evaluate(tmp_path / "none", engine_spec="wss:8x8")
