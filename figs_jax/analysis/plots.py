"""Plots of runs as matplotlib figures.

Each function takes what `history` and `pareto` read. The colour of a run is
that of its index in `order`, the labels of all runs that are plotted together.
`order` defaults to the runs of the plot. matplotlib is imported by the
functions only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.analysis import plot_style
from figs_jax.analysis.gradient_noise import (
  CLASSES,
  GradientNoise,
  noise_bands,
)
from figs_jax.analysis.history import (
  Band,
  History,
  MaskEvolution,
  band_of,
  bands_by_kind,
)
from figs_jax.analysis.noise_correlation import STATISTICS, NoiseAndLoss
from figs_jax.analysis.pareto import ParetoPoint, pareto_front
from figs_jax.engine import parse
from figs_jax.engine.figures import LAYERS, empty_figure

# An entry in two masks: pruned in both, dropped, new, kept in both. The first
# and the last, the most frequent, differ most in lightness.
_STATES = {
  "pruned": "#F2F2F2",
  "dropped": "#8FC4E8",
  "new": "#D55E00",
  "kept": "#22313F",
}
_MOST_PANELS = 6
_BAND_OF_KIND = "mean, band: min–max\nover layers of a kind"
_BAND_OF_RUN = "mean, band: min–max\nover a run's layers"


def plot_masks(evolution: MaskEvolution, title: str = "") -> Any:
  """The entries of a kernel over checkpoints, and how many change.

  Above, the first entries of one kernel with groups along the columns, under
  the pattern of that step: kept since the panel before, new, dropped or pruned.
  Below, the share of entries that differ from the checkpoint before, by kind of
  layer: the mean over the layers, and a band from the smallest to the largest.

  Args:
    evolution: Masks from `mask_evolution`.
    title: Start of the title of the upper panels, such as the label of the run.

  >>> from figs_jax.analysis.history import Curve
  >>> evolution = MaskEvolution(
  ...   steps=np.array([10, 20]), layer="0/fc1/kernel", patterns=("1:2", "1:2"),
  ...   shape=(2, 1), window=np.array([[[True], [False]], [[False], [True]]]),
  ...   changed={"0/fc1/kernel": Curve(np.array([20]), np.array([1.0]))},
  ... )
  >>> [ax.get_title() for ax in plot_masks(evolution).axes]
  ['step 10\\n1:2', 'step 20\\n1:2', '']
  """
  count = len(evolution.steps)
  panels = np.linspace(0, count - 1, min(count, _MOST_PANELS)).round()
  panels = panels.astype(int).tolist()
  rows, columns = evolution.window.shape[1:]
  width = max(2.0 * len(panels), 6.4)
  panel = min(0.93 * width / len(panels) * rows / columns, 3.2)
  heights = 1.2 + panel, 2.3
  figure = empty_figure(width, sum(heights))
  top, bottom = figure.subfigures(2, 1, height_ratios=heights)
  axes = top.subplots(1, len(panels), squeeze=False)[0]
  from matplotlib.colors import ListedColormap

  colours = ListedColormap(list(_STATES.values()))
  states = mask_states(evolution.window, panels)
  for ax, state, index in zip(axes, states, panels):
    ax.imshow(
      state, cmap=colours, vmin=0, vmax=3, interpolation="nearest",
      aspect="equal",
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color("0.6")
    step, pattern = evolution.steps[index], evolution.patterns[index]
    ax.set_title(f"step {step:,}\n{pattern}", fontsize=9)
  axes[0].set_ylabel("groups along the columns", fontsize=8)
  window = (
    f"{evolution.layer}, {rows} × {columns} of its {evolution.shape[0]} ×"
    f" {evolution.shape[1]} entries"
  )
  title = f"{title}: {window}" if title else window
  plot_style.add_title(top, title, legend_width=0.0)
  _add_state_legend(top)
  ax = bottom.subplots()
  kinds = bands_by_kind(evolution.changed)
  plot_style.draw_bands(ax, kinds, _kind_styles(kinds), scale=100.0)
  ax.set_ylabel("entries changed since the\nprevious checkpoint, %")
  plot_style.style_axes(ax)
  ax.set_ylim(bottom=0)
  plot_style.add_legend(bottom, [ax], _BAND_OF_KIND)
  return figure


def mask_states(window: np.ndarray, panels: Sequence[int]) -> np.ndarray:
  """int[len(panels), rows, columns]: 2 * mask + mask of the panel before.

  0 is pruned in both, 1 dropped, 2 new, 3 kept in both. The first panel has 0
  and 3 only.

  >>> masks = np.array([[[True, False]], [[True, True]], [[False, True]]])
  >>> mask_states(masks, [0, 2]).tolist()
  [[[3, 0]], [[1, 2]]]
  """
  now = window[list(panels)].astype(int)
  before = np.concatenate([now[:1], now[:-1]])
  return 2 * now + before


def plot_mask_changes(
  runs: Sequence[History], order: Sequence[str] = ()
) -> Any:
  """The share of mask entries that change in a step.

  One step in `diagnose_every` is measured; changes in the others are missing,
  such as a refresh of RigL or SET between two measurements. The plot of one run
  has a band per kind of layer, that of several a band per run: the mean over
  the layers, and a band from the smallest to the largest.

  Args:
    runs: Sparse runs from `histories`.
    order: Labels of all runs in the order of their colours. Defaults to those
      of `runs`.

  Raises:
    ValueError: If a run has no diagnostics. The message says how to get them.

  >>> from pathlib import Path
  >>> config = {"recipe": {"name": "figs"}, "diagnose_every": 10}
  >>> rows = [{"step": 10, "layers/0/fc1/kernel/flip_rate": 0.25}]
  >>> figure = plot_mask_changes([History(Path("a"), "a", config, rows)])
  >>> figure.axes[0].get_ylabel()
  'mask entries changed in one step, %\\n(one step in 10 measured)'
  """
  curves = {run.label: run.layer_curves("flip_rate") for run in runs}
  bands, styles, legend = _bands(curves, order)
  figure = empty_figure(7.2, 3.6)
  ax = figure.subplots()
  plot_style.draw_bands(ax, bands, styles, scale=100.0)
  ax.set_ylabel(
    f"mask entries changed in one step, %\n({_measured_steps(runs)} measured)"
  )
  if len(runs) == 1:
    plot_style.add_title(figure, runs[0].label)
  plot_style.style_axes(ax)
  if any(run.config["diagnose_every"] > 1 for run in runs):
    ax.set_xlabel("step (changes between measured steps are missing)")
  ax.set_ylim(bottom=0)
  plot_style.add_legend(figure, [ax], legend)
  return figure


def plot_gradient_variance(
  runs: Sequence[History], order: Sequence[str] = ()
) -> Any:
  """Variance of the gradient at kept and at pruned entries, in two panels.

  Zeros are left out, since the axis is logarithmic.

  Args:
    runs: Sparse runs from `histories`.
    order: Labels of all runs in the order of their colours. Defaults to those
      of `runs`.

  Raises:
    ValueError: If a run has no diagnostics. The message says how to get them.

  >>> from pathlib import Path
  >>> config = {"recipe": {"name": "figs"}, "diagnose_every": 10}
  >>> layer = "layers/0/fc1/kernel"
  >>> row = {f"{layer}/grad_var_kept": 1e-4, f"{layer}/grad_var_pruned": 1e-6}
  >>> run = History(Path("a"), "a", config, [{"step": 10, **row}])
  >>> [ax.get_title() for ax in plot_gradient_variance([run]).axes]
  ['kept entries', 'pruned entries']
  """
  figure = empty_figure(9.2, 3.6)
  axes = list(figure.subplots(1, 2, sharey=True))
  legend, ends = "", []
  for ax, entries in zip(axes, ("kept", "pruned")):
    curves = {
      run.label: run.layer_curves(f"grad_var_{entries}") for run in runs
    }
    bands, styles, legend = _bands(curves, order)
    drawn = plot_style.draw_bands(ax, bands, styles, positive=True)
    ends += [end for band in bands.values() for end in (*band.low, *band.high)]
    ax.set_title(f"{entries} entries", fontsize=9)
    if not drawn:
      ax.text(
        0.5, 0.5, f"no gradient at {entries} entries", ha="center",
        transform=ax.transAxes, fontsize=9, color="0.4",
      )  # fmt: skip
    plot_style.style_axes(ax)
  valid = [end for end in ends if end > 0 and math.isfinite(end)] or [1.0]
  for ax in axes:
    # matplotlib has no limits around a single value.
    ax.set_ylim(min(valid) / 1.5, max(valid) * 1.5)
    ax.set_yscale("log")
  axes[0].set_ylabel("variance of the gradient")
  plot_style.add_legend(figure, axes, legend)
  if len(runs) == 1:
    plot_style.add_title(figure, runs[0].label)
  return figure


def plot_noise(
  rows: Sequence[GradientNoise],
  relations: Sequence[NoiseAndLoss] = (),
  order: Sequence[str] = (),
) -> Any:
  """Noise of gradients over steps, and the final test loss against it.

  On the left, variance and signal-to-noise ratio over batches at kept and at
  pruned entries: means over layers, and bands of a standard error over seeds.
  On the right, the loss against the mean of the decay phase, with standard
  errors over seeds and the rank correlation over sparse runs; markers of dense
  runs are open.

  Args:
    rows: Rows from `noise_rows`.
    relations: Correlations from `noise_and_loss`; if empty, the right half is
      missing.
    order: Labels of all runs in the order of their colours. Defaults to that of
      `rows`.

  >>> rows = [
  ...   GradientNoise("a", step, 0, "fc1", "kept", 1e-6, 1e-6, 0.5)
  ...   for step in (10, 20)
  ... ]
  >>> [ax.get_title() for ax in plot_noise(rows).axes[:2]]
  ['kept entries', 'pruned entries']
  """
  order = order or list(dict.fromkeys(row.run for row in rows))
  styles = {label: (i, plot_style.RUNS) for i, label in enumerate(order)}
  figure = empty_figure(13.6 if relations else 8.0, 5.4)
  left, *right = figure.subfigures(1, 2 if relations else 1, squeeze=False)[0]
  axes = left.subplots(2, 2, sharex=True, sharey="row")
  for line, statistic in zip(axes, STATISTICS):
    for ax, entries in zip(line, CLASSES):
      bands = noise_bands(rows, entries, statistic)
      plot_style.draw_bands(ax, bands, styles, positive=statistic != "snr")
      plot_style.style_axes(ax)
    line[0].set_ylabel(STATISTICS[statistic])
  _use_log(axes[0, 0], "y")
  for ax, entries in zip(axes[0], CLASSES):
    ax.set_xlabel("")
    ax.set_title(f"{entries} entries", fontsize=9)
  if right:
    panels = right[0].subplots(2, 2, sharex="row", sharey=True)
    for ax, relation in zip(panels.flat, relations):
      _draw_noise_and_loss(ax, relation, order)
    for ax in panels[:, 0]:
      ax.set_ylabel("final test loss, nats")
    for ax, entries in zip(panels[0], CLASSES):
      ax.set_title(f"{entries} entries", fontsize=9)
  plot_style.add_legend(figure, list(axes.flat), "mean ± s.e.\nover seeds")
  return figure


def _draw_noise_and_loss(
  ax: Any, relation: NoiseAndLoss, order: Sequence[str]
) -> None:
  """One marker per run, and the correlation over sparse ones."""
  for label, (x, x_error) in relation.noise.items():
    y, y_error = relation.loss[label]
    style = plot_style.line_style(order.index(label))
    ax.errorbar(
      x, y, np.nan_to_num(y_error), np.nan_to_num(x_error),
      marker=style["marker"], color=style["color"], markersize=6,
      elinewidth=1.1, capsize=2,
      markerfacecolor=None if label in relation.sparse else "white",
    )  # fmt: skip
  if relation.statistic != "snr":
    _use_log(ax, "x")
  r, low, high = relation.correlation
  if math.isfinite(r):
    ends = "" if low == high else f" [{low:.2f}, {high:.2f}]"
    text = f"ρ = {r:.2f}{ends}, n = {len(relation.sparse)}".replace("-", "−")
    ax.text(
      0.5, 0.98, text, transform=ax.transAxes, ha="center", va="top",
      fontsize=8, color="0.3",
    )  # fmt: skip
    ax.margins(y=0.16)
  ax.set_xlabel(f"{STATISTICS[relation.statistic]}, decay phase")
  plot_style.style_axes(ax, steps=False)


def _use_log(ax: Any, axis: str) -> None:
  """A logarithmic axis with short labels, such as 5e-7."""
  from matplotlib.ticker import LogLocator, NullLocator

  line = ax.xaxis if axis == "x" else ax.yaxis
  ax.set(**{f"{axis}scale": "log"})
  line.set_major_locator(LogLocator(subs=(1, 2, 5)))
  line.set_minor_locator(NullLocator())
  line.set_major_formatter(lambda x, _: f"{x:.0e}".replace("e-0", "e−"))


def plot_training(runs: Sequence[History], order: Sequence[str] = ()) -> Any:
  """Training loss, and test accuracy with its standard error over seeds.

  Args:
    runs: Runs from `histories`.
    order: Labels of all runs in the order of their colours. Defaults to those
      of `runs`.

  >>> from pathlib import Path
  >>> rows = [{"step": 10, "loss": 1.5, "eval/accuracy": 0.4}]
  >>> figure = plot_training([History(Path("a"), "a", {}, rows)])
  >>> [ax.get_ylabel() for ax in figure.axes]
  ['training loss', 'test accuracy, % (band: ± s.e.)']
  """
  order = order or [run.label for run in runs]
  figure = empty_figure(9.2, 3.6)
  left, right = figure.subplots(1, 2)
  for run in runs:
    index = order.index(run.label)
    style = plot_style.line_style(index)
    plot_style.draw_line(left, *run.curve("loss"), run.label, style)
    steps, mean = run.curve("eval/accuracy")
    error = run.curve("eval/accuracy_se")
    known = error.steps.tolist() == steps.tolist()
    spread = error.values if known else np.zeros_like(mean)
    band = Band(steps, mean, mean - spread, mean + spread)
    styles = {run.label: (index, plot_style.RUNS)}
    plot_style.draw_bands(right, {run.label: band}, styles, scale=100.0)
  left.set_ylabel("training loss")
  right.set_ylabel("test accuracy, % (band: ± s.e.)")
  for ax in (left, right):
    plot_style.style_axes(ax)
  if len(runs) == 1:
    plot_style.add_title(figure, runs[0].label)
  else:
    plot_style.add_legend(figure, [left])
  return figure


def plot_pareto(
  points: Sequence[ParetoPoint], order: Sequence[str] = ()
) -> Any:
  """Accuracy against modelled speed-up, a panel per engine.

  Points are means with standard errors over seeds, in the colour of their first
  run and with the pattern beside them. The grey line is the Pareto front, the
  dotted line the speed-up of the fastest dense array of that size, a dashed
  line what such an array would gain if it compressed the pattern at no cost.
  An engine that does so is named the ideal bound.

  Args:
    points: Points from `pareto_points`.
    order: Labels of all runs in the order of their colours. Defaults to the
      first run of each point.

  >>> a = ParetoPoint("figs", "figs", "1:4", 1.9, (0.91, 0.93), ("a", "b"))
  >>> plot_pareto([a]).axes[0].get_xlabel()
  'modelled speed-up on figs, ×'
  """
  order = order or list(dict.fromkeys(point.runs[0] for point in points))
  panels, fronts, bounds = {}, {}, {}
  for engine in dict.fromkeys(point.engine for point in points):
    here = [point for point in points if point.engine == engine]
    ideal = parse(engine).is_ideal
    what = "ideal bound of the speed-up" if ideal else "modelled speed-up"
    label = f"{what} on {engine}, ×"
    panels[label] = [_mark(point, order) for point in here]
    fronts[label] = [(p.speedup, 100 * p.accuracy) for p in pareto_front(here)]
    sparse = [p for p in here if p.ideal and p.pattern != "dense" and not ideal]
    bounds[label] = {p.pattern: p.ideal for p in sparse}
  runs = dict.fromkeys(run for point in points for run in point.runs)
  names = plot_style.join_labels(list(runs))
  title = f"Accuracy against modelled speed-up: {names}"
  width = 2.6 + 3.4 * len(panels)
  return plot_style.scatter(panels, width, title, fronts, bounds)


def _mark(point: ParetoPoint, order: Sequence[str]) -> plot_style.Mark:
  label = plot_style.join_labels(point.runs, most=2)
  return plot_style.Mark(
    x=point.speedup,
    y=100 * point.accuracy,
    error=100 * point.error,
    label=label if point.recipe in label else f"{label} ({point.recipe})",
    text=point.pattern,
    index=order.index(point.runs[0]),
  )


def _bands(
  curves: Mapping[str, Mapping[str, Any]], order: Sequence[str]
) -> tuple[dict[str, Band], dict[str, Any], str]:
  """Bands, their styles, and the title of their legend."""
  if len(curves) == 1:
    (of_layers,) = curves.values()
    kinds = bands_by_kind(of_layers)
    return kinds, _kind_styles(kinds), _BAND_OF_KIND
  order = order or list(curves)
  runs = {label: band_of(list(each.values())) for label, each in curves.items()}
  styles = {label: (order.index(label), plot_style.RUNS) for label in runs}
  return runs, styles, _BAND_OF_RUN


def _kind_styles(kinds: Mapping[str, Band]) -> dict[str, Any]:
  return {kind: (index, LAYERS) for index, kind in enumerate(kinds)}


def _measured_steps(runs: Sequence[History]) -> str:
  """The steps with diagnostics.

  >>> from pathlib import Path
  >>> _measured_steps([History(Path("a"), "a", {"diagnose_every": 100}, [])])
  'one step in 100'
  """
  every = sorted({run.config["diagnose_every"] for run in runs})
  if every == [1]:
    return "every step"
  return f"one step in {' or '.join(f'{steps:,}' for steps in every)}"


def _add_state_legend(figure: Any) -> None:
  from matplotlib.patches import Patch

  labels = {
    "kept": "kept", "new": "new since the previous panel",
    "dropped": "dropped since then", "pruned": "pruned",
  }  # fmt: skip
  style = {"edgecolor": "0.6", "linewidth": 0.5}
  patches = [
    Patch(facecolor=_STATES[state], label=label, **style)
    for state, label in labels.items()
  ]
  figure.legend(
    handles=patches, loc="outside lower center", ncols=4, fontsize=8,
    frameon=False,
  )  # fmt: skip
