"""Pictures of a study: metrics by density, forest plots and Pareto fronts.

Colours mean recipes in `plot_by_density` and `plot_tradeoffs`, verdicts in the
forest plots. Verdicts differ in marker and filling too, so that plots can be
read in grey. matplotlib is imported by the functions only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.analysis import plot_style
from figs_jax.analysis._study_claims import (
  FromBaseline,
  Judgement,
  from_baseline,
  p_text,
)
from figs_jax.analysis._study_pairs import (
  Cell,
  Cells,
  DataFrame,
  cell_name,
  cells_of,
  mean_of_cell,
  measure,
)
from figs_jax.analysis._study_tables import (
  difference_text,
  patterns_in_order,
)
from figs_jax.analysis.pareto import ParetoPoint, pareto_front
from figs_jax.analysis.statistics import Interval
from figs_jax.engine.figures import empty_figure
from figs_jax.train.seeds import mean_and_se

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#6E6E6E"
_SHADE = "#E9E4D4"
_ROW = 0.24  # inches per row of a forest plot
_CLIP = 3.0  # longest half of an interval, in medians
_MOST_PANELS = 4  # in a row
_MOST_MARKED = 10  # recipes that all have markers in a picture of costs
_SIDE, _WIDEST = 0.085, 14.0  # inches per recipe at a pattern, and of all


class _Look(NamedTuple):
  """Colour and marker of a verdict; open markers are not resolved."""

  colour: str
  marker: str
  filled: bool


_LOOKS = {
  "supported": _Look(_BLUE, "o", True),
  "refuted": _Look(_RED, "s", True),
  "not resolved": _Look(_GREY, "D", False),
}
_OF_DISTANCES = {
  "better": _LOOKS["supported"],
  "worse": _LOOKS["refuted"],
  "not resolved": _LOOKS["not resolved"],
}


def plot_by_density(rows: DataFrame, baseline: str = "dense") -> Any:
  """Test accuracy and loss of each recipe by pattern, with standard errors.

  Patterns stand side by side from dense to sparse, those of the same layers
  together. Recipes stand beside each other at a pattern, and lines join the
  patterns of the same layers. A recipe without pattern is a horizontal line in
  a band of ± one standard error.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
  """
  cells = cells_of(rows)
  places, scopes = patterns_in_order(cells)
  sides = _sides(cells, baseline)
  # Room for a marker of each recipe beside those of the others.
  place = min(max(0.95, _SIDE * len(sides)), _WIDEST / max(len(places), 1))
  figure = empty_figure(
    3.6 + max(place * len(places), 3.6),
    max(6.4, plot_style.legend_height(len(sides))),
  )
  axes = list(figure.subplots(2, 1, sharex=True))
  for ax, metric in zip(axes, ("accuracy", "loss")):
    for index, (recipe, setting) in enumerate(sides):
      if (recipe, "", setting) in cells:
        _draw_dense(ax, cells, (recipe, setting), metric, index)
      else:
        spread = min(0.5 + 0.02 * len(sides), 0.84)
        shift = spread * ((index + 0.5) / len(sides) - 0.5)
        _draw_side(
          ax, cells, places, scopes, (recipe, setting), metric, index, shift
        )
    ax.set_ylabel(f"{measure(metric).label}\n(mean ± s.e.)")
    plot_style.style_axes(ax, steps=False)
    ax.grid(axis="x", visible=False)
    _separate(ax, places, scopes)
  bottom = axes[1]
  bottom.set_xticks(
    range(len(places)), list(map(_tick, places, places.values()))
  )
  bottom.set_xlim(-0.5, len(places) - 0.5)
  bottom.set_xlabel("pattern, and density of the masked kernels")
  figure.align_ylabels(axes)
  plot_style.add_legend(figure, axes)
  return figure


def _tick(pattern: str, density: float) -> str:
  return plot_style.literal(f"{pattern}\n({density:.3g})")


def _sides(cells: Cells, baseline: str) -> list[tuple[str, str]]:
  """Recipes and settings in the order of their colours."""
  sides = list(dict.fromkeys((recipe, setting) for recipe, _, setting in cells))
  return sorted(sides, key=lambda side: side[0] != baseline)


def _draw_dense(
  ax: Any, cells: Cells, side: tuple[str, str], metric: str, index: int
) -> None:
  """The line and band of a recipe without pattern."""
  key = side[0], "", side[1]
  mean, error = mean_of_cell(cells[key], metric)
  colour = plot_style.line_style(index)["color"]
  ax.axhline(
    mean, color=colour, linestyle=("--", ":", "-.")[index % 3], linewidth=1.4,
    label=plot_style.literal(cell_name(key)), zorder=1,
  )  # fmt: skip
  if math.isfinite(error):
    ax.axhspan(mean - error, mean + error, color=colour, alpha=0.15, zorder=0)


def _draw_side(
  ax: Any,
  cells: Cells,
  places: Mapping[str, float],
  scopes: Mapping[str, str],
  side: tuple[str, str],
  metric: str,
  index: int,
  shift: float,
) -> None:
  """Markers, error bars and lines of one recipe."""
  recipe, setting = side
  style = plot_style.line_style(index) | {"markersize": 5.5, "linewidth": 1.1}
  label = plot_style.literal(cell_name((recipe, "", setting)))
  for scope in dict.fromkeys(scopes[pattern] for pattern in places):
    points = [
      (x + shift, *mean_of_cell(cells[recipe, pattern, setting], metric))
      for x, pattern in enumerate(places)
      if scopes[pattern] == scope and (recipe, pattern, setting) in cells
    ]
    if not points:
      continue
    x, mean, error = np.array(points).T
    ax.plot(x, mean, label=label, **style, zorder=3)
    ax.errorbar(
      x, mean, yerr=np.nan_to_num(error), fmt="none", ecolor=style["color"],
      elinewidth=1.2, capsize=2, zorder=2,
    )  # fmt: skip


def _separate(
  ax: Any, places: Mapping[str, float], scopes: Mapping[str, str]
) -> None:
  """Vertical lines between patterns of different layers."""
  names = [scopes[pattern] for pattern in places]
  for x in range(1, len(names)):
    if names[x] != names[x - 1]:
      ax.axvline(x - 0.5, color="0.75", linewidth=0.8)


class _Bar(NamedTuple):
  """A row of a forest plot.

  Attributes:
    label: Text left of it.
    interval: Interval of the paired difference, if there is one.
    smallest: Half of the shaded range around 0.
    look: Its colour and marker.
    text: Text right of it.
  """

  label: str
  interval: Interval | None
  smallest: float
  look: _Look | None
  text: str = ""


def plot_forest(judgements: Sequence[Judgement]) -> Any:
  """Paired differences of claims with 95 % intervals and verdicts.

  A panel per metric, a row per claim and pattern. The shade around 0 is the
  smallest effect of interest. An interval that leaves the panel ends in an
  arrow.

  Args:
    judgements: Judgements from `judge`, at least one.
  """
  panels: dict[str, list[_Bar]] = {}
  for each in judgements:
    bar = _Bar(
      label=each.pairs.name + (" (equal)" if each.claim.equal else ""),
      interval=each.pairs.interval,
      smallest=each.claim.smallest,
      look=_LOOKS.get(each.verdict),
      text=_right_text(each),
    )
    panels.setdefault(each.claim.metric, []).append(bar)
  heights = [0.75 + _ROW * len(bars) for bars in panels.values()]
  figure = empty_figure(9.2, 0.5 + sum(heights))
  axes = figure.subplots(
    len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
  )[:, 0]
  for ax, (metric, bars) in zip(axes, panels.items()):
    _draw_forest(ax, bars)
    scale = measure(metric)
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(bars)), [bar.text for bar in bars], fontsize=8)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    arrow = "as claimed →" if scale.sign > 0 else "← as claimed"
    ax.set_xlabel(f"difference in {scale.difference}   ({arrow})")
  _add_looks(figure, _LOOKS, "smallest effect of interest")
  return figure


def _right_text(judgement: Judgement) -> str:
  pairs = judgement.pairs
  if not pairs.differences:
    return judgement.verdict
  p = f", {p_text(judgement.corrected_p)}" if pairs.interval else ""
  return f"{difference_text(pairs)}{p}, n = {len(pairs.seeds)}"


def plot_distances(
  rows: DataFrame,
  baseline: str = "dense",
  *,
  metric: str = "loss",
  smallest: float = math.nan,
) -> Any:
  """Paired difference of every cell to the baseline with its 95 % interval.

  A panel per pattern and setting, a row per recipe. Colours and markers say
  what Holm's correction over all cells leaves: better, worse or not resolved.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
    metric: Column of the rows.
    smallest: Smallest effect of interest, shaded; NaN for none.

  Raises:
    ValueError: If the baseline's are the only cells.
  """
  cells = cells_of(rows)
  distances = {d.cell: d for d in from_baseline(rows, baseline, metric)}
  if not distances:
    raise ValueError(
      f"Expected cells other than those of {baseline!r}, got none; run more of"
      " the study"
    )
  recipes = list(dict.fromkeys(r for r, _ in _sides(cells, baseline)))
  recipes = [recipe for recipe in recipes if recipe != baseline]
  order = ["", *patterns_in_order(cells)[0]]
  panels = sorted(
    dict.fromkeys(cell[1:] for cell in distances),
    key=lambda panel: order.index(panel[0]),
  )
  count = math.ceil(len(panels) / _MOST_PANELS)
  columns = math.ceil(len(panels) / count)
  figure = empty_figure(
    2.0 + 2.2 * max(columns, 2), 0.6 + count * (0.8 + _ROW * len(recipes))
  )
  axes = figure.subplots(count, columns, squeeze=False, sharey=True)
  for ax, panel in zip(axes.flat, panels):
    _draw_forest(
      ax, [_distance_bar(distances, r, panel, smallest) for r in recipes]
    )
    ax.set_title(
      plot_style.literal(cell_name((panel[0] or "dense", "", panel[1]))),
      fontsize=9,
    )
    ax.xaxis.get_major_locator().set_params(nbins=4, min_n_ticks=3)
  for ax in axes.flat[len(panels) :]:
    ax.set_visible(False)
  scale = measure(metric)
  figure.supxlabel(
    plot_style.literal(f"difference to {baseline} in {scale.difference}"),
    fontsize=9,
  )
  shade = "smallest effect of interest" if math.isfinite(smallest) else ""
  _add_looks(figure, _OF_DISTANCES, shade)
  return figure


def _distance_bar(
  distances: Mapping[Cell, FromBaseline],
  recipe: str,
  panel: tuple[str, str],
  smallest: float,
) -> _Bar:
  distance = distances.get((recipe, *panel))
  interval = distance.pairs.interval if distance else None
  if distance is None or interval is None:
    return _Bar(recipe, None, smallest, None)
  sign = measure(distance.pairs.metric).sign
  state = "not resolved"
  if distance.corrected_p < 0.05:
    state = "better" if sign * interval.mean > 0 else "worse"
  return _Bar(recipe, interval, smallest, _OF_DISTANCES[state])


def _draw_forest(ax: Any, bars: Sequence[_Bar]) -> None:
  """Intervals from the top down, a zero line and the shades behind them."""
  low, high = _forest_limits(bars)
  ax.axvline(0.0, color="0.3", linewidth=0.9, zorder=1)
  for y, bar in enumerate(bars):
    if math.isfinite(bar.smallest):
      ax.fill_betweenx(
        [y - 0.5, y + 0.5], -bar.smallest, bar.smallest, color=_SHADE,
        linewidth=0, zorder=0,
      )  # fmt: skip
    interval, look = bar.interval, bar.look
    if interval is None or look is None:
      continue
    ends = np.clip([interval.low, interval.high], low, high)
    ax.plot(ends, [y, y], color=look.colour, linewidth=1.6, zorder=2)
    for end, true, arrow in zip(ends, (interval.low, interval.high), "<>"):
      marker = "|" if end == true else arrow
      ax.plot(end, y, marker, color=look.colour, markersize=5, zorder=2)
    ax.plot(
      interval.mean, y, look.marker, color=look.colour, markersize=5,
      markerfacecolor=look.colour if look.filled else "white", zorder=3,
    )  # fmt: skip
  ax.set_xlim(low, high)
  ax.set_ylim(len(bars) - 0.5, -0.5)
  labels = [plot_style.literal(bar.label) for bar in bars]
  ax.set_yticks(range(len(bars)), labels)
  plot_style.style_axes(ax, steps=False)
  ax.grid(axis="y", visible=False)
  ax.tick_params(axis="y", length=0)


def _forest_limits(bars: Sequence[_Bar]) -> tuple[float, float]:
  """Limits that hold all means and all intervals but the very long ones."""
  intervals = [bar.interval for bar in bars if bar.interval]
  smallest = [bar.smallest for bar in bars if math.isfinite(bar.smallest)]
  ends = [0.0, *(1.2 * s for s in smallest), *(-1.2 * s for s in smallest)]
  if intervals:
    halves = [each.high - each.mean for each in intervals]
    half = float(np.quantile(halves, 0.5, method="lower"))
    for each in intervals:
      reach = min(each.high - each.mean, _CLIP * half)
      ends += [each.mean - reach, each.mean + reach]
  low, high = min(ends), max(ends)
  margin = 0.06 * (high - low) or 1.0
  return low - margin, high + margin


def _add_looks(figure: Any, looks: Mapping[str, _Look], shade: str) -> None:
  """One legend of verdicts above the panels."""
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  handles: list[Any] = [
    Line2D(
      [], [], color=look.colour, marker=look.marker, markersize=6,
      markerfacecolor=look.colour if look.filled else "white", label=name,
    )
    for name, look in looks.items()
  ]  # fmt: skip
  if shade:
    handles.append(Patch(facecolor=_SHADE, label=shade))
  figure.legend(
    handles=handles, loc="outside upper center", ncols=len(handles),
    fontsize=8, frameon=False,
  )  # fmt: skip


def cost_columns(rows: DataFrame) -> list[list[str]]:
  """Columns of costs, in pairs: a pair is a picture of `plot_tradeoffs`."""
  columns = [name for name in rows.columns if name.startswith("speedup:")]
  if "train_flops" in rows.columns:
    columns.insert(1, "train_flops")
  return [columns[i : i + 2] for i in range(0, len(columns), 2)]


def plot_tradeoffs(
  rows: DataFrame, baseline: str, columns: Sequence[str]
) -> Any:
  """Test accuracy against modelled speed-ups or training FLOPs.

  Markers are means with standard errors over seeds; those of the Pareto front
  have their pattern beside them, as has the best recipe of every pattern. If
  there are more than ten recipes, all others are grey dots, since cells of one
  pattern have the same speed-up.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
    columns: Columns `speedup:ENGINE` and `train_flops`, a panel each.
  """
  cells = cells_of(rows)
  sides = _sides(cells, baseline)
  panels: dict[str, list[plot_style.Mark]] = {}
  fronts: dict[str, list[tuple[float, float]]] = {}
  for column in columns:
    label, sign = "training FLOPs, share of dense", -1.0
    if engine := column.partition(":")[2]:
      label, sign = f"modelled speed-up on {engine}, ×", 1.0
    points = {
      key: ParetoPoint(
        engine=column,
        recipe=key[0],
        pattern=key[1],
        speedup=sign * mean_and_se([r[column] for r in of.values()])[0],
        accuracies=tuple(row["accuracy"] for row in of.values()),
        runs=(),
      )
      for key, of in cells.items()
    }
    finite = {key: p for key, p in points.items() if math.isfinite(p.speedup)}
    front = pareto_front(list(finite.values()))
    best: dict[str, ParetoPoint] = {}
    for point in finite.values():
      if not point.accuracy <= best.get(point.pattern, point).accuracy:
        best[point.pattern] = point
      best.setdefault(point.pattern, point)
    named = {id(point) for point in (*front, *best.values())}
    fronts[label] = [(sign * p.speedup, 100 * p.accuracy) for p in front]
    every = len(sides) <= _MOST_MARKED
    panels[label] = [
      plot_style.Mark(
        x=sign * point.speedup,
        y=100 * point.accuracy,
        error=100 * point.error,
        label=cell_name((key[0], "", key[2])),
        text=(point.pattern or "dense") if id(point) in named else "",
        index=sides.index((key[0], key[2])),
      )
      if every or id(point) in named
      else plot_style.Mark(
        sign * point.speedup, 100 * point.accuracy, math.nan, "others", "", None
      )
      for key, point in finite.items()
    ]
  title = "Test accuracy against " + " and ".join(
    label.rpartition(",")[0] for label in panels
  )
  width = 2.6 + 3.4 * len(panels)
  return plot_style.scatter(panels, width, title, fronts, height=5.4)
