"""Pictures of runs; matplotlib is needed, and imported, only here.

Each function takes what `history` and `tradeoff` compute and gives a matplotlib
figure. A run's colour is that of its place in `order`, the labels of all runs
that pictures are drawn of together; by default, of those in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.analysis import plot_style, scatter
from figs_jax.analysis.history import Band, Evolution, History, band, by_kind
from figs_jax.analysis.pareto import Point, front
from figs_jax.engine.plots import LAYERS, empty_figure

# An entry in two masks: pruned in both, dropped, new, kept in both. The first
# and the last differ most in lightness, as most entries are of these.
_STATES = {
  "pruned": "#F2F2F2",
  "dropped": "#8FC4E8",
  "new": "#D55E00",
  "kept": "#22313F",
}
_MOST_PANELS = 6
_OF_KINDS = "mean, band: min–max\nover layers of a kind"
_OF_RUNS = "mean, band: min–max\nover a run's layers"


def masks(found: Evolution, title: str = "") -> Any:
  """The entries of a kernel over checkpoints, and how many change.

  Above, the first entries of one kernel, groups down the columns: what is kept
  since the panel before, new, or dropped, under the pattern of that step.
  Below, the share of the entries that differ from the checkpoint before, by
  kind of layer: mean over the layers, and a band from the smallest to the
  largest.
  """
  panels = _spread(len(found.steps))
  rows, columns = found.window.shape[1:]
  width = max(2.0 * len(panels), 6.4)
  panel = min(0.93 * width / len(panels) * rows / columns, 3.2)
  heights = 1.2 + panel, 2.3
  figure = empty_figure(width, sum(heights))
  top, bottom = figure.subfigures(2, 1, height_ratios=heights)
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
    ax.set_title(
      f"step {found.steps[place]:,}\n{found.patterns[place]}", fontsize=9
    )
  axes[0].set_ylabel("groups down the columns", fontsize=8)
  said = (
    f"{found.layer}, {rows} × {columns} of its {found.shape[0]} ×"
    f" {found.shape[1]} entries"
  )
  plot_style.title(top, f"{title}: {said}" if title else said, beside=0.0)
  _state_legend(top)
  ax = bottom.subplots()
  kinds = by_kind(found.changed)
  plot_style.bands(ax, kinds, _kind_looks(kinds), scale=100.0)
  ax.set_ylabel("entries changed since the\ncheckpoint before, %")
  plot_style.finish(ax)
  ax.set_ylim(bottom=0)
  plot_style.legend(bottom, [ax], _OF_KINDS)
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


def flips(runs: Sequence[History], order: Sequence[str] = ()) -> Any:
  """The share of mask entries that a step's update changes.

  Single steps are looked at, every `diagnose_every` of them; what changes at
  others is not here, such as the refreshes of RigL or SET between two looks.
  Of one run a band per kind of layer, of several a band per run: mean over the
  layers, from the smallest to the largest.

  Raises:
    ValueError: a run has no diagnostics; the line says how to get them.
  """
  curves = {run.label: run.layer_curves("flip_rate") for run in runs}
  found, of, title = _bands(curves, order)
  figure = empty_figure(7.2, 3.6)
  ax = figure.subplots()
  plot_style.bands(ax, found, of, scale=100.0)
  ax.set_ylabel(
    f"mask entries changed in one step, %\n({_looked_at(runs)} looked at)"
  )
  if len(runs) == 1:
    plot_style.title(figure, runs[0].label)
  plot_style.finish(ax)
  if any(run.config["diagnose_every"] > 1 for run in runs):
    ax.set_xlabel("step (changes at those not looked at are unseen)")
  ax.set_ylim(bottom=0)
  plot_style.legend(figure, [ax], title)
  return figure


def variance(runs: Sequence[History], order: Sequence[str] = ()) -> Any:
  """Variance of the gradient over kept and over pruned entries, two panels.

  Zeros have no place on the logarithmic axis and are left out.

  Raises:
    ValueError: as `flips`.
  """
  figure = empty_figure(9.2, 3.6)
  axes = list(figure.subplots(1, 2, sharey=True))
  title, ends = "", []
  for ax, entries in zip(axes, ("kept", "pruned")):
    curves = {
      run.label: run.layer_curves(f"grad_var_{entries}") for run in runs
    }
    found, of, title = _bands(curves, order)
    shown = plot_style.bands(ax, found, of, positive=True)
    ends += [value for one in found.values() for value in (*one.low, *one.high)]
    ax.set_title(f"{entries} entries", fontsize=9)
    if not shown:
      ax.text(
        0.5, 0.5, f"no gradient at {entries} entries", ha="center",
        transform=ax.transAxes, fontsize=9, color="0.4",
      )  # fmt: skip
    plot_style.finish(ax)
  sound = [end for end in ends if end > 0 and math.isfinite(end)] or [1.0]
  for ax in axes:
    # By hand, since matplotlib finds no limits around a single value.
    ax.set_ylim(min(sound) / 1.5, max(sound) * 1.5)
    ax.set_yscale("log")
  axes[0].set_ylabel("variance of the gradient")
  plot_style.legend(figure, axes, title)
  if len(runs) == 1:
    plot_style.title(figure, runs[0].label)
  return figure


def training(runs: Sequence[History], order: Sequence[str] = ()) -> Any:
  """Loss over the steps, and accuracy with its standard error over seeds."""
  order = order or [run.label for run in runs]
  figure = empty_figure(9.2, 3.6)
  left, right = figure.subplots(1, 2)
  for run in runs:
    place = order.index(run.label)
    of, label = (
      {run.label: (place, plot_style.RUNS)},
      plot_style.text(run.label),
    )
    loss = run.curve("loss")
    left.plot(
      loss.steps, loss.values, label=label, marker=plot_style.marker(place),
      markersize=3.5, markevery=plot_style.marked(loss.values),
      **plot_style.style(place),
    )  # fmt: skip
    accuracy = run.curve("eval/accuracy")
    error = run.curve("eval/accuracy_se")
    known = error.steps.tolist() == accuracy.steps.tolist()
    spread = error.values if known else np.zeros_like(accuracy.values)
    plot_style.bands(
      right,
      {
        run.label: Band(
          accuracy.steps,
          accuracy.values,
          accuracy.values - spread,
          accuracy.values + spread,
        )
      },
      of,
      scale=100.0,
    )
  left.set_ylabel("training loss")
  right.set_ylabel("test accuracy, % (band: ± s.e.)")
  for ax in (left, right):
    plot_style.finish(ax)
  if len(runs) == 1:
    plot_style.title(figure, runs[0].label)
  else:
    plot_style.legend(figure, [left])
  return figure


def pareto(found: Sequence[Point], order: Sequence[str] = ()) -> Any:
  """Accuracy against modelled speed-up, a panel per engine.

  Points are means with standard errors over seeds, each with its pattern
  beside it, in the colour of its first run. The grey line joins the points that
  no other beats in both; a dotted line is where a dense run is.
  """
  engines = list(dict.fromkeys(point.engine for point in found))
  firsts = list(dict.fromkeys(point.runs[0] for point in found))
  order = order or firsts
  figure = empty_figure(2.6 + 3.4 * len(engines), 4.2)
  axes = list(figure.subplots(1, len(engines), sharey=True, squeeze=False)[0])
  marks = []
  for ax, engine in zip(axes, engines):
    here = [point for point in found if point.engine == engine]
    marks.append([_mark(point, order) for point in here])
    best = front(here)
    if len(best) > 1:
      ax.plot(
        [point.speedup for point in best],
        [100 * point.accuracy for point in best],
        color="0.7", linewidth=1.2, zorder=1, label="Pareto front",
      )  # fmt: skip
    ax.set_xlabel(f"modelled speed-up on {engine}, ×")
  scatter.draw(axes, marks)
  for ax in axes:
    plot_style.finish(ax, steps=False)
  axes[0].set_ylabel("test accuracy, % (mean ± s.e.)")
  plot_style.legend(figure, axes)
  runs = list(dict.fromkeys(run for point in found for run in point.runs))
  plot_style.title(
    figure, f"Accuracy against modelled speed-up: {plot_style.names(runs)}"
  )
  scatter.write_names(figure, axes, marks)
  return figure


def _mark(point: Point, order: Sequence[str]) -> scatter.Mark:
  label = plot_style.names(point.runs, most=2)
  return scatter.Mark(
    x=point.speedup,
    y=100 * point.accuracy,
    error=100 * point.error,
    label=label if point.recipe in label else f"{label} ({point.recipe})",
    name=point.pattern,
    place=order.index(point.runs[0]),
  )


def _spread(count: int) -> list[int]:
  """At most so many places, evenly from the first to the last."""
  places = np.linspace(0, count - 1, min(count, _MOST_PANELS))
  return places.round().astype(int).tolist()


def _bands(
  curves: Mapping[str, Mapping[str, Any]], order: Sequence[str]
) -> tuple[dict[str, Band], dict[str, Any], str]:
  """Bands, their looks, and what the legend says of them."""
  if len(curves) == 1:
    kinds = by_kind(next(iter(curves.values())))
    return kinds, _kind_looks(kinds), _OF_KINDS
  order = order or list(curves)
  runs = {label: band(list(each.values())) for label, each in curves.items()}
  of = {label: (order.index(label), plot_style.RUNS) for label in runs}
  return runs, of, _OF_RUNS


def _kind_looks(kinds: Mapping[str, Band]) -> dict[str, Any]:
  return {kind: (place, LAYERS) for place, kind in enumerate(kinds)}


def _looked_at(runs: Sequence[History]) -> str:
  """Which steps were diagnosed.

  >>> from pathlib import Path
  >>> _looked_at([History(Path("a"), "a", {"diagnose_every": 100}, [])])
  'one step in 100'
  """
  every = sorted({run.config["diagnose_every"] for run in runs})
  if every == [1]:
    return "every step"
  return f"one step in {' or '.join(f'{steps:,}' for steps in every)}"


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
