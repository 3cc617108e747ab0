"""Shards of a study: directories of their own, and what `gather` makes of them.

Training is not part of it: rows are written as a finished cell would.
"""

import csv
import shutil

import numpy as np
import pytest

from figs_jax.analysis import _study_rows, study
from figs_jax.train.loop import Diverged
from figs_jax.train.workdir_lock import LockedError
from tests.programs import call

# Four forks of one process add rows at once: two to one directory, and two to
# shards of it.
WRITERS = """
import os, sys
import numpy as np
from figs_jax.analysis import _study_rows

def write(place, shard):
  store = _study_rows.Store(sys.argv[1], "many", shard)
  for number in range(6):
    name = f"cell-{place}-{number}"
    seeds = np.arange(2)
    examples = {
      "seed": seeds, "correct": np.ones((2, 3), bool), "loss": np.ones((2, 3)),
      "weight": np.ones(3),
    }
    rows = [{"seed": int(seed), "accuracy": 0.5} for seed in seeds]
    shared = {"cell": name, "recipe": "a", "config": name}
    store.add(shared, {"k": place}, rows, examples, name)

children = []
for place, shard in enumerate([(1, 1), (1, 1), (1, 2), (2, 2)]):
  if not (child := os.fork()):
    write(place, shard)
    os._exit(0)
  children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(codes))
"""


def test_writers_at_once_lose_no_row(tmp_path):
  done = call("-c", WRITERS, tmp_path)
  assert done.returncode == 0, done.stderr
  wanted = sorted(
    (f"cell-{place}-{number}", seed)
    for place in range(4)
    for number in range(6)
    for seed in "01"
  )

  def keys(rows):
    return sorted((row["cell"], row["seed"]) for row in rows)

  assert keys(study.rows(tmp_path)) == wanted
  assert len(_study_rows._rows_of(tmp_path)) == 2 * 6 * 2
  for row in study.rows(tmp_path):
    assert (tmp_path / row["examples"]).is_file()
  _study_rows.Store(tmp_path, "many").gather()
  shutil.rmtree(tmp_path / "shards")
  rows = study.rows(tmp_path)
  assert keys(rows) == wanted
  assert {row["config.k"] for row in rows} == set("0123")
  for row in rows:
    assert (tmp_path / row["examples"]).is_file()


def grid():
  """A study of five cells."""
  config = study.default_config()
  config.name = "small"
  recipes = "dense", "figs", "sr_ste"
  config.recipes = {name: {"name": name} for name in recipes}
  config.patterns = {"1:4": "ff: 1:4", "1:8": "ff: 1:8"}
  config.grids = {
    "a": {
      "recipes": recipes,
      "patterns": ("1:4", "1:8"),
      "seeds": 2,
    }
  }
  return config


@pytest.fixture
def trained(monkeypatch):
  """Replaces training; `trained.raises` maps a recipe to what it raises."""

  class Trained:
    runs: list = []
    raises: dict = {}

  configs = {}

  def train(config, path):
    if error := Trained.raises.get(config.recipe.name):
      raise error
    Trained.runs.append((config.recipe.name, config.pattern))
    configs[path] = config
    return {"finished": True}

  def measured(path, dtypes, point):
    seeds = np.arange(2) + configs[path].seed
    examples = {
      "seed": seeds,
      "correct": np.ones((2, 3), bool),
      "loss": np.ones((2, 3)),
      "weight": np.ones(3),
    }
    rows = [{"seed": int(seed), "accuracy": 0.5} for seed in seeds]
    return [row | {"step": str(point)} for row in rows], examples

  Trained.runs, Trained.raises = [], {}
  monkeypatch.setattr(study, "train", train)
  monkeypatch.setattr(study, "measured", measured)
  monkeypatch.setattr(study, "modelled", lambda *_: {})
  return Trained


def without_seconds(out):
  with (out / "study.csv").open() as file:
    return [row | {"seconds": ""} for row in csv.DictReader(file)]


def test_shards_of_one_directory_gather_to_the_whole(trained, tmp_path):
  config, out = grid(), tmp_path / "out"
  study.run(config, tmp_path / "runs", tmp_path / "whole")
  for share in (1, 3):
    study.run(config, tmp_path / "runs", out, shard=(share, 3))
  assert not (out / "study.csv").exists()
  missing = study.gather(config, out)
  assert missing == {"figs 1:4": [0, 1], "sr_ste 1:8": [0, 1]}
  assert len(study.rows(out)) == 6
  # A task that was started again trains nothing; the missing one all of its.
  trained.runs.clear()
  study.run(config, tmp_path / "runs", out, shard=(3, 3))
  assert trained.runs == []
  study.run(config, tmp_path / "runs", out, shard=(2, 3))
  assert trained.runs == [("figs", "ff: 1:4"), ("sr_ste", "ff: 1:8")]
  for _ in range(2):
    assert study.gather(config, out) == {}
    assert without_seconds(out) == without_seconds(tmp_path / "whole")
  # Another number of shards sees what the first ones have done.
  trained.runs.clear()
  for share in (1, 2):
    study.run(config, tmp_path / "runs", out, shard=(share, 2))
  assert trained.runs == []


def test_failures_of_shards_are_gathered_until_they_succeed(trained, tmp_path):
  config = grid()
  trained.raises = {"figs": Diverged("at step 2")}
  for share, cell in ((1, "figs 1:8"), (2, "figs 1:4")):
    outcome = study.run(config, tmp_path, tmp_path, shard=(share, 2))
    assert outcome.failed == [cell]
  study.gather(config, tmp_path)
  with (tmp_path / "failed.csv").open() as file:
    failed = [(row["cell"], row["error"]) for row in csv.DictReader(file)]
  assert sorted(failed) == [
    ("figs 1:4", "at step 2"),
    ("figs 1:8", "at step 2"),
  ]
  trained.raises = {}
  for share in (1, 2):
    study.run(config, tmp_path, tmp_path, shard=(share, 2))
  assert study.gather(config, tmp_path) == {}
  assert not (tmp_path / "failed.csv").exists()


def test_a_cell_that_another_process_trains_is_no_failure(trained, tmp_path):
  trained.raises = {"sr_ste": LockedError("process 3 on a is training here")}
  outcome = study.run(grid(), tmp_path, tmp_path)
  assert (outcome.finished, outcome.failed) == (False, [])
  assert outcome.done == ["dense", "figs 1:4", "figs 1:8"]
  assert len(study.rows(tmp_path)) == 3 * 2
  assert not (tmp_path / "failed.csv").exists()


def test_a_cell_killed_between_its_points_is_measured_again(
  trained, tmp_path, monkeypatch
):
  config = grid()
  config.recipes.sr_ste.points = "2:4,4:4"
  config.grids.a.recipes, config.grids.a.patterns = ("sr_ste",), ("1:4",)
  study.run(config, tmp_path / "runs", tmp_path / "whole")
  add = _study_rows.Store.add
  for killed_at in (1, 2):
    calls = []

    def killed(self, *args, at=killed_at, calls=calls):
      calls.append(args)
      if len(calls) > at:
        raise KeyboardInterrupt
      add(self, *args)

    monkeypatch.setattr(_study_rows.Store, "add", killed)
    out = tmp_path / f"out{killed_at}"
    with pytest.raises(KeyboardInterrupt):
      study.run(config, tmp_path / "runs", out)
    monkeypatch.setattr(_study_rows.Store, "add", add)
    study.run(config, tmp_path / "runs", out)
    assert without_seconds(out) == without_seconds(tmp_path / "whole")
  assert len(study.rows(tmp_path / "whole")) == 3 * 2


def test_a_writer_killed_between_two_files_leaves_no_row_without_fields(
  trained, tmp_path, monkeypatch
):
  config = grid()
  study.run(config, tmp_path / "runs", tmp_path / "whole")
  write = _study_rows._write

  def killed(path, content):
    if path.name in ("study.csv", "configs.json"):
      left.append(path)
      if len(left) == 2:
        raise KeyboardInterrupt
    write(path, content)

  left = []
  monkeypatch.setattr(_study_rows, "_write", killed)
  with pytest.raises(KeyboardInterrupt):
    study.run(config, tmp_path / "runs", tmp_path / "out")
  monkeypatch.setattr(_study_rows, "_write", write)
  study.run(config, tmp_path / "runs", tmp_path / "out")
  assert without_seconds(tmp_path / "out") == without_seconds(
    tmp_path / "whole"
  )
