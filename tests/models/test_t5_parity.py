"""T5 against another library: stored numbers always, live where it is."""

import functools

import jax
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import decode, pretrained
from figs_jax.models.pretrained.files import write_weights
from figs_jax.models.t5_stack import bucket

from . import t5_oracle as oracle
from .parity import ATOL, check_gradient, under

cases = pytest.mark.parametrize("case", sorted(oracle.CASES))


@functools.cache
def stored():
  with np.load(oracle.TARGET) as data:
    return dict(data)


@functools.cache
def live(case):
  """Weights, and what is computed from them now."""
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(14, case)
  result = oracle.computed(model, 14)
  return oracle.weights(model), result | oracle.decoded(model, result["inputs"])


def loaded(folder, case, weights):
  """Our model with these tensors, by way of a file."""
  write_weights(folder / "model.safetensors", weights)
  model = models.create("t5", "custom", **oracle.options(case))
  return pretrained.load(model, folder)


def compare(folder, case, weights, expected):
  """Logits, and the direction and length of every tensor's gradient."""
  model = loaded(folder, case, weights)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    logits = model(expected["inputs"], expected["targets"])
    return (logits * expected["cotangent"]).sum(), logits

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = slope(params)
  np.testing.assert_allclose(logits, expected["logits"], atol=ATOL, rtol=0)
  # The gradients are a file of the same names: they come in the same way.
  sizes = [weight.size for weight in weights.values()]
  directions = np.split(expected["directions"], np.cumsum(sizes)[:-1])
  theirs = {
    name: length * direction.astype(np.float32).reshape(weights[name].shape)
    for name, direction, length in zip(
      weights, directions, expected["lengths"], strict=True
    )
  }
  theirs = nn.split(loaded(folder, case, theirs))[1]
  theirs = tree.flatten(theirs)
  for path, got in tree.flatten(grads).items():
    check_gradient(path, got, theirs[path])


def compare_decoding(folder, case, weights, expected):
  """Every token of every way of decoding."""
  model = loaded(folder, case, weights)
  inputs, length = expected["inputs"], oracle.LENGTH
  ended = 0
  for name, (beams, penalty, early) in oracle.DECODING.items():
    if beams == 1:
      tokens = decode.greedy(model, inputs, length)
    else:
      tokens, scores = decode.beam_search(
        model, inputs, beams, length, penalty, early
      )
      theirs = expected[f"{name}_scores"]
      np.testing.assert_allclose(scores, theirs, rtol=1e-4)
    np.testing.assert_array_equal(tokens, expected[name], err_msg=name)
    ended += (expected[name] == 1).sum()
  assert 0 < ended < len(oracle.DECODING) * len(inputs)


@cases
def test_logits_and_gradients_equal_the_stored_ones(tmp_path, case):
  mine = under(f"{case}/", stored())
  compare(tmp_path, case, under("weight/", mine), mine)


@cases
def test_logits_and_gradients_equal_those_computed_now(tmp_path, case):
  compare(tmp_path, case, *live(case))


@cases
def test_decoding_equals_the_stored_one(tmp_path, case):
  mine = under(f"{case}/", stored())
  compare_decoding(tmp_path, case, under("weight/", mine), mine)


@cases
def test_decoding_equals_that_of_now(tmp_path, case):
  compare_decoding(tmp_path, case, *live(case))


def our_buckets():
  offsets = np.arange(-oracle.OFFSET, oracle.OFFSET + 1)
  return np.stack(
    [
      bucket(offsets, bidirectional=both, num_buckets=32, max_distance=128)
      for both in (True, False)
    ]
  )


def test_buckets_equal_the_stored_ones():
  np.testing.assert_array_equal(our_buckets(), stored()["buckets"])


def test_buckets_equal_those_computed_now():
  live("v1_0")
  np.testing.assert_array_equal(our_buckets(), oracle.buckets())
