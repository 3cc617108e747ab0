"""A program that runs once gives what it gives when it is run as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from figs_jax.train import _run_once
from figs_jax.train._run_once import run_once, share_calls
from figs_jax.train.experiment import build
from figs_jax.train.sharding import make_mesh, replicated

REPLICATED = replicated(make_mesh())


@jax.jit
def _halves(x, scale):
  return x[:2] * scale, x[2:]


def _draws():
  """Calls that read calls, with several results, captured and constant values.

  `out[0]` belongs to a key derived from a key, one call further down.
  """
  table = jnp.asarray(np.arange(4, dtype=np.float32))
  key = jax.random.key(0)
  out = [jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 5), 1))]
  for i in range(3):
    first, second = _halves(table + i, 2.0)
    draw = jax.random.uniform(jax.random.fold_in(key, i))
    out += [draw, *_halves(jnp.concatenate([second, first]) * draw, 3.0)]
  return out


def test_equal_calls_in_one_loop_change_nothing():
  program = jax.make_jaxpr(_draws)()
  lowered = jax.jit(share_calls(program)).lower()
  text = lowered.as_text()
  # Those of one level in one loop; a call of a call is on the next level.
  assert text.count("call @_halves") == 2 < 6
  assert text.count("call @_uniform") == 2 < 4
  expected = jax.jit(jaxpr_as_fun(program))()
  for got, value in zip(lowered.compile()(), expected, strict=True):
    np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(
  "level, large", [(_run_once._LEVEL, 0), ("no_such_option", 2**24)]
)
def test_options_that_xla_knows_and_lacks(monkeypatch, level, large):
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setattr(_run_once, "_LEVEL", level)
  monkeypatch.setattr(_run_once, "_LARGE", large)
  program = jax.make_jaxpr(lambda: [jax.random.normal(jax.random.key(1))])()
  (got,) = run_once(program, [REPLICATED])
  np.testing.assert_allclose(got, jax.random.normal(jax.random.key(1)), 2e-7)


@pytest.mark.standard_promotion
def test_the_first_state_is_that_of_the_plain_program(tiny_config):
  experiment = build(tiny_config("figs", seeds=2))
  abstract = experiment.abstract_state
  got = experiment.placed_state(jax.tree.map(lambda _: REPLICATED, abstract))
  assert jax.tree.structure(got) == jax.tree.structure(abstract)
  expected = jax.tree.leaves(jax.jit(experiment.state)())
  for (path, leaf), value in zip(jax.tree.leaves_with_path(got), expected):
    np.testing.assert_allclose(leaf, value, rtol=1e-6, err_msg=str(path))
