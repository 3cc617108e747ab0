"""Tables of a study in Markdown, and the page that has its verdicts first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
  Pairs,
  cell_name,
  cells_of,
  measure,
  metrics_of,
  number,
  order_of,
)
from figs_jax.train.seeds import mean_and_se

_NONE = "–"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table with aligned columns; columns of numbers are ragged left.

  >>> print(markdown(["recipe", "n"], [["figs", "8"], ["ste", "12"]]), end="")
  | recipe |  n |
  | :----- | -: |
  | figs   |  8 |
  | ste    | 12 |
  """
  cells = [[text.replace("|", r"\|") for text in line] for line in lines]
  columns = list(zip(header, *cells))
  right = [
    all(text[:1] in "0123456789.+−–" for text in column[1:])
    for column in columns
  ]
  widths = [max(2, *map(len, column)) for column in columns]

  def row(texts: Sequence[str]) -> str:
    padded = [
      text.rjust(width) if numbers else text.ljust(width)
      for text, width, numbers in zip(texts, widths, right)
    ]
    return f"| {' | '.join(padded)} |\n"

  rule = [
    "-" * (width - 1) + ":" if numbers else ":" + "-" * (width - 1)
    for width, numbers in zip(widths, right)
  ]
  return row(header) + row(rule) + "".join(map(row, cells))


def mean_text(values: Sequence[float], metric: str) -> str:
  """Mean ± standard error of the seeds that did not diverge.

  >>> mean_text([0.838, 0.842], "accuracy")
  '84.00 ± .20'
  """
  mean, error = mean_and_se(values)
  scale = measure(metric)
  text = scale.number(scale.factor * mean)
  if math.isnan(error):
    return text
  return f"{text} ± {scale.number(scale.factor * error)}"


def patterns_in_order(
  cells: Cells,
) -> tuple[dict[str, float], dict[str, str]]:
  """Densities of the patterns, and the layers that they mask.

  Patterns of the same layers stand together, the densest first.
  """
  densities: dict[str, list[float]] = {}
  scopes: dict[str, str] = {}
  for (_, pattern, _), of_cell in cells.items():
    if pattern:
      row = next(iter(of_cell.values()))
      densities.setdefault(pattern, []).append(row.get("density", math.nan))
      scopes[pattern] = _layers(str(row.get("rules", "")))
  means = {p: mean_and_se(values)[0] for p, values in densities.items()}
  order = list(dict.fromkeys(scopes.values()))
  ranked = sorted(means, key=lambda p: (order.index(scopes[p]), -means[p]))
  return {pattern: means[pattern] for pattern in ranked}, scopes


def _layers(rules: str) -> str:
  """The keys of rules.

  >>> _layers("ff: 1:8, q: 1:16"), _layers("1:8")
  ('ff, q', '*')
  """
  keys = [part.partition(":")[0].strip() for part in rules.split(",")]
  return ", ".join("*" if key.isdigit() else key for key in keys)


def sorted_cells(cells: Cells, baseline: str) -> list[Cell]:
  """Cells by setting, `patterns_in_order` and mean test loss.

  The baseline comes first in its setting.
  """
  settings = list(dict.fromkeys(setting for _, _, setting in cells))
  patterns = ["", *patterns_in_order(cells)[0]]

  def rank(key: Cell) -> tuple[Any, ...]:
    recipe, pattern, setting = key
    loss = _mean(cells[key].values(), "loss")
    return (
      settings.index(setting), recipe != baseline, patterns.index(pattern),
      math.inf if math.isnan(loss) else loss,
    )  # fmt: skip

  return sorted(cells, key=rank)


def _mean(rows: Any, column: str) -> float:
  return mean_and_se([row.get(column, math.nan) for row in rows])[0]


def table(
  rows: DataFrame, baseline: str = "dense", *, out: str | Path | None = None
) -> str:
  """Every cell of a study in Markdown, with its distance to the baseline.

  Columns: pattern, recipe and setting; n, the seeds that did not diverge; mean
  ± standard error of each metric; paired differences to the baseline with their
  95 % intervals (Student's t over seeds); density of the masked kernels;
  training FLOPs as a share of the same run without masks; modelled speed-ups;
  and the recipe's stages where they are given. `data.order` is a column if
  cells differ in it, else part of the line below.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
    out: Directory of the study. Its configs.json has a `data.order` that is
      not among the columns, since all cells share it.
  """
  cells = cells_of(rows)
  metrics = metrics_of(rows)
  compared = [name for name in ("loss", "accuracy") if name in metrics]
  distances = {
    metric: {each.cell: each for each in from_baseline(rows, baseline, metric)}
    for metric in compared
  }
  orders = {key: order_of(cells[key].values(), out) for key in cells}
  differ = len(set(orders.values())) > 1
  engines = [name for name in rows.columns if name.startswith("speedup:")]
  given = [
    name for name in ("stages", "k", "switched_at")
    if name in rows.columns and (rows[name].astype(str) != "").any()
  ]  # fmt: skip
  settings = any(setting for _, _, setting in cells)
  header = ["pattern", "recipe", *(["setting"] if settings else []), "n"]
  header += [f"{measure(name).label} (± s.e.)" for name in metrics]
  header += [f"Δ {name} [95 %]" for name in compared]
  header += ["density", "training FLOPs"]
  header += [f"speed-up on {name.partition(':')[2]}" for name in engines]
  header += given + (["data.order"] if differ else [])
  lines = []
  for key in sorted_cells(cells, baseline):
    recipe, pattern, setting = key
    of_cell = list(cells[key].values())
    values = {
      name: [row.get(name, math.nan) for row in of_cell] for name in metrics
    }
    left = sum(math.isfinite(v) for v in values[metrics[0]]) if metrics else 0
    count = str(left) if left == len(of_cell) else f"{left} of {len(of_cell)}"
    line = [pattern or _NONE, recipe, *([setting or _NONE] if settings else [])]
    line += [count, *(mean_text(values[name], name) for name in metrics)]
    line += [distance_text(distances[name].get(key)) for name in compared]
    line += [number(_mean(of_cell, "density"), 4)]
    line += [number(_mean(of_cell, "train_flops"), 3)]
    line += [_times(_mean(of_cell, name)) for name in engines]
    line += [_values(of_cell, name) for name in given]
    lines.append(line + ([orders[key]] if differ else []))
  below = (
    f"n: seeds. Δ: difference to {baseline}, paired by seed, with Student's"
    " 95 % interval over seeds"
  )
  if any("†" in text for line in lines for text in line):
    below += f"; †: to {baseline} in the setting without a name"
  if not differ:
    below += f". data.order = {next(iter(orders.values()), '')}"
  return f"{markdown(header, lines)}\n{below}.\n"


def _times(value: float) -> str:
  return _NONE if math.isnan(value) else f"{value:.2f}×"


def _values(rows: Sequence[Mapping[str, Any]], column: str) -> str:
  """The value that all seeds share, or all of them in the order of the rows."""
  texts = list(dict.fromkeys(str(row.get(column, "")) for row in rows))
  return "; ".join(filter(None, texts)) or _NONE


def distance_text(distance: FromBaseline | None) -> str:
  """Difference to the baseline with its interval; † to another setting's."""
  if distance is None or not distance.pairs.differences:
    return _NONE
  pairs = distance.pairs
  mark = " †" if pairs.better[2] != pairs.worse[2] else ""
  return difference_text(pairs) + mark


def difference_text(pairs: Pairs) -> str:
  """Mean difference with its interval, as far as they are known."""
  if not pairs.differences:
    return _NONE
  scale = measure(pairs.metric)
  text = scale.number(pairs.mean, signed=True)
  return text + (f" {scale.range(pairs.interval)}" if pairs.interval else "")


def compact_table(
  rows: DataFrame, baseline: str = "dense", metric: str = "accuracy"
) -> str:
  """Mean ± standard error of a metric, recipes by patterns, in Markdown.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe, the first row.
    metric: Column of the rows.
  """
  cells = cells_of(rows)
  order = sorted_cells(cells, baseline)
  patterns = list(dict.fromkeys(p for _, p, _ in order if p))
  sides = list(dict.fromkeys((recipe, setting) for recipe, _, setting in cells))
  sides.sort(key=lambda side: side[0] != baseline)
  lines = []
  for recipe, setting in sides:
    line = [cell_name((recipe, "", setting))]
    for pattern in patterns:
      key = (recipe, "", setting)
      of_cell = cells.get(key) or cells.get((recipe, pattern, setting), {})
      values = [row.get(metric, math.nan) for row in of_cell.values()]
      line.append(mean_text(values, metric) if values else _NONE)
    lines.append(line)
  label = measure(metric).label
  return f"{label}, mean ± s.e.\n\n{markdown(['recipe', *patterns], lines)}"


def verdict_table(judgements: Sequence[Judgement]) -> str:
  """Claims and verdicts in Markdown, a row per claim and pattern.

  Args:
    judgements: Judgements from `judge`.
  """
  header = [
    "claim", "contrast", "metric", "difference [95 %]", "with test examples",
    "smallest", "n", "p (Holm)", "family", "verdict", "seeds to resolve",
  ]  # fmt: skip
  lines = []
  for each in judgements:
    pairs, scale = each.pairs, measure(each.claim.metric)
    needed = each.seeds_needed
    lines.append([
      each.claim.name,
      pairs.name,
      ", ".join(filter(None, (each.claim.metric, scale.unit))),
      difference_text(pairs),
      scale.range(pairs.bootstrap) if pairs.bootstrap else _NONE,
      f"{'±' if each.claim.equal else ''}{scale.number(each.claim.smallest)}",
      str(len(pairs.seeds)),
      p_text(each.corrected_p).removeprefix("p ").removeprefix("= "),
      f"{each.claim.family} ({each.family_size})",
      f"**{each.verdict}**" if each.verdict in ("supported", "refuted")
      else each.verdict,
      _NONE if needed is None else f"{needed:,}",
    ])  # fmt: skip
  return markdown(header, lines)
