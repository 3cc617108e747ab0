"""Accuracy against speed-up, and plots of histories without files."""

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
from figs_jax.analysis import plot_style, plots
from figs_jax.analysis.history import History
from figs_jax.analysis.pareto import ParetoPoint, pareto_front, pareto_points
from figs_jax.engine.figures import LAYERS

pytest.importorskip("matplotlib")


def made(label, recipe="figs", seed=0, accuracies=(0.5,), speed=1, **config):
  """A history without files."""
  base = {"recipe": {"name": recipe}, "seed": seed, "seeds": 0}
  base |= {"pattern": "ff: 1:4", "total_steps": 10, "diagnose_every": 0}
  row = {"step": 10, "loss": 1.0, "eval/accuracy": float(np.mean(accuracies))}
  if len(accuracies) > 1:
    base["seeds"] = len(accuracies)
    row |= {f"eval/accuracy/seed{i}": a for i, a in enumerate(accuracies)}
    row["eval/accuracy_se"] = 0.1
  rows = [{"step": 4, "loss": 2.0}, row]
  history = History(Path(label), label, base | config, rows)
  history.__dict__["batch_layers"] = [
    {"name": "fc", "M": 64, "N": 64, "K": 64, "pattern": f"1:{2**speed}"}
  ]
  return history


def test_runs_that_differ_in_the_seed_are_one_point():
  runs = [
    made("a", seed=0, accuracies=(0.5, 0.7)),
    made("b", seed=2, accuracies=(0.9,)),
    made("c", seed=0, accuracies=(0.4,), total_steps=20),
  ]
  one, other = pareto_points(runs, ["ws:16x16"])
  assert one.accuracies == (0.5, 0.7, 0.9) and one.runs == ("a", "b")
  assert one.accuracy == pytest.approx(0.7)
  assert one.error == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1) / 3**0.5)
  assert other.runs == ("c",) and np.isnan(other.error)
  report = engine.report(runs[0].batch_layers, ["ws:16x16"], baseline="dense")
  assert one.speedup == report.totals[0].speedup
  assert one.ideal >= one.speedup > 0
  with pytest.raises(ValueError, match="seed 1 of this configuration"):
    pareto_points([*runs, made("d", seed=1)], ["ws"])


def test_seeds_that_are_not_equally_far_make_no_mean():
  late = made("b", seed=1)
  late.rows[-1]["step"] = 8
  message = "b: evaluated at step 8, but a at 10"
  with pytest.raises(ValueError, match=message):
    pareto_points([made("a"), late], ["ws"])


def test_what_diverged_is_not_on_the_front():
  points = [
    ParetoPoint("ws", "r", "1:4", 1.0, (accuracy,), ())
    for accuracy in (0.7, math.nan, 0.9)
  ]
  assert [point.accuracy for point in pareto_front(points)] == [0.9]


def test_a_run_without_evaluation_is_named():
  run = made("a")
  run.rows.pop()
  with pytest.raises(ValueError, match="a: no evaluation yet"):
    pareto_points([run], ["ws"])


@settings(deadline=None)
@given(
  st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8
  )
)
def test_the_front_is_what_none_beats(pairs):
  points = [
    ParetoPoint("ws", "r", "1:4", float(x), (y / 6,), ()) for x, y in pairs
  ]
  want = {
    (a, b)
    for a, b in pairs
    if not any((c >= a and d > b) or (c > a and d >= b) for c, d in pairs)
  }
  got = [(p.speedup, round(6 * p.accuracy)) for p in pareto_front(points)]
  assert sorted(want) == got


def test_pareto_draws_means_and_errors():
  runs = [
    made("a", accuracies=(0.5, 0.7), speed=1),
    made("b", recipe="step", accuracies=(0.8,), speed=1),
    made("c", accuracies=(0.3, 0.5), speed=3, pattern="ff: 1:8"),
  ]
  points = pareto_points(runs, ["ws:16x16", "figs"])
  left, right = plots.plot_pareto(points).axes
  for ax, spec in ((left, "ws:16x16"), (right, "figs")):
    here = [point for point in points if point.engine == spec]
    assert spec in ax.get_xlabel()
    known = [point for point in here if not np.isnan(point.error)]
    assert 0 < len(known) < len(here)
    for bars, point in zip(ax.containers, known, strict=True):
      low, high = bars[2][0].get_segments()[0][:, 1]
      assert (high - low) / 2 == pytest.approx(100 * point.error)
      assert (high + low) / 2 == pytest.approx(100 * point.accuracy)
    texts = [text.get_text() for text in ax.texts]
    # What ws:16x16 gains is the ideal bound; other engines have it as a line.
    ideal = {p.pattern: p.ideal for p in here if spec == "figs"}
    assert texts == [f"ideal, {x}" for x in ideal] + ["1:2", "1:2", "1:8"]
    assert ("ideal bound" in ax.get_xlabel()) == (spec == "ws:16x16")
    lines = [x for x in ax.lines if x.get_label() == plot_style.IDEAL]
    assert [x.get_xdata()[0] for x in lines] == list(ideal.values())
    marks = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    places = [tuple(mark.get_xydata()[0]) for mark in marks]
    assert places == [(point.speedup, 100 * point.accuracy) for point in here]
    # The front goes from mark to mark.
    (line,) = (line for line in ax.lines if line.get_label() == "Pareto front")
    corners = [tuple(corner) for corner in line.get_xydata()]
    assert set(corners) <= set(places)
    assert corners == [
      (p.speedup, 100 * p.accuracy) for p in pareto_front(here)
    ]
  title = "Accuracy against modelled speed-up: a, b, c"
  assert left.figure.get_suptitle() == title


def test_no_front_without_two_points():
  figure = plots.plot_pareto(pareto_points([made("a")], ["ws:16x16"]))
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["a (figs)"]


def test_a_run_has_one_colour_in_all_plots():
  """Whoever is left out of one, and whichever seeds are one point."""
  runs = [
    made("dense", recipe="dense"), made("a", seed=1), made("b", recipe="ste"),
    made("a2", seed=2), made("c", accuracies=(0.3,), total_steps=20),
  ]  # fmt: skip
  order = [run.label for run in runs]
  for run in runs:
    run.rows[0]["layers/fc/kernel/flip_rate"] = 0.2
    for entries in ("kept", "pruned"):
      run.rows[0][f"layers/fc/kernel/grad_var_{entries}"] = 0.2
  masked = runs[1:]
  figures = [
    plots.plot_training(runs, order),
    plots.plot_training([runs[2]], order),
    plots.plot_mask_changes(masked, order),
    plots.plot_gradient_variance(masked[1:], order),
    plots.plot_pareto(pareto_points(masked, ["ws:16x16"]), order),
  ]
  want = {label: plot_style.RUNS[place] for place, label in enumerate(order)}
  want |= {"a, a2 (figs)": want["a"], "b (ste)": want["b"]}
  want |= {"c (figs)": want["c"]}
  for figure in figures:
    for ax in figure.axes:
      for line in ax.lines:
        name = line.get_label()
        if name.startswith("_") or name == "Pareto front":
          continue  # a dotted line, a front
        colour = line.get_color()
        if line.get_linestyle() == "None":
          colour = line.get_markeredgecolor()
        assert colour == want[name], (name, ax.get_ylabel())
  assert not set(plot_style.RUNS) & set(LAYERS)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_parse_and_repeat(kind):
  runs = [made("a", accuracies=(0.5, 0.7)), made("b", recipe="step")]
  once, again = (
    plot_style.image_bytes(plots.plot_training(runs), kind) for _ in range(2)
  )
  assert once == again
  if kind == "png":
    Image.open(io.BytesIO(once)).verify()
  elif kind == "svg":
    assert ET.fromstring(once).tag.endswith("svg")
  else:
    assert once.startswith(b"%PDF") and once.rstrip().endswith(b"%%EOF")


def test_many_lines_have_different_styles():
  styles = [tuple(plot_style.line_style(i).values()) for i in range(28)]
  assert len(set(styles)) == 28
