"""Markers are at their true positions, each with its text beside it."""

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from figs_jax.analysis import plot_style
from figs_jax.analysis.plot_style import Mark

pytest.importorskip("matplotlib")
# Several at one position, at nearly one, and a pair on top of each other.
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
  by_label = {str(panel): marks for panel in range(panels)}
  figure = plot_style.scatter(by_label, 2.6 + 3.0 * panels, "title")
  return figure, figure.axes


def open_markers(ax):
  return [line for line in ax.lines if line.get_markerfacecolor() == "none"]


def test_every_marker_and_bar_is_at_its_true_position():
  figure, (ax,) = drawn(MARKS)
  markers = open_markers(ax)
  assert [tuple(line.get_xydata()[0]) for line in markers] == [
    (mark.x, mark.y) for mark in MARKS
  ]
  bars = [each for each in ax.containers if each.has_yerr]
  known = [mark for mark in MARKS if not math.isnan(mark.error)]
  assert len(bars) == len(known)
  figure.draw_without_rendering()
  for bar, mark in zip(bars, known):
    _, caps, (lines,) = bar
    ((start, end),) = lines.get_segments()
    assert start.tolist() == [mark.x, mark.y - mark.error]
    assert end.tolist() == [mark.x, mark.y + mark.error]
    ends = [tuple(cap.get_xydata()[0]) for cap in caps]
    assert ends == [tuple(start), tuple(end)]
    # Centred on the marker in pixels too: nothing is shifted in points.
    for artist in (lines, *caps):
      assert artist.get_transform() == ax.transData
  for line in markers:
    assert line.get_transform() == ax.transData


def test_bars_at_one_position_all_show():
  """Each is thinner than those below it, so that none is hidden."""
  peers = [Mark(2.0, 90.0, 0.5, str(i), "1:4", i) for i in range(4)]
  alone = Mark(2.0, 88.0, 0.5, "alone", "1:4", 4)
  figure, (ax,) = drawn([*peers, alone])
  *nested, last = (float(bar[2][0].get_linewidth()[0]) for bar in ax.containers)
  assert nested == sorted(nested, reverse=True) and len(set(nested)) == 4
  assert last == nested[-1]  # a bar on its own is as thin as the top one
  sizes = [line.get_markersize() for line in open_markers(ax)]
  assert sizes[:4] == sorted(sizes[:4], reverse=True)
  assert len(set(sizes[:4])) == 4 and sizes[4] == sizes[3]
  figure.savefig(out := io.BytesIO(), dpi=4 * figure.dpi)
  pixels = np.asarray(Image.open(out).convert("RGB"))
  x, y = (4 * ax.transData.transform((2.0, 90.45))).round().astype(int)
  row = pixels[len(pixels) - y, x - 30 : x + 31].tolist()
  for peer in peers:
    colour = plot_style.RUNS[peer.index]
    assert [int(colour[i : i + 2], 16) for i in (1, 3, 5)] in row


@pytest.mark.parametrize("panels", [1, 3])
def test_each_panel_has_every_text_and_no_texts_overlap(panels):
  from matplotlib.text import Text

  figure, axes = drawn(MARKS, panels)
  figure.draw_without_rendering()
  for ax in axes:
    assert [text.get_text() for text in ax.texts] == [m.text for m in MARKS]
    assert [text.xy for text in ax.texts] == [(m.x, m.y) for m in MARKS]
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # no arrows
    inside = ax.get_window_extent()
    for one, other in itertools.combinations(boxes, 2):
      assert not one.overlaps(other)
    for box in boxes:
      assert inside.x0 <= box.x0 and box.x1 <= inside.x1
      assert inside.y0 <= box.y0 and box.y1 <= inside.y1


@pytest.mark.parametrize("speedup", [0.0004, 1.0, 1.7161, 2.11331])
def test_a_lone_marker_has_a_readable_axis(speedup):
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


def test_diverged_runs_are_left_out():
  lost = Mark(2.0, math.nan, math.nan, "lost", "1:4", 1)
  _, (ax,) = drawn([MARKS[0], lost])
  assert [text.get_text() for text in ax.texts] == ["dense"]
  assert np.isfinite(ax.get_ylim()).all()


def test_many_runs_are_told_apart():
  styles = [plot_style.line_style(index) for index in range(28)]
  for other in ("marker", "linestyle"):
    assert len({(style["color"], style[other]) for style in styles}) == 28


def test_a_long_legend_fits_beside_the_title():
  marks = [Mark(2.0, 90.0 + i, 0.1, f"recipe {i}", "", i) for i in range(40)]
  title = "Accuracy of forty recipes against speed-up and training FLOPs"
  figure = plot_style.scatter({"a": marks, "b": marks}, 9.4, title)
  figure.draw_without_rendering()
  (legend,) = figure.legends
  box = legend.get_window_extent()
  assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
  assert not figure._suptitle.get_window_extent().overlaps(box)


def test_dots_have_neither_text_nor_bar():
  dots = [Mark(2.0, 91.0 + i, 0.3, "others", "1:4", None) for i in range(3)]
  figure, (ax,) = drawn([MARKS[0], *dots])
  assert [text.get_text() for text in ax.texts] == ["dense"]
  assert len(ax.containers) == 1
  grey = [line for line in ax.lines if line.get_marker() == "."]
  assert [line.get_ydata()[0] for line in grey] == [91.0, 92.0, 93.0]
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["dense", "others"]
