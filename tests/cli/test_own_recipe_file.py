"""A recipe from a file of one's own: trained, found again, told when faulty."""

import json
import runpy
import shlex
import sys

import pytest
from absl import flags

from figs_jax import cli
from figs_jax.recipes import registry
from figs_jax.train.config import ConfigError
from tests.programs import REPO, assert_one_clear_line, call, in_one_process

pytestmark = pytest.mark.standard_promotion
OWN = '''
from figs_jax.recipes import register


@register("mine_only")
def mine_only(plain, *, spice=3):
  """Nothing of its own."""
  return plain
'''
FAULTY = "import math\n\n\nshare = 1 / 0\n"
CONFIG = """
from figs_jax.train.config import default_config


def get_config(arg):
  config = default_config(arg)
  config.variant = "custom/4"
  config.model.update({"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32})
  config.pattern = "ff: 1:4"
  config.total_steps = config.checkpoint_every = 2
  config.batch_size = 8
  config.data.data_dir = DATA_DIR
  return config
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory, data_dir):
  """A directory with the files of a user."""
  where = tmp_path_factory.mktemp("own")
  (where / "own.py").write_text(OWN)
  (where / "faulty.py").write_text(FAULTY)
  (where / "broken.py").write_text("def f(:\n")
  text = CONFIG.replace("DATA_DIR", repr(data_dir))
  (where / "config.py").write_text(text)
  return where


def run_recipe_file(path):
  parser = flags.ArgumentParser()
  cli.run_user_file(flags.Flag(parser, None, "recipe_file", str(path), ""))


@pytest.fixture(scope="module")
def told(files):
  """What launch/train.py says: of four mistakes, and of a run."""
  config = f"--config={files / 'config.py'}:mine_only"
  run = f"--workdir={files / 'run'}"
  return in_one_process(
    "launch/train.py",
    [run, config],
    [run, config, f"--recipe_file={files / 'faulty.py'}"],
    [run, config, "--recipe_file", files / "broken.py"],
    [run, f"--config={files / 'faulty.py'}"],
    # The chain of this pattern is too long for the kernels, which is remarked.
    [
      run,
      f"--config={files / 'config.py'}:figs",
      "--config.pattern=ff: 1:8",
      f"--config.init_from={files / 'none'}",
    ],
    [run, config, "--recipe_file", files / "own.py", "--format=json"],
  )


def test_mistakes_get_one_line_that_names_file_and_line(told, files):
  unknown, faulty, broken, config, weights, _ = told
  assert_one_clear_line(unknown, "no recipe 'mine_only'", "--recipe_file")
  where = f"--recipe_file {files / 'faulty.py'}, line 4: ZeroDivisionError"
  assert_one_clear_line(faulty, where)
  where = f"--recipe_file {files / 'broken.py'}, line 1: SyntaxError"
  assert_one_clear_line(broken, where)
  where = f"--config {files / 'faulty.py'}, line 4: ZeroDivisionError"
  assert_one_clear_line(config, where)
  assert_one_clear_line(weights, "there is no such file or directory")


def test_train_runs_the_file_and_keeps_its_name(told, files):
  code, output, errors = told[-1]
  assert code == 0, errors
  assert json.loads(output)["finished"]
  saved = json.loads((files / "run" / "config.json").read_text())
  assert saved["recipe"]["name"] == "mine_only"
  assert saved["recipe_file"] == str(files / "own.py")


@pytest.mark.usefixtures("told")
def test_evaluate_names_the_file_and_runs_it_when_told(files):
  plain = ["--workdir", files / "run"]
  faulty = [*plain, "--recipe_file", files / "faulty.py"]
  first, second = in_one_process("launch/evaluate.py", plain, faulty)
  wanted = f"--recipe_file {files / 'own.py'}"
  assert_one_clear_line(first, "no recipe 'mine_only'", wanted)
  assert_one_clear_line(second, "faulty.py, line 4: ZeroDivisionError")
  # Nobody reads what it then prints, which is no mistake of anyone's.
  program = shlex.join(
    [sys.executable, "launch/evaluate.py", *map(str, plain), *wanted.split()]
  )
  done = call(
    "bash", "-c", f"{program} --format json | true; exit ${{PIPESTATUS[0]}}"
  )
  assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.usefixtures("told")
def test_a_run_is_repeated_with_its_own_recipe(files, monkeypatch):
  for table in ("_BUILDERS", "_DEFAULTS"):
    monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
  again = runpy.run_path(str(REPO / "launch" / "again.py"))["get_config"]
  saved = json.loads((files / "run" / "config.json").read_text())
  with pytest.raises(ConfigError, match="own.py: add --recipe_file"):
    again(str(files / "run" / "config.json"))
  run_recipe_file(files / "own.py")
  config = again(str(files / "run" / "config.json"))
  assert config.recipe.name == "mine_only"
  assert config.recipe.spice == 3
  assert json.loads(json.dumps(config.to_dict())) == saved


def test_one_file_is_itself_under_another_name(files, monkeypatch, capsys):
  """As a configuration that holds its recipe, and as --recipe_file."""
  for table in ("_BUILDERS", "_DEFAULTS"):
    monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
  runpy.run_path(str(files / "own.py"), run_name="config")
  (files / "other.py").write_text(OWN)
  with pytest.raises(SystemExit):
    run_recipe_file(files / "other.py")
  error = capsys.readouterr().err
  assert f"--recipe_file {files / 'other.py'}, line 5: ValueError" in error
  assert "mine_only' is registered already" in error
  (files / "link.py").symlink_to(files / "own.py")
  run_recipe_file(files / "link.py")
