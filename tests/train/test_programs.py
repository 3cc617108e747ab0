"""launch/train.py and launch/evaluate.py as a user meets them.

A process takes seconds to start, so each program is started once for all tests.
"""

import json
import shutil

import pytest

from figs_jax.train.loop import train
from tests.programs import assert_one_clear_line, call, in_one_process

KEYS = {
  "accuracy",
  "step",
  "exact_nm",
  "sparsity",
  "bytes_dense",
  "bytes_packed",
}
DAMAGES = ("truncated", "foreign")
VIT = "--config=configs/digits_vit.py"
MISTAKES = {
  f"{VIT} --config.batch_sizes=3": ["batch_sizes", "batch_size"],
  f"{VIT} --config.optimizer.lr=3": [
    "config.optimizer.lr", "optimizer.learning_rate",
  ],
  f"{VIT} --config.recipe.kk=3": ["config.recipe.kk", "recipe.k"],
  f"{VIT}:fig": ["'fig'", "'figs'"],
  f"{VIT}:figss": ["'figss'", "'figs'"],
  "--config=configs/nope.py": ["configs/nope.py"],
  f"{VIT} --config.batch_size=abc": ["abc"],
  f"{VIT} --config.epochs=3": ["total_steps (epochs * examples"],
  f"{VIT} --config.batch_size=0": ["config.batch_size", "got 0"],
  f"{VIT} --config.optimizer.learning_rate=nan": ["learning_rate", "got nan"],
  f"{VIT} --config.model.dtype=bf16": ["model.dtype", "'bfloat16'?"],
  f"{VIT} --config.model.heads=3": ["config.model", "do not divide"],
  f"{VIT} --config.variant=custom/3": ["config.variant", "multiple of patch"],
  f"{VIT} --config.pattern=ff:1:7": ["not a multiple of m=7"],
  f"{VIT} --bogus=1": ["bogus"],
  f"{VIT} --config.mesh.data=512": ["devices"],
  "": ["--config"],
}  # fmt: skip
pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tiny_config):
  workdir = tmp_path_factory.mktemp("run")
  train(tiny_config("figs", seeds=2, total_steps=20), workdir)
  return workdir


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, finished_run):
  """Name of a case -> (exit code, output, errors) of launch/evaluate.py."""
  parent = tmp_path_factory.mktemp("evaluated")
  for damage in DAMAGES:
    shutil.copytree(finished_run, parent / damage)
    where = parent / damage / "checkpoints" / "20"
    if damage == "truncated":
      for path in where.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:40])
    else:
      shutil.rmtree(where / "meta")
  before = sorted(finished_run.rglob("*"))
  run = ["--workdir", finished_run]
  cases = {
    "whole": [*run, "--format", "json", "--engines", "ws:8x8"],
    "early": [*run, "--step", 10, "--format", "json"],
    "bfloat16": [*run, "--dtype", "bfloat16"],
    "no dtype": [*run, "--dtype", "fp8"],
    "no step": [*run, "--step", 11],
    "no run": ["--workdir", parent / "no"],
    "no flag": [],
    **{name: ["--workdir", parent / name, "--step", 20] for name in DAMAGES},
  }
  done = in_one_process("launch/evaluate.py", *cases.values())
  assert sorted(finished_run.rglob("*")) == before
  assert not (parent / "no").exists()
  return dict(zip(cases, done, strict=True)), parent


def test_evaluate_prints_one_json_object(evaluated):
  code, output, errors = evaluated[0]["whole"]
  assert code == 0, errors
  result = json.loads(output)
  assert result.keys() >= KEYS
  assert result["step"] == 20
  assert result["exact_nm"] is True
  assert result["sparsity"] == 0.75
  assert len(result["accuracies"]) == 2
  assert 0 < result["bytes_packed"] < result["bytes_dense"]
  assert result["flops"] < result["flops_dense"]
  assert result["ideal_speedup"] > 1 and ":sparse=false" in result["baseline"]


def test_evaluate_an_earlier_step(evaluated):
  assert json.loads(evaluated[0]["early"][1])["step"] == 10
  assert_one_clear_line(evaluated[0]["no step"], "no step 11", "10, 20")


def test_evaluate_at_another_dtype(evaluated):
  code, output, errors = evaluated[0]["bfloat16"]
  assert code == 0, errors
  lines = dict(line.split(maxsplit=1) for line in output.splitlines())
  assert lines["dtype"] == "bfloat16" and "config" not in lines
  whole = json.loads(evaluated[0]["whole"][1])
  assert whole["dtype"] == whole["config"]["model.dtype"] == "float32"
  assert float(lines["accuracy"]) == pytest.approx(whole["accuracy"], abs=0.1)
  assert_one_clear_line(
    evaluated[0]["no dtype"], "'int8'", "got 'fp8'", "'bfloat16'?"
  )


def test_evaluate_a_missing_workdir(evaluated):
  assert_one_clear_line(evaluated[0]["no run"], "no checkpoint here")
  assert_one_clear_line(evaluated[0]["no flag"], "--workdir")


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluate_a_damaged_checkpoint(evaluated, damage):
  cases, parent = evaluated
  code, _, errors = cases[damage]
  assert code == 2
  (line,) = [x for x in errors.splitlines() if x.startswith("evaluate.py:")]
  assert str(parent / damage / "checkpoints" / "20") in line


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("refused") / "run"
  words = [[f"--workdir={workdir}", *mistake.split()] for mistake in MISTAKES]
  done = in_one_process("launch/train.py", *words)
  assert not workdir.exists()
  return dict(zip(MISTAKES, done, strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line_and_exit_2(refused, mistake):
  assert_one_clear_line(refused[mistake], *MISTAKES[mistake])


def test_help_names_the_flags():
  for name in ("train", "evaluate"):
    done = call(f"launch/{name}.py", "--help")
    assert "--workdir" in done.stdout
