"""Marks stand where the numbers are, and each is named beside it."""

import itertools
import math

import numpy as np
import pytest

from figs_jax.analysis import plot_style, scatter
from figs_jax.analysis.scatter import Mark
from figs_jax.engine.plots import empty_figure

pytest.importorskip("matplotlib")
# Several at one place, at nearly one, and a pair on top of each other.
MARKS = [
  Mark(1.0, 93.0, 0.2, "dense", "dense", 0),
  *(
    Mark(speedup, accuracy - i / 8, 0.3, name, pattern, i + 1)
    for i, name in enumerate(("sr_ste", "figs", "mdgf_exp", "step"))
    for pattern, speedup, accuracy in (
      ("ff: 1:4", 1.9, 92.0), ("ff: 1:8", 2.3, 91.0), ("ff: 1:16", 2.45, 90.9),
    )
  ),
  Mark(2.3, 91.0, math.nan, "ste", "ff: 2:16", 5),
]  # fmt: skip


def drawn(marks, panels=1):
  figure = empty_figure(2.6 + 3.0 * panels, 4.2)
  axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
  scatter.draw(axes, [marks] * panels)
  for ax in axes:
    plot_style.finish(ax, steps=False)
  plot_style.legend(figure, axes)
  scatter.write_names(figure, axes, [marks] * panels)
  return figure, axes


def open_marks(ax):
  return [line for line in ax.lines if line.get_markersize() >= 7]


def test_every_mark_and_every_bar_is_at_its_true_place():
  figure, (ax,) = drawn(MARKS)
  found = open_marks(ax)
  assert [tuple(line.get_xydata()[0]) for line in found] == [
    (mark.x, mark.y) for mark in MARKS
  ]
  for line in found:
    assert line.get_transform() == ax.transData  # no shift in points either
    assert line.get_markerfacecolor() == "none"  # what is below shows
  bars = [each for each in ax.containers if each.has_yerr]
  known = [mark for mark in MARKS if not math.isnan(mark.error)]
  assert len(bars) == len(known)
  figure.draw_without_rendering()
  for bar, mark in zip(bars, known):
    (lines,) = bar[2]
    ((start, end),) = lines.get_segments()
    assert start.tolist() == [mark.x, mark.y - mark.error]
    assert end.tolist() == [mark.x, mark.y + mark.error]
    # Beside its peers', but through its own mark, and no higher or lower.
    at = ax.transData.transform(start)
    (seen,) = lines.get_transform().transform([start])
    aside, up = (seen - at) * 72 / figure.dpi
    assert abs(aside) <= 3.0 + 1e-6 and up == pytest.approx(0, abs=1e-6)


def test_bars_at_one_place_are_told_apart():
  peers = [Mark(2.0, 90.0, 0.5, str(i), "1:4", i) for i in range(4)]
  _, (ax,) = drawn(peers)
  places = {
    each[2][0].get_transform().transform([(2.0, 90.0)])[0][0].round(3)
    for each in ax.containers
  }
  assert len(places) == 4


@pytest.mark.parametrize("panels", [1, 3])
def test_each_panel_names_every_mark_and_no_names_meet(panels):
  from matplotlib.text import Text

  figure, axes = drawn(MARKS, panels)
  figure.draw_without_rendering()
  for ax in axes:
    assert [text.get_text() for text in ax.texts] == [m.name for m in MARKS]
    assert [text.xy for text in ax.texts] == [(m.x, m.y) for m in MARKS]
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # no arrows
    inside = ax.get_window_extent()
    for one, other in itertools.combinations(boxes, 2):
      assert not one.overlaps(other)
    for box in boxes:
      assert inside.x0 <= box.x0 and box.x1 <= inside.x1
      assert inside.y0 <= box.y0 and box.y1 <= inside.y1


@pytest.mark.parametrize("speedup", [0.0004, 1.0, 1.7161, 2.11331])
def test_a_lone_mark_has_an_axis_to_be_read(speedup):
  mark = Mark(speedup, 94.2, 0.001, "figs", "1:8", 0)
  figure, (ax,) = drawn([mark])
  low, high = ax.get_xlim()
  assert low < min(speedup, 1.0) and max(speedup, 1.0) < high
  assert high - low > 0.2
  bottom, top = ax.get_ylim()
  assert top - bottom > 1
  figure.draw_without_rendering()
  for axis in (ax.xaxis, ax.yaxis):
    assert axis.get_offset_text().get_text() == ""
    words = [tick.get_text() for tick in axis.get_ticklabels()]
    assert len(words) <= 10 and max(map(len, words)) <= 6


def test_what_diverged_has_no_place():
  lost = Mark(2.0, math.nan, math.nan, "lost", "1:4", 1)
  _, (ax,) = drawn([MARKS[0], lost])
  assert [text.get_text() for text in ax.texts] == ["dense"]
  assert np.isfinite(ax.get_ylim()).all()
