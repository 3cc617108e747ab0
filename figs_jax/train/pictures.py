"""Pictures of runs; matplotlib is needed, and imported, only here.

Each function takes what `history` and `tradeoff` compute and gives a matplotlib
figure. Colours are Okabe and Ito's, which all kinds of vision tell apart; marks
and lines differ too, so that grey will do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.train.compare import figure_type
from figs_jax.train.history import Band, Evolution, History, band, by_kind
from figs_jax.train.tradeoff import Point, front

_COLOURS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255",
)  # fmt: skip
_MARKERS = "os^DvPX*<>"
_LINES = ("-", "--", "-.", ":")
_INK = "#333333"
# An entry in two masks: pruned in both, dropped, new, kept in both. The first
# and the last differ most in lightness, as most entries are of these.
_STATES = {
  "pruned": "#F2F2F2",
  "dropped": "#8FC4E8",
  "new": "#D55E00",
  "kept": "#22313F",
}
_MOST_PANELS = 6


def masks(found: Evolution, title: str = "") -> Any:
  """The entries of a kernel over checkpoints, and how many change.

  Above, the first entries of one kernel, groups down the columns: what is kept
  since the panel before, new, or dropped. Below, the share of the entries that
  differ from the checkpoint before, by kind of layer: mean over the layers, and
  a band from the smallest to the largest.
  """
  panels = _spread(len(found.steps))
  figure = _figure(max(2.0 * len(panels), 6.4), 5.0)
  top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
  axes = top.subplots(1, len(panels), squeeze=False)[0]
  from matplotlib.colors import ListedColormap

  colours = ListedColormap(list(_STATES.values()))
  for ax, states, place in zip(axes, mask_states(found.window, panels), panels):
    ax.imshow(
      states, cmap=colours, vmin=0, vmax=3, interpolation="nearest",
      aspect="equal",
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color("0.6")
    ax.set_title(f"step {found.steps[place]:,}", fontsize=9)
  rows, columns = found.window.shape[1:]
  axes[0].set_ylabel(f"{found.pattern} down the columns", fontsize=8)
  said = (
    f"{found.layer}, {rows} × {columns} of its {found.shape[0]} ×"
    f" {found.shape[1]} entries"
  )
  top.suptitle(_text(f"{title}: {said}" if title else said), fontsize=10)
  _state_legend(top)
  ax = bottom.subplots()
  _draw_bands(ax, by_kind(found.changed), scale=100.0, marker="o")
  ax.set_ylabel("entries changed since the\ncheckpoint before, %")
  _finish(ax, bottom)
  return figure


def mask_states(window: np.ndarray, panels: Sequence[int]) -> np.ndarray:
  """int[len(panels), rows, columns]: 2 * now + before, as the panels show them.

  0 pruned in both, 1 dropped, 2 new, 3 kept in both; of the first panel, only
  0 and 3.

  >>> masks = np.array([[[True, False]], [[True, True]], [[False, True]]])
  >>> mask_states(masks, [0, 2]).tolist()
  [[[3, 0]], [[1, 2]]]
  """
  now = window[list(panels)].astype(int)
  before = np.concatenate([now[:1], now[:-1]])
  return 2 * now + before


def flips(runs: Sequence[History]) -> Any:
  """The share of mask entries that a step's update changes.

  Of one run a band per kind of layer, of several a band per run: mean over the
  layers, from the smallest to the largest.

  Raises:
    ValueError: a run has no diagnostics; the line says how to get them.
  """
  curves = {run.label: run.layer_curves("flip_rate") for run in runs}
  figure = _figure(7.2, 3.6)
  ax = figure.subplots()
  _draw_bands(ax, _bands(curves), scale=100.0)
  ax.set_ylabel("mask entries changed by a step, %")
  _title(ax, runs)
  _finish(ax, figure)
  return figure


def variance(runs: Sequence[History]) -> Any:
  """Variance of the gradient over kept and over pruned entries, two panels.

  Zeros have no place on the logarithmic axis and are left out.

  Raises:
    ValueError: as `flips`.
  """
  figure = _figure(9.2, 3.6)
  axes = figure.subplots(1, 2, sharey=True)
  for ax, entries in zip(axes, ("kept", "pruned")):
    curves = {
      run.label: run.layer_curves(f"grad_var_{entries}") for run in runs
    }
    shown = _draw_bands(ax, _bands(curves), scale=1.0, positive=True)
    ax.set_yscale("log")
    ax.set_title(f"{entries} entries", fontsize=9)
    if not shown:
      ax.text(
        0.5, 0.5, f"no gradient at {entries} entries", ha="center",
        transform=ax.transAxes, fontsize=9, color="0.4",
      )  # fmt: skip
    _finish(ax, None)
  axes[0].set_ylabel("variance of the gradient")
  handles, labels = max(
    (ax.get_legend_handles_labels() for ax in axes), key=lambda x: len(x[0])
  )
  figure.legend(
    handles, labels, loc="outside right upper", fontsize=8, frameon=False
  )
  if len(runs) == 1:
    figure.suptitle(_text(runs[0].label), fontsize=10)
  return figure


def training(runs: Sequence[History]) -> Any:
  """Loss over the steps, and accuracy with its standard error over seeds."""
  figure = _figure(9.2, 3.6)
  left, right = figure.subplots(1, 2)
  for place, run in enumerate(runs):
    style = _style(place)
    loss = run.curve("loss")
    left.plot(loss.steps, loss.values, label=_text(run.label), **style)
    accuracy = run.curve("eval/accuracy")
    error = run.curve("eval/accuracy_se")
    right.plot(
      accuracy.steps,
      100 * accuracy.values,
      marker=_MARKERS[place % len(_MARKERS)],
      markersize=4,
      label=_text(run.label),
      **style,
    )
    if error.steps.tolist() == accuracy.steps.tolist():
      low, high = (
        100 * (accuracy.values + sign * error.values) for sign in (-1, 1)
      )
      right.fill_between(
        accuracy.steps, low, high, color=style["color"], alpha=0.13, linewidth=0
      )
  left.set_ylabel("training loss")
  right.set_ylabel("test accuracy, % (band: ± s.e.)")
  for ax in (left, right):
    _finish(ax, None)
  if len(runs) == 1:
    figure.suptitle(_text(runs[0].label), fontsize=10)
    return figure
  handles, labels = left.get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside right upper", fontsize=8, frameon=False
  )
  return figure


def pareto(found: Sequence[Point]) -> Any:
  """Accuracy against modelled speed-up, a panel per engine.

  Points are means with standard errors over seeds, and their pattern above;
  those at one speed-up are set side by side, and a dotted line shows their true
  place. The grey line joins the points that no other beats in both.
  """
  engines = list(dict.fromkeys(point.engine for point in found))
  recipes = list(dict.fromkeys(point.recipe for point in found))
  figure = _figure(2.2 + 3.6 * len(engines), 4.0)
  axes = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
  for ax, engine in zip(axes, engines):
    here = [point for point in found if point.engine == engine]
    _tradeoff(ax, here, recipes)
    ax.set_xlabel(f"modelled speed-up on {engine}, ×")
    _finish(ax, None, steps=False)
  axes[0].set_ylabel("test accuracy, % (mean ± s.e.)")
  handles = {
    label: handle
    for ax in axes
    for handle, label in zip(*ax.get_legend_handles_labels())
  }
  figure.legend(
    list(handles.values()), list(handles), loc="outside right upper",
    fontsize=8, frameon=False,
  )  # fmt: skip
  return figure


def image(figure: Any, kind: str) -> bytes:
  """A figure as png, svg or pdf; the same bytes at every call."""
  from matplotlib import rc_context

  out = io.BytesIO()
  date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
  with rc_context({"svg.hashsalt": "figs_jax"}):
    figure.savefig(out, format=kind, metadata=date.get(kind))
  return out.getvalue()


def _text(label: str) -> str:
  """A name as it is: matplotlib reads $ as formulas and hides a first _."""
  plain = label.replace("$", r"\$")
  return f" {plain}" if plain.startswith("_") else plain


def _figure(width: float, height: float) -> Any:
  return figure_type()(figsize=(width, height), dpi=150, layout="constrained")


def _spread(count: int) -> list[int]:
  """At most so many places, evenly from the first to the last."""
  places = np.linspace(0, count - 1, min(count, _MOST_PANELS))
  return places.round().astype(int).tolist()


def _bands(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Band]:
  if len(curves) == 1:
    return by_kind(next(iter(curves.values())))
  return {label: band(list(each.values())) for label, each in curves.items()}


def _style(place: int) -> dict[str, Any]:
  return {
    "color": _COLOURS[place % len(_COLOURS)],
    "linestyle": _LINES[place % len(_LINES)],
    "linewidth": 1.6,
  }


def _draw_bands(
  ax: Any,
  bands: Mapping[str, Band],
  *,
  scale: float,
  marker: str = "",
  positive: bool = False,
) -> bool:
  """Whether there was anything to draw."""
  shown = False
  for place, (label, one) in enumerate(bands.items()):
    mean, low, high = (
      np.where(values > 0, values, np.nan) if positive else scale * values
      for values in (one.mean, one.low, one.high)
    )
    if not np.isfinite(mean).any():
      continue
    shown = True
    style = _style(place)
    ax.plot(
      one.steps, mean, label=_text(label), marker=marker, markersize=3, **style
    )
    ax.fill_between(
      one.steps, low, high, color=style["color"], alpha=0.18, linewidth=0
    )
  return shown


def _finish(ax: Any, figure: Any, *, steps: bool = True) -> None:
  """What all axes share; a legend beside them where a figure is given."""
  if steps:
    ax.set_xlabel("step", fontsize=9)
    ax.xaxis.get_major_locator().set_params(integer=True)
  ax.tick_params(labelsize=8)
  ax.yaxis.label.set_size(9)
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(color="0.92")
  ax.set_axisbelow(True)
  if figure is not None and ax.get_legend_handles_labels()[0]:
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)


def _title(ax: Any, runs: Sequence[History]) -> None:
  if len(runs) == 1:
    ax.set_title(_text(runs[0].label), fontsize=10)


def _state_legend(figure: Any) -> None:
  from matplotlib.patches import Patch

  words = {
    "kept": "kept", "new": "new since the panel before",
    "dropped": "dropped since then", "pruned": "pruned",
  }  # fmt: skip
  figure.legend(
    handles=[
      Patch(
        facecolor=_STATES[state], edgecolor="0.6", linewidth=0.5, label=text
      )
      for state, text in words.items()
    ],
    loc="outside lower center",
    ncols=4,
    fontsize=8,
    frameon=False,
  )


def _tradeoff(ax: Any, found: Sequence[Point], recipes: Sequence[str]) -> None:
  places = [round(point.speedup, 3) for point in found]
  span = max(places) - min(places) or 1.0
  best = front(found)
  ax.plot(
    [p.speedup for p in best], [100 * p.accuracy for p in best],
    color="0.7", linewidth=1.2, zorder=1, label="best of both",
  )  # fmt: skip
  for index, point in enumerate(found):
    peers = [i for i, place in enumerate(places) if place == places[index]]
    shift = (peers.index(index) - (len(peers) - 1) / 2) * 0.06 * span
    which = recipes.index(point.recipe)
    error = 0.0 if math.isnan(point.error) else 100 * point.error
    ax.errorbar(
      places[index] + shift,
      100 * point.accuracy,
      yerr=error or None,
      fmt=_MARKERS[which % len(_MARKERS)],
      color=_COLOURS[which % len(_COLOURS)],
      markersize=6,
      capsize=3,
      label=_text(point.recipe),
      zorder=3,
    )
    ax.annotate(
      _text(point.pattern),
      (places[index] + shift, 100 * point.accuracy + error),
      xytext=(0, 6),
      textcoords="offset points",
      rotation=90,
      ha="center",
      fontsize=8,
      color=_INK,
      bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
    )
    ax.axvline(places[index], color="0.8", linestyle=":", zorder=0)
  ax.margins(x=0.12, y=0.14)
