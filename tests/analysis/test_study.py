"""Studies: cells of the grid, rows on disk, and going on where it stopped."""

import csv
import json
import shutil

import numpy as np
import pytest

from figs_jax.analysis import _study_rows, study
from figs_jax.train.config import ConfigError, recipe_of
from figs_jax.train.loop import Diverged
from figs_jax.train.loop import train as real_train


def small(**fields):
  """A study of digits that takes seconds."""
  config = study.default_config()
  config.name = "small"
  config.common = {
    "total_steps": 3,
    "batch_size": 8,
    "diagnose_every": 0,
    "progress": False,
    "optimizer": {"warmup_steps": 1},
    "model": {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 16},
  }
  config.recipes = {
    "dense": {"name": "dense"},
    "sr_ste": {"name": "sr_ste"},
    "figs k=2": {"name": "figs", "k": 2},
  }
  config.patterns = {"1:4": "ff: 1:4", "1:8": "ff: 1:8"}
  config.grids = {
    "a": {
      "recipes": ("dense", "sr_ste", "figs k=2"),
      "patterns": ("1:4", "1:8"),
      "seeds": 2,
    }
  }
  for name, value in fields.items():
    config[name] = value
  return config


def test_cells_are_the_grid_with_dense_once():
  cells = study.cells(small())
  assert [cell.name for cell in cells] == [
    "dense",
    "sr_ste 1:4",
    "sr_ste 1:8",
    "figs k=2 1:4",
    "figs k=2 1:8",
  ]
  assert {cell.seeds for cell in cells} == {(0, 1)}
  figs = cells[-1].config
  assert (figs.recipe.k, figs.pattern, figs.model.width) == (2, "ff: 1:8", 16)


def test_a_cell_of_two_grids_has_the_most_seeds():
  config = small()
  config.grids.b = {"recipes": ("sr_ste",), "patterns": ("1:8",), "seeds": 5}
  cells = {cell.name: cell for cell in study.cells(config)}
  assert cells["sr_ste 1:8"].seeds == (0, 1, 2, 3, 4)
  assert cells["sr_ste 1:8"].grid == "a"
  assert [cell.name for cell in study.cells(config, ["b"])] == ["sr_ste 1:8"]


def test_warm_up_spares_recipes_that_set_their_own():
  config = small(dense_warmup=0.25)
  config.recipes.asp = {"name": "asp", "dense": 0.5}
  config.grids.a.recipes = ("dense", "sr_ste", "asp")
  shares = {c.recipe: c.config.recipe.dense for c in study.cells(config)}
  assert (shares["sr_ste"], shares["asp"]) == (0.25, 0.5)


def test_settings_and_fields_of_a_recipe():
  config = small()
  config.settings = {"": {}, "lr=1e-1": {"optimizer": {"learning_rate": 0.1}}}
  config.recipes.sr_ste.config = {"optimizer": {"learning_rate": 0.2}}
  config.grids.a.settings = ("", "lr=1e-1")
  rates = {
    cell.name: cell.config.optimizer.learning_rate
    for cell in study.cells(config)
  }
  assert rates["sr_ste 1:4"] == 0.2
  assert rates["sr_ste 1:4 [lr=1e-1]"] == rates["dense [lr=1e-1]"] == 0.1


def test_equal_flops_give_sparse_cells_more_steps():
  config = small(budget="train_flops")
  config.common.total_steps = 1000
  from figs_jax.analysis._study_cells import train_flops

  cells = study.cells(config)
  dense = train_flops(cells[0].config)
  for cell in cells[1:]:
    assert cell.config.total_steps > 1000, cell.name
    flops = train_flops(cell.config)
    assert flops == pytest.approx(dense, rel=2 / 1000), cell.name


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"grids": {}}, "grids: expected at least one"),
    ({"budget": "hours"}, "budget: expected one of steps, train_flops"),
    ({"base": "missing.py"}, "base: no such file 'missing.py'"),
    ({"common": {"batch": 3}}, "common: unknown field 'batch'; did you mean"),
    (
      {"recipes": {"dense": {"name": "dense"}, "sr_ste": {"decays": 1.0}}},
      "recipes.sr_ste: unknown field 'decays'; did you mean 'decay'?",
    ),
    ({"patterns": {"1:4": "ff: 5:4", "1:8": "ff: 1:8"}}, "5:4"),
    ({"patterns": {"1:8": "ff: 1:8"}}, "patterns: expected one of '1:8'"),
    (
      {"patterns": {"1:4": "ff: 1:4", "1:8": "ff: 1:4"}},
      "cells 'sr_ste 1:4' and 'sr_ste 1:8' are the same run",
    ),
  ],
)
def test_wrong_studies_are_refused_in_one_line(change, message):
  with pytest.raises(ValueError, match=".*") as error:
    study.cells(small(**change))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_a_grid_with_wrong_fields():
  config = small()
  config.grids.a.seeds = 0
  with pytest.raises(ConfigError, match="grids.a.seeds: expected a number"):
    study.cells(config)
  config = small()
  config.grids.a.recipe = ("sr_ste",)
  with pytest.raises(ConfigError, match="got 'recipe'"):
    study.cells(config)


def without_seconds(out):
  with (out / "study.csv").open() as file:
    return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished study of two sparse cells and dense, and its directories."""
  path = tmp_path_factory.mktemp("study")
  config = small()
  config.grids.a.patterns = ("1:8",)
  outcome = study.run(config, path / "runs", path / "out")
  assert outcome.finished
  assert outcome.done == ["dense", "sr_ste 1:8", "figs k=2 1:8"]
  return config, path


def test_rows_hold_what_a_cell_gave(whole):
  config, path = whole
  rows = study.rows(path / "out")
  assert [(row["cell"], row["seed"]) for row in rows] == [
    (cell, seed)
    for cell in ("dense", "figs k=2 1:8", "sr_ste 1:8")
    for seed in "01"
  ]
  assert rows[2]["config.recipe.name"] == "figs"
  assert rows[2]["config.recipe.k"] == "2"
  assert rows[4]["config.recipe.k"] == ""
  assert "config.total_steps" not in rows[0]  # it does not differ
  assert rows[2]["stages"] == "2:16 × 2"
  assert float(rows[2]["density"]) == 1 / 8
  assert float(rows[2]["speedup:figs:16x16:alpha=15"]) > 1
  saved = json.loads((path / "out" / "configs.json").read_text())
  assert saved[rows[0]["config"]]["total_steps"] == 3
  for row in rows:
    with np.load(path / "out" / row["examples"]) as file:
      i = file["seed"].tolist().index(int(row["seed"]))
      correct = np.unpackbits(file["correct"][i], count=int(file["examples"]))
      assert correct.mean() == pytest.approx(float(row["accuracy"]), abs=1e-6)
      loss = file["loss"][i].astype(float).mean()
      assert loss == pytest.approx(float(row["loss"]), rel=1e-3)


def test_what_is_done_is_not_repeated(whole, tmp_path, monkeypatch):
  """Another clone has the committed rows and no run directory."""
  config, path = whole
  shutil.copytree(path / "out", tmp_path / "out")
  monkeypatch.setattr(study, "train", None)
  outcome = study.run(config, tmp_path / "runs", tmp_path / "out")
  assert (outcome.done, outcome.failed) == ([], [])
  assert not (tmp_path / "runs").exists()


def test_missing_seeds_alone_are_run(whole, tmp_path, monkeypatch):
  config, path = whole
  shutil.copytree(path / "out", tmp_path / "out")
  store = _study_rows.Store(tmp_path / "out", "small")
  lines = (tmp_path / "out" / "study.csv").read_text().splitlines(True)
  del lines[4]  # figs, seed 1
  (tmp_path / "out" / "study.csv").write_text("".join(lines))
  trained = []

  def train(config, path):
    trained.append((config.recipe.name, config.seed, config.seeds))
    return real_train(config, path)

  monkeypatch.setattr(study, "train", train)
  study.run(config, tmp_path / "runs", tmp_path / "out")
  assert trained == [("figs", 1, 1)]
  before, after = without_seconds(path / "out"), without_seconds(store.out)
  numbers = ("accuracy", "loss")
  for old, new in zip(before, after, strict=True):
    assert [new["cell"], new["seed"]] == [old["cell"], old["seed"]]
    for name in numbers:  # a seed is the same alone and among others
      assert float(new[name]) == pytest.approx(float(old[name]), abs=1e-4)


def test_stopped_twice_gives_the_same_csv(whole, tmp_path, monkeypatch):
  config, path = whole
  calls = []

  def train(config, workdir):
    """Stops before its first step, before its second run, then works."""
    calls.append(workdir.name)
    if len(calls) in (1, 3):
      return {"finished": False}
    return real_train(config, workdir)

  monkeypatch.setattr(study, "train", train)
  outcomes = [
    study.run(config, tmp_path / "runs", tmp_path / "out") for _ in range(3)
  ]
  assert [outcome.finished for outcome in outcomes] == [False, False, True]
  assert without_seconds(tmp_path / "out") == without_seconds(path / "out")


def test_a_failing_cell_is_reported_and_others_go_on(tmp_path, monkeypatch):
  config = small()
  config.grids.a.patterns = ("1:8",)
  config.grids.a.seeds = 1

  def train(config, workdir):
    if config.recipe.name == "sr_ste":
      raise Diverged("the loss is not finite at step 2")
    return real_train(config, workdir)

  monkeypatch.setattr(study, "train", train)
  for _ in range(2):
    outcome = study.run(config, tmp_path / "runs", tmp_path / "out")
    assert outcome.failed == ["sr_ste 1:8"]
  assert {row["recipe"] for row in study.rows(tmp_path / "out")} == {
    "dense",
    "figs k=2",
  }
  with (tmp_path / "out" / "failed.csv").open() as file:
    (row,) = csv.DictReader(file)
  assert row["cell"] == "sr_ste 1:8"
  assert "step 2" in row["error"]


def test_shards_together_are_the_whole(whole, tmp_path):
  config, path = whole
  for share in (1, 2):
    study.run(
      config, tmp_path / "runs", tmp_path / f"out{share}", shard=(share, 2)
    )
  assert len(study.rows(tmp_path / "out1")) == 4
  assert len(study.rows(tmp_path / "out2")) == 2
  study.collect([tmp_path / "out1", tmp_path / "out2"], tmp_path / "all")
  assert without_seconds(tmp_path / "all") == without_seconds(path / "out")


def test_collects_runs_of_the_training_program(whole, tmp_path):
  config, path = whole
  runs = sorted((path / "runs").iterdir())
  study.collect(runs, tmp_path)
  rows = study.rows(tmp_path)
  assert {row["recipe"] for row in rows} == {"dense", "sr_ste", "figs"}
  of_study = {
    (row["config"], row["seed"]): row["loss"]
    for row in study.rows(path / "out")
  }
  assert {(row["config"], row["seed"]): row["loss"] for row in rows} == of_study
  study.collect(runs, tmp_path)  # they are there already
  assert study.rows(tmp_path) == rows


def test_a_plan_lists_what_is_left(whole, tmp_path):
  config, path = whole
  assert [left for _, left, _ in study.plan(config, path / "out")] == [0, 0, 0]
  plan = study.plan(config, tmp_path)
  assert [left for _, left, _ in plan] == [2, 2, 2]
  assert all(seconds > 0 for _, _, seconds in plan)
  assert not list(tmp_path.iterdir())


def test_a_foreign_csv_is_not_overwritten(tmp_path):
  (tmp_path / "study.csv").write_text("a,b\n1,2\n")
  with pytest.raises(ConfigError, match="line 2: expected a row of a study"):
    study.run(small(), tmp_path / "runs", tmp_path)
  assert (tmp_path / "study.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_a_shard_that_is_none(shard, tmp_path):
  with pytest.raises(ConfigError, match="expected i/n with i from 1 to n"):
    study.run(small(), tmp_path, tmp_path, shard=shard)


def test_every_committed_study_expands():
  import runpy
  from pathlib import Path

  files = sorted(Path(__file__).parents[2].glob("configs/study_*.py"))
  assert files
  for file in files:
    config = runpy.run_path(str(file))["get_config"]()
    for cell in study.cells(config):
      recipe_of(cell.config)
