"""Everything of a kernel lies as the kernel does, leaf by leaf."""

import re

import jax
import pytest

from figs_jax import recipes
from figs_jax.core import optimizer_fields
from figs_jax.core.tree import flatten, path_str
from figs_jax.train.sharding import make_mesh, state_shardings

from .meshes import module as meshes

pytestmark = pytest.mark.standard_promotion
MESHES = ((2, 2, 2), (4, 1, 2), (1, 8, 1))
# Wide enough for factored moments; scanned, so that kernels have three axes.
SIZES = {"model.width": 128, "model.mlp_dim": 256, "model.scan": True}
OPTIMIZERS = [
  ("adamw", {}),
  ("sgd", {"optimizer.momentum": 0.9}),
  ("lion", {}),
  ("adafactor", {"optimizer.factored": True, "optimizer.momentum": 0.9}),
  ("adafactor", {"optimizer.factored": False}),
  ("muon", {}),
  (
    "schedule_free",
    {"optimizer.schedule": "constant", "ema_decay": 0.0},
  ),
]


def abstract(recipe="figs", optimizer="adamw", family="vit", **fields):
  own = {"optimizer.name": optimizer, "optimizer.eps": 1e-8, "ema_decay": 0.9}
  fields = own | fields
  if recipe == "nested":  # one pattern for all kernels
    fields["pattern"] = "ff: 2:4"
  return meshes.experiment_of(family, recipe, **SIZES | fields).abstract_state


def rows(state, sizes):
  """(path, shape, mesh axes of each array axis) of every leaf."""
  places = state_shardings(state, make_mesh(*sizes), state.bound)
  for (path, leaf), place in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(places)
  ):
    spec = tuple(place.spec)
    yield path_str(path), leaf.shape, spec + (None,) * (leaf.ndim - len(spec))


def check(state, sizes):
  """Every leaf that ends in a kernel's path lies as the kernel does."""
  all_rows = list(rows(state, sizes))
  kernels = {
    name.removeprefix("params/"): (shape, spec)
    for name, shape, spec in all_rows
    if name.startswith("params/") and len(shape) > 1
  }
  follow = 0
  for name, shape, spec in all_rows:
    end = next((k for k in kernels if name.endswith("/" + k)), None)
    if end is None or name.startswith("params/"):
      continue
    whole, axes = kernels[end]
    if shape == (1,):  # of factored moments, those that a kernel does not have
      continue
    if shape == whole:
      assert spec == axes, name
    elif "/v_row/" in name or "/v_col/" in name:
      longest = sorted(range(len(whole)), key=lambda axis: whole[axis])
      gone = longest[-1] if "/v_row/" in name else longest[-2]
      if whole.count(whole[gone]) == 1:  # else the shape does not tell
        assert shape == whole[:gone] + whole[gone + 1 :], name
        assert spec == axes[:gone] + axes[gone + 1 :], name
    else:
      raise AssertionError(f"{name}: neither {whole} nor a mean over it")
    follow += 1
  return kernels, follow


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe(name):
  state = abstract(name)
  masks = [
    kernel for kernel in flatten(state.masks).values() if kernel is not None
  ]
  for sizes in MESHES:
    kernels, follow = check(state, sizes)
    assert follow >= 3 * len(kernels) + len(masks)  # two moments, an average
    for path in state.bound.leaves:  # of all kernels with groups
      split = [axis for axis in kernels[path][1] if axis]
      assert split and len(split) == (sizes[1] > 1) + (sizes[2] > 1), path


@pytest.mark.parametrize(("name", "fields"), OPTIMIZERS)
def test_every_optimizer(name, fields):
  state = abstract("figs", name, **fields)
  for sizes in MESHES:
    check(state, sizes)
  moments = [
    (path, spec)
    for path, _, spec in rows(state, (2, 2, 2))
    if path.startswith("opt_state/")
    and path.endswith("mlp/fc2/kernel")
    and any(spec)
  ]
  assert moments
  if fields.get("optimizer.factored"):
    by_name = {
      re.search("v_row|v_col|v/|trace|ema|mu", path)[0]: spec
      for path, spec in moments
    }
    assert by_name["v_row"] == (None, "fsdp")  # a mean over the hidden width
    assert by_name["v_col"] == (None, "tensor")


def test_every_optimizer_is_here():
  assert {name for name, _ in OPTIMIZERS} == set(optimizer_fields.OPTIMIZERS)


def test_adapters_share_the_axes_of_their_kernel():
  specs = {name: spec for name, _, spec in rows(abstract("slope"), (2, 2, 2))}
  for layer in ("fc1", "fc2"):
    module = f"params/blocks/mlp/{layer}"
    lead, inputs, outputs = specs[f"{module}/kernel"]
    assert {inputs, outputs} == {"tensor", "fsdp"}
    assert specs[f"{module}/adapter/lora_a"] == (lead, inputs, None)
    assert specs[f"{module}/adapter/lora_b"] == (lead, None, outputs)


def test_seeds_have_an_axis_of_their_own():
  state = abstract("figs", seeds=2)
  places = state_shardings(state, make_mesh(2, 2, 2), state.bound, True)
  lone = {name: spec for name, _, spec in rows(abstract(), (2, 2, 2))}
  for path, place in jax.tree_util.tree_leaves_with_path(places):
    spec = tuple(place.spec)
    assert spec[:1] == (() if path_str(path) == "step" else ("seed",))
    assert any(spec[1:]) == any(lone[path_str(path)]), path_str(path)
