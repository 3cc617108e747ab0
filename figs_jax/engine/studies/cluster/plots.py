"""A picture of placements; matplotlib is needed, and imported, only here."""

from __future__ import annotations

from typing import Any

import numpy as np

from figs_jax.engine.figures import LAYERS, empty_figure
from figs_jax.engine.studies.cluster.placements import (
  MEMORY,
  TIME,
  Placements,
  describe,
)

_BARS = 8
_INK = "#0072B2"
# Of memory: Okabe and Ito's colours; the parts of time have Tol's.
_STATES = ("#56B4E9", "#882255", "#E69F00", "#009E73", "#CC79A7")


def placements_figure(
  placements: Placements, memory: float = 0.0, title: str = ""
) -> Any:
  """Time against memory of all that fit, and the parts of the fastest.

  The left panel has a dot per placement and the front of time and memory; a
  dotted line is the device's own memory. The right panels have a bar per
  placement: the parts of the step, and what a device holds.

  Args:
    placements: Placements from `estimate_all`.
    memory: Bytes of a device.
    title: Title of the picture.

  Raises:
    ValueError: If matplotlib is missing, or no placement fits.

  >>> from figs_jax.engine import Cluster, estimate_all
  >>> rows = [{"name": "blocks/0/ff", "M": 8, "N": 8, "K": 8}]
  >>> ways = estimate_all(lambda batch: (1, rows), "ws", Cluster(1), 4)
  >>> [len(ax.patches) > 0 for ax in placements_figure(ways).axes]
  [False, True, True]
  """
  fitting = placements[placements.fits]
  if not len(fitting):
    raise ValueError("placements_figure: expected a placement that fits")
  best = fitting[:_BARS]
  figure = empty_figure(11.5, 2.6 + 0.45 * len(best))
  grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.5))
  _scatter(figure.add_subplot(grid[:, 0]), fitting, memory)
  labels = [describe(each.parallel) for each in best]
  parts = (
    (TIME, (*LAYERS, "#999999"), "seconds a step"),
    (MEMORY, _STATES, "GB a device"),
  )
  for row, (names, colours, label) in enumerate(parts):
    ax = figure.add_subplot(grid[row, 1])
    columns = [(name, 1e-9 * best.columns[name]) for name in names]
    _bars(ax, columns, colours, labels)
    ax.set_xlabel(label, fontsize=9)
  if memory:
    figure.axes[2].axvline(memory * 1e-9, color="0.4", linestyle=":")
  if title:
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
  return figure


def _scatter(ax: Any, fitting: Placements, memory: float) -> None:
  from matplotlib import ticker

  columns, front = fitting.columns, fitting.pareto("ns", "memory")
  ax.scatter(
    1e-9 * columns["ns"], 1e-9 * columns["memory"], s=5, color="0.75",
    linewidths=0, label=f"{len(fitting):,} that fit", rasterized=True,
  )  # fmt: skip
  order = np.argsort(front.columns["ns"])
  ax.plot(
    1e-9 * front.columns["ns"][order],
    1e-9 * front.columns["memory"][order],
    color=_INK,
    marker="o",
    markersize=4,
    linewidth=1.2,
    drawstyle="steps-post",
    label=f"Pareto front, {len(front)}",
  )
  if memory:
    ax.axhline(memory * 1e-9, color="0.4", linestyle=":", linewidth=1)
  if columns["ns"].max() > 4 * columns["ns"].min():
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  ax.set_ylim(bottom=0)
  ax.set_xlabel("seconds a step")
  ax.set_ylabel("GB a device")
  ax.spines[["top", "right"]].set_visible(False)
  ax.legend(fontsize=8, frameon=False)


def _bars(ax: Any, columns: Any, colours: Any, labels: list[str]) -> None:
  places = np.arange(len(labels))
  left = np.zeros(len(labels))
  for (name, values), colour in zip(columns, colours):
    if not values.any():
      continue
    ax.barh(
      places, values, left=left, height=0.7, color=colour, edgecolor="white",
      linewidth=0.4, label=name.replace("_", " "),
    )  # fmt: skip
    left = left + values
  ax.set_yticks(places, labels, fontsize=7)
  ax.set_ylim(len(labels) - 0.4, -0.6)
  ax.spines[["top", "right"]].set_visible(False)
  ax.legend(
    fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
  )
