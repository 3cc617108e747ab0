"""Masks on eight devices: no word between them, ties, zeros and NaN included.

Two kernels are split over the devices, one along its groups (in shards that are
multiples of the longest group of its chain) and one beside them. Their weights
are made to be awkward, and anew at every step; the masks must be those of the
reference, and the finished model exact whenever one stops.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from figs_jax.core.masks import is_nm

from .draws import Draws
from .harness import leaf_of, recipe_of
from .pieces import TOTAL, geometric
from .reference import Clock, View
from .table import FIRST, Row

each = pytest.mark.parametrize("row", FIRST, ids=lambda row: row.name)
COLLECTIVE = re.compile(
  r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
  r"|collective-broadcast"
)
SPLIT = {"fc1": ("x", None), "fc2": (None, "x")}
SWITCH = 8  # the first step that STEP masks


def shapes(row):
  """[groups' axis, other axis] of the two kernels."""
  longest = {
    name: max(m for _, m in Clock(row).stages(0, *nm))
    for name, nm in row.targets.items()
  }
  return {
    "fc1": (8 * longest["fc1"], max(4, row.targets["fc1"][1])),
    "fc2": (2 * longest["fc2"], 8 * row.targets["fc2"][1]),
  }


def planted(shape, step):
  """Weights with ties, zeros of both signs, NaN, and groups of nothing else."""
  rng = np.random.default_rng(step)
  w = np.round(rng.normal(size=shape), 1).astype(np.float32)
  w[rng.random(shape) < 0.1] = 0.0
  w[rng.random(shape) < 0.1] = -0.0
  w[rng.random(shape) < 0.1] = np.nan
  w[: shape[0] // 2, 0] = [np.nan, 0.0, -1.0, 1.0][step % 4]
  return w


def slopes(shape, step):
  rng = np.random.default_rng(1000 + step)
  return np.round(rng.normal(size=shape), 1).astype(np.float32)


class Sharded:
  """A row's masks as one program over eight devices."""

  def __init__(self, row, split=None, kind=AxisType.Auto):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    self.shapes = shapes(row)
    self.places = {
      k: NamedSharding(mesh, PartitionSpec(*axes))
      for k, axes in {**SPLIT, **(split or {})}.items()
    }
    self.recipe = recipe_of(row)
    self.bound = self.recipe.bind(
      {k: leaf_of(self.shapes[k], nm, -2) for k, nm in row.targets.items()}
    )
    places = self.places
    program = jax.jit(self.masks, out_shardings=(places, places, places))
    self.program = program.lower(*self.inputs(1, self.all_kept())).compile()

  def masks(self, step, params, masks, grads, switched, was):
    """Those of the step, of a model finished there, and its weights."""
    new = self.bound.masks(step, params, masks, switched, was, grads=grads)
    end = self.bound.final(params, new, step, switched)
    scales = {k: jnp.float32(1.5) for k in params}
    return new, end, self.bound.finish(params, end, scales)

  def all_kept(self):
    return {k: np.ones(shape, bool) for k, shape in self.shapes.items()}

  def inputs(self, step, masks):
    trees = (
      {k: planted(s, step) for k, s in self.shapes.items()},
      masks,
      {k: slopes(s, step) for k, s in self.shapes.items()},
    )
    flags = (np.bool_(step >= SWITCH), np.bool_(step - 1 >= SWITCH))
    trees = [jax.device_put(tree, self.places) for tree in trees]
    return np.int32(step), *trees, *flags


@each
def test_masks_over_eight_devices(row):
  check(row, Sharded(row))


def test_masks_where_shardings_are_types():
  row = Row("figs", {"k": 4}, patterns=geometric(4))
  check(row, Sharded(row, kind=AxisType.Explicit))


def check(row, run):
  clock = Clock(row)
  assert not COLLECTIVE.search(run.program.as_text())
  chance = row.options.get("chance", 0)
  draws = {k: Draws(k, s, chance=chance) for k, s in run.shapes.items()}

  def view(k, step, mask):
    w, g = planted(run.shapes[k], step), slopes(run.shapes[k], step)
    return View(w, None if mask is None else g, mask, step, draws[k])

  masks = {k: clock.mask(view(k, 0, None), *row.targets[k]) for k in run.shapes}
  if not row.ties:
    masks = run.all_kept()
  for step in range(1, TOTAL + 1):
    flags = step >= SWITCH, step - 1 >= SWITCH
    new, end, done = run.program(*run.inputs(step, masks))
    for k, (n, m) in row.targets.items():
      old = view(k, step, masks[k])
      wanted = clock.mask(old, n, m, *flags)
      if row.ties:
        np.testing.assert_array_equal(new[k], wanted, f"{k} step {step}")
        final = clock.final(old._replace(mask=wanted), n, m, flags[0])
        np.testing.assert_array_equal(end[k], final, f"{k} step {step}")
      kept = np.asarray(end[k])
      if run.recipe.ends_dense:
        assert kept.all()
      elif run.recipe.sparse:
        assert is_nm(kept, f"{n}:{m}", 0)
        assert is_nm(np.asarray(done[k]), f"{n}:{m}", 0)
        if run.recipe.transposable:
          assert is_nm(kept, f"{n}:{m}", 1)
      w = planted(run.shapes[k], step)
      if run.recipe.flow.soft:
        assert np.all(np.asarray(done[k])[~kept] == 0)
      else:
        np.testing.assert_array_equal(done[k], np.where(kept, w, 0))
    masks = {k: np.asarray(mask) for k, mask in new.items()}


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_dropping_the_smallest_of_a_whole_kernel_is_the_exception(name):
  run = Sharded(Row(name, {"scope": "leaf"}, "2:8"))
  assert COLLECTIVE.search(run.program.as_text())


def test_groups_that_straddle_two_devices_would_talk():
  """The search of the program's text finds what it looks for."""
  row = Row("figs", {"k": 4}, patterns=geometric(4))
  run = Sharded(row, split={"fc2": ("x", None)})
  assert run.shapes["fc2"][0] < 8 * 16
  assert COLLECTIVE.search(run.program.as_text())
