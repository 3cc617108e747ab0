"""The style of run plots: colours, markers, lines, axes and annotated markers.

Runs have Okabe and Ito's colours, kinds of layers have Tol's muted ones
(`figs_jax.engine.figures.LAYERS`). Readers with any colour vision can tell
either set apart, and no colour is in both sets. Markers and line styles differ
too, so that plots can be read in grey. matplotlib is imported by the functions
only.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.analysis.history import Band
from figs_jax.engine.figures import empty_figure

RUNS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
IDEAL = "ideal bound: N:M\ncompressed for free"
_INK = "#333333"
_MARKERS = "os^DvPX*<>"
_LINES = ("-", "--", "-.", ":")
_FEW = 25  # the most points of a curve that all get a marker
_LEADER = 13.0  # points; texts further from their marker have a leader line
_GAP = 1.0  # points between texts
# Of a text from its marker in points, the best first.
_OFFSETS = [
  (
    radius * math.cos(math.radians(angle)),
    radius * math.sin(math.radians(angle)),
  )
  for radius in (8, 12, 18, 25, 33, 42, 52)
  for angle in (0, 180, 35, -35, 145, -145, 90, -90, 65, -65, 115, -115)
]
_NESTED = 1.4  # points that a marker and bar grow by per mark drawn on them
_MOST_GROWTH = 7.0  # points
_MARKER = 7.0  # points across a marker that stands alone
_ENTRY = 0.175  # inches per entry of a legend


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
  """Colour, line and marker of a run or of a kind of layer, by its index.

  A colour returns after seven indices, with another marker and line: the first
  70 indices differ in colour or marker, the first 28 in colour or line.
  """
  return {
    "color": colours[index % len(colours)],
    "linestyle": _LINES[index % len(_LINES)],
    "linewidth": 1.6,
    "marker": _MARKERS[index % len(_MARKERS)],
    "markersize": 3.5,
  }


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


def draw_line(
  ax: Any, steps: np.ndarray, values: np.ndarray, label: str, style: Any
) -> None:
  """Draws a curve in a style of `line_style`."""
  marked = marked_points(values)
  ax.plot(steps, values, label=literal(label), markevery=marked, **style)


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
    style = line_style(*styles[label])
    draw_line(ax, band.steps, mean, label, style)
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
  figure.suptitle(literal(lines), fontsize=10, x=0.01, ha="left")


def legend_height(entries: int) -> float:
  """Inches of a figure that has room for a legend of so many entries.

  >>> legend_height(20)
  3.8
  """
  return 0.3 + _ENTRY * entries


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
    for handle in legend.legend_handles:
      if hasattr(handle, "set_markersize"):  # a nested one would be larger
        handle.set_markersize(min(handle.get_markersize(), _MARKER))


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
    text: Text beside the marker; "" for none.
    index: Index of the colour and the marker; None for a grey dot without
      error bar and text.
  """

  x: float
  y: float
  error: float
  label: str
  text: str
  index: int | None

  @property
  def ends(self) -> tuple[float, float]:
    """Lower and upper end of the error bar."""
    error = 0.0 if math.isnan(self.error) else self.error
    return self.y - error, self.y + error


def scatter(
  panels: Mapping[str, Sequence[Mark]],
  width: float,
  title: str,
  fronts: Mapping[str, Sequence[tuple[float, float]]] | None = None,
  bounds: Mapping[str, Mapping[str, float]] | None = None,
  height: float = 4.2,
) -> Any:
  """Accuracies as annotated markers with error bars, in panels that share y.

  The x axis always contains 1, the position of a dense run, and no axis is so
  short that a difference of a thousandth looks large.

  Args:
    panels: Marks by the label of the x axis.
    width: Width of the figure in inches.
    title: Title of the figure.
    fronts: Corners of the Pareto front by the label of the x axis.
    bounds: Ideal x by pattern, by the label of the x axis: dashed lines.
    height: Least height of the figure in inches; a long legend needs more.
  """
  entries = {mark.label for marks in panels.values() for mark in marks}
  lines = sum(label.count("\n") + 1 for label in (*entries, IDEAL, ""))
  figure = empty_figure(width, max(height, legend_height(lines)))
  axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
  heights = [y for marks in panels.values() for m in marks for y in m.ends]
  for ax, (label, marks) in zip(axes, panels.items()):
    front = (fronts or {}).get(label, ())
    if len(front) > 1:
      ax.plot(
        *zip(*front), color="0.7", linewidth=1.2, zorder=1, label="Pareto front"
      )
    _draw_marks(ax, marks)
    ax.set_xlabel(label)
    ideal = (bounds or {}).get(label, {})
    _draw_bounds(ax, ideal)
    ends = 1.0, *(mark.x for mark in marks), *ideal.values()
    ax.set_xlim(*limits(ends, least=0.2))
    ax.set_ylim(*limits(heights, least=1.0))
    ax.xaxis.get_major_locator().set_params(nbins=6)
    style_axes(ax, steps=False)
  axes[0].set_ylabel("test accuracy, % (mean ± s.e.)")
  add_legend(figure, axes)
  add_title(figure, title)
  figure.draw_without_rendering()  # the layout determines the free space
  for ax, marks in zip(axes, panels.values()):
    _annotate(ax, [m for m in marks if math.isfinite(m.y) and _open(m)])
  return figure


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
  for mark, extra in zip(marks, _growth(marks)):
    if mark.index is None:
      ax.plot(
        mark.x, mark.y, ".", color="0.65", markersize=5,
        label=literal(mark.label), zorder=1.5,
      )  # fmt: skip
      continue
    style = line_style(mark.index)
    ax.plot(
      mark.x, mark.y, linestyle="", marker=style["marker"],
      markerfacecolor="none", markeredgecolor=style["color"],
      markeredgewidth=1.5, markersize=_MARKER + extra,
      label=literal(mark.label), zorder=3,
    )  # fmt: skip
    if math.isnan(mark.error):
      continue
    _, _, (bar,) = ax.errorbar(
      mark.x, mark.y, yerr=mark.error, fmt="none", ecolor=style["color"],
      capsize=2 + extra, elinewidth=1.2 + extra, zorder=2,
    )  # fmt: skip
    edge = withStroke(linewidth=1.7 + extra, foreground="white")
    bar.set_path_effects([edge])


def _draw_bounds(ax: Any, bounds: Mapping[str, float]) -> None:
  """Dashed lines at ideal speed-ups, each named by its pattern above it."""
  for place, (pattern, x) in enumerate(bounds.items()):
    style = {"color": "0.5", "linestyle": "--", "linewidth": 1}
    ax.axvline(x, zorder=1, label=IDEAL, **style)
    ax.annotate(
      literal(f"ideal, {pattern}"), (x, 1), xycoords=("data", "axes fraction"),
      xytext=(0, 2 + 8 * place), textcoords="offset points", ha="center",
      fontsize=7, color="0.4",
    )  # fmt: skip


def _growth(marks: Sequence[Mark]) -> list[float]:
  """Points by which each marker is larger than one that stands alone."""
  above = [
    sum(_overlap(mark, other) for other in marks[index + 1 :] if _open(other))
    for index, mark in enumerate(marks)
  ]
  step = min(_NESTED, _MOST_GROWTH / max([1, *above]))
  return [step * count for count in above]


def _open(mark: Mark) -> bool:
  return mark.index is not None


def _overlap(mark: Mark, other: Mark) -> bool:
  """Whether two marks have the same x, and error bars that overlap."""
  (low, high), (other_low, other_high) = mark.ends, other.ends
  same_x = abs(mark.x - other.x) < 1e-3
  return same_x and low <= other_high and other_low <= high


def _annotate(ax: Any, marks: Sequence[Mark]) -> None:
  """Writes each mark's text beside it, clear of other texts and markers.

  Boxes are (left, low, right, high) in pixels.
  """
  from matplotlib.patheffects import withStroke

  unit = ax.figure.dpi / 72  # pixels per point
  gap = _GAP * unit * np.array([-1, 0, 1, 0])
  inside = ax.get_window_extent().extents
  taken, bars = [], []
  for mark, extra in zip(marks, _growth(marks)):
    x, y = ax.transData.transform((mark.x, mark.y))
    low, high = (ax.transData.transform((mark.x, end))[1] for end in mark.ends)
    half = (5 + extra / 2) * unit
    taken.append((x - half, y - half, x + half, y + half))
    bars.append((x - 3 * unit, low, x + 3 * unit, high))
  for mark in marks:
    if not mark.text:
      continue
    text, centre = literal(mark.text), (mark.x, mark.y)
    probe = ax.text(*centre, text, fontsize=7)
    size = probe.get_window_extent().size
    probe.remove()
    best, box, least = (8.0, 0.0), inside, math.inf
    for offset in _OFFSETS:
      shift = np.where(np.abs(offset) < 1, 0.5, np.less(offset, 0))
      start = ax.transData.transform(centre) + np.multiply(offset, unit)
      tried = np.concatenate([start - shift * size, start + (1 - shift) * size])
      outside = _shared(tried, [tried]) - _shared(tried, [inside])
      hidden = _shared(tried + gap, taken) + outside
      cost = 10 * hidden + _shared(tried + gap, bars)
      if cost < least:
        best, box, least = offset, tried, cost
    taken.append(tuple(box))
    across, up = (0 if abs(d) < 1 else 1 if d > 0 else -1 for d in best)
    leader = {
      "arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0,
      "shrinkB": 4,
    }  # fmt: skip
    annotation = ax.annotate(
      text, centre, xytext=best, textcoords="offset points",
      ha=("center", "left", "right")[across],
      va=("center", "bottom", "top")[up], fontsize=7, color=_INK, zorder=4,
      path_effects=[withStroke(linewidth=2, foreground="white")],
      arrowprops=leader if math.hypot(*best) > _LEADER else None,
    )  # fmt: skip
    annotation.set_in_layout(False)


def _shared(box: Any, others: Any) -> float:
  """Total area that a box shares with others."""
  others = np.asarray(others)
  low, high = (
    np.maximum(box[:2], others[:, :2]),
    np.minimum(box[2:], others[:, 2:]),
  )
  return float(np.maximum(high - low, 0).prod(1).sum())
