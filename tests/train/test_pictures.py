"""Pictures of runs: what is drawn is what the runs' own files say."""

import io
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from figs_jax import engine
from figs_jax.core.pattern import NM
from figs_jax.train import history, pictures, study
from figs_jax.train.history import Curve, History
from figs_jax.train.loop import train
from figs_jax.train.restore import restore
from figs_jax.train.tradeoff import Point, front, points

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
STEPS = 6
FC1, FC2 = "blocks/0/mlp/fc1/kernel", "blocks/0/mlp/fc2/kernel"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory, tiny_config):
  """Every step is a checkpoint and every step is diagnosed."""
  workdir = tmp_path_factory.mktemp("sparse")
  config = tiny_config(
    "sr_ste", seeds=2, total_steps=STEPS, checkpoint_every=1, keep=STEPS,
    diagnose_every=1, log_every=1,
  )  # fmt: skip
  config.optimizer.learning_rate = 0.02  # so that masks change at once
  train(config, workdir)
  return history.histories([workdir])[0]


@pytest.fixture(scope="module")
def bare(tmp_path_factory, tiny_config):
  """One checkpoint and no diagnostics."""
  workdir = tmp_path_factory.mktemp("bare")
  train(
    tiny_config("ste", total_steps=2, keep=1, diagnose_every=0, seed=1), workdir
  )
  return history.histories([workdir])[0]


@pytest.fixture(scope="module")
def saved_masks(sparse):
  """[steps][seed][path], restored one by one."""
  found = []
  for step in range(1, STEPS + 1):
    _, state, _ = restore(sparse.path, step)
    seeds = [study.take(state, i).masks for i in range(2)]
    found.append(
      [
        {
          path: np.asarray(masks["blocks"][0]["mlp"][name]["kernel"])
          for path, name in ((FC1, "fc1"), (FC2, "fc2"))
        }
        for masks in seeds
      ]
    )
  return found


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_over_checkpoints_are_those_of_the_checkpoints(
  sparse, saved_masks, seed
):
  found = history.evolution(sparse, FC2, seed=seed, window=(8, 5))
  assert found.steps.tolist() == list(range(1, STEPS + 1))
  assert (found.layer, found.pattern, found.shape) == (FC2, "1:4", (64, 32))
  for place, masks in enumerate(saved_masks):
    np.testing.assert_array_equal(found.window[place], masks[seed][FC2][:8, :5])
  for path in (FC1, FC2):
    each = [masks[seed][path] for masks in saved_masks]
    flips = [int((a ^ b).sum()) for a, b in zip(each, each[1:])]
    want = np.array(flips) / each[0].size
    np.testing.assert_allclose(found.changed[path].values, want, rtol=1e-12)
    assert found.changed[path].steps.tolist() == list(range(2, STEPS + 1))
    assert sum(flips) > 0


def test_groups_run_down_the_columns(sparse):
  window = history.evolution(sparse, FC1, window=(32, 64)).window
  counts = window.reshape(STEPS, 32 // 4, 4, 64).sum(2)
  assert (counts == 1).all()


def test_logged_flips_are_those_between_checkpoints(sparse, saved_masks):
  """Two ways to one number: the step's own count, and its checkpoints."""
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
  leaf = history.Leaf((2, 3, 4), NM(1, 2), axis=(0, 2))
  table = history._table(mask, leaf)
  want = [[mask[i, j, k] for j in range(3)] for i in range(2) for k in range(4)]
  assert table.tolist() == want


def test_bands_are_mean_and_extremes():
  rng = np.random.default_rng(0)
  steps = np.arange(5)
  values = {f"blocks/{i}/mlp/fc1/kernel": rng.random(5) for i in range(4)}
  values |= {"head/kernel": rng.random(5)}
  bands = history.by_kind({k: Curve(steps, v) for k, v in values.items()})
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
    (history.evolution, ["1 checkpoint", "--config.keep"]),
    (lambda run: history.evolution(run, "fc3"), ["no masked kernel", FC1]),
    (
      lambda run: history.evolution(run, seed=1),
      ["no seed 1", "this run has 1"],
    ),
  ],
)
def test_what_is_missing_is_named(bare, call, words):
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


# A history without files, for what needs none.


def made(label, recipe="figs", seed=0, accuracies=(0.5,), speed=1, **config):
  base = {"recipe": {"name": recipe}, "seed": seed, "seeds": 0}
  base |= {"pattern": "ff: 1:4", "total_steps": 10, "diagnose_every": 0}
  row = {"step": 10, "loss": 1.0, "eval/accuracy": float(np.mean(accuracies))}
  if len(accuracies) > 1:
    base["seeds"] = len(accuracies)
    row |= {f"eval/accuracy/seed{i}": a for i, a in enumerate(accuracies)}
    row["eval/accuracy_se"] = 0.1
  found = History(
    Path(label), label, base | config, [{"step": 4, "loss": 2.0}, row]
  )
  found.__dict__["layers"] = [
    {"name": "fc", "M": 64, "N": 64, "K": 64, "pattern": f"1:{2**speed}"}
  ]
  return found


def test_runs_that_differ_in_the_seed_are_one_point():
  runs = [
    made("a", seed=0, accuracies=(0.5, 0.7)),
    made("b", seed=2, accuracies=(0.9,)),
    made("c", seed=0, accuracies=(0.4,), total_steps=20),
  ]
  one, other = points(runs, ["ws:16x16"])
  assert one.accuracies == (0.5, 0.7, 0.9) and one.runs == ("a", "b")
  assert one.accuracy == pytest.approx(0.7)
  assert one.error == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1) / 3**0.5)
  assert other.runs == ("c",) and np.isnan(other.error)
  report = engine.report(runs[0].layers, ["ws:16x16"])
  assert one.speedup == report.totals[0].speedup > 1
  with pytest.raises(ValueError, match="seed 1 of this configuration"):
    points([*runs, made("d", seed=1)], ["ws"])


def test_seeds_that_are_not_equally_far_make_no_mean():
  late = made("b", seed=1)
  late.rows[-1]["step"] = 8
  message = "b: evaluated at step 8, but a at 10"
  with pytest.raises(ValueError, match=message):
    points([made("a"), late], ["ws"])


def test_what_diverged_is_not_on_the_front():
  found = [
    Point("ws", "r", "1:4", 1.0, (accuracy,), ())
    for accuracy in (0.7, math.nan, 0.9)
  ]
  assert [point.accuracy for point in front(found)] == [0.9]


def test_a_run_without_evaluation_is_named():
  run = made("a")
  run.rows.pop()
  with pytest.raises(ValueError, match="a: no evaluation yet"):
    points([run], ["ws"])


@settings(deadline=None)
@given(
  st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8
  )
)
def test_the_front_is_what_none_beats(pairs):
  found = [Point("ws", "r", "1:4", float(x), (y / 6,), ()) for x, y in pairs]
  want = {
    (a, b)
    for a, b in pairs
    if not any((c >= a and d > b) or (c > a and d >= b) for c, d in pairs)
  }
  got = [(p.speedup, round(6 * p.accuracy)) for p in front(found)]
  assert sorted(want) == got


def test_panels_show_what_changed_since_the_panel_before():
  rng = np.random.default_rng(1)
  window = rng.random((5, 4, 3)) < 0.5
  states = pictures.mask_states(window, [0, 2, 4])
  for place, (now, before) in enumerate([(0, 0), (2, 0), (4, 2)]):
    for index in np.ndindex(4, 3):
      new, old = window[now][index], window[before][index]
      want = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}[int(new), int(old)]
      assert states[place][index] == want


def test_the_picture_of_masks(sparse):
  found = history.evolution(sparse, FC1, window=(8, 8))
  figure = pictures.masks(found, "run")
  *panels, below = figure.subfigs[0].axes + figure.subfigs[1].axes
  assert [ax.get_title() for ax in panels] == [
    f"step {step}" for step in found.steps
  ]
  states = pictures.mask_states(found.window, range(STEPS))
  for ax, want in zip(panels, states):
    np.testing.assert_array_equal(ax.images[0].get_array(), want)
  lines = {line.get_label(): line for line in below.lines}
  assert list(lines) == ["fc1", "fc2"]
  np.testing.assert_allclose(
    lines["fc2"].get_ydata(), 100 * found.changed[FC2].values
  )


def test_curves_of_one_run_and_of_several(sparse):
  (ax,) = pictures.flips([sparse]).axes
  logged = sparse.layer_curves("flip_rate")
  assert [line.get_label() for line in ax.lines] == ["fc1", "fc2"]
  for line, path in zip(ax.lines, (FC1, FC2)):
    np.testing.assert_allclose(line.get_ydata(), 100 * logged[path].values)
  twin = History(sparse.path, "_$twin", sparse.config, sparse.rows)
  (ax,) = pictures.flips([sparse, twin]).axes
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
  kept, pruned = pictures.variance(
    [History(sparse.path, "x", sparse.config, rows)]
  ).axes
  logged = sparse.layer_curves("grad_var_kept")[FC1].values
  drawn = kept.lines[0].get_ydata()
  assert np.isnan(drawn[1])
  np.testing.assert_allclose(np.delete(drawn, 1), np.delete(logged, 1))
  assert not pruned.lines and "no gradient" in pruned.texts[0].get_text()


def test_pareto_draws_means_and_errors():
  runs = [
    made("a", accuracies=(0.5, 0.7), speed=1),
    made("b", recipe="step", accuracies=(0.8,), speed=1),
    made("c", accuracies=(0.3, 0.5), speed=3, pattern="ff: 1:8"),
  ]
  found = points(runs, ["ws:16x16", "figs"])
  left, right = pictures.pareto(found).axes
  for ax, spec in ((left, "ws:16x16"), (right, "figs")):
    here = [point for point in found if point.engine == spec]
    assert spec in ax.get_xlabel()
    for bars, point in zip(ax.containers, here):
      line, _, spreads = bars
      assert line.get_ydata()[0] == pytest.approx(100 * point.accuracy)
      if spreads:
        (low, high) = spreads[0].get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(100 * point.error)
      else:
        assert np.isnan(point.error)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["1:2", "1:2", "1:8"]
  # Two at one speed-up stand side by side around it.
  first, second = (bars[0].get_xdata()[0] for bars in left.containers[:2])
  assert first < found[0].speedup < second


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_parse_and_repeat(kind):
  runs = [made("a", accuracies=(0.5, 0.7)), made("b", recipe="step")]
  once, again = (
    pictures.image(pictures.training(runs), kind) for _ in range(2)
  )
  assert once == again
  if kind == "png":
    Image.open(io.BytesIO(once)).verify()
  elif kind == "svg":
    assert ET.fromstring(once).tag.endswith("svg")
  else:
    assert once.startswith(b"%PDF") and once.rstrip().endswith(b"%%EOF")


def test_many_lines_keep_their_looks_apart():
  styles = [tuple(pictures._style(i).values()) for i in range(28)]
  assert len(set(styles)) == 28


def test_a_real_run_is_a_point(sparse):
  (point,) = points([sparse], ["ws:16x16"])
  last = [row for row in sparse.rows if "eval/accuracy" in row][-1]
  assert point.accuracies == tuple(
    last[f"eval/accuracy/seed{i}"] for i in (0, 1)
  )
  assert point.error == pytest.approx(last["eval/accuracy_se"])
  assert (point.recipe, point.pattern) == ("sr_ste", "1:4")
  assert point.speedup > 1
