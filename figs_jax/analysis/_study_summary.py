"""The short page of a small study: one picture, one table, what it resolves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figs_jax.analysis import plot_style
from figs_jax.analysis._study_claims import from_baseline
from figs_jax.analysis._study_examples import Split, split_of
from figs_jax.analysis._study_page import resolution
from figs_jax.analysis._study_pairs import (
  Cell,
  Cells,
  DataFrame,
  cell_name,
  cells_of,
  mean_of_cell,
  measure,
  number,
)
from figs_jax.analysis._study_tables import sorted_cells, table
from figs_jax.engine.figures import empty_figure

_WIDTH = 9.2  # inches
_ROW = 0.3  # inches per row of differences
_SPREAD = 0.012  # of the x axis, between recipes at one speed-up


def write_summary(
  rows: DataFrame,
  study: Mapping[str, Any],
  out: str | Path,
  *,
  introduction: str,
  claims: str,
) -> str:
  """Writes OUT/report.md and OUT/report.png, in place of earlier ones.

  Accuracies of the picture are those in the first of the study's `dtypes`, and
  speed-ups those on the first of its `engines`.

  Args:
    rows: Rows from `study_frame`, of one setting.
    study: Configuration of the study: its `name`, `baseline`, `engines` and
      `dtypes`.
    out: Directory of the study, with its examples/.
    introduction: Text below the title.
    claims: What can and cannot be claimed, a line per test, as from
      `write_results`.

  Returns:
    The table, and what the test split can resolve.

  Raises:
    ValueError: If matplotlib is not installed.

  >>> import tempfile
  >>> from figs_jax.analysis import study_frame
  >>> losses = {"dense": (0.40, 0.41), "figs": (0.50, 0.50)}
  >>> rows = study_frame(
  ...   {"recipe": recipe, "pattern": "1:8" if recipe == "figs" else "",
  ...    "setting": "", "seed": str(seed), "loss": str(loss), "accuracy": ".8",
  ...    "speedup:ws": "1.5"}
  ...   for recipe, values in losses.items() for seed, loss in enumerate(values)
  ... )
  >>> study = {"name": "small", "baseline": "dense", "engines": ("ws",)}
  >>> with tempfile.TemporaryDirectory() as out:
  ...   text = write_summary(
  ...     rows, study, out, introduction="Two recipes.", claims=""
  ...   )
  ...   sorted(path.name for path in Path(out).iterdir())
  ['report.md', 'report.png']
  >>> print(text.splitlines()[0])
  | pattern | recipe | n | test accuracy, % (± s.e.) | ...
  """
  out, baseline = Path(out), study["baseline"]
  dtypes = study.get("dtypes", ())
  columns = [f"accuracy_{dtype}" for dtype in dtypes] + ["accuracy"]
  accuracy = next(name for name in columns if name in rows.columns)
  split = split_of(rows.get("examples", ()), out)
  figure = plot_summary(
    rows, baseline, study["engines"][0], accuracy=accuracy, split=split
  )
  (out / "report.png").write_bytes(plot_style.image_bytes(figure, "png"))
  left_out = [
    name
    for name in rows.columns
    if name == "stages" or name.startswith(("accuracy_", "loss_"))
    if name != accuracy
  ]
  cells = table(rows.drop(columns=left_out), baseline, out=out)
  resolved = resolution(rows, baseline, split)
  parts = [
    f"# {study['name']}",
    introduction,
    f"![Test loss beside {baseline}, and accuracy by speed-up](report.png)",
    cells,
    resolved,
    "## What can be claimed",
    "\n".join(f"* {line}" for line in claims.splitlines()),
  ]
  page = "\n\n".join(part.strip() for part in parts if part.strip())
  (out / "report.md").write_text(page + "\n", encoding="utf-8")
  return f"{cells}\n{resolved}\n"


def plot_summary(
  rows: DataFrame,
  baseline: str,
  engine: str,
  *,
  accuracy: str = "accuracy",
  split: Split | None = None,
) -> Any:
  """Paired differences of the test loss beside accuracy against speed-up.

  Left, a row per cell: its difference to the baseline with Student's 95 %
  interval over seeds. Right, means with standard errors over seeds. A line
  joins the patterns of a recipe that has several. Recipes at one speed-up stand
  side by side, in the order of the legend, around their common place. A bar in
  the corner shows the binomial standard error of one run. Colours and markers
  mean recipes in both panels.

  Args:
    rows: Rows from `study_frame`, of one setting.
    baseline: Label of the baseline's recipe.
    engine: Spec of the engine: rows have the column `speedup:ENGINE`.
    accuracy: Column of the accuracy, such as "accuracy_bfloat16".
    split: Size of the test split; None leaves the binomial bar out.
  """
  cells = cells_of(rows)
  keys = sorted_cells(cells, baseline)
  recipes = list(dict.fromkeys(recipe for recipe, _, _ in cells))
  recipes.sort(key=lambda recipe: recipe != baseline)
  height = 1.5 + max(_ROW * (len(keys) - 1), 2.4)
  figure = empty_figure(_WIDTH, height)
  left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.25]})
  _draw_differences(left, rows, baseline, keys, recipes)
  _draw_gains(right, cells, keys, recipes, f"speedup:{engine}", accuracy)
  left.set_xlabel(
    plot_style.literal(f"test loss − {baseline}, nats (paired by seed, 95 %)")
  )
  right.set_xlabel(plot_style.literal(f"modelled speed-up on {engine}, ×"))
  right.set_ylabel(f"{measure(accuracy).label} (mean ± s.e.)")
  if split:
    mean, _ = mean_of_cell(cells[baseline, "", ""], accuracy)
    _draw_binomial(right, math.sqrt(mean * (100 - mean) / split.tokens))
  handles = right.get_legend_handles_labels()
  figure.legend(
    *handles, loc="outside lower center", ncols=len(recipes), fontsize=8,
    frameon=False,
  )  # fmt: skip
  return figure


def _draw_differences(
  ax: Any,
  rows: DataFrame,
  baseline: str,
  keys: list[Cell],
  recipes: list[str],
) -> None:
  """Intervals from the top down in the order of the cells, and a zero line."""
  distances = {
    each.cell: each for each in from_baseline(rows, baseline, "loss")
  }
  keys = [key for key in keys if key in distances]
  ax.axvline(0.0, color="0.3", linewidth=0.9, zorder=1)
  for y, key in enumerate(keys):
    pairs = distances[key].pairs
    style = _marker(recipes.index(key[0]))
    if pairs.interval is not None:
      ends = [pairs.interval.low, pairs.interval.high]
      ax.plot(ends, [y, y], "-|", color=style["color"], linewidth=1.6, zorder=2)
    ax.plot(pairs.mean, y, **style, zorder=3)
  for y in range(1, len(keys)):
    if keys[y][1] != keys[y - 1][1]:
      ax.axhline(y - 0.5, color="0.85", linewidth=0.8, zorder=0)
  labels = [plot_style.literal(cell_name(key)) for key in keys]
  ax.set_yticks(range(len(keys)), labels)
  ax.set_ylim(len(keys) - 0.5, -0.5)
  plot_style.style_axes(ax, steps=False)
  ax.grid(axis="y", visible=False)
  ax.tick_params(axis="y", length=0)
  ax.xaxis.get_major_locator().set_params(nbins=5)


def _draw_gains(
  ax: Any,
  cells: Cells,
  keys: list[Cell],
  recipes: list[str],
  speedup: str,
  accuracy: str,
) -> None:
  """A marker with its standard error per cell, lines and names of patterns."""
  places = {key: mean_of_cell(cells[key], speedup)[0] for key in keys}
  finite = [x for x in places.values() if math.isfinite(x)]
  low, high = plot_style.limits((1.0, *finite), least=0.2)
  moved = _side_by_side(places, recipes, _SPREAD * (high - low))
  for index, recipe in enumerate(recipes):
    own = [key for key in keys if key[0] == recipe]
    style = _marker(index)
    points = [(moved[key], *mean_of_cell(cells[key], accuracy)) for key in own]
    x, y, error = zip(*points)
    if len(own) > 1:
      ax.plot(x, y, color=style["color"], linewidth=0.9, alpha=0.6, zorder=1)
    ax.errorbar(
      x, y, yerr=[0.0 if math.isnan(e) else e for e in error], fmt="none",
      ecolor=style["color"], elinewidth=1.2, capsize=2, zorder=2,
    )  # fmt: skip
    ax.plot(x, y, **style, label=plot_style.literal(recipe), zorder=3)
    if recipe == recipes[0]:
      ax.axhline(y[0], color="0.7", linewidth=0.9, linestyle="--", zorder=0)
  ax.set_xlim(low, high)
  plot_style.style_axes(ax, steps=False)
  _name_patterns(ax, cells, keys, places, accuracy)


def _name_patterns(
  ax: Any,
  cells: Cells,
  keys: list[Cell],
  places: dict[Cell, float],
  accuracy: str,
) -> None:
  """Each pattern once, above all of its cells."""
  from matplotlib.patheffects import withStroke

  for pattern in dict.fromkeys(key[1] for key in keys):
    own = [key for key in keys if key[1] == pattern]
    tops = []
    for key in own:
      mean, error = mean_of_cell(cells[key], accuracy)
      tops.append(mean + (0.0 if math.isnan(error) else error))
    ax.annotate(
      plot_style.literal(pattern or "dense"), (places[own[0]], max(tops)),
      xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8,
      color="0.3", path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _draw_binomial(ax: Any, error: float) -> None:
  """The binomial standard error of an accuracy, as a bar with its name."""
  low, high = ax.get_ylim()
  y = low + 1.2 * error
  ax.set_ylim(low, max(high, y + 3 * error))
  corner = ax.get_yaxis_transform()  # x in shares of the axis
  ax.errorbar(
    0.05, y, yerr=error, fmt="none", ecolor="0.5", elinewidth=1.2, capsize=3,
    transform=corner,
  )  # fmt: skip
  ax.text(
    0.08, y, f"binomial s.e. of one run,\n±{number(error, 2)} points",
    transform=corner, va="center", fontsize=8, color="0.4",
  )  # fmt: skip


def _side_by_side(
  places: dict[Cell, float], recipes: list[str], step: float
) -> dict[Cell, float]:
  """x of each cell: those at one place and pattern are so far apart.

  >>> cells = {("a", "1:8", ""): 2.0, ("b", "1:8", ""): 2.0}
  >>> _side_by_side(cells, ["a", "b"], 0.5)
  {('a', '1:8', ''): 1.75, ('b', '1:8', ''): 2.25}
  """
  moved = {}
  for key, x in places.items():
    group = [other for other in places if other[1:] == key[1:]]
    group.sort(key=lambda other: recipes.index(other[0]))
    moved[key] = x + step * (group.index(key) - (len(group) - 1) / 2)
  return moved


def _marker(index: int) -> dict[str, Any]:
  """Colour and filled marker of a recipe by its index."""
  style = plot_style.line_style(index)
  return {
    "color": style["color"],
    "marker": style["marker"],
    "markersize": 6,
    "linestyle": "",
  }
