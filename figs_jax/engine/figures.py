"""Figures of matplotlib, and the looks of engines and layers in them."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, which all kinds of vision tell apart, with wine for
# their pale yellow; black is left for roofs.
COLOURS = (
  "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#882255",
)  # fmt: skip
# Of layers: Tol's muted colours, none of which an engine or a run has.
LAYERS = (
  "#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#44AA99", "#661100",
)  # fmt: skip
MARKERS = "os^DvPX*<>"
LINES = ("-", "--", "-.", ":")


def engine_style(place: int) -> dict[str, str]:
  """Colour and marker of an engine, by its place among those of a picture."""
  return {
    "color": COLOURS[place % len(COLOURS)],
    "marker": MARKERS[place % len(MARKERS)],
  }


def figure_type() -> Any:
  """matplotlib's Figure.

  Raises:
    ValueError: If matplotlib is not installed.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError(
      "plotting needs matplotlib: pip install 'figs_jax[plots]'"
    ) from error
  return Figure


def empty_figure(width: float, height: float) -> Any:
  """A figure without axes, so many inches wide and high.

  Raises:
    ValueError: If matplotlib is not installed.
  """
  return figure_type()(figsize=(width, height), dpi=150, layout="constrained")


def panels(
  width: float,
  height: float,
  down: int = 0,
  across: int = 0,
  sharey: bool = False,
) -> Any:
  """A figure and its axes, which share their x.

  Args:
    width: Width in inches.
    height: Height in inches.
    down: Rows of axes; 0 for a single pair of axes, not in a list.
    across: Columns of axes.
    sharey: Whether the axes share their y too.

  Raises:
    ValueError: If matplotlib is not installed.
  """
  figure = empty_figure(width, height)
  if not down:
    return figure, figure.subplots()
  axes = figure.subplots(
    down, across, squeeze=False, sharex=True, sharey=sharey
  )
  return figure, list(axes.flat)


def check_number(what: str, count: int, most: int) -> None:
  """Raises ValueError if there are more things than a picture can show."""
  if count > most:
    raise ValueError(
      f"a picture of {count} {what} cannot be read; give at most {most}, or"
      " write a table"
    )
