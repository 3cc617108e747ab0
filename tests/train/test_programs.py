"""launch/train.py and launch/evaluate.py as a user meets them."""

import json
import shutil

import pytest

from figs_jax.train.loop import train
from tests.programs import REPO, assert_one_clear_line, call

KEYS = {
  "accuracy",
  "step",
  "exact_nm",
  "sparsity",
  "bytes_dense",
  "bytes_packed",
}
pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


def program(name, *arguments):
  return call(f"launch/{name}.py", *arguments)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tiny_config):
  workdir = tmp_path_factory.mktemp("run")
  train(tiny_config("figs", seeds=2, total_steps=20), workdir)
  return workdir


def test_evaluate_prints_one_json_object(finished_run):
  before = sorted(finished_run.rglob("*"))
  done = program(
    "evaluate", "--workdir", finished_run, "--format", "json",
    "--engines", "ws:8x8",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result.keys() >= KEYS
  assert result["step"] == 20
  assert result["exact_nm"] is True
  assert result["sparsity"] == 0.75
  assert len(result["accuracies"]) == 2
  assert 0 < result["bytes_packed"] < result["bytes_dense"]
  assert result["flops"] < result["flops_dense"]
  assert result["speedup"] > 1
  assert sorted(finished_run.rglob("*")) == before


def test_evaluate_an_earlier_step(finished_run):
  done = program(
    "evaluate", "--workdir", finished_run, "--step", 10, "--format", "json"
  )
  assert json.loads(done.stdout)["step"] == 10
  done = program("evaluate", "--workdir", finished_run, "--step", 11)
  assert_one_clear_line(done, "no step 11", "10, 20")


def test_evaluate_a_missing_workdir(tmp_path):
  done = program("evaluate", "--workdir", tmp_path / "no")
  assert_one_clear_line(done, "no checkpoint here")
  assert not (tmp_path / "no").exists()
  assert_one_clear_line(program("evaluate"), "--workdir is missing")


def test_an_unknown_recipe_is_told_without_a_traceback(tmp_path):
  config = REPO / "configs" / "digits_vit.py"
  done = program("train", f"--config={config}:figss", "--workdir", tmp_path)
  assert_one_clear_line(done, "no recipe 'figss'", "did you mean 'figs'")
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_evaluate_a_damaged_checkpoint(finished_run, tmp_path, damage):
  workdir = tmp_path / "copy"
  shutil.copytree(finished_run, workdir)
  where = workdir / "checkpoints" / "20"
  if damage == "truncated":
    for path in where.rglob("d/*"):
      path.write_bytes(path.read_bytes()[:40])
  else:
    shutil.rmtree(where / "meta")
  done = program("evaluate", "--workdir", workdir, "--step", 20)
  assert done.returncode == 2
  said = [x for x in done.stderr.splitlines() if x.startswith("evaluate.py:")]
  assert len(said) == 1
  assert str(where) in said[0]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/digits_vit.py", "--config.batch_sizes=3"],
     ["batch_sizes", "did you mean 'batch_size'"]),
    (["--config=configs/digits_vit.py", "--config.optimizer.lr=3"],
     ["config.optimizer.lr", "optimizer.learning_rate"]),
    (["--config=configs/digits_vit.py", "--config.recipe.kk=3"],
     ["config.recipe.kk", "recipe.k"]),
    (["--config=configs/digits_vit.py:fig"], ["did you mean 'figs'"]),
    (["--config=configs/nope.py"], ["configs/nope.py"]),
    (["--config=configs/digits_vit.py", "--config.batch_size=abc"], ["abc"]),
    (["--config=configs/digits_vit.py", "--config.pattern=ff: 1:7"],
     ["not a multiple of m=7"]),
    (["--config=configs/digits_vit.py", "--bogus=1"], ["bogus"]),
    (["--config=configs/digits_vit.py", "--config.mesh.data=512"], ["devices"]),
    ([], ["--config"]),
  ],
)  # fmt: skip
def test_mistakes_get_one_line_and_exit_2(tmp_path, arguments, words):
  done = program("train", "--workdir", tmp_path / "run", *arguments)
  assert_one_clear_line(done, *words)
  assert not (tmp_path / "run").exists()


def test_help_names_the_flags():
  for name in ("train", "evaluate"):
    done = program(name, "--help")
    assert "--workdir" in done.stdout
