"""T5 against another library: stored numbers always, live where it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import decode
from figs_jax.models.t5_stack import bucket

from . import t5_oracle as oracle

ATOL, COSINE = 1e-4, 0.99999
cases = pytest.mark.parametrize("case", sorted(oracle.CASES))


def nested(flat):
  """The dict tree of "a/0/b" paths; digits become ints, as in NNX."""
  out = {}
  for path, value in flat.items():
    *heads, last = (int(k) if k.isdigit() else k for k in path.split("/"))
    node = out
    for key in heads:
      node = node.setdefault(key, {})
    node[last] = value
  return out


def under(prefix, stored):
  return {
    key.removeprefix(prefix): value
    for key, value in stored.items()
    if key.startswith(prefix)
  }


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
  found = oracle.computed(model, 14)
  return oracle.weights(model), found | oracle.decoded(model, found["inputs"])


def loaded(case, weights, **options):
  """(graphdef, params, masks, rest) with these weights, each used once."""
  model = models.create("t5", "custom", **oracle.options(case), **options)
  graphdef, params, masks, rest = nn.split(model)
  flat = dict(oracle.ours(*item) for item in weights.items())
  assert len(flat) == len(weights)
  shapes = {path: leaf.shape for path, leaf in tree.flatten(params).items()}
  assert {path: leaf.shape for path, leaf in flat.items()} == shapes
  flat = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  return graphdef, nested(flat), masks, rest


def compare(case, weights, expected):
  """Logits, and the direction and length of every tensor's gradient."""
  graphdef, params, masks, rest = loaded(case, weights)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    logits = model(expected["inputs"], expected["targets"])
    return (logits * expected["cotangent"]).sum(), logits

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = slope(params)
  np.testing.assert_allclose(logits, expected["logits"], atol=ATOL, rtol=0)
  grads, sizes = tree.flatten(grads), [w.size for w in weights.values()]
  directions = np.split(expected["directions"], np.cumsum(sizes)[:-1])
  triples = zip(weights.items(), directions, expected["lengths"])
  for (name, weight), direction, length in triples:
    direction = direction.astype(np.float64).reshape(weight.shape)
    path, direction = oracle.ours(name, direction)
    got = np.asarray(grads[path], np.float64)
    norm = np.linalg.norm(got) * np.linalg.norm(direction)
    assert (got * direction).sum() > COSINE * norm, path
    assert abs(np.linalg.norm(got) / length - 1) < 1e-3, path


def compare_decoding(case, weights, expected):
  """Every token of every way of decoding."""
  model = nn.merge(*loaded(case, weights)[:3], 0.0, {})
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
def test_logits_and_gradients_equal_the_stored_ones(case):
  mine = under(f"{case}/", stored())
  compare(case, under("weight/", mine), mine)


@cases
def test_logits_and_gradients_equal_those_computed_now(case):
  compare(case, *live(case))


@cases
def test_decoding_equals_the_stored_one(case):
  mine = under(f"{case}/", stored())
  compare_decoding(case, under("weight/", mine), mine)


@cases
def test_decoding_equals_that_of_now(case):
  compare_decoding(case, *live(case))


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
