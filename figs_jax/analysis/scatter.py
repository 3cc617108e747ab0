"""Marks with error bars and names, each at its true place.

Marks that share a place are open and differ in size, so that all of them show;
only their error bars stand side by side, each still within its own mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from figs_jax.analysis import plot_style

_REACH = 3.0  # points from a mark to its outermost error bar, less than a mark
_LEADER = 13.0  # points from which on a thin line leads from a name to its mark
_GAP = 1.0  # points between names


class Mark(NamedTuple):
  """One run, or several of other seeds, in a picture.

  x, y: its place in data units. error: standard error of y, NaN if unknown.
  label: of the legend. name: what stands beside it. place: its look, as in
  `looks.marker`.
  """

  x: float
  y: float
  error: float
  label: str
  name: str
  place: int

  @property
  def ends(self) -> tuple[float, float]:
    """Of the error bar."""
    error = 0.0 if math.isnan(self.error) else self.error
    return self.y - error, self.y + error


def draw(axes: Sequence[Any], marks: Sequence[Sequence[Mark]]) -> None:
  """Draws marks on each of the axes, which share y, and names all of them.

  1 is always on the x axis, where a dense run is; nothing is drawn to a scale
  that makes a thousandth look large.

  Args:
    axes: of one figure whose legends and titles are in place.
    marks: of each of them.
  """
  heights = [end for here in marks for mark in here for end in mark.ends]
  for ax, here in zip(axes, marks):
    _draw(ax, here)
    ax.set_xlim(*limits([1.0, *(mark.x for mark in here)], least=0.2))
    ax.set_ylim(*limits(heights, least=1.0))
    ax.xaxis.get_major_locator().set_params(nbins=6)


def limits(values: Iterable[float], least: float) -> tuple[float, float]:
  """The ends of an axis: around the values, and at least so far apart.

  >>> [round(end, 2) for end in limits([1.0, 2.0], least=0.5)]
  [0.86, 2.14]
  >>> [round(end, 2) for end in limits([1.0, 1.0001], least=0.5)]
  [0.68, 1.32]
  """
  sound = [value for value in values if math.isfinite(value)] or [0.0]
  low, high = min(sound), max(sound)
  missing = max(least - (high - low), 0.0) / 2
  low, high = low - missing, high + missing
  margin = 0.14 * (high - low)
  return low - margin, high + margin


def _draw(ax: Any, marks: Sequence[Mark]) -> None:
  from matplotlib.transforms import ScaledTranslation

  inches = ax.figure.dpi_scale_trans
  ax.axvline(1.0, color="0.8", linestyle=":", zorder=0)
  for index, mark in enumerate(marks):
    at, peers = _among_peers(marks, index)
    colour = plot_style.style(mark.place)["color"]
    ax.plot(
      mark.x, mark.y, linestyle="", marker=plot_style.marker(mark.place),
      markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5,
      markersize=max(9 - at, 7) if peers > 1 else 7,
      label=plot_style.text(mark.label), zorder=3,
    )  # fmt: skip
    if math.isnan(mark.error):
      continue
    step = 2 * _REACH / (peers - 1) if peers > 1 else 0.0
    aside = (at * step - _REACH) / 72 if peers > 1 else 0.0
    ax.errorbar(
      mark.x, mark.y, yerr=mark.error, fmt="none", ecolor=colour, capsize=2,
      elinewidth=1.2, zorder=2,
      transform=ax.transData + ScaledTranslation(aside, 0, inches),
    )  # fmt: skip


def _among_peers(marks: Sequence[Mark], index: int) -> tuple[int, int]:
  """Which of the marks at its x a mark is, and how many there are."""
  near = [
    i for i, mark in enumerate(marks) if abs(mark.x - marks[index].x) < 1e-3
  ]
  return near.index(index), len(near)


class _Box(NamedTuple):
  """A rectangle in pixels."""

  left: float
  low: float
  right: float
  high: float

  def shared(self, other: _Box) -> float:
    """The area in both."""
    wide = min(self.right, other.right) - max(self.left, other.left)
    tall = min(self.high, other.high) - max(self.low, other.low)
    return max(wide, 0.0) * max(tall, 0.0)

  @property
  def area(self) -> float:
    return (self.right - self.left) * (self.high - self.low)


def write_names(
  figure: Any, axes: Sequence[Any], marks: Sequence[Sequence[Mark]]
) -> None:
  """Writes each mark's name beside it, where no other name or mark is.

  Call it last: it lays the figure out to learn where everything is.
  """
  figure.draw_without_rendering()
  for ax, here in zip(axes, marks):
    _name(ax, [mark for mark in here if math.isfinite(mark.y)])


def _name(ax: Any, marks: Sequence[Mark]) -> None:
  unit = ax.figure.dpi / 72
  inside = _Box(*ax.get_window_extent().extents)
  pixels = [ax.transData.transform((mark.x, mark.y)) for mark in marks]
  taken = [_around(x, y, 5 * unit) for x, y in pixels]
  bars = []
  for mark, (x, _) in zip(marks, pixels):
    ends = [ax.transData.transform((mark.x, end))[1] for end in mark.ends]
    bars.append(_Box(x - 3 * unit, ends[0], x + 3 * unit, ends[1]))
  for mark, (x, y) in zip(marks, pixels):
    words = plot_style.text(mark.name)
    probe = ax.text(mark.x, mark.y, words, fontsize=7)
    size = probe.get_window_extent()
    probe.remove()
    found, least = (8.0, 0.0), math.inf
    for dx, dy in _offsets():
      box = _text_box(x, y, dx * unit, dy * unit, size.width, size.height)
      wide = _Box(
        box.left - _GAP * unit, box.low, box.right + _GAP * unit, box.high
      )
      lost = sum(wide.shared(other) for other in taken)
      lost += box.area - box.shared(inside)
      lost = 10 * lost + sum(wide.shared(bar) for bar in bars)
      if lost < least:
        found, least = (dx, dy), lost
    dx, dy = found
    across, up = _anchor(dx, dy)
    far = math.hypot(dx, dy) > _LEADER
    drawn = ax.annotate(
      words, (mark.x, mark.y), xytext=(dx, dy), textcoords="offset points",
      ha=across, va=up, fontsize=7, color=plot_style.INK, zorder=4,
      arrowprops={
        "arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0,
        "shrinkB": 4,
      } if far else None,
    )  # fmt: skip
    drawn.set_in_layout(False)
    taken.append(_text_box(x, y, dx * unit, dy * unit, size.width, size.height))


def _offsets() -> Iterator[tuple[float, float]]:
  """Where a name may stand, in points from its mark; the best first."""
  for radius in (8, 12, 18, 25, 33, 42, 52):
    for angle in (0, 180, 35, -35, 145, -145, 90, -90, 65, -65, 115, -115):
      turn = math.radians(angle)
      yield radius * math.cos(turn), radius * math.sin(turn)


def _anchor(dx: float, dy: float) -> tuple[str, str]:
  """Which end of the text is at the offset, across and up."""
  across = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
  up = "center" if abs(dy) < 1 else "bottom" if dy > 0 else "top"
  return across, up


def _text_box(
  x: float, y: float, dx: float, dy: float, width: float, height: float
) -> _Box:
  """Where a text of this size comes to stand at an offset."""
  across, up = _anchor(dx, dy)
  left = x + dx - {"left": 0.0, "center": 0.5, "right": 1.0}[across] * width
  low = y + dy - {"bottom": 0.0, "center": 0.5, "top": 1.0}[up] * height
  return _Box(left, low, left + width, low + height)


def _around(x: float, y: float, reach: float) -> _Box:
  return _Box(x - reach, y - reach, x + reach, y + reach)
