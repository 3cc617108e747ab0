"""Plots of runs show the numbers that the runs' own files hold."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from figs_jax.analysis import history, plot_style, plots
from figs_jax.analysis.history import Curve, History
from figs_jax.analysis.pareto import pareto_points
from figs_jax.core.pattern import NM
from figs_jax.train import seeds
from figs_jax.train.loop import train
from figs_jax.train.workdir import restore
from tests.analysis.conftest import STEPS

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
FC1, FC2 = "blocks/0/mlp/fc1/kernel", "blocks/0/mlp/fc2/kernel"


@pytest.fixture(scope="module")
def sparse(sparse_workdir):
  return history.histories([sparse_workdir])[0]


@pytest.fixture(scope="module")
def bare(short_workdir):
  """A run with one checkpoint, as if it had no diagnostics."""
  (run,) = history.histories([short_workdir])
  rows = [
    {name: value for name, value in row.items() if "layers/" not in name}
    for row in run.rows
  ]
  config = run.config | {"diagnose_every": 0}
  return History(run.path, run.label, config, rows)


@pytest.fixture(scope="module")
def evolved(request, tmp_path_factory, tiny_config):
  """(run, chain of fc1) of a run whose pattern changes between checkpoints."""
  workdir = tmp_path_factory.mktemp(request.param)
  config = tiny_config(
    request.param, total_steps=10, checkpoint_every=1, keep=10,
    diagnose_every=0, log_every=10,
  )  # fmt: skip
  if request.param == "figs":
    config.recipe.dense = 0.2
    chain = ("8:32", "4:16", "2:8", "1:4")
  else:
    config.seeds = 2
    chain = ("1:4",)
  train(config, workdir)
  return history.histories([workdir])[0], chain


@pytest.fixture(scope="module")
def saved_masks(sparse):
  """[steps][seed][path], restored one by one."""
  saved = []
  for step in range(1, STEPS + 1):
    _, state, _ = restore(sparse.path, step)
    mlps = [seeds.take(state, i).masks["blocks"][0]["mlp"] for i in range(2)]
    saved.append(
      [
        {path: np.asarray(mlp[path.split("/")[-2]]["kernel"])
         for path in (FC1, FC2)} for mlp in mlps
      ]
    )  # fmt: skip
  return saved


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_over_checkpoints_are_those_of_the_checkpoints(
  sparse, saved_masks, seed
):
  evolution = history.mask_evolution(sparse, FC2, seed=seed, window=(8, 5))
  assert evolution.steps.tolist() == list(range(1, STEPS + 1))
  assert (evolution.layer, evolution.shape) == (FC2, (64, 32))
  assert evolution.patterns == ("1:4",) * STEPS
  for place, masks in enumerate(saved_masks):
    np.testing.assert_array_equal(
      evolution.window[place], masks[seed][FC2][:8, :5]
    )
  for path in (FC1, FC2):
    each = [masks[seed][path] for masks in saved_masks]
    flips = [int((a ^ b).sum()) for a, b in zip(each, each[1:])]
    want = np.array(flips) / each[0].size
    np.testing.assert_allclose(evolution.changed[path].values, want, rtol=1e-12)
    assert evolution.changed[path].steps.tolist() == list(range(2, STEPS + 1))
    assert sum(flips) > 0


def test_groups_run_down_the_columns(sparse):
  window = history.mask_evolution(sparse, FC1, window=(32, 64)).window
  counts = window.reshape(STEPS, 32 // 4, 4, 64).sum(2)
  assert (counts == 1).all()


def test_logged_flips_are_those_between_checkpoints(sparse, saved_masks):
  """The count of the step itself equals that of its checkpoints."""
  logged = sparse.layer_curves("flip_rate")
  assert set(logged) == {FC1, FC2}
  for path in (FC1, FC2):
    want = [
      np.mean([(b[i][path] ^ a[i][path]).mean() for i in range(2)])
      for a, b in zip(saved_masks, saved_masks[1:])
    ]
    curve = logged[path]
    assert curve.steps.tolist() == list(range(1, STEPS + 1))
    np.testing.assert_allclose(curve.values[1:], want, rtol=1e-6)


def test_other_axes_are_turned():
  """Groups along the first and last axis of three come first, flattened."""
  mask = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 5 == 0
  leaf = history.MaskedKernel((2, 3, 4), NM(1, 2), axis=(0, 2))
  table = history._table(mask, leaf)
  want = [[mask[i, j, k] for j in range(3)] for i in range(2) for k in range(4)]
  assert table.tolist() == want


def test_bands_are_mean_and_extremes():
  rng = np.random.default_rng(0)
  steps = np.arange(5)
  values = {f"blocks/{i}/mlp/fc1/kernel": rng.random(5) for i in range(4)}
  values |= {"head/kernel": rng.random(5)}
  bands = history.bands_by_kind({k: Curve(steps, v) for k, v in values.items()})
  assert list(bands) == ["fc1", "head"]
  each = np.array([v for k, v in values.items() if "fc1" in k])
  for got, want in zip(
    bands["fc1"][1:],
    (each.sum(0) / 4, np.sort(each, 0)[0], np.sort(each, 0)[-1]),
  ):
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda run: run.layer_curves("flip_rate"), ["--config.diagnose_every=10"]),
    (history.mask_evolution, ["two checkpoints", "got 1", "--config.keep"]),
    (lambda run: history.mask_evolution(run, "fc3"), ["no masked kernel", FC1]),
    (
      lambda run: history.mask_evolution(run, seed=1),
      ["no seed 1", "this run has 1"],
    ),
  ],
)
def test_missing_data_are_named(bare, call, words):
  with pytest.raises(ValueError) as error:
    call(bare)
  for word in [*words, str(bare.path)]:
    assert word in str(error.value)
  assert "\n" not in str(error.value)


def test_no_run_and_one_run_twice(bare, tmp_path):
  with pytest.raises(ValueError, match="no run here"):
    history.histories([tmp_path])
  with pytest.raises(ValueError, match="given twice"):
    history.histories([bare.path, f"{bare.path}/."])
  (tmp_path / "config.json").write_text("[1]")
  with pytest.raises(ValueError, match="config.json: cannot be read"):
    history.histories([tmp_path])


def test_labels_tell_runs_apart(tmp_path):
  places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
  assert history._labels(places[1:]) == ["run", "c"]
  assert history._labels(places)[:2] == ["a/run", "b/run"]


def test_panels_show_what_changed_since_the_panel_before():
  rng = np.random.default_rng(1)
  window = rng.random((5, 4, 3)) < 0.5
  states = plots.mask_states(window, [0, 2, 4])
  for place, (now, before) in enumerate([(0, 0), (2, 0), (4, 2)]):
    for index in np.ndindex(4, 3):
      new, old = window[now][index], window[before][index]
      want = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}[int(new), int(old)]
      assert states[place][index] == want


def test_the_picture_of_masks(sparse):
  evolution = history.mask_evolution(sparse, FC1, window=(8, 8))
  figure = plots.plot_masks(evolution, "run")
  *panels, below = figure.subfigs[0].axes + figure.subfigs[1].axes
  assert [ax.get_title() for ax in panels] == [
    f"step {step}\n1:4" for step in evolution.steps
  ]
  assert figure.subfigs[0].get_suptitle().startswith(f"run: {FC1}, 8 × 8 of")
  assert "band: min–max" in figure.subfigs[1].legends[0].get_title().get_text()
  states = plots.mask_states(evolution.window, range(STEPS))
  for ax, want in zip(panels, states):
    np.testing.assert_array_equal(ax.images[0].get_array(), want)
  lines = {line.get_label(): line for line in below.lines}
  assert list(lines) == ["fc1", "fc2"]
  np.testing.assert_allclose(
    lines["fc2"].get_ydata(), 100 * evolution.changed[FC2].values
  )


def test_curves_of_one_run_and_of_several(sparse):
  (ax,) = plots.plot_mask_changes([sparse]).axes
  logged = sparse.layer_curves("flip_rate")
  assert [line.get_label() for line in ax.lines] == ["fc1", "fc2"]
  for line, path in zip(ax.lines, (FC1, FC2)):
    np.testing.assert_allclose(line.get_ydata(), 100 * logged[path].values)
  twin = History(sparse.path, "_$twin", sparse.config, sparse.rows)
  (ax,) = plots.plot_mask_changes([sparse, twin]).axes
  both = (logged[FC1].values + logged[FC2].values) / 2
  for line in ax.lines:
    np.testing.assert_allclose(line.get_ydata(), 100 * both)
  # Neither hidden nor read as a formula.
  assert ax.get_legend_handles_labels()[1] == [sparse.label, r" _\$twin"]


def test_variance_leaves_zeros_out(sparse):
  rows = [dict(row) for row in sparse.rows]
  for row in rows:
    for path in (FC1, FC2):
      if row["step"] == 2 and f"layers/{path}/grad_var_kept" in row:
        row[f"layers/{path}/grad_var_kept"] = 0.0
      if f"layers/{path}/grad_var_pruned" in row:
        row[f"layers/{path}/grad_var_pruned"] = 0.0
  kept, pruned = plots.plot_gradient_variance(
    [History(sparse.path, "x", sparse.config, rows)]
  ).axes
  logged = sparse.layer_curves("grad_var_kept")[FC1].values
  drawn = kept.lines[0].get_ydata()
  assert np.isnan(drawn[1])
  np.testing.assert_allclose(np.delete(drawn, 1), np.delete(logged, 1))
  assert not pruned.lines and "no gradient" in pruned.texts[0].get_text()


def test_a_real_run_is_a_point(sparse):
  (point,) = pareto_points([sparse], ["ws:16x16"])
  last = [row for row in sparse.rows if "eval/accuracy" in row][-1]
  assert point.accuracies == tuple(
    last[f"eval/accuracy/seed{i}"] for i in (0, 1)
  )
  assert point.error == pytest.approx(last["eval/accuracy_se"])
  assert (point.recipe, point.pattern) == ("sr_ste", "1:4")
  assert point.ideal >= point.speedup > 0


@pytest.mark.slow
@pytest.mark.parametrize("evolved", ["figs", "step"], indirect=True)
def test_each_panel_names_the_pattern_of_its_own_step(evolved):
  """The sparsest pattern of the chain that every group of the mask has."""
  run, chain = evolved
  evolution = history.mask_evolution(run, FC1, window=(32, 64))

  def fits(mask, pattern):
    kept = mask.reshape(-1, pattern.m, mask.shape[1]).sum(1)
    return (kept == pattern.n).all()

  want = []
  for mask in evolution.window:
    fitting = [str(p) for p in map(NM.parse, chain) if fits(mask, p)]
    want.append("dense" if mask.all() else fitting[-1])
  assert list(evolution.patterns) == want
  assert len(set(want)) == len(chain) + 1  # one pattern after the other
  top = plots.plot_masks(evolution).subfigs[0]
  titles = [ax.get_title().split("\n") for ax in top.axes]
  shown = dict(zip((f"step {step}" for step in evolution.steps), want))
  assert len(titles) == 6
  for step, pattern in titles:
    assert pattern == shown[step]


def lone(label="lone", steps=(150,), every=100):
  """A run that was diagnosed at few steps."""
  names = ("flip_rate", "grad_var_kept", "grad_var_pruned")
  rows = [
    {"step": step, "loss": 1.0, "eval/accuracy": 0.5}
    | {f"layers/{p}/{n}": 0.1 for p in (FC1, FC2) for n in names}
    for step in steps
  ]
  config = {"recipe": {"name": "ste"}, "diagnose_every": every}
  return History(Path(label), label, config, rows)


@pytest.mark.parametrize(
  "draw",
  [plots.plot_mask_changes, plots.plot_gradient_variance, plots.plot_training],
)
@pytest.mark.parametrize("steps", [(150,), (1, 150)])
def test_single_steps_are_visible(draw, steps):
  figure = draw([lone(steps=steps)])
  pixels = np.asarray(
    Image.open(io.BytesIO(plot_style.image_bytes(figure, "png")))
  )
  for ax in figure.axes:
    box = ax.get_window_extent()
    rows = slice(len(pixels) - int(box.y1), len(pixels) - int(box.y0))
    seen = pixels[rows, int(box.x0) : int(box.x1), :3]
    (colour, *_) = (line.get_color() for line in ax.lines[::-1])
    want = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    assert (seen == want).all(-1).sum() > 20  # more than a corner of a line
    low, high = ax.get_xlim()
    assert low == 0 and high >= 150


def test_a_long_curve_has_marks_only_where_it_has_no_line():
  values = np.ones(60)
  assert plot_style.marked_points(values) == []
  values[[10, 12]] = np.nan
  assert plot_style.marked_points(values) == [11]


@pytest.mark.parametrize(
  ("every", "phrase"),
  [
    ((100,), "one step in 100 measured"),
    ((4, 1000), "one step in 4 or 1,000 measured"),
    ((1,), "every step measured"),
  ],
)
def test_mask_changes_name_the_measured_steps(every, phrase):
  runs = [lone(str(steps), every=steps) for steps in every]
  (ax,) = plots.plot_mask_changes(runs).axes
  assert ax.get_ylabel() == f"mask entries changed in one step, %\n({phrase})"
  assert ("missing" in ax.get_xlabel()) == (every != (1,))
  assert ax.get_ylim()[0] == 0


def test_bands_and_ticks_are_labelled():
  for runs, words in (
    ([lone()], "layers of a kind"), ([lone(), lone("b")], "a run's layers"),
  ):  # fmt: skip
    for draw in (plots.plot_mask_changes, plots.plot_gradient_variance):
      figure = draw(runs)
      title = figure.legends[0].get_title().get_text()
      assert "band: min–max" in title and words in title
      assert (figure.get_suptitle() == "lone") == (len(runs) == 1)
  for ax in figure.axes:
    for minor in (False, True):
      for label in ax.yaxis.get_ticklabels(minor=minor):
        assert label.get_size() == 8
