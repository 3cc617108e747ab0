"""Rows of a study and paired differences, against SciPy and NumPy."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import figs_jax
from figs_jax.analysis import statistics
from figs_jax.analysis._study_pairs import measure, paired, study_frame

from .simulated_study import add_examples, simulate

pytest.importorskip("pandas", reason="pandas is in the extra study")
RECIPES = {"dense": 0.0, "figs": 0.5, "sr_ste": 0.0}


def side(rows, recipe, metric, pattern="1:8"):
  return [
    float(row[metric])
    for row in rows
    if row["recipe"] == recipe and row["pattern"] == pattern
  ]


@pytest.mark.parametrize("metric,factor", [("loss", 1), ("accuracy", 100)])
def test_pairs_are_scipys_paired_t_test(metric, factor):
  rows = simulate(RECIPES, seeds=6)
  pairs = paired(study_frame(rows), "figs", "sr_ste", metric, "1:8")
  theirs = stats.ttest_rel(
    side(rows, "figs", metric), side(rows, "sr_ste", metric)
  )
  low, high = theirs.confidence_interval()
  assert pairs.interval.p == pytest.approx(theirs.pvalue, rel=1e-9)
  assert pairs.interval.low == pytest.approx(factor * low, rel=1e-9)
  assert pairs.interval.high == pytest.approx(factor * high, rel=1e-9)
  assert pairs.seeds == tuple(range(6)) and pairs.bootstrap is None
  assert pairs.order == "own"


def test_pairs_do_not_depend_on_the_order_of_rows():
  rows = simulate(RECIPES, seeds=5)
  shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
  one, other = (
    paired(study_frame(each), "figs", "sr_ste", "loss", "1:8")
    for each in (rows, shuffled)
  )
  assert one == other


def test_one_dense_cell_serves_all_patterns():
  frame = study_frame(simulate(RECIPES))
  for pattern in ("1:8", "1:32"):
    pairs = paired(frame, "figs", "dense", "accuracy", pattern)
    assert len(pairs.seeds) == 8 and pairs.worse == ("dense", "", "")
    assert pairs.better == ("figs", pattern, "")
    assert pairs.name == f"figs − dense at {pattern}"


def test_missing_and_diverged_seeds_are_left_out_in_pairs_and_counted():
  rows = simulate(RECIPES, seeds=6)
  at = {(row["recipe"], row["pattern"], row["seed"]): row for row in rows}
  at["figs", "1:8", "0"]["loss"] = ""  # as NaN is written
  at["sr_ste", "1:8", "1"]["loss"] = "nan"
  at["sr_ste", "1:8", "2"]["loss"] = "inf"
  at["figs", "1:8", "3"]["finished"] = "false"
  rows.remove(at["sr_ste", "1:8", "4"])
  rows[-1]["seed"] = "77"  # only one cell has it, of another pattern
  pairs = paired(study_frame(rows), "figs", "sr_ste", "loss", "1:8")
  assert (pairs.seeds, pairs.missing, pairs.diverged) == ((5,), 1, 4)
  wanted = [float(at[r, "1:8", "5"]["loss"]) for r in ("figs", "sr_ste")]
  assert pairs.differences == pytest.approx((wanted[0] - wanted[1],))
  assert pairs.interval is None and math.isnan(pairs.deviation)


def test_settings_are_kept_apart():
  rows = simulate(RECIPES, seeds=4)
  rows += simulate(RECIPES, seeds=4, setting="wide", rng=1)
  frame = study_frame(rows)
  wide = {"better_setting": "wide", "worse_setting": "wide"}
  same = paired(frame, "figs", "sr_ste", "loss", "1:8", **wide)
  alone = study_frame(simulate(RECIPES, seeds=4, rng=1))
  other = paired(alone, "figs", "sr_ste", "loss", "1:8")
  assert same.differences == other.differences
  assert same.name == "figs − sr_ste at 1:8 [wide]"
  across = paired(frame, "figs", "figs", "loss", "1:8", better_setting="wide")
  assert across.name == "figs [wide] − figs at 1:8"


def test_order_is_of_the_csv_or_of_configs(tmp_path):
  rows = simulate(RECIPES, seeds=2)
  for row in rows:
    if row["recipe"] == "figs":
      row["config.data.order"] = "shared"
  pairs = paired(study_frame(rows), "figs", "sr_ste", "loss", "1:8")
  assert pairs.order == "shared and own"
  configs = {row["config"]: {"data.order": "own"} for row in rows}
  for row in rows:
    del row["config.data.order"]
  unknown = paired(study_frame(rows), "figs", "sr_ste", "loss", "1:8")
  assert unknown.order == "not recorded"
  (tmp_path / "configs.json").write_text(json.dumps(configs))
  known = paired(
    study_frame(rows), "figs", "sr_ste", "loss", "1:8", out=tmp_path
  )
  assert known.order == "own"


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_bootstrap_is_that_of_the_example_files(metric, tmp_path):
  rows = simulate(RECIPES, seeds=4)
  add_examples(rows, tmp_path, examples=101)  # not a multiple of 8
  pairs = paired(
    study_frame(rows), "figs", "sr_ste", metric, "1:8", out=tmp_path
  )
  sides = []
  for recipe in ("figs", "sr_ste"):
    (name,) = {
      row["examples"]
      for row in rows
      if (row["recipe"], row["pattern"]) == (recipe, "1:8")
    }
    with np.load(tmp_path / name) as file:
      if metric == "accuracy":
        bits = np.unpackbits(file["correct"], axis=1)[:, :101]
        sides.append(100.0 * bits)
      else:
        sides.append(file["loss"].astype(float))
  wanted = statistics.bootstrap_interval(sides[0] - sides[1])
  assert pairs.bootstrap.low == pytest.approx(wanted.low, rel=1e-9)
  assert pairs.bootstrap.high == pytest.approx(wanted.high, rel=1e-9)
  assert pairs.bootstrap.mean == pytest.approx(pairs.interval.mean, abs=1e-6)
  assert pairs.bootstrap.standard_error > pairs.interval.standard_error


def test_weighted_examples(tmp_path):
  """As for texts of many tokens: the error of a resampled ratio."""
  rows = [r for r in simulate(RECIPES, seeds=3) if r["pattern"] == "1:8"]
  add_examples(rows, tmp_path)
  rng = np.random.default_rng(0)
  weight = rng.integers(1, 9, 400).astype(np.float32)
  losses = {}
  for name in {row["examples"] for row in rows}:
    with np.load(tmp_path / name) as file:
      arrays = dict(file) | {"weight": weight}
    np.savez(tmp_path / name, **arrays)
    losses[name] = arrays["loss"].astype(float)
  for row in rows:
    of_seed = losses[row["examples"]][int(row["seed"])]
    row["loss"] = str(np.average(of_seed, weights=weight))
  pairs = paired(
    study_frame(rows), "figs", "sr_ste", "loss", "1:8", out=tmp_path
  )
  one, other = (
    losses[next(r["examples"] for r in rows if r["recipe"] == recipe)]
    for recipe in ("figs", "sr_ste")
  )
  means = []
  for _ in range(2000):
    seeds, kept = rng.integers(0, 3, 3), rng.integers(0, 400, 400)
    drawn = (one - other)[seeds][:, kept].mean(0)
    means.append(np.average(drawn, weights=weight[kept]))
  wanted = np.std(means) * math.sqrt(3 / 2)
  assert pairs.bootstrap.standard_error == pytest.approx(wanted, rel=0.06)
  assert pairs.bootstrap.mean == pytest.approx(pairs.interval.mean)


def test_bootstrap_reads_only_the_seeds_of_both_cells(tmp_path):
  rows = simulate(RECIPES, seeds=4)
  add_examples(rows, tmp_path)
  rows = [r for r in rows if (r["recipe"], r["seed"]) != ("figs", "2")]
  pairs = paired(
    study_frame(rows), "figs", "sr_ste", "loss", "1:8", out=tmp_path
  )
  assert pairs.bootstrap.n == 3


def test_no_bootstrap_without_files_or_with_another_mean(tmp_path):
  rows = simulate(RECIPES, seeds=3)
  add_examples(rows, tmp_path)
  other = [row | {"loss": str(float(row["loss"]) + 0.1)} for row in rows]
  missing = [
    row | {"examples": "" if row["recipe"] == "figs" else row["examples"]}
    for row in rows
  ]
  gone = [row | {"examples": "examples/none.npz"} for row in rows]
  for each in (other, missing, gone):
    frame = study_frame(each)
    pairs = paired(frame, "figs", "sr_ste", "loss", "1:8", out=tmp_path)
    assert pairs.bootstrap is None and pairs.interval is not None


def test_examples_that_do_not_belong_together_are_refused(tmp_path):
  rows = simulate(RECIPES, seeds=3)
  add_examples(rows, tmp_path)
  for row in rows:
    if row["seed"] == "2":
      row["seed"] = "7"
  with pytest.raises(ValueError, match=r"results of seed 7, got .*\[0, 1, 2\]"):
    paired(study_frame(rows), "figs", "sr_ste", "loss", "1:8", out=tmp_path)
  rows = simulate(RECIPES, seeds=3)
  short = [row for row in rows if row["recipe"] == "figs"]
  add_examples([r for r in rows if r["recipe"] != "figs"], tmp_path)
  (tmp_path / "short").mkdir()
  add_examples(short, tmp_path / "short", examples=200)
  for row in short:
    row["examples"] = f"short/{row['examples']}"
  with pytest.raises(ValueError, match="same test examples .* got 400 and 200"):
    paired(study_frame(rows), "figs", "sr_ste", "loss", "1:8", out=tmp_path)


def test_columns_of_text_stay_text():
  """Digits of a configuration's hash are text: 12e3 is not 12000."""
  rows = simulate(
    RECIPES, seeds=1, columns={"stages": "NA", "config": "123456e78901"}
  )
  frame = study_frame(rows)
  assert set(frame.config) == {"123456e78901"}
  assert set(frame.stages) == {"NA"}
  other = study_frame([row | {"host": f"n{row['seed']}"} for row in rows])
  assert set(other.host) == {"n0"} and other.step.dtype == float
  assert frame.accuracy.dtype == float and frame.seed.dtype == int


def _changed(**change):
  rows = simulate(RECIPES, seeds=2)
  rows[1] |= change
  return rows


@pytest.mark.parametrize(
  "rows,message",
  [
    (_changed(loss="much"), "line 3: expected a number in column 'loss'"),
    (_changed(seed="0"), "cell 'dense' has seed 0 twice"),
    (_changed(density="low"), "line 3: expected a number in column 'density'"),
    (_changed(seed=""), "line 3: expected a number in column 'seed', got ''"),
    ([{"recipe": "dense", "seed": "0"}], "column 'pattern', got recipe, seed"),
    ([], "study.csv: expected rows, got none"),
  ],
)
def test_bad_rows_are_one_line(rows, message):
  with pytest.raises(ValueError, match=message) as caught:
    study_frame(rows)
  assert "\n" not in str(caught.value)


def test_a_missing_pandas_is_one_line(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pandas", None)
  with pytest.raises(ValueError, match=r"pip install 'figs_jax\[study\]'"):
    study_frame(simulate(RECIPES))


def test_nothing_imports_pandas_or_statsmodels_at_once():
  root = Path(figs_jax.__file__).parent
  for path in root.rglob("*.py"):
    text = path.read_text()
    if "pandas" not in text and "statsmodels" not in text:
      continue
    for node in ast.parse(text).body:
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      tops = {name.partition(".")[0] for name in names}
      assert not tops & {"pandas", "statsmodels"}, path


def test_an_unknown_metric_is_refused():
  with pytest.raises(ValueError, match="got 'accurcy'"):
    measure("accurcy")


def test_measures_know_their_sign():
  signs = {name: measure(name).sign for name in ("accuracy", "loss", "bleu")}
  assert signs == {"accuracy": 1, "loss": -1, "bleu": 1}
  assert measure("loss_bfloat16").sign == -1
