"""Studies: cells of the grid, rows on disk, and going on where it stopped."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from flax import nnx, traverse_util

import figs_jax
from figs_jax.analysis import study
from figs_jax.analysis._study_cells import (
  abstract,
  digits_of,
  of_cell,
  run_flops,
  training_shares,
)
from figs_jax.train.config import ConfigError, completed, recipe_of
from figs_jax.train.experiment import build
from figs_jax.train.loop import Diverged


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
  cells = study.cells(config)
  costs = [run_flops(c.config, *abstract(c.config)) for c in cells]
  dense = costs[0]
  for cell, flops in zip(cells[1:], costs[1:]):
    assert cell.config.total_steps > 1000, cell.name
    assert flops == pytest.approx(dense, rel=2 / 1000), cell.name


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"grids": {}}, "grids: expected at least one"),
    ({"dtypes": ("bf16",)}, "did you mean 'bfloat16'?"),
    (
      {"dtypes": ("float16",), "base": "configs/stdlib_t5.py"},
      "dtypes, cell 'dense': dtype: expected one of 'float32', 'bfloat16'",
    ),
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
  """A finished study of dense and one sparse cell, and its directories."""
  path = tmp_path_factory.mktemp("study")
  config = small()
  config.grids.a.recipes = ("dense", "figs k=2")
  config.grids.a.patterns = ("1:8",)
  config.dtypes = ("bfloat16",)
  outcome = study.run(config, path / "runs", path / "out")
  assert outcome.finished
  assert outcome.done == ["dense", "figs k=2 1:8"]
  return config, path


@pytest.fixture
def trained(monkeypatch):
  """Replaces training and measuring; lists (recipe, seed, seeds) of runs."""
  runs, configs = [], {}

  def train(config, path):
    runs.append((config.recipe.name, config.seed, config.seeds))
    configs[path] = config
    return {"finished": True}

  def measured(path, dtypes, point):
    del dtypes, point
    config = configs[path]
    seeds = np.arange(config.seed, config.seed + config.seeds)
    examples = {
      "seed": seeds,
      "correct": seeds[:, None] % 2 == np.arange(5),
      "loss": seeds[:, None] + np.arange(5.0),
      "weight": np.ones(5),
    }
    rows = [
      {"seed": seed, "accuracy": 0.5, "loss": seed / 7}
      for seed in seeds.tolist()
    ]
    return rows, examples

  monkeypatch.setattr(study, "train", train)
  monkeypatch.setattr(study, "measured", measured)
  monkeypatch.setattr(study, "modelled", lambda *_: {"train_flops": 0.5})
  return runs


def test_rows_hold_what_a_cell_gave(whole):
  config, path = whole
  rows = study.rows(path / "out")
  assert [(row["cell"], row["seed"]) for row in rows] == [
    (cell, seed) for cell in ("dense", "figs k=2 1:8") for seed in "01"
  ]
  assert rows[2]["config.recipe.name"] == "figs"
  assert rows[2]["config.recipe.k"] == "2"
  assert rows[0]["config.recipe.k"] == ""
  assert "config.total_steps" not in rows[0]  # it does not differ
  assert rows[2]["stages"] == "2:16 × 2"
  assert float(rows[2]["density"]) == 1 / 8
  for row in rows:
    gap = float(row["loss"]) - float(row["loss_bfloat16"])
    assert 0 < abs(gap) < 0.05
  assert float(rows[2]["speedup:figs:16x16:alpha=15"]) > 0.9
  assert float(rows[2]["train_flops_total"]) < float(
    rows[0]["train_flops_total"]
  )
  saved = json.loads((path / "out" / "configs.json").read_text())
  assert saved[rows[0]["config"]]["total_steps"] == 3
  for row in rows:
    with np.load(path / "out" / row["examples"]) as file:
      i = file["seed"].tolist().index(int(row["seed"]))
      correct = np.unpackbits(file["correct"][i], count=int(file["examples"]))
      assert correct.mean() == pytest.approx(float(row["accuracy"]), abs=1e-6)
      loss = file["loss"][i].astype(float).mean()
      assert loss == pytest.approx(float(row["loss"]), rel=1e-3)


def test_what_is_done_is_not_repeated(trained, tmp_path):
  """Another clone has the committed rows and no run directory."""
  config = small()
  study.run(config, tmp_path / "runs", tmp_path / "out")
  assert len(trained) == 5
  outcome = study.run(config, tmp_path / "others", tmp_path / "out")
  assert (outcome.done, outcome.failed, len(trained)) == ([], [], 5)


def test_the_seeds_that_are_left_share_the_devices(
  trained, tmp_path, monkeypatch
):
  """As many as divide their number; the mesh is no part of a fingerprint."""
  meshes, train = [], study.train
  monkeypatch.setattr(
    study,
    "train",
    lambda config, path: meshes.append(config.mesh.seed) or train(config, path),
  )
  config = small(common=small().common.to_dict() | {"mesh": {"seed": 4}})
  assert study.cells(config)[0].fingerprint == (
    study.cells(small())[0].fingerprint
  )
  config.grids.a.recipes = ("dense",)
  for config.grids.a.seeds in (6, 7):
    study.run(config, tmp_path / "runs", tmp_path / "out")
  assert [seeds for *_, seeds in trained] == [6, 1]
  assert meshes == [2, 1]


def test_rows_of_a_version_with_fewer_fields_count(trained, tmp_path):
  config = small()
  study.run(config, tmp_path / "runs", tmp_path)
  saved = json.loads((tmp_path / "configs.json").read_text())
  old = {}
  text = (tmp_path / "study.csv").read_text()
  for place, (key, fields) in enumerate(saved.items()):
    del fields["label_smoothing"]
    old[f"{place:012}"] = fields
    text = text.replace(key, f"{place:012}")
  (tmp_path / "configs.json").write_text(json.dumps(old))
  (tmp_path / "study.csv").write_text(text)
  trained.clear()
  study.run(config, tmp_path / "runs", tmp_path)
  assert trained == []
  config.common.label_smoothing = 0.1
  study.run(config, tmp_path / "runs", tmp_path)
  assert len(trained) == 5


def committed(name):
  return Path(__file__).parents[2] / "docs" / "results" / name


@pytest.mark.parametrize("name", ["stdlib_text", "fashion_vit"])
def test_committed_rows_are_those_of_cells(name):
  """They are from before many fields, and are not trained again."""
  file = Path(__file__).parents[2] / "configs" / f"study_{name}.py"
  config = runpy.run_path(str(file))["get_config"]()
  marks = {cell.name: cell.fingerprint for cell in study.cells(config)}
  rows = study.rows(committed(name))
  assert len(rows) > 50
  assert all(row["config"] == marks[row["cell"]] for row in rows)


def test_fields_since_the_newest_committed_rows_keep_fingerprints():
  """A new field has its default in `_LATER`; directories of runs have it."""
  saved = json.loads((committed("fashion_search") / "configs.json").read_text())
  assert len(saved) > 40
  for mark, fields in saved.items():
    whole = completed(traverse_util.unflatten_dict(fields, sep="."))
    assert study.fingerprint(whole) == mark
  saved = whole["model"] | {"registers": 4}
  assert study.fingerprint(whole | {"model": saved}) != mark


def test_rows_at_a_point_are_those_of_today_too(tmp_path):
  """One field is missing, as in a version that lacks it."""
  fields = of_cell(study.cells(small())[1].config) | {"point": "2:4"}
  today = digits_of(fields)
  del fields["label_smoothing"]
  (tmp_path / "configs.json").write_text(json.dumps({"0" * 12: fields}))
  (tmp_path / "study.csv").write_text(f"config,seed\n{'0' * 12},1\n")
  assert [row["config"] for row in study.rows(tmp_path)] == [today]


def test_cells_with_other_teachers_are_other_runs():
  config = small(settings={"": {}, "a": {"teacher": "a"}})
  config.settings.b = {"teacher": "a", "distill": {"seed": 1}}
  config.grids.a.settings = ("", "a", "b")
  marks = {cell.fingerprint for cell in study.cells(config)}
  assert len(marks) == len(study.cells(config)) == 15
  run = study.cells(config)[-1].config
  before = study.fingerprint(run)
  run.teacher_sha256 = "ab" * 32  # what trained runs are known by
  known = study.fingerprint(run)
  run.teacher, run.distill.seed = "moved", 0
  assert before != study.fingerprint(run) == known


def test_missing_seeds_alone_are_run(trained, tmp_path):
  config = small()
  study.run(config, tmp_path / "runs", tmp_path)
  whole = without_seconds(tmp_path)
  lines = (tmp_path / "study.csv").read_text().splitlines(True)
  del lines[4]  # of figs 1:4, seed 1
  (tmp_path / "study.csv").write_text("".join(lines))
  trained.clear()
  study.run(config, tmp_path / "runs", tmp_path)
  assert trained == [("figs", 1, 1)]
  other = {"examples": ""}  # of a run of its own
  assert [row | other for row in without_seconds(tmp_path)] == [
    row | other for row in whole
  ]
  config.grids.a.seeds = 4
  trained.clear()
  study.run(config, tmp_path / "runs", tmp_path)
  assert trained[0] == ("dense", 2, 2)
  assert len(study.rows(tmp_path)) == 5 * 4


def test_stopped_twice_gives_the_same_csv(trained, tmp_path, monkeypatch):
  config = small()
  study.run(config, tmp_path / "runs", tmp_path / "whole")
  works, calls = study.train, []

  def train(config, workdir):
    """Stops before its first run, before its second, then works."""
    calls.append(workdir.name)
    if len(calls) in (1, 3):
      return {"finished": False}
    return works(config, workdir)

  monkeypatch.setattr(study, "train", train)
  outcomes = [
    study.run(config, tmp_path / "runs", tmp_path / "out") for _ in range(3)
  ]
  assert [outcome.finished for outcome in outcomes] == [False, False, True]
  assert without_seconds(tmp_path / "out") == without_seconds(
    tmp_path / "whole"
  )


def test_a_failing_cell_is_reported_and_others_go_on(
  trained, tmp_path, monkeypatch
):
  config = small()
  works = study.train

  def train(config, workdir):
    if config.recipe.name == "sr_ste":
      raise Diverged("the loss is not finite at step 2")
    return works(config, workdir)

  monkeypatch.setattr(study, "train", train)
  for _ in range(2):
    outcome = study.run(config, tmp_path / "runs", tmp_path)
    assert outcome.failed == ["sr_ste 1:4", "sr_ste 1:8"]
  assert {row["recipe"] for row in study.rows(tmp_path)} == {
    "dense",
    "figs k=2",
  }
  with (tmp_path / "failed.csv").open() as file:
    first, second = csv.DictReader(file)
  assert (first["cell"], second["seeds"]) == ("sr_ste 1:4", "0 1")
  assert "step 2" in first["error"]
  # What succeeds later leaves the list, and the last one removes the file.
  monkeypatch.setattr(study, "train", works)
  config.grids.a.patterns = ("1:4",)
  config.grids.a.seeds = 1
  study.run(config, tmp_path / "runs", tmp_path)
  with (tmp_path / "failed.csv").open() as file:
    left = [(row["cell"], row["seeds"]) for row in csv.DictReader(file)]
  assert left == [("sr_ste 1:4", "1"), ("sr_ste 1:8", "0 1")]
  study.run(small(), tmp_path / "runs", tmp_path)
  assert not (tmp_path / "failed.csv").exists()


def test_shards_together_are_the_whole(trained, tmp_path):
  config = small()
  study.run(config, tmp_path / "runs", tmp_path / "whole")
  for share in (1, 2):
    study.run(
      config, tmp_path / "runs", tmp_path / f"out{share}", shard=(share, 2)
    )
  assert len(study.rows(tmp_path / "out1")) == 6
  assert len(study.rows(tmp_path / "out2")) == 4
  study.collect([tmp_path / "out1", tmp_path / "out2"], tmp_path / "all")
  assert without_seconds(tmp_path / "all") == without_seconds(
    tmp_path / "whole"
  )
  for row in study.rows(tmp_path / "all"):
    assert (tmp_path / "all" / row["examples"]).is_file()


def test_rows_without_per_example_results_are_collected(trained, tmp_path):
  study.run(small(), tmp_path / "runs", tmp_path / "out")
  for file in (tmp_path / "out" / "examples").iterdir():
    file.unlink()
  study.collect([tmp_path / "out"], tmp_path / "all")
  assert study.rows(tmp_path / "all") == study.rows(tmp_path / "out")


def test_collects_runs_of_the_training_program(whole, tmp_path):
  config, path = whole
  runs = sorted((path / "runs").iterdir())
  study.collect(runs, tmp_path)
  rows = study.rows(tmp_path)
  assert {row["recipe"] for row in rows} == {"dense", "figs"}
  of_study = {
    (row["config"], row["seed"]): row["loss"]
    for row in study.rows(path / "out")
  }
  assert {(row["config"], row["seed"]): row["loss"] for row in rows} == of_study
  study.collect(runs, tmp_path)  # they are there already
  assert study.rows(tmp_path) == rows


@pytest.mark.standard_promotion  # optax's Adam needs it
def test_a_plan_lists_what_is_left(whole, tmp_path):
  config, path = whole
  assert [left for _, left, _ in study.plan(config, path / "out")] == [0, 0]
  plan = study.plan(config, tmp_path)
  assert [left for _, left, _ in plan] == [2, 2]
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
  files = sorted(Path(__file__).parents[2].glob("configs/study_*.py"))
  assert files
  for file in files:
    config = runpy.run_path(str(file))["get_config"]()
    for cell in study.cells(config):
      recipe_of(cell.config)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("recipe", ["dense", "figs", "mdgf_exp", "step"])
def test_training_shares_are_those_of_the_run(tiny_config, recipe):
  config = tiny_config(recipe)
  shares = training_shares(*abstract(config), 16, "ws:8x8")
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(0))
  wanted = figs_jax.train_flops(model, experiment.recipe, batch=16)
  assert shares["train_flops"] == wanted.share
  if recipe == "dense":
    assert shares["train_time"] == 1
  else:
    assert shares["train_flops"] < shares["train_time"] < 1
