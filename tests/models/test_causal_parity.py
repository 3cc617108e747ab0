"""GPT-2 and Llama against another library: stored numbers, live where it is."""

import functools

import jax
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import decode, pretrained
from figs_jax.models.pretrained.files import write_weights

from . import causal_oracle as oracle
from .parity import ATOL, check_gradient

cases = pytest.mark.parametrize("case", sorted(oracle.CASES))


@functools.cache
def stored(case):
  """Weights, and what was computed from them."""
  with np.load(oracle.TARGET) as data:
    mine = {
      key.removeprefix(f"{case}/"): value
      for key, value in data.items()
      if key.startswith(f"{case}/")
    }
  weights = {
    key.removeprefix("weight/"): mine.pop(key)
    for key in list(mine)
    if key.startswith("weight/")
  }
  return weights, mine


@functools.cache
def live(case):
  """Weights, and what is computed from them now."""
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(14, case)
  result = oracle.computed(model, 14) | oracle.decoded(model, 14)
  return oracle.weights(model), result


def loaded(folder, case, weights, **options):
  """Our model with these tensors, by way of a file."""
  write_weights(folder / "model.safetensors", weights)
  family, own, *_ = oracle.CASES[case]
  model = models.create(family, "custom", **own, **options)
  return pretrained.load(model, folder)


def compare(folder, case, weights, expected):
  """Logits, and the direction and length of every tensor's gradient."""
  graphdef, params, masks, rest = nn.split(loaded(folder, case, weights))

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    logits = nn.merge(graphdef, params, masks, 0.0, rest)(expected["tokens"])
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
  theirs = tree.flatten(nn.split(loaded(folder, case, theirs))[1])
  for path, got in tree.flatten(grads).items():
    if path.endswith("attn/k/bias"):  # all keys moved by one vector: no effect
      assert np.abs(got).max() < 1e-3
      continue
    check_gradient(path, got, theirs[path])


def compare_decoding(folder, case, weights, expected, **options):
  """Every token of every way of decoding, padded on either side."""
  model = loaded(folder, case, weights, **options)
  prompts, mask = expected["prompts"], expected["mask"]
  order = np.argsort(~mask, axis=1, kind="stable")
  right = [np.take_along_axis(each, order, 1) for each in (prompts, mask)]
  ended = 0
  for name, (beams, penalty, early) in oracle.DECODING.items():
    given, seen = (prompts, mask) if beams != 3 else right
    if beams == 1:
      tokens = decode.greedy(model, given, oracle.LENGTH, mask=seen)
    else:
      tokens, scores = decode.beam_search(
        model, given, beams, oracle.LENGTH, penalty, early, mask=seen
      )
      theirs = expected[f"{name}_scores"]
      np.testing.assert_allclose(scores, theirs, rtol=1e-4)
    np.testing.assert_array_equal(tokens, expected[name], err_msg=name)
    ended += (expected[name] == 1).sum()
  return ended


@cases
def test_logits_and_gradients_equal_the_stored_ones(tmp_path, case):
  compare(tmp_path, case, *stored(case))


@cases
def test_logits_and_gradients_equal_those_computed_now(tmp_path, case):
  compare(tmp_path, case, *live(case))


@cases
def test_decoding_equals_the_stored_one(tmp_path, case):
  ended = compare_decoding(tmp_path, case, *stored(case))
  assert 0 < ended < len(oracle.DECODING) * len(oracle.PROMPTS)


@cases
def test_decoding_equals_that_of_now(tmp_path, case):
  compare_decoding(tmp_path, case, *live(case), scan=True)


@cases
def test_a_round_trip_keeps_every_bit(tmp_path, case):
  weights, _ = stored(case)
  for scan in (False, True):
    model = loaded(tmp_path, case, weights, scan=scan)
    pretrained.save(model, tmp_path / "again.safetensors")
    with pretrained.files.opened_weights(
      tmp_path / "again.safetensors"
    ) as again:
      assert again.keys() == weights.keys()
      for name, tensor in again.items():
        np.testing.assert_array_equal(tensor.read(), weights[name])
