"""Swin-V2 against another library: stored numbers always, live where it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.core import tree

from . import swin_v2_oracle as oracle

ATOL, COSINE = 1e-4, 0.99999


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


def loaded(case, weights):
  """(graphdef, params, masks, rest) with these weights, each used once."""
  model = models.create("swin_v2", "custom/2", **oracle.options(case))
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
    logits = nn.merge(graphdef, params, masks, 0.0, rest)(expected["images"])
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


@pytest.mark.parametrize("case", sorted(oracle.CASES))
def test_logits_and_gradients_equal_the_stored_ones(case):
  with np.load(oracle.TARGET) as data:
    stored = dict(data)
  compare(case, under("weight/", stored), under(f"{case}/", stored))


@pytest.mark.parametrize("case", sorted(oracle.CASES))
def test_logits_and_gradients_equal_those_computed_now(case):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(7, case)
  compare(case, oracle.weights(model), oracle.computed(model, 7, case))
