"""Paths, and mask trees that line up with parameter trees."""

import jax.numpy as jnp
import pytest

from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten, map_masked, map_paths

PARAMS = {"blocks": {0: {"kernel": 2.0, "bias": 3.0}, 1: {"kernel": 5.0}}}
MASKS = {"blocks": {0: {"kernel": 10.0, "bias": None}, 1: {"kernel": None}}}


def test_paths_name_leaves_and_none_counts_as_one():
  assert list(flatten(PARAMS)) == list(flatten(MASKS))
  assert flatten(PARAMS)["blocks/0/kernel"] == 2.0
  assert flatten(MASKS)["blocks/0/bias"] is None


def test_masked_leaves_are_mapped_and_the_rest_passed_on():
  out = map_masked(lambda m, x, y: m * x + y, MASKS, PARAMS, PARAMS)
  assert flatten(out) == {
    "blocks/0/bias": 3.0,
    "blocks/0/kernel": 22.0,
    "blocks/1/kernel": 5.0,
  }


def test_none_may_stand_for_a_whole_branch():
  masks = {"blocks": {0: {"kernel": 1.0, "bias": None}, 1: None}}
  out = map_masked(lambda m, x: -x, masks, PARAMS)
  assert out["blocks"][1] is PARAMS["blocks"][1] or out["blocks"][1] == {
    "kernel": 5.0
  }
  assert out["blocks"][0]["kernel"] == -2.0


def test_trees_that_do_not_line_up_are_refused():
  with pytest.raises(ValueError):
    map_masked(lambda m, x: x, {"a": 1.0}, {"b": 1.0})


def test_map_paths_makes_a_mask_tree():
  leaf = MaskedKernel((1,), NM(1, 4))
  out = map_paths(
    lambda leaf, x: (leaf.pattern.m, x), PARAMS, {"blocks/1/kernel": leaf}
  )
  assert out["blocks"][1]["kernel"] == (4, 5.0)
  assert out["blocks"][0] == {"kernel": None, "bias": None}


def test_arrays_and_sequences():
  tree = {"a": [jnp.zeros(1), (jnp.ones(2), None)]}
  assert set(flatten(tree)) == {"a/0", "a/1/0", "a/1/1"}
