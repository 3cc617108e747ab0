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


def from_dense(name, stage):
  """The page of real models, and the rows of a model."""
  page = (ROOT / "docs" / "results_from_dense.md").read_text()
  path = ROOT / "docs" / "results" / "from_dense" / f"{name}.csv"
  with path.open() as file:
    return page, [row for row in csv.DictReader(file) if row["stage"] == stage]


def test_tables_of_real_models_are_those_of_the_rows():
  script = runpy.run_path(str(ROOT / "docs" / "from_dense_tables.py"))
  page = script["PAGE"].read_text()
  assert script["renewed"](page) == page


@pytest.mark.parametrize("name", ["minilm", "dinov2"])
def test_the_page_has_every_real_model_that_was_pruned_once(name):
  page, rows = from_dense(name, "one-shot")
  assert len(rows) >= 10
  for row in rows:
    loss, spread, above, error = (
      text_number(float(row[key]), 3)
      for key in ("loss", "loss_se", "above", "above_se")
    )
    sign = "+" * (float(row["above"]) > 0)
    cells = [row["method"], row["pattern"], f"{loss} ± {spread}"]
    if row["permuted"] == "no":
      cells.append(f"{sign}{above} ± {error}")
    else:  # behind the loss in the given order
      cells = cells[2:]
    assert f"| {' | '.join(cells)} |" in page


@pytest.mark.parametrize("name", ["minilm", "dinov2"])
def test_intervals_of_real_models_are_paired_by_seed(name):
  page, rows = from_dense(name, "tuned")
  page = page.partition(f"<!-- table tuned {name} -->")[2].partition("\n\n")[0]
  losses = {
    (row["method"], row["pattern"], row["seed"]): float(row["loss"])
    for row in rows
  }
  for recipe, pattern in {key[:2] for key in losses} - {("dense", "")}:
    seeds = [s for *cell, s in losses if cell == [recipe, pattern]]
    gap = np.array(
      [losses[recipe, pattern, s] - losses["dense", "", s] for s in seeds]
    )
    # Student's t with 2 degrees of freedom.
    half = 4.30265 * error(gap)
    mean, low, high = (
      text_number(x, 3)
      for x in (gap.mean(), gap.mean() - half, gap.mean() + half)
    )
    (line,) = re.findall(rf"^\| {recipe} \| {pattern} \|.*", page, re.MULTILINE)
    assert len(seeds) != 3 or f"{mean} [{low}, {high}]" in line


def test_the_text_of_real_models_quotes_its_tables():
  page = (ROOT / "docs" / "results_from_dense.md").read_text()
  bullets = re.findall(r"^\* .*?(?=\n\n|\n\*)", page, re.MULTILINE | re.DOTALL)
  tables = "\n".join(re.findall(r"^\|.*", page, re.MULTILINE))
  numbers = set(re.findall(r"[−+]?\d*\.\d+", tables))
  numbers |= {number.lstrip("+−") for number in numbers}
  quoted = re.findall(r"[−+]?\d*\.\d+", "\n".join(bullets))
  assert len(quoted) > 10
  assert not [number for number in quoted if number not in numbers]
