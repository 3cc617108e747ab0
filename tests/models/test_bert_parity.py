"""BERT against another library: stored numbers always, live where it is."""

import functools

import jax
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import pretrained
from figs_jax.models.pretrained.files import write_weights

from . import bert_oracle as oracle
from .parity import ATOL, check_gradient, under

cases = pytest.mark.parametrize("case", sorted(oracle.CASES))


@functools.cache
def stored():
  with np.load(oracle.TARGET) as data:
    return dict(data)


def loaded(folder, case, weights, **options):
  """Our model with these tensors, by way of a file."""
  write_weights(folder / "model.safetensors", weights)
  options = oracle.options(case) | options
  return pretrained.load(models.create("bert", "custom", **options), folder)


def compare(folder, case, weights, expected, **options):
  """The output, and the direction and length of every tensor's gradient."""
  model = loaded(folder, case, weights, **options)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    output = model(expected["inputs"], expected["types"])
    return (output * expected["cotangent"]).sum(), output

  with jax.default_matmul_precision("highest"):
    (_, output), grads = slope(params)
  np.testing.assert_allclose(output, expected["output"], atol=ATOL, rtol=0)
  # The gradients are a file of the same names: they come in the same way.
  theirs = under("gradient/", expected)
  theirs = tree.flatten(nn.split(loaded(folder, case, theirs, **options))[1])
  for path, got in tree.flatten(grads).items():
    if path.endswith("attn/k/bias"):  # which no softmax sees
      both = np.linalg.norm(got), np.linalg.norm(theirs[path])
      assert max(both) < 1e-4, path
      continue
    check_gradient(path, got, theirs[path])


@cases
@pytest.mark.parametrize("scan", [False, True])
def test_outputs_and_gradients_equal_the_stored_ones(tmp_path, case, scan):
  mine = under(f"{case}/", stored())
  compare(tmp_path, case, under("weight/", mine), mine, scan=scan)


@cases
def test_outputs_and_gradients_equal_those_computed_now(tmp_path, case):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(14, case)
  compare(tmp_path, case, oracle.weights(model), oracle.computed(model, 14))
