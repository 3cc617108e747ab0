"""Renews the tables of docs/results_from_dense.md from its CSV files.

  python docs/from_dense_tables.py

A table stands below `<!-- table KIND NAME -->`: KIND is one_shot, permuted,
tuned or pairs, NAME a file of docs/results/from_dense.
"""

import csv
import itertools
import re
from pathlib import Path

import numpy as np

from figs_jax.analysis.statistics import paired_interval

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "results_from_dense.md"
RECIPES = ("dense", "asp", "sr_ste", "figs")
PATTERNS = ("", "2:4", "1:4")
_TABLE = re.compile(r"(<!-- table (\w+) (\w+) -->\n)(?:\|.*\n)*")


def rows_of(name, stage):
  path = DOCS / "results" / "from_dense" / f"{name}.csv"
  with path.open() as file:
    return [row for row in csv.DictReader(file) if row["stage"] == stage]


def number(value, digits, sign=False):
  text = f"{value:{'+' * sign}.{digits}f}".replace("-", "−")
  return text.replace("0.", ".", 1) if abs(value) < 1 else text


def measured(row, name, digits, scale=1, sign=False):
  """A value with its standard error; empty if it was not measured."""
  if not row[name]:
    return ""
  values = (scale * float(row[key]) for key in (name, f"{name}_se"))
  mean, error = values
  return f"{number(mean, digits, sign)} ± {number(error, digits)}"


def table(head, lines):
  if not lines:
    return ""
  rule = "|" + "---|" * len(head) + "\n"
  head, *lines = (f"| {' | '.join(row)} |\n" for row in (head, *lines))
  return head + rule + "".join(lines)


def one_shot(name):
  """Methods in the given order of channels, by pattern and loss."""
  rows = [r for r in rows_of(name, "one-shot") if r["permuted"] == "no"]
  rows.sort(key=lambda r: (PATTERNS.index(r["pattern"]), float(r["loss"])))
  lines = [
    [
      row["method"],
      row["pattern"] or "dense",
      measured(row, "loss", 3),
      measured(row, "above", 3, sign=True) if row["pattern"] else "",
      measured(row, "accuracy", 1, 100),
      number(float(row["layer_error"]), 3) if row["layer_error"] else "",
    ]
    for row in [*rows_of(name, "dense"), *rows]
  ]
  head = ["method", "pattern", "loss", "above dense", "accuracy, %"]
  return table([*head, "error of layers"], lines)


def permuted(name):
  """Methods with permuted channels against the given order."""
  rows = rows_of(name, "one-shot")
  lines = []
  for row in rows:
    if row["permuted"] != "yes":
      continue
    (given,) = (
      r
      for r in rows
      if r["permuted"] == "no"
      and (r["method"], r["pattern"]) == (row["method"], row["pattern"])
    )
    lines.append(
      [row["method"], row["pattern"]]
      + [measured(r, "loss", 3) for r in (given, row)]
      + [measured(row, "above_given", 3, sign=True)]
      + [measured(r, "accuracy", 1, 100) for r in (given, row)]
    )
  losses = ["given order: loss", "permuted: loss", "difference"]
  accuracies = ["given order: accuracy, %", "permuted: accuracy, %"]
  return table(["method", "pattern", *losses, *accuracies], lines)


def by_seed(name):
  """Loss and accuracy in % of each seed, by pattern and recipe."""
  cells = {}
  for row in rows_of(name, "tuned"):
    cell = cells.setdefault((row["pattern"], row["method"]), {})
    cell[row["seed"]] = float(row["loss"]), 100 * float(row["accuracy"])
  return cells


def difference(cell, other, index, digits):
  """The paired difference of two cells with its 95 % interval."""
  pairs = [
    cell[seed][index] - other[seed][index] for seed in cell.keys() & other
  ]
  if len(pairs) < 2:
    return f"{number(pairs[0], digits, True)} (one seed)" if pairs else ""
  between = paired_interval(sorted(pairs))
  ends = (number(x, digits) for x in (between.low, between.high))
  return f"{number(between.mean, digits, True)} [{', '.join(ends)}]"


def tuned(name):
  """Recipes, with the differences from the dense continuation."""
  cells, lines = by_seed(name), []
  for key in itertools.product(PATTERNS, RECIPES):
    if key not in cells:
      continue
    pattern, recipe = key
    values = np.array(list(cells[key].values()))
    count = len(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / count**0.5 if count > 1 else None
    spread = (
      "" if error is None else f" ± {number(error[i], digits)}"
      for i, digits in ((0, 3), (1, 1))
    )
    others = ["", ""]
    if pattern and ("", "dense") in cells:
      dense = cells["", "dense"]
      others = [difference(cells[key], dense, i, 3 - 2 * i) for i in (0, 1)]
    lines.append(
      [recipe, pattern or "dense"]
      + [f"{number(mean[0], 3)}{next(spread)}", others[0]]
      + [f"{number(mean[1], 1)}{next(spread)}", others[1], str(count)]
    )
  head = ["recipe", "pattern", "loss", "above dense [95 %]", "accuracy, %"]
  return table([*head, "above dense, points [95 %]", "seeds"], lines)


def pairs(name):
  """Differences of the loss between recipes at the same pattern."""
  cells, lines = by_seed(name), []
  for pattern in PATTERNS[1:]:
    for one, other in (("sr_ste", "asp"), ("figs", "asp"), ("figs", "sr_ste")):
      if (pattern, one) in cells and (pattern, other) in cells:
        two = cells[pattern, one], cells[pattern, other]
        lines.append(
          [f"{one} − {other}", pattern, difference(*two, 0, 3)]
          + [difference(*two, 1, 1)]
        )
  head = ["difference", "pattern", "loss [95 %]", "accuracy, points [95 %]"]
  return table(head, lines)


KINDS = {
  "one_shot": one_shot,
  "permuted": permuted,
  "tuned": tuned,
  "pairs": pairs,
}


def renewed(page):
  """The page with its tables renewed."""
  return _TABLE.sub(lambda m: m[1] + KINDS[m[2]](m[3]), page)


def main():
  PAGE.write_text(renewed(PAGE.read_text()))


if __name__ == "__main__":
  main()
