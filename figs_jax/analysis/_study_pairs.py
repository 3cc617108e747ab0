"""Rows of a study as a DataFrame, and the differences of two cells by seed.

Run i of two cells has the same initial weights, augmentation and data order, so
that most of the spread over seeds cancels in the difference. pandas is imported
by `study_frame` only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figs_jax.analysis._study_examples import example_differences
from figs_jax.analysis.statistics import (
  Interval,
  bootstrap_interval,
  paired_interval,
)
from figs_jax.train.seeds import mean_and_se

if TYPE_CHECKING:
  from pandas import DataFrame
else:
  DataFrame = Any

# Columns of text; those of `config.FIELD` are text too.
_TEXT = {
  "study", "grid", "cell", "recipe", "pattern", "rules", "setting", "config",
  "version", "examples", "stages", "switched_at", "k", "exact_nm", "finished",
}  # fmt: skip
_DTYPE = r"_((?:bfloat|float|int)\d\w*)"
_UNKNOWN_ORDER = "not recorded"
Cell = tuple[str, str, str]  # recipe, pattern, setting
Cells = dict[Cell, dict[int, dict[str, Any]]]  # rows by seed


@dataclasses.dataclass(frozen=True)
class Measure:
  """How a metric of study.csv is compared and written.

  Attributes:
    name: Its name in words.
    scale: Unit of values; "" for none.
    unit: Unit of differences; "" for none.
    factor: Factor from the CSV's values to the unit.
    digits: Digits after the point.
    sign: 1 if more is better, -1 if less is.
  """

  name: str
  scale: str
  unit: str
  factor: float
  digits: int
  sign: int

  @property
  def label(self) -> str:
    """Name with the unit of values, for axes and tables.

    >>> measure("accuracy_bfloat16").label
    'test accuracy in bfloat16, %'
    """
    return ", ".join(filter(None, (self.name, self.scale)))

  @property
  def difference(self) -> str:
    """Name with the unit of differences.

    >>> measure("accuracy").difference
    'test accuracy, points'
    """
    return ", ".join(filter(None, (self.name, self.unit)))

  def with_unit(self, value: float, *, signed: bool = False) -> str:
    """A difference with its unit.

    >>> measure("loss").with_unit(-0.0106), measure("bleu").with_unit(0.5)
    ('−.0106 nats', '.50')
    """
    return f"{self.number(value, signed=signed)} {self.unit}".strip()

  def number(self, value: float, *, signed: bool = False) -> str:
    """A value in the unit, without a leading zero.

    >>> measure("accuracy").number(0.414, signed=True)
    '+.41'
    """
    return number(value, self.digits, signed=signed)

  def range(self, interval: Interval) -> str:
    """Both ends of an interval.

    >>> measure("loss").range(paired_interval([-0.01, 0.01, 0.03]))
    '[−.0397, .0597]'
    """
    return f"[{self.number(interval.low)}, {self.number(interval.high)}]"


_MEASURES = {
  "accuracy": Measure("test accuracy", "%", "points", 100.0, 2, 1),
  "loss": Measure("test loss", "nats", "nats", 1.0, 4, -1),
  "bits_per_byte": Measure("bits per byte", "", "", 1.0, 4, -1),
  "glue_score": Measure("GLUE score", "%", "points", 100.0, 2, 1),
  "bleu": Measure("BLEU", "", "", 1.0, 2, 1),
}


def measure(metric: str) -> Measure:
  """How a metric is compared; `METRIC_DTYPE` is METRIC evaluated in a dtype.

  Raises:
    ValueError: If the metric is unknown.

  >>> measure("accuracy_bfloat16").factor
  100.0
  """
  known = _measure(metric)
  if known is None:
    raise ValueError(
      f"Expected a metric of {', '.join(_MEASURES)}, or one of them with the"
      f" name of a dtype such as accuracy_bfloat16, got {metric!r}"
    )
  return known


def _measure(column: str) -> Measure | None:
  for name, known in _MEASURES.items():
    if column == name:
      return known
    if match := re.fullmatch(name + _DTYPE, column):
      return dataclasses.replace(known, name=f"{known.name} in {match[1]}")
  return None


def metrics_of(rows: DataFrame) -> list[str]:
  """The metrics that a study has, in a fixed order."""
  return [
    column
    for name in _MEASURES
    for column in rows.columns
    if column.startswith(name)
    if _measure(column) is not None and rows[column].notna().any()
  ]


def number(value: float, digits: int, *, signed: bool = False) -> str:
  """A number with so many digits after the point and no zero before it.

  >>> number(-0.0106, 4), number(83.02, 2), number(0.2, 1, signed=True)
  ('−.0106', '83.02', '+.2')
  """
  if not math.isfinite(value):
    return "–"
  text = f"{abs(value):.{digits}f}"
  if text.startswith("0."):
    text = text[1:]
  zero = not text.strip(".0")
  sign = "" if zero else "−" if value < 0 else "+" if signed else ""
  return sign + text


def pandas_module() -> Any:
  """pandas, so that a program can fail before it has trained anything.

  Raises:
    ValueError: If pandas is not installed.
  """
  try:
    import pandas
  except ImportError as error:
    raise ValueError(
      "tables of a study need pandas: pip install 'figs_jax[study]'"
    ) from error
  return pandas


def study_frame(rows: Iterable[Mapping[str, str]]) -> DataFrame:
  """Rows of study.csv, given as text, with their numbers as numbers.

  Empty numbers become NaN. Empty text stays: the pattern of a dense recipe, the
  setting of a study that has one setting. Other columns are numbers if all of
  their texts are.

  Args:
    rows: Text by column.

  Raises:
    ValueError: If pandas is not installed, a column is missing, text stands in
      place of a number, or a seed occurs twice in a cell.

  >>> row = {"recipe": "dense", "pattern": "", "setting": "", "seed": "0"}
  >>> frame = study_frame([row | {"accuracy": ".8", "loss": ""}])
  >>> frame.accuracy.tolist(), frame.loss.tolist(), frame.pattern.tolist()
  ([0.8], [nan], [''])
  """
  pd = pandas_module()
  frame = pd.DataFrame(list(rows), dtype=object).fillna("")
  if frame.empty:
    raise ValueError("study.csv: expected rows, got none; run the study first")
  for column in ("recipe", "pattern", "setting", "seed"):
    if column not in frame.columns:
      raise ValueError(
        f"study.csv: expected a column {column!r}, got"
        f" {', '.join(map(str, frame.columns))}"
      )
  for column in frame.columns:
    if column in _TEXT or column.startswith("config."):
      continue
    texts = frame[column].replace("", "nan")
    values = pd.to_numeric(texts, errors="coerce")
    wrong = values.isna() & ((texts.str.lower() != "nan") | (column == "seed"))
    if not wrong.any():
      frame[column] = values.astype(int if column == "seed" else float)
    elif _is_number(column):
      place = int(np.flatnonzero(wrong)[0])
      raise ValueError(
        f"study.csv, line {place + 2}: expected a number in column {column!r},"
        f" got {frame[column].iloc[place]!r}"
      )
  cells_of(frame)
  return frame


def _is_number(column: str) -> bool:
  """Whether tables and tests need the numbers of a column."""
  return (
    column in ("seed", "density", "train_flops")
    or column.startswith("speedup:")
    or _measure(column) is not None
  )


def mean_of_cell(
  of_cell: Mapping[int, Mapping[str, Any]], column: str
) -> tuple[float, float]:
  """Mean and standard error over seeds, a metric's in its printed unit.

  >>> rows = {0: {"accuracy": 0.5}, 1: {"accuracy": 0.75}}
  >>> mean_of_cell(rows, "accuracy")
  (62.5, 12.5)
  """
  factor = 1.0 if column.startswith("speedup:") else measure(column).factor
  return mean_and_se(
    [factor * row.get(column, math.nan) for row in of_cell.values()]
  )


def cells_of(rows: DataFrame) -> Cells:
  """Rows by cell and seed.

  Raises:
    ValueError: If a seed occurs twice in a cell.
  """
  cells: Cells = {}
  for row in rows.to_dict("records"):
    key = row["recipe"], row["pattern"], row["setting"]
    of_cell, seed = cells.setdefault(key, {}), int(row["seed"])
    if seed in of_cell:
      configs = [str(r.get("config", "")) for r in (of_cell[seed], row)]
      raise ValueError(
        f"study.csv: cell {cell_name(key)!r} has seed {seed} twice, with"
        f" configurations {' and '.join(configs)}; remove the rows of one"
      )
    of_cell[seed] = {str(column): value for column, value in row.items()}
  return cells


def cell_name(key: Cell) -> str:
  """Recipe, pattern and setting in words.

  >>> cell_name(("figs", "1:8", "wide")), cell_name(("dense", "", ""))
  ('figs 1:8 [wide]', 'dense')
  """
  recipe, pattern, setting = key
  return " ".join(filter(None, (recipe, pattern, setting and f"[{setting}]")))


def cell_at(cells: Cells, recipe: str, pattern: str, setting: str) -> Cell:
  """The cell of a recipe at a pattern; one without pattern serves all."""
  dense = recipe, "", setting
  return dense if dense in cells else (recipe, pattern, setting)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Differences of two cells by seed, `better` minus `worse`.

  Attributes:
    better: Cell that is compared.
    worse: Cell that it is compared with.
    pattern: Label of the pattern at which they are compared.
    metric: Column of study.csv.
    seeds: Seeds with both results.
    differences: Differences in the unit of the metric, one per seed.
    missing: Number of seeds that only one of the two cells has.
    diverged: Number of seeds of both cells without a finite result in one.
    order: `data.order` of the runs; both values if they differ.
    interval: Student's interval over seeds; None for fewer than two seeds.
    bootstrap: Interval over seeds and test examples; None without per-example
      results.
  """

  better: Cell
  worse: Cell
  pattern: str
  metric: str
  seeds: tuple[int, ...]
  differences: tuple[float, ...]
  missing: int
  diverged: int
  order: str
  interval: Interval | None
  bootstrap: Interval | None

  @property
  def name(self) -> str:
    """The contrast in words, such as "mdgf_exp − sr_ste at 1:32"."""
    sides = [cell_name((r, "", s)) for r, _, s in (self.better, self.worse)]
    if self.better[2] == self.worse[2]:  # a common setting is named once
      sides = [self.better[0], self.worse[0]]
    common = self.better[2] if self.better[2] == self.worse[2] else ""
    where = cell_name((self.pattern, "", common))
    return " − ".join(sides) + (f" at {where}" if where else "")

  @property
  def mean(self) -> float:
    """Mean difference, NaN without any."""
    return float(np.mean(self.differences)) if self.differences else math.nan

  @property
  def deviation(self) -> float:
    """Standard deviation of the differences, NaN for fewer than two."""
    if len(self.differences) < 2:
      return math.nan
    return float(np.std(self.differences, ddof=1))


def paired(
  rows: DataFrame,
  better: str,
  worse: str,
  metric: str,
  pattern: str,
  *,
  better_setting: str = "",
  worse_setting: str = "",
  out: str | Path | None = None,
  confidence: float = 0.95,
) -> Pairs:
  """Compares two cells seed by seed.

  A seed that only one of them has, that diverged in one or that did not finish
  is left out of both and counted. The interval over seeds is Student's. The
  interval over seeds and test examples (`statistics.bootstrap_interval`) needs
  the per-example results of both cells, with the metric as their mean.

  Args:
    rows: Rows from `study_frame`.
    better: Label of a recipe.
    worse: Label of the recipe to subtract.
    metric: Column of the rows.
    pattern: Label of a pattern. A recipe without pattern serves all.
    better_setting: Setting of `better`.
    worse_setting: Setting of `worse`.
    out: Directory of the study, with examples/ and configs.json. None leaves
      the bootstrap out.
    confidence: Confidence of the intervals.

  Raises:
    ValueError: If the metric is unknown, or the per-example results of the two
      cells do not belong together.

  >>> rows = [
  ...   {"recipe": recipe, "pattern": "1:8", "setting": "", "seed": str(seed),
  ...    "loss": str(loss)}
  ...   for recipe, losses in {"figs": (0.5, 0.6, 0.4), "ste": (0.7, 0.8, 0.7)
  ...   }.items() for seed, loss in enumerate(losses)
  ... ]
  >>> pairs = paired(study_frame(rows), "figs", "ste", "loss", "1:8")
  >>> pairs.name, round(pairs.interval.mean, 3), pairs.interval.n
  ('figs − ste at 1:8', -0.233, 3)
  """
  return pair_up(
    cells_of(rows),
    (better, better_setting),
    (worse, worse_setting),
    metric,
    pattern,
    out=out,
    confidence=confidence,
  )


def pair_up(
  cells: Cells,
  better: tuple[str, str],
  worse: tuple[str, str],
  metric: str,
  pattern: str,
  *,
  out: str | Path | None = None,
  confidence: float = 0.95,
) -> Pairs:
  """`paired` of rows by cell; `better` and `worse` are recipe and setting."""
  factor = measure(metric).factor
  keys = [
    cell_at(cells, recipe, pattern, setting)
    for recipe, setting in (better, worse)
  ]
  one, other = (cells.get(key, {}) for key in keys)
  common = sorted(one.keys() & other.keys())
  values = {
    s: (_value(one[s], metric), _value(other[s], metric)) for s in common
  }
  seeds = [s for s in common if all(map(math.isfinite, values[s]))]
  differences = [factor * (values[s][0] - values[s][1]) for s in seeds]
  known = [row[s] for row in (one, other) for s in seeds]
  interval = bootstrap = None
  if len(seeds) > 1:
    interval = paired_interval(differences, confidence)
    if out is not None:
      of_examples = example_differences(
        _files(one, seeds, metric), _files(other, seeds, metric), metric,
        Path(out),
      )  # fmt: skip
      if of_examples is not None:
        bootstrap = bootstrap_interval(factor * of_examples, confidence)
  return Pairs(
    better=keys[0],
    worse=keys[1],
    pattern=pattern,
    metric=metric,
    seeds=tuple(seeds),
    differences=tuple(differences),
    missing=len(one.keys() ^ other.keys()),
    diverged=len(common) - len(seeds),
    order=order_of(known, out),
    interval=interval,
    bootstrap=bootstrap,
  )


def _value(row: Mapping[str, Any], metric: str) -> float:
  finished = str(row.get("finished", "true")).lower() != "false"
  return float(row.get(metric, math.nan)) if finished else math.nan


def _files(
  of_cell: Mapping[int, Mapping[str, Any]], seeds: list[int], metric: str
) -> dict[int, tuple[str, float]]:
  """File of per-example results and metric by seed."""
  return {
    seed: (str(row.get("examples", "")), _value(row, metric))
    for seed, row in ((seed, of_cell[seed]) for seed in seeds)
  }


def order_of(rows: Iterable[Mapping[str, Any]], out: str | Path | None) -> str:
  """`data.order` of the rows: of the CSV, else of OUT/configs.json."""
  column, configs = "config.data.order", None
  orders: dict[str, None] = {}
  for row in rows:
    order = row.get(column)
    if not order and out is not None:
      if configs is None:
        path = Path(out, "configs.json")
        configs = json.loads(path.read_text()) if path.is_file() else {}
      order = configs.get(row.get("config"), {}).get("data.order")
    orders[str(order or _UNKNOWN_ORDER)] = None
  return " and ".join(orders) or _UNKNOWN_ORDER
