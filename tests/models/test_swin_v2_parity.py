"""Swin-V2 against another library: stored numbers always, live where it is."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import pretrained
from figs_jax.models.pretrained.files import write_weights

from . import swin_v2_oracle as oracle
from .parity import ATOL, check_gradient, under


def loaded(folder, tensors, model):
  write_weights(folder / "model.safetensors", tensors)
  return pretrained.load(model, folder)


def gradients(weights, expected):
  """The stored gradients as tensors of the weights' names."""
  ends = np.cumsum([weight.size for weight in weights.values()])
  directions = np.split(expected["directions"].astype(np.float32), ends[:-1])
  return {
    name: direction.reshape(weight.shape) * np.float32(length)
    for (name, weight), direction, length in zip(
      weights.items(), directions, expected["lengths"], strict=True
    )
  }


def compare(folder, case, weights, expected, **options):
  """Logits, and the direction and length of every tensor's gradient."""
  options = {**oracle.options(case), **options}
  abstract = nnx.eval_shape(
    lambda: models.create("swin_v2", "custom/2", **options)
  )
  model = loaded(folder, weights, abstract)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    logits = nn.merge(graphdef, params, masks, 0.0, rest)(expected["images"])
    return (logits * expected["cotangent"]).sum(), logits

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = slope(params)
  np.testing.assert_allclose(logits, expected["logits"], atol=ATOL, rtol=0)
  # The gradients are a file of the same names: they come in the same way.
  theirs = nn.split(loaded(folder, gradients(weights, expected), abstract))[1]
  theirs = tree.flatten(theirs)
  for path, got in tree.flatten(grads).items():
    check_gradient(path, got, theirs[path])


@pytest.mark.parametrize(
  ("case", "scan"),
  [
    ("shift", False),
    ("padding", False),
    ("padding", True),
    ("clipped", False),
  ],
)
def test_logits_and_gradients_equal_the_stored_ones(tmp_path, case, scan):
  with np.load(oracle.TARGET) as data:
    stored = dict(data)
  weights, expected = under("weight/", stored), under(f"{case}/", stored)
  compare(tmp_path, case, weights, expected, scan=scan)


@pytest.mark.parametrize("case", sorted(oracle.CASES))
def test_logits_and_gradients_equal_those_computed_now(tmp_path, case):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(7, case)
  expected = oracle.computed(model, 7, case)
  compare(tmp_path, case, oracle.weights(model), expected)
