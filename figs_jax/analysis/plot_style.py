"""How pictures of runs look: colours, marks, lines, axes of steps.

Runs have Okabe and Ito's colours, kinds of layers Tol's muted ones
(`figs_jax.engine.plots.LAYERS`): all kinds of vision tell either set apart, and
no colour is in both, so that none means two things. Marks and lines differ too,
so that grey will do. matplotlib is needed, and imported, only by the functions.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.analysis.history import Band

RUNS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
INK = "#333333"
_MARKERS = "os^DvPX*<>"
_LINES = ("-", "--", "-.", ":")
_FEW = 25  # points of a curve that each get a mark


def image(drawn: Any, kind: str) -> bytes:
  """A figure as png, svg or pdf; the same bytes at every call."""
  from matplotlib import rc_context

  out = io.BytesIO()
  date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
  with rc_context({"svg.hashsalt": "figs_jax"}):
    drawn.savefig(out, format=kind, metadata=date.get(kind))
  return out.getvalue()


def text(label: str) -> str:
  """A name as it is: matplotlib reads $ as formulas and hides a first _."""
  plain = label.replace("$", r"\$")
  return f" {plain}" if plain.startswith("_") else plain


def style(place: int, colours: Sequence[str] = RUNS) -> dict[str, Any]:
  """Colour and line of the run, or the kind of layer, at a place."""
  return {
    "color": colours[place % len(colours)],
    "linestyle": _LINES[place % len(_LINES)],
    "linewidth": 1.6,
  }


def marker(place: int) -> str:
  """The mark of the run, or the kind of layer, at a place."""
  return _MARKERS[place % len(_MARKERS)]


def marked(values: np.ndarray) -> list[int]:
  """Which points of a curve get a mark: all of few, else those without a line.

  A line shows nothing of a point that has no neighbour.

  >>> marked(np.array([1.0, np.nan, 2.0]))
  [0, 2]
  >>> marked(np.array([np.nan, 1.0, np.nan] + 30 * [2.0]))
  [1]
  """
  there = np.isfinite(values)
  if there.sum() <= _FEW:
    return np.flatnonzero(there).tolist()
  return np.flatnonzero(_lonely(there)).tolist()


def _lonely(there: np.ndarray) -> np.ndarray:
  """Which values have no neighbour: bool[T]."""
  around = np.pad(there, 1)
  return there & ~around[:-2] & ~around[2:]


def bands(
  ax: Any,
  found: Mapping[str, Band],
  looks: Mapping[str, tuple[int, Sequence[str]]],
  *,
  scale: float = 1.0,
  positive: bool = False,
) -> bool:
  """Draws means as lines, from smallest to largest as bands.

  Args:
    ax: the axes.
    found: by label.
    looks: place and colours of each, as of `style`.
    scale: what values are multiplied by.
    positive: whether zeros are left out, for a logarithmic axis.

  Returns:
    Whether there was anything to draw.
  """
  shown = False
  for label, one in found.items():
    mean, low, high = (
      np.where(values > 0, values, np.nan) if positive else scale * values
      for values in (one.mean, one.low, one.high)
    )
    if not np.isfinite(mean).any():
      continue
    shown = True
    place, colours = looks[label]
    look = style(place, colours)
    ax.plot(
      one.steps, mean, label=text(label), marker=marker(place), markersize=3.5,
      markevery=marked(mean), **look,
    )  # fmt: skip
    ax.fill_between(
      one.steps, low, high, color=look["color"], alpha=0.18, linewidth=0
    )
    # A band of one step has no width.
    alone = _lonely(np.isfinite(mean))
    ax.vlines(
      one.steps[alone], low[alone], high[alone], color=look["color"], alpha=0.4,
      linewidth=3,
    )  # fmt: skip
  return shown


def finish(ax: Any, *, steps: bool = True) -> None:
  """What all axes share; steps begin at 0."""
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


def title(drawn: Any, words: str, beside: float = 2.0) -> None:
  """Above all, in lines that leave a legend its place, so many inches wide."""
  inches = drawn.get_figure(root=True).get_size_inches()[0] - beside
  wide = round(11 * inches)
  drawn.suptitle(text(textwrap.fill(words, wide)), fontsize=10)


def legend(drawn: Any, axes: Sequence[Any], title: str = "") -> None:
  """One legend to the right, of whatever any of the axes shows."""
  found = {
    label: handle
    for ax in axes
    for handle, label in zip(*ax.get_legend_handles_labels())
  }
  if found:
    made = drawn.legend(
      list(found.values()), list(found), loc="outside right upper", fontsize=8,
      frameon=False, title=title or None, title_fontsize=8, alignment="left",
    )  # fmt: skip
    made.get_title().set_color("0.4")


def names(labels: Sequence[str], most: int = 4) -> str:
  """Labels in a line, of many the first.

  >>> names(["a", "b", "c"], most=2)
  'a, b and 1 more'
  """
  shown = ", ".join(labels[:most])
  rest = len(labels) - most
  return f"{shown} and {rest} more" if rest > 0 else shown
