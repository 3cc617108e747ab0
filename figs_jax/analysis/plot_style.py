"""The style of run plots: colours, markers, lines, axes and annotated markers.

Runs have Okabe and Ito's colours, kinds of layers have Tol's muted ones
(`figs_jax.engine.plots.LAYERS`). Readers with any colour vision can tell either
set apart, and no colour is in both sets. Markers and line styles differ too, so
that plots can be read in grey. matplotlib is imported by the functions only.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.analysis.history import Band

RUNS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_INK = "#333333"
_MARKERS = "os^DvPX*<>"
_LINES = ("-", "--", "-.", ":")
_FEW = 25  # the most points of a curve that all get a marker
_LEADER = 13.0  # points; texts further from their marker have a leader line
_GAP = 1.0  # points between texts
_NESTED = 1.4  # points that a marker and bar grow by per mark drawn on them


def image_bytes(figure: Any, kind: str) -> bytes:
  """A figure as png, svg or pdf; equal figures give equal bytes."""
  from matplotlib import rc_context

  out = io.BytesIO()
  date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
  with rc_context({"svg.hashsalt": "figs_jax"}):
    figure.savefig(out, format=kind, metadata=date.get(kind))
  return out.getvalue()


def literal(label: str) -> str:
  """A label that matplotlib shows as it is.

  matplotlib reads $ as the start of a formula and hides labels that begin with
  an underscore.
  """
  plain = label.replace("$", r"\$")
  return f" {plain}" if plain.startswith("_") else plain


def line_style(index: int, colours: Sequence[str] = RUNS) -> dict[str, Any]:
  """Colour and line style of a run or of a kind of layer, by its index."""
  return {
    "color": colours[index % len(colours)],
    "linestyle": _LINES[index % len(_LINES)],
    "linewidth": 1.6,
  }


def marker(index: int) -> str:
  """Marker of a run or of a kind of layer, by its index."""
  return _MARKERS[index % len(_MARKERS)]


def marked_points(values: np.ndarray) -> list[int]:
  """Indices of the points of a curve that get a marker.

  All points of a short curve; of a long curve only those without a neighbour,
  since no line shows them.

  >>> marked_points(np.array([1.0, np.nan, 2.0]))
  [0, 2]
  >>> marked_points(np.array([np.nan, 1.0, np.nan] + 30 * [2.0]))
  [1]
  """
  finite = np.isfinite(values)
  if finite.sum() <= _FEW:
    return np.flatnonzero(finite).tolist()
  return np.flatnonzero(_isolated(finite)).tolist()


def _isolated(finite: np.ndarray) -> np.ndarray:
  """Bool[T]: finite values without a finite neighbour."""
  padded = np.pad(finite, 1)
  return finite & ~padded[:-2] & ~padded[2:]


def draw_bands(
  ax: Any,
  bands: Mapping[str, Band],
  styles: Mapping[str, tuple[int, Sequence[str]]],
  *,
  scale: float = 1.0,
  positive: bool = False,
) -> bool:
  """Draws means as lines and the ranges around them as bands.

  Args:
    ax: The axes.
    bands: Bands by label.
    styles: Index and colours of each label, the arguments of `line_style`.
    scale: Factor of all values.
    positive: Whether to leave zeros out, for a logarithmic axis.

  Returns:
    Whether there was anything to draw.
  """
  drawn = False
  for label, band in bands.items():
    mean, low, high = (
      np.where(values > 0, values, np.nan) if positive else scale * values
      for values in (band.mean, band.low, band.high)
    )
    if not np.isfinite(mean).any():
      continue
    drawn = True
    index, colours = styles[label]
    style = line_style(index, colours)
    ax.plot(
      band.steps, mean, label=literal(label), marker=marker(index),
      markersize=3.5, markevery=marked_points(mean), **style,
    )  # fmt: skip
    colour = style["color"]
    ax.fill_between(
      band.steps, low, high, color=colour, alpha=0.18, linewidth=0
    )
    # A band over a single step has no width.
    alone = _isolated(np.isfinite(mean))
    ax.vlines(
      band.steps[alone], low[alone], high[alone], color=colour, alpha=0.4,
      linewidth=3,
    )  # fmt: skip
  return drawn


def style_axes(ax: Any, *, steps: bool = True) -> None:
  """Sets fonts, spines and grid; with `steps`, an x axis of steps from 0."""
  if steps:
    ax.set_xlabel("step", fontsize=9)
    ax.set_xlim(left=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
  ax.tick_params(which="both", labelsize=8)
  ax.xaxis.label.set_size(9)
  ax.yaxis.label.set_size(9)
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(color="0.92")
  ax.set_axisbelow(True)


def add_title(figure: Any, title: str, legend_width: float = 2.0) -> None:
  """Adds a title, wrapped beside a legend of that many inches."""
  inches = figure.get_figure(root=True).get_size_inches()[0] - legend_width
  lines = textwrap.fill(title, round(11 * inches))
  figure.suptitle(literal(lines), fontsize=10)


def add_legend(figure: Any, axes: Sequence[Any], title: str = "") -> None:
  """Adds one legend of all labels of the axes, right of them."""
  handles = {
    label: handle
    for ax in axes
    for handle, label in zip(*ax.get_legend_handles_labels())
  }
  if handles:
    legend = figure.legend(
      list(handles.values()), list(handles), loc="outside right upper",
      fontsize=8, frameon=False, title=title or None, title_fontsize=8,
      alignment="left",
    )  # fmt: skip
    legend.get_title().set_color("0.4")


def join_labels(labels: Sequence[str], most: int = 4) -> str:
  """Labels in one line, at most so many of them.

  >>> join_labels(["a", "b", "c"], most=2)
  'a, b and 1 more'
  """
  shown = ", ".join(labels[:most])
  rest = len(labels) - most
  return f"{shown} and {rest} more" if rest > 0 else shown


class Mark(NamedTuple):
  """A marker with an error bar and a text: a run, or runs of several seeds.

  Attributes:
    x: Position in data units.
    y: Position in data units.
    error: Standard error of y, NaN if unknown.
    label: Entry of the legend.
    text: Text beside the marker.
    index: Index of the colour and the marker.
  """

  x: float
  y: float
  error: float
  label: str
  text: str
  index: int

  @property
  def ends(self) -> tuple[float, float]:
    """Lower and upper end of the error bar."""
    error = 0.0 if math.isnan(self.error) else self.error
    return self.y - error, self.y + error


def draw_marks(axes: Sequence[Any], marks: Sequence[Sequence[Mark]]) -> None:
  """Draws markers with error bars, each at its true position.

  The x axis always contains 1, the position of a dense run, and no axis is so
  short that a difference of a thousandth looks large.

  Args:
    axes: Axes that share y.
    marks: Marks of each of the axes.
  """
  heights = [end for each in marks for mark in each for end in mark.ends]
  for ax, each in zip(axes, marks):
    _draw_marks(ax, each)
    ax.set_xlim(*limits([1.0, *(mark.x for mark in each)], least=0.2))
    ax.set_ylim(*limits(heights, least=1.0))
    ax.xaxis.get_major_locator().set_params(nbins=6)


def limits(values: Iterable[float], least: float) -> tuple[float, float]:
  """Limits of an axis around the values, at least so far apart.

  >>> [round(end, 2) for end in limits([1.0, 2.0], least=0.5)]
  [0.86, 2.14]
  >>> [round(end, 2) for end in limits([1.0, 1.0001], least=0.5)]
  [0.68, 1.32]
  """
  finite = [value for value in values if math.isfinite(value)] or [0.0]
  low, high = min(finite), max(finite)
  missing = max(least - (high - low), 0.0) / 2
  low, high = low - missing, high + missing
  margin = 0.14 * (high - low)
  return low - margin, high + margin


def _draw_marks(ax: Any, marks: Sequence[Mark]) -> None:
  """Nests overlapping marks: the later, the smaller and thinner.

  Markers are open and every bar runs through the centre of its own marker, so
  nothing is hidden and nothing is moved.
  """
  from matplotlib.patheffects import withStroke

  ax.axvline(1.0, color="0.8", linestyle=":", zorder=0)
  for index, mark in enumerate(marks):
    extra = _NESTED * sum(_overlap(mark, other) for other in marks[index + 1 :])
    colour = line_style(mark.index)["color"]
    ax.plot(
      mark.x, mark.y, linestyle="", marker=marker(mark.index),
      markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5,
      markersize=7 + extra, label=literal(mark.label), zorder=3,
    )  # fmt: skip
    if math.isnan(mark.error):
      continue
    _, _, (bar,) = ax.errorbar(
      mark.x, mark.y, yerr=mark.error, fmt="none", ecolor=colour,
      capsize=2 + extra, elinewidth=1.2 + extra, zorder=2,
    )  # fmt: skip
    edge = withStroke(linewidth=1.7 + extra, foreground="white")
    bar.set_path_effects([edge])


def _overlap(mark: Mark, other: Mark) -> bool:
  """Whether two marks have the same x, and error bars that overlap."""
  (low, high), (other_low, other_high) = mark.ends, other.ends
  same_x = abs(mark.x - other.x) < 1e-3
  return same_x and low <= other_high and other_low <= high


class _Box(NamedTuple):
  """A rectangle in pixels."""

  left: float
  low: float
  right: float
  high: float

  def overlap(self, other: _Box) -> float:
    """Area of the intersection."""
    width = min(self.right, other.right) - max(self.left, other.left)
    height = min(self.high, other.high) - max(self.low, other.low)
    return max(width, 0.0) * max(height, 0.0)

  @property
  def area(self) -> float:
    return (self.right - self.left) * (self.high - self.low)


def annotate_marks(
  figure: Any, axes: Sequence[Any], marks: Sequence[Sequence[Mark]]
) -> None:
  """Writes each mark's text beside it, clear of other texts and markers.

  Call it last: the free space is known only after the figure's layout.
  """
  figure.draw_without_rendering()
  for ax, each in zip(axes, marks):
    _annotate(ax, [mark for mark in each if math.isfinite(mark.y)])


def _annotate(ax: Any, marks: Sequence[Mark]) -> None:
  unit = ax.figure.dpi / 72  # pixels per point
  inside = _Box(*ax.get_window_extent().extents)
  centres = [ax.transData.transform((mark.x, mark.y)) for mark in marks]
  taken = [_Box(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit)
           for x, y in centres]  # fmt: skip
  bars = []
  for mark, (x, _) in zip(marks, centres):
    low, high = (ax.transData.transform((mark.x, y))[1] for y in mark.ends)
    bars.append(_Box(x - 3 * unit, low, x + 3 * unit, high))
  for mark, (x, y) in zip(marks, centres):
    text = literal(mark.text)
    probe = ax.text(mark.x, mark.y, text, fontsize=7)
    size = probe.get_window_extent()
    probe.remove()
    best, least = (8.0, 0.0), math.inf
    for dx, dy in _offsets():
      box = _text_box(x, y, dx * unit, dy * unit, size.width, size.height)
      gap = _GAP * unit
      padded = box._replace(left=box.left - gap, right=box.right + gap)
      hidden = sum(padded.overlap(other) for other in taken)
      hidden += box.area - box.overlap(inside)
      cost = 10 * hidden + sum(padded.overlap(bar) for bar in bars)
      if cost < least:
        best, least = (dx, dy), cost
    dx, dy = best
    across, up = _anchor(dx, dy)
    leader = {
      "arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0,
      "shrinkB": 4,
    }  # fmt: skip
    annotation = ax.annotate(
      text, (mark.x, mark.y), xytext=(dx, dy), textcoords="offset points",
      ha=across, va=up, fontsize=7, color=_INK, zorder=4,
      arrowprops=leader if math.hypot(dx, dy) > _LEADER else None,
    )  # fmt: skip
    annotation.set_in_layout(False)
    taken.append(_text_box(x, y, dx * unit, dy * unit, size.width, size.height))


def _offsets() -> Iterator[tuple[float, float]]:
  """Offsets of a text from its marker in points, the best first."""
  for radius in (8, 12, 18, 25, 33, 42, 52):
    for angle in (0, 180, 35, -35, 145, -145, 90, -90, 65, -65, 115, -115):
      turn = math.radians(angle)
      yield radius * math.cos(turn), radius * math.sin(turn)


def _anchor(dx: float, dy: float) -> tuple[str, str]:
  """Alignment of a text at an offset, horizontal and vertical."""
  across = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
  up = "center" if abs(dy) < 1 else "bottom" if dy > 0 else "top"
  return across, up


def _text_box(
  x: float, y: float, dx: float, dy: float, width: float, height: float
) -> _Box:
  """Box of a text of this size at an offset from (x, y), all in pixels."""
  across, up = _anchor(dx, dy)
  left = x + dx - {"left": 0.0, "center": 0.5, "right": 1.0}[across] * width
  low = y + dy - {"bottom": 0.0, "center": 0.5, "top": 1.0}[up] * height
  return _Box(left, low, left + width, low + height)
