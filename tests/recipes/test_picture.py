"""A recipe as table and picture: what it shows is what `at` says."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.recipes.picture import PHASES, draw, timeline_table

NAMES = [
  name
  for name in recipes.names()
  if recipes.function_of(name).__module__.startswith("figs_jax.")
]


@pytest.mark.parametrize("name", NAMES)
def test_table_is_what_the_recipe_says_at_every_step(name):
  recipe = recipes.create(name, "1:8", 24)
  table = timeline_table(recipe)
  np.testing.assert_array_equal(table.step, np.arange(24))
  points = recipe.points.patterns if recipe.points else (NM(1, 8),)
  assert table.targets == points
  for i in range(24):
    pattern = recipe.pattern_at(i)
    assert (table.n[0, i], table.m[0, i]) == (pattern.n, pattern.m)
    # Of all steps at once XLA may round the last bit otherwise.
    want = pytest.approx(recipe.leak_at(i), rel=2**-22, abs=0)
    assert table.leak[i] == want
    moment = recipe.at(i, recipe.timeline.switched_by(i))
    assert table.refresh[i] == bool(moment.refresh)
    assert (table.phase[i] == "dense") == (int(moment.stage) == 0)
  assert set(table.phase) <= set(PHASES)


def test_geometric_chain_by_hand():
  recipe = recipes.create("figs", "1:4", 100, k=4, dense=0.1, finetune=0.3)
  table = timeline_table(recipe)
  m = np.repeat([4, 16, 8, 4], [10, 20, 20, 50])
  np.testing.assert_array_equal(table.m[0], m)
  np.testing.assert_array_equal(
    table.n[0], np.repeat([4, 4, 2, 1], [10, 20, 20, 50])
  )
  np.testing.assert_allclose(table.density[0], np.repeat([1, 0.25], [10, 90]))
  phases = np.repeat(PHASES, [10, 60, 30])
  np.testing.assert_array_equal(table.phase, phases)


def test_linear_leak_by_hand():
  options = {"dense": 0.1, "finetune": 0.2, "zero_at": 0.5}
  recipe = recipes.create("mdgf_linear", "1:4", 100, **options)
  expected = np.clip(1 - (np.arange(100) - 10) / 40, 0, 1)
  np.testing.assert_allclose(timeline_table(recipe).leak, expected, atol=1e-6)


def test_rules_have_a_row_per_target():
  rules = "a: 1:4, b: 2:4, c: dense, d: 1:4"
  recipe = recipes.create("sdgf_stepwise", rules, 100, dense=0.0, finetune=0.0)
  table = timeline_table(recipe)
  assert table.targets == (NM(1, 4), NM(2, 4))
  np.testing.assert_array_equal(table.n[0], np.repeat([3, 2, 1], [34, 33, 33]))
  np.testing.assert_array_equal(table.n[1], np.repeat([3, 2], [50, 50]))


def test_step_switches_as_late_as_it_can():
  recipe = recipes.create("step", "1:4", 100, t_max=0.4)
  table = timeline_table(recipe)
  assert table.step[table.phase != "dense"][0] == 41
  np.testing.assert_array_equal(table.leak, np.repeat([1.0, 0.0], [41, 59]))


@pytest.mark.parametrize(
  "name, options, factor",
  [
    ("sr_ste", {}, lambda t: np.ones_like(t)),
    ("sr_ste", {"mode": "backward"}, lambda t: np.ones_like(t)),
    ("annealed_decay", {"until": 0.25}, lambda t: np.minimum(t / 25, 1)),
    ("ste", {}, lambda t: np.zeros_like(t)),
  ],
)
def test_pull_is_lambda(name, options, factor):
  recipe = recipes.create(name, "1:4", 100, **options)
  expected = 2e-4 * factor(np.arange(100.0))
  np.testing.assert_allclose(timeline_table(recipe).pull, expected, rtol=1e-6)


def test_share_is_rigls_cosine():
  recipe = recipes.create("rigl", "1:4", 100, share=0.4, until=0.5)
  t = np.arange(100)
  cosine = 0.2 * (1 + np.cos(math.pi * t / 50)) * (t < 50)
  table = timeline_table(recipe)
  np.testing.assert_allclose(table.share, cosine, atol=1e-6)
  assert not timeline_table(recipes.create("ste", "1:4", 100)).share.any()


def test_long_runs_are_sampled_from_end_to_end():
  table = timeline_table(recipes.create("figs", "1:4", 10**6))
  assert len(table.step) == 4096
  assert (table.step[0], table.step[-1]) == (0, 10**6 - 1)
  assert (np.diff(table.step) > 0).all()


@pytest.mark.parametrize("steps", [[-1], [3, 100]])
def test_steps_lie_in_the_run(steps):
  with pytest.raises(ValueError, match=r"expected integers in 0\.\.99"):
    timeline_table(recipes.create("ste", "1:4", 100), np.array(steps))


@pytest.mark.parametrize("name", NAMES)
def test_curves_hold_the_table(name):
  recipe = recipes.create(name, "1:8", 200)
  table, ax = timeline_table(recipe), draw(recipe)
  lines = {line.get_label(): line for line in ax.get_lines()}
  for i, target in enumerate(table.targets):
    name = "density n/m" + f", {target}" * (len(table.targets) > 1)
    density = lines.pop(name)
    np.testing.assert_array_equal(density.get_ydata(), table.density[i])
  np.testing.assert_array_equal(lines.pop("leak D").get_ydata(), table.leak)
  masked = table.phase != "dense"
  if table.pull.any():
    drawn = lines.pop("λ / max λ").get_ydata()
    np.testing.assert_allclose(
      drawn[masked], (table.pull / table.pull.max())[masked]
    )
    assert np.isnan(drawn[~masked]).all()
  if table.share.any():
    drawn = lines.pop("share dropped").get_ydata()
    np.testing.assert_array_equal(drawn[masked], table.share[masked])
  assert not lines
  ax.figure.draw_without_rendering()


def test_patterns_bands_and_ticks_are_drawn():
  ax = draw(recipes.create("rigl", "2:4", 1000, dense=0.2, refresh_every=100))
  assert [text.get_text() for text in ax.texts] == ["2:4"]
  bands = {p.get_label(): p.get_bbox().intervalx.tolist() for p in ax.patches}
  assert bands == {"dense phase": [0, 200], "fine-tune phase": [900, 1000]}
  (ticks,) = [c for c in ax.collections if hasattr(c, "get_segments")]
  at = [segment[0][0] for segment in ticks.get_segments()]
  assert at == [200, 300, 400, 500, 600, 700, 800, 900]


def test_draws_on_given_axes_and_custom_recipes():
  from matplotlib.figure import Figure

  plain = recipes.create("ste", "1:4", 50)
  due = lambda step: step % 7 == 0  # noqa: E731
  line = dataclasses.replace(plain.timeline, due=due)
  given = Figure().subplots()
  ax = draw(dataclasses.replace(plain, timeline=line), given)
  assert ax is given
  assert ax.get_legend() is None


def test_matplotlib_is_asked_for_only_when_drawing():
  code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from figs_jax import recipes
from figs_jax.recipes.picture import draw, timeline_table
recipe = recipes.create("ste", "1:4", 10)
assert timeline_table(recipe).n.shape == (1, 10)
try:
  draw(recipe)
except ValueError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
  )
  assert "figs_jax[plots]" in done.stdout, done.stderr
