"""Tables, pictures and the page of a simulated study."""

import itertools
import math
import re

import numpy as np
import pytest

from figs_jax.analysis import _study_plots as plots
from figs_jax.analysis import statistics
from figs_jax.analysis._study_claims import judge
from figs_jax.analysis._study_examples import Split, split_of
from figs_jax.analysis._study_page import resolution, write_results
from figs_jax.analysis._study_pairs import cells_of, study_frame
from figs_jax.analysis._study_tables import (
  compact_table,
  patterns_in_order,
  sorted_cells,
  table,
  verdict_table,
)

from .simulated_study import add_examples, simulate

pytest.importorskip("pandas", reason="pandas is in the extra study")
pytest.importorskip("matplotlib", reason="matplotlib is in the extra study")
RECIPES = {"dense": 0.0, "figs": 0.5, "sr_ste": 0.0, "step": -0.4}
CLAIMS = {
  "ahead": {
    "better": "figs", "worse": "step", "metric": "loss",
    "patterns": ("1:8", "1:32"), "smallest": 0.005,
  },
  "same": {
    "better": "figs", "worse": "sr_ste", "metric": "accuracy", "equal": True,
    "patterns": ("1:8", "2:4"), "smallest": 0.2,
  },
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
  rows = simulate(RECIPES, rng=3)
  attention = simulate(
    RECIPES, ("qk 1:8",), rules="ff: {0}, q: {0}, k: {0}", rng=4, cost=2.5
  )
  rows += [row for row in attention if row["recipe"] != "dense"]
  lost = next(r for r in rows if r["cell"] == "step 1:32")
  lost["accuracy"] = lost["loss"] = ""
  return rows


@pytest.fixture(scope="module")
def frame(rows):
  return study_frame(rows)


def grid(markdown):
  """Header and rows of the first table in a text."""
  lines = [line for line in markdown.splitlines() if line.startswith("|")]
  assert len({len(line) for line in lines}) == 1  # aligned
  header, _, *body = (
    [cell.strip() for cell in line.strip("|").split("|")] for line in lines
  )
  return header, [dict(zip(header, line)) for line in body]


def test_the_table_has_every_cell_with_numpys_figures(rows, frame):
  _, lines = grid(table(frame))
  assert len(lines) == len(cells_of(frame))
  for line in lines:
    key = line["recipe"], line["pattern"].replace("–", "")
    mine = [r for r in rows if (r["recipe"], r["pattern"]) == key]
    accuracy = np.array([float(r["accuracy"] or "nan") for r in mine]) * 100
    known = accuracy[np.isfinite(accuracy)]
    error = known.std(ddof=1) / math.sqrt(len(known))
    wanted = f"{known.mean():.2f} ± {error:.2f}".replace("± 0.", "± .")
    assert line["test accuracy, % (± s.e.)"] == wanted
    assert line["n"] == ("8" if len(known) == 8 else "7 of 8")
    assert float(line["density"]) == pytest.approx(
      float(mine[0]["density"]), abs=1e-4
    )
    assert line["speed-up on vegeta:16x16"].endswith("×")


def test_distances_in_the_table_are_paired_by_seed(rows, frame):
  _, lines = grid(table(frame))
  sides = [
    np.array([float(r["loss"]) for r in rows if r["cell"] == cell])
    for cell in ("figs 1:8", "dense")
  ]
  wanted = statistics.paired_interval(sides[0] - sides[1])
  (line,) = [
    each
    for each in lines
    if (each["recipe"], each["pattern"]) == ("figs", "1:8")
  ]
  mean, low, high = re.findall(r"\d*\.\d+", line["Δ loss [95 %]"])
  for text, value in (
    (mean, wanted.mean),
    (low, wanted.low),
    (high, wanted.high),
  ):
    assert float(text) == pytest.approx(value, abs=6e-5)
  dense = next(each for each in lines if each["recipe"] == "dense")
  assert dense["Δ loss [95 %]"] == "–"


def test_rows_are_sorted_by_pattern_and_loss(frame):
  order = sorted_cells(cells_of(frame), "dense")
  assert order[0] == ("dense", "", "")
  patterns = [pattern for _, pattern, _ in order[1:]]
  assert [p for p, _ in itertools.groupby(patterns)] == [
    "1:8",
    "1:32",
    "qk 1:8",
  ]
  means = frame.groupby(["recipe", "pattern", "setting"]).loss.mean()
  for _, group in itertools.groupby(order[1:], key=lambda key: key[1]):
    losses = [means[key] for key in group]
    assert losses == sorted(losses)


def test_patterns_of_the_same_layers_stand_together(frame):
  places, layers = patterns_in_order(cells_of(frame))
  assert list(places) == ["1:8", "1:32", "qk 1:8"]
  assert layers == {"1:8": "ff", "1:32": "ff", "qk 1:8": "ff, q, k"}


def test_the_order_of_data_is_named_below_or_in_a_column(rows, frame):
  assert table(frame).endswith("data.order = own.\n")
  mixed = [
    row | ({"config.data.order": "shared"} if row["recipe"] == "step" else {})
    for row in rows
  ]
  _, lines = grid(table(study_frame(mixed)))
  assert {line["data.order"] for line in lines if line["recipe"] == "step"} == {
    "shared"
  }


def test_settings_have_a_column_and_a_borrowed_baseline_is_marked(rows):
  wide = simulate({"figs": 0.0}, ("1:8",), setting="wide", rng=8)
  text = table(study_frame(rows + wide))
  _, lines = grid(text)
  line = next(line for line in lines if line["setting"] == "wide")
  assert line["Δ loss [95 %]"].endswith("†")
  assert "†: to dense in the setting without a name" in text


def test_optional_columns(rows):
  more = [row | {"stages": "2:64 × 4", "k": "8", "loss_bfloat16": row["loss"]}
          for row in rows]  # fmt: skip
  header, lines = grid(table(study_frame(more)))
  assert header[-2:] == ["stages", "k"]
  assert lines[1]["stages"] == "2:64 × 4"
  assert "test loss in bfloat16, nats (± s.e.)" in header


def test_the_compact_table(frame):
  header, lines = grid(compact_table(frame))
  assert header == ["recipe", "1:8", "1:32", "qk 1:8"]
  assert [line["recipe"] for line in lines] == [
    "dense",
    "figs",
    "sr_ste",
    "step",
  ]
  assert len(set(list(lines[0].values())[1:])) == 1  # dense serves all
  assert all("±" in line["1:32"] for line in lines)


def test_the_verdict_table(frame):
  judgements = judge(frame, CLAIMS)
  _, lines = grid(verdict_table(judgements))
  assert [line["verdict"].strip("*") for line in lines] == [
    each.verdict for each in judgements
  ]
  assert lines[0]["contrast"] == "figs − step at 1:8"
  assert (
    lines[3]["verdict"] == "not run" and lines[3]["difference [95 %]"] == "–"
  )
  assert lines[2]["smallest"] == "±.20"
  assert {line["family"] for line in lines} == {"primary (4)"}


def test_marks_of_the_density_plot_are_the_means(frame):
  figure = plots.plot_by_density(frame)
  for ax, metric, factor in zip(figure.axes, ("accuracy", "loss"), (100, 1)):
    drawn = {
      round(y, 9)
      for line in ax.lines
      if line.get_marker() not in ("None", "_", None)
      for y in line.get_ydata()
    }
    means = frame[frame.recipe != "dense"].groupby("cell")[metric].mean()
    assert {round(factor * mean, 9) for mean in means} <= drawn
  ticks = [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
  assert ticks == ["1:8\n(0.125)", "1:32\n(0.0312)", "qk 1:8\n(0.125)"]


def test_the_forest_plot_shows_intervals_and_verdicts(frame):
  judgements = judge(frame, CLAIMS)
  figure = plots.plot_forest(judgements)
  loss, accuracy = figure.axes
  labels = [tick.get_text() for tick in loss.get_yticklabels()]
  assert labels == ["figs − step at 1:8", "figs − step at 1:32"]
  assert "← as claimed" in loss.get_xlabel()
  assert "as claimed →" in accuracy.get_xlabel()
  for ax, group in ((loss, judgements[:2]), (accuracy, judgements[2:])):
    bars = [line for line in ax.lines if len(set(line.get_ydata())) == 1
            and len(line.get_xdata()) == 2]  # fmt: skip
    known = [each for each in group if each.pairs.interval]
    assert len(bars) == len(known)
    for bar, each in zip(bars, known):
      interval = each.pairs.interval
      assert bar.get_xdata().tolist() == [interval.low, interval.high]
      assert bar.get_color() == plots._LOOKS[each.verdict].colour


def test_very_long_intervals_end_in_an_arrow():
  rows = simulate({"figs": 0.5, "sr_ste": 0.0, "step": 0}, rng=3)
  few = [r for r in rows if r["recipe"] != "step" or int(r["seed"]) < 2]
  for row in few:
    if (row["recipe"], row["seed"]) == ("step", "0"):
      row["loss"] = str(float(row["loss"]) + 0.1)
  claims = {
    name: CLAIMS["ahead"] | {"better": "figs", "worse": name}
    for name in ("sr_ste", "step")
  }
  figure = plots.plot_forest(judge(study_frame(few), claims))
  (ax,) = figure.axes
  markers = [line.get_marker() for line in ax.lines]
  assert markers.count("<") == markers.count(">") == 2
  low, high = ax.get_xlim()
  for line in ax.lines[1:]:
    assert all(low <= x <= high for x in line.get_xdata())


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_distances_are_drawn_per_pattern(frame, metric):
  figure = plots.plot_distances(frame, metric=metric, smallest=0.1)
  titles = [ax.get_title() for ax in figure.axes]
  assert titles == ["1:8", "1:32", "qk 1:8"]
  names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
  assert names == ["figs", "sr_ste", "step"]
  worse = {line.get_color() for line in figure.axes[0].lines[1:]}
  assert worse == {plots._OF_DISTANCES["worse"].colour}


def test_distances_need_another_cell():
  with pytest.raises(ValueError, match="other than those of 'dense'"):
    plots.plot_distances(study_frame(simulate({"dense": 0.0})))


def test_costs_have_their_fronts(frame):
  first, second = plots.cost_columns(frame)
  assert first == ["speedup:figs:16x16:alpha=15", "train_flops"]
  assert second == ["speedup:vegeta:16x16"]
  figure = plots.plot_tradeoffs(frame, "dense", first)
  faster, cheaper = figure.axes
  assert faster.get_xlabel() == "modelled speed-up on figs:16x16:alpha=15, ×"
  for ax, sign in ((faster, 1), (cheaper, -1)):
    front = next(
      line for line in ax.lines if line.get_label() == "Pareto front"
    )
    points = sorted(zip(sign * front.get_xdata(), front.get_ydata()))
    heights = [y for _, y in points]
    assert heights == sorted(heights, reverse=True) and len(points) == 3
  named = [text.get_text() for text in faster.texts]
  assert sorted(named) == ["1:32", "1:8", "dense", "qk 1:8"]


def test_of_many_recipes_the_best_are_named():
  names = ["dense", *(f"figs {i}" for i in range(12))]
  rows = simulate({name: i for i, name in enumerate(names)}, seeds=2)
  column = ["speedup:figs:16x16:alpha=15"]
  figure = plots.plot_tradeoffs(study_frame(rows), "dense", column)
  (legend,) = figure.legends
  labels = {text.get_text() for text in legend.get_texts()}
  assert labels == {"dense", "figs 11", "others", "Pareto front"}


def boxes_overlap(figure):
  """Pairs of tick labels and texts that overlap, in the same axes."""
  figure.draw_without_rendering()
  for ax in figure.axes:
    for axis in (ax.xaxis, ax.yaxis):
      low, high = sorted(axis.get_view_interval())
      shown = [
        tick.label1
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high
        and tick.label1.get_text()
        and tick.label1.get_visible()
      ]
      boxes = [text.get_window_extent() for text in shown]
      yield from (
        (a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)
      )


def test_labels_do_not_overlap():
  names = ["dense", *(f"sdgf_geometric_{i}" for i in range(8))]
  rows = simulate(
    {name: -0.1 * i for i, name in enumerate(names)},
    ("1:4", "1:8", "1:16", "1:32"), seeds=3,
  )  # fmt: skip
  frame = study_frame(rows)
  claims = {
    name: CLAIMS["ahead"] | {"better": names[1], "worse": name}
    for name in names[2:]
  }
  for figure in (
    plots.plot_by_density(frame),
    plots.plot_forest(judge(frame, claims)),
    plots.plot_distances(frame),
  ):
    assert not list(boxes_overlap(figure))


def test_the_page(rows, tmp_path):
  rows = [dict(row) for row in rows if row["cell"] != "step 1:32"]
  add_examples(rows, tmp_path, examples=400)
  frame = study_frame(rows)
  study = {"name": "simulated", "baseline": "dense", "claims": CLAIMS}
  text = write_results(frame, study, tmp_path)
  assert text.count("\n") == 2 + 4
  page = (tmp_path / "results.md").read_text()
  headings = re.findall(r"^#+ (.*)", page, re.MULTILINE)
  assert headings == [
    "Results of the study simulated", "Verdicts", "Recipes and patterns",
    "Speed-up and training FLOPs", "All cells", "Resolution",
  ]  # fmt: skip
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
  assert set(pictures) == {path.name for path in tmp_path.glob("*.png")}
  assert pictures[0] == "forest.png" and len(pictures) == 6
  assert "The test split has 400 examples." in page


def test_the_page_of_a_study_that_has_just_begun(tmp_path):
  frame = study_frame(simulate({"dense": 0.0}, seeds=2))
  study = {"name": "simulated", "baseline": "dense", "claims": CLAIMS}
  text = write_results(frame, study, tmp_path, split=Split(10_000, 10_000))
  assert text.startswith("the regime is not accepted")
  page = (tmp_path / "results.md").read_text()
  assert "4 tests: 4 not run." in page
  assert "10,000 examples" in page


def test_resolution_is_the_binomial_standard_error(frame):
  text = resolution(frame, "dense", Split(10_000, 10_000))
  accuracy = frame.accuracy[frame.recipe == "dense"].mean()
  error = 100 * math.sqrt(accuracy * (1 - accuracy) / 10_000)
  assert (
    f"standard error of one run is {error:.2f}".replace(" 0.", " .") in text
  )
  assert "10,000 examples" in text
  assert "examples" not in resolution(frame, "dense", None)
  text = resolution(frame, "dense", Split(10_000, 40_000))
  assert "10,000 examples with 40,000 target tokens" in text
  half = f"if tokens were independent, is {error / 2:.2f}".replace(" 0.", " .")
  assert half in text


def test_the_number_of_examples_is_that_of_the_files(rows, tmp_path):
  rows = [dict(row) for row in rows if row["cell"] == "dense"]
  assert split_of([row["examples"] for row in rows], tmp_path) is None
  add_examples(rows, tmp_path, examples=123)
  files = [row["examples"] for row in rows]
  assert split_of(files, tmp_path) == Split(123, 123)
  with np.load(tmp_path / files[0]) as file:
    arrays = dict(file)
  np.savez(tmp_path / files[0], **arrays, weight=np.full(123, 9, np.float32))
  assert split_of(files, tmp_path) == Split(123, 123 * 9)
