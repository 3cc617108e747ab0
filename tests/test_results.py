"""docs/results.md says what the committed rows of its studies say."""

import csv
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from figs_jax.analysis import judge, study, study_frame

ROOT = Path(__file__).parents[1]
PATTERNS = {"ff + qk 1:8": "qk 1:8"}


# In the order of their tables on the page.
STUDIES = ("fashion_vit", "stdlib_text", "fashion_resnet", "fashion_nested")


@pytest.mark.parametrize("name", STUDIES)
def test_verdicts_are_those_of_the_rows(name):
  config = runpy.run_path(str(ROOT / "configs" / f"study_{name}.py"))
  rows = study_frame(study.rows(ROOT / "docs" / "results" / name))
  judged = [
    judgement
    for judgement in judge(rows, config["get_config"]().claims.to_dict())
    if judgement.claim.metric == "loss"
  ]
  text = (ROOT / "docs" / "results.md").read_text()
  tables = text.split("| claim | at |")[1:]
  assert len(tables) == len(STUDIES)
  table = tables[STUDIES.index(name)].partition("\n\n")[0]
  lines = [
    [cell.strip() for cell in line.split("|")[2:-1]]
    for line in table.splitlines()[2:]
  ]
  printed = {}
  for at, difference, p, verdict in lines:
    printed.setdefault(difference.split()[0], []).append(
      (PATTERNS.get(at, at.removeprefix("ff ")), difference, p, verdict)
    )
  assert len(lines) == len(judged)
  for judgement in judged:
    assert judgement.pairs.interval
    mean, ends, p = re.search(
      r"loss (\S+) nats (\[.*?\]), .*?p (?:= )?(< \.001|\S+) ", judgement.line
    ).groups()
    entry = (
      judgement.pairs.pattern, f"{mean} {ends}", p, judgement.verdict,
    )  # fmt: skip
    assert entry in printed[mean], judgement.line


def fashion_rows():
  rows = study_frame(study.rows(ROOT / "docs" / "results" / "fashion_vit"))
  return rows.assign(key=rows.recipe + " " + rows.pattern + " " + rows.setting)


def of_cell(rows, recipe, pattern="", setting="", seeds=8):
  key = f"{recipe} {pattern} {setting}"
  cell = rows[(rows.key == key) & (rows.seed < seeds)].set_index("seed")
  assert len(cell) == seeds, key
  return cell


def text_number(value, digits):
  return f"{value:.{digits}f}".replace("-", "−").replace("0.", ".")


def error(values):
  return values.std(ddof=1) / len(values) ** 0.5


def mean_and_error(values):
  return f"{text_number(values.mean(), 4)} ± {text_number(error(values), 4)}"


def recipe_table():
  """Losses above dense of all recipes at four patterns, as the page prints."""
  rows = fashion_rows()
  patterns = ("1:4", "1:8", "1:16", "1:32")
  dense = of_cell(rows, "dense", seeds=5)
  lines = []
  for recipe in set(rows.recipe) - {"dense"}:
    losses, entries = [], []
    for pattern in patterns:
      cell = of_cell(rows, recipe, pattern, seeds=5)
      loss = 1e3 * (cell.loss - dense.loss)
      points = 100 * (cell.accuracy - dense.accuracy).mean()
      losses.append(loss.mean())
      entries.append(
        f"{loss.mean():.1f} ± {error(loss):.1f} ({text_number(points, 2)})"
      )
    lines.append((sum(losses), f"| {recipe} | {' | '.join(entries)} |\n"))
  head = f"| recipe | {' | '.join(patterns)} |\n|---|---|---|---|---|\n"
  return head + "".join(line for _, line in sorted(lines))


def order_table():
  """Losses of three cells, and of a pair of them, for both orders of data."""
  rows = fashion_rows()
  dense, sr_ste, figs = (
    [of_cell(rows, *cell, setting).loss for setting in ("", "shared order")]
    for cell in (("dense", ""), ("sr_ste", "1:8"), ("figs", "1:8"))
  )
  pairs = [one - other for one, other in zip(figs, sr_ste, strict=True)]
  lines = {"dense": dense, "sr_ste 1:8": sr_ste, "figs 1:8": figs}
  lines["FiGS − SR-STE at 1:8, paired"] = pairs
  return "".join(
    f"| {name} | {' | '.join(map(mean_and_error, losses))} |\n"
    for name, losses in lines.items()
  )


def test_tables_of_all_recipes_and_of_orders_are_those_of_the_rows():
  text = (ROOT / "docs" / "results.md").read_text()
  assert recipe_table() in text
  assert order_table() in text


def test_accuracies_of_nested_models_are_those_of_the_rows():
  rows = study_frame(study.rows(ROOT / "docs" / "results" / "fashion_nested"))
  text = (ROOT / "docs" / "results.md").read_text()

  def entry(recipe, pattern, setting=""):
    cell = rows[
      (rows.recipe == recipe)
      & (rows.pattern == pattern)
      & (rows.setting == setting)
    ]
    values = 100 * cell.accuracy
    assert len(values) == 5, (recipe, pattern)
    return f"{text_number(values.mean(), 2)} ± {text_number(error(values), 2)}"

  points = ("1:8", "2:8", "4:8", "8:8")
  separate = [entry("ste", point) for point in points[:3]]
  cut = [entry("figs", point, "cut from 1:8") for point in points[1:]]
  for model, entries in (
    ("nested", [entry("nested", point) for point in points]),
    ("separate (STE, dense)", [*separate, entry("dense", "")]),
    ("FiGS at 1:8, cut", [entry("figs", "1:8"), *cut]),
  ):
    assert f"| {model} | {' | '.join(entries)} |" in text


def test_the_gap_under_adam_and_under_sgd_is_that_of_the_rows():
  rows = study_frame(study.rows(ROOT / "docs" / "results" / "fashion_resnet"))
  cells = rows.set_index(["recipe", "setting", "seed"]).loss
  adamw, sgd = (
    cells["sr_ste", name] - cells["dense", name] for name in ("adamw", "sgd")
  )
  gap = adamw - sgd
  # Student's t with 2 degrees of freedom.
  half = 4.30265 * error(gap)
  mean, low, high = (
    text_number(x, 4)
    for x in (gap.mean(), gap.mean() - half, gap.mean() + half)
  )
  text = (ROOT / "docs" / "results.md").read_text()
  assert len(gap) == 3 and f"under SGD is {mean} [{low}, {high}]" in text


def test_the_advice_quotes_the_results():
  """Differences and bounds of which_recipe.md stand in results.md."""
  advice = (ROOT / "docs" / "which_recipe.md").read_text()
  results = (ROOT / "docs" / "results.md").read_text()
  quoted = re.findall(r"[−+]?\.\d{3,4}", advice)
  quoted = [number for number in quoted if number not in (".012", ".019")]
  assert len(quoted) >= 6
  assert not [number for number in quoted if number not in results]
  # Bits per byte by which mdgf_exp is ahead of the others.
  rows = r"^\| (\w+) \| 1:8 on ff \| (\d\.\d+) ±"
  bits = dict(re.findall(rows, results, re.MULTILINE))
  best = float(bits.pop("mdgf_exp"))
  ahead = [f"{float(value) - best:.3f}".lstrip("0") for value in bits.values()]
  assert f"{min(ahead)} to {max(ahead)} bits per byte" in " ".join(
    advice.split()
  )


def signed(value, digits):
  return "+" * (value > 0) + text_number(value, digits)


def from_dense_rows(name, stage):
  path = ROOT / "docs" / "results" / "from_dense" / f"{name}.csv"
  with path.open() as file:
    return [row for row in csv.DictReader(file) if row["stage"] == stage]


def one_shot_table(name):
  """Rows of one-shot pruning as the page prints them, sorted by loss."""
  (dense,) = from_dense_rows(name, "dense")
  lines = []
  rows = from_dense_rows(name, "one-shot")
  for row in [dense, *sorted(rows, key=one_shot_order)]:
    numbers = {k: float(row[k]) for k in row if "loss" in k or "acc" in k}
    above = error = ""
    if row is not dense:
      difference, spread = float(row["above"]), float(row["above_se"])
      above = f"{signed(difference, 3)} ± {text_number(spread, 3)}"
      error = text_number(float(row["layer_error"]), 3)
    loss = f"{numbers['loss']:.3f} ± {numbers['loss_se']:.3f}"
    percent = 100 * numbers["accuracy"], 100 * numbers["accuracy_se"]
    method = row["method"] + ", permuted" * (row["permuted"] == "yes")
    lines.append(
      f"| {method} | {row['pattern'] or 'dense'} | {loss} | {above} |"
      f" {percent[0]:.1f} ± {percent[1]:.1f} | {error} |\n"
    )
  return (
    "| method | pattern | loss | above dense | accuracy, % | error of layers |"
    "\n|---|---|---|---|---|---|\n" + "".join(lines)
  )


def one_shot_order(row):
  return row["pattern"] != "2:4", float(row["loss"])


def tuned_table(name):
  """Means and standard errors over the seeds of fine-tuning."""
  cells = {}
  for row in from_dense_rows(name, "tuned"):
    key = row["pattern"] != "", row["pattern"] != "2:4", row["method"]
    cells.setdefault(key, []).append(row)
  lines = []
  for _, rows in sorted(cells.items()):
    loss, accuracy = (
      np.array([float(row[column]) for row in rows])
      for column in ("loss", "accuracy")
    )
    errors = (
      f" ± {error(values):.{digits}f}" if len(rows) > 1 else ""
      for values, digits in ((loss, 3), (100 * accuracy, 1))
    )
    lines.append(
      f"| {rows[0]['method']} | {rows[0]['pattern'] or 'dense'} |"
      f" {loss.mean():.3f}{next(errors)} |"
      f" {100 * accuracy.mean():.1f}{next(errors)} | {len(rows)} |\n"
    )
  return (
    "| recipe | pattern | loss | accuracy, % | seeds |\n"
    "|---|---|---|---|---|\n" + "".join(lines)
  )


def test_tables_of_real_models_are_those_of_the_rows():
  text = (ROOT / "docs" / "results.md").read_text()
  assert one_shot_table("minilm") in text
  assert one_shot_table("dinov2") in text
  assert tuned_table("minilm") in text
