"""The short page of a simulated study: its picture, table and resolution."""

import pytest

from figs_jax.analysis import _study_summary as summary
from figs_jax.analysis import plot_style
from figs_jax.analysis._study_pairs import study_frame

from .simulated_study import ENGINES, simulate

pytest.importorskip("pandas", reason="pandas is in the extra study")
pytest.importorskip("matplotlib", reason="matplotlib is in the extra study")
STUDY = {
  "name": "small",
  "baseline": "dense",
  "engines": ENGINES[:1],
  "dtypes": ("bfloat16",),
}


@pytest.fixture(scope="module")
def rows():
  """Four recipes at 1:8, and one of them at 1:32 too; 3 seeds."""
  gains = {"dense": 0.0, "sr_ste": 0.0, "figs": 0.5, "step": -0.4}
  rows = [
    row
    for row in simulate(gains, ("1:8", "1:32"), seeds=3, rng=3)
    if row["recipe"] in ("dense", "figs") or row["pattern"] == "1:8"
  ]
  for row in rows:
    row["accuracy_bfloat16"] = str(float(row["accuracy"]) - 0.01)
  return study_frame(rows)


def label_and_points(ax):
  """Points of each recipe in the legend."""
  return {
    line.get_label(): line.get_xydata()
    for line in ax.lines
    if not line.get_label().startswith("_")
  }


def test_marks_are_means_and_intervals_those_of_pairs(rows):
  figure = summary.plot_summary(
    rows, "dense", ENGINES[0], accuracy="accuracy_bfloat16"
  )
  left, right = figure.axes
  names = [tick.get_text() for tick in left.get_yticklabels()]
  assert names[-1] == "figs 1:32" and len(names) == 4
  losses = rows.set_index(["recipe", "pattern", "seed"]).loss.sort_index()
  for y, name in enumerate(names):
    (line,) = [
      line
      for line in left.lines
      if len(line.get_xdata()) == 2 and set(line.get_ydata()) == {y}
    ]
    recipe, pattern = name.split()
    difference = losses[recipe, pattern] - losses["dense", ""]
    # t of 2 degrees of freedom
    half = 4.30265 * difference.std(ddof=1) / 3**0.5
    assert line.get_xdata() == pytest.approx(
      [difference.mean() - half, difference.mean() + half], rel=1e-4
    )
  points = label_and_points(right)
  assert list(points) == ["dense", "sr_ste", "figs", "step"]
  assert len(points["figs"]) == 2
  mean = rows[(rows.recipe == "step")].accuracy_bfloat16.mean()
  assert points["step"][0, 1] == pytest.approx(100 * mean)
  # Recipes at 1:8 stand around their common speed-up, in equal steps.
  gain = rows[rows.pattern == "1:8"][f"speedup:{ENGINES[0]}"].iloc[0]
  sides = [points[name][0, 0] for name in ("sr_ste", "figs", "step")]
  assert sides[1] == pytest.approx(gain)
  assert sides[2] - sides[1] == pytest.approx(sides[1] - sides[0]) != 0
  texts = [text.get_text() for text in right.texts]
  assert texts == ["dense", "1:8", "1:32"]


def test_one_seed_has_marks_without_intervals(rows):
  figure = summary.plot_summary(rows[rows.seed == 0], "dense", ENGINES[0])
  left, right = figure.axes
  assert max(len(line.get_xdata()) for line in left.lines[1:5]) == 1
  assert len(label_and_points(right)) == 4
  assert plot_style.image_bytes(figure, "png").startswith(b"\x89PNG")


def test_the_page_has_the_picture_the_table_and_the_claims(rows, tmp_path):
  text = summary.write_summary(
    rows, STUDY, tmp_path, introduction="Four recipes.", claims="a\nb"
  )
  page = (tmp_path / "report.md").read_text()
  assert page.startswith("# small\n\nFour recipes.\n\n![")
  assert page.endswith("## What can be claimed\n\n* a\n* b\n")
  assert "](report.png)" in page and (tmp_path / "report.png").exists()
  assert text.rstrip() and all(line in page for line in text.splitlines())
  head = text.splitlines()[0]
  assert "test accuracy in bfloat16" in head
  assert "test loss in bfloat16" not in head and "stages" not in head
