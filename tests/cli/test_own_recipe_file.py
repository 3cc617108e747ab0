"""A recipe from a user's file: trained, restored, and reported when faulty."""

import hashlib
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

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
OWN = '''
from figs_jax.recipes import register


@register("mine_only")
def mine_only(plain, *, spice=3):
  """A recipe without changes."""
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
  folder = tmp_path_factory.mktemp("own")
  (folder / "own.py").write_text(OWN)
  (folder / "faulty.py").write_text(FAULTY)
  (folder / "broken.py").write_text("def f(:\n")
  text = CONFIG.replace("DATA_DIR", repr(data_dir))
  (folder / "config.py").write_text(text)
  return folder


def run_recipe_file(path):
  parser = flags.ArgumentParser()
  cli.run_user_file(flags.Flag(parser, None, "recipe_file", str(path), ""))


@pytest.fixture(scope="module")
def results(files):
  """Results of launch/train.py: five mistakes, and a run."""
  config = f"--config={files / 'config.py'}:mine_only"
  run = f"--workdir={files / 'run'}"
  return in_one_process(
    "launch/train.py",
    [run, config],
    [run, config, f"--recipe_file={files / 'faulty.py'}"],
    [run, config, "--recipe_file", files / "broken.py"],
    [run, f"--config={files / 'faulty.py'}"],
    # The recipe remarks that this pattern's chain is too long for the kernels.
    [
      run,
      f"--config={files / 'config.py'}:figs",
      "--config.pattern=ff: 1:8",
      f"--config.init_from={files / 'none'}",
    ],
    [run, config, "--recipe_file", files / "own.py", "--format=json"],
  )


def test_mistakes_get_one_line_that_names_file_and_line(results, files):
  unknown, faulty, broken, config, weights, _ = results
  assert_one_clear_line(unknown, "Unknown recipe 'mine_only'", "--recipe_file")
  where = f"--recipe_file {files / 'faulty.py'}, line 4: ZeroDivisionError"
  assert_one_clear_line(faulty, where)
  where = f"--recipe_file {files / 'broken.py'}, line 1: SyntaxError"
  assert_one_clear_line(broken, where)
  where = f"--config {files / 'faulty.py'}, line 4: ZeroDivisionError"
  assert_one_clear_line(config, where)
  assert_one_clear_line(weights, "file or directory not found")


def test_train_runs_the_file_and_keeps_its_name(results, files):
  code, output, errors = results[-1]
  assert code == 0, errors
  assert json.loads(output)["finished"]
  saved = json.loads((files / "run" / "config.json").read_text())
  assert saved["recipe"]["name"] == "mine_only"
  assert saved["recipe_file"] == str(files / "own.py")
  assert saved["recipe_sha256"] == hashlib.sha256(OWN.encode()).hexdigest()


@pytest.mark.usefixtures("results")
def test_evaluate_names_the_file_and_runs_it_on_request(files):
  plain = ["--workdir", files / "run"]
  faulty = [*plain, "--recipe_file", files / "faulty.py"]
  own = [*plain, "--recipe_file", files / "own.py", "--format=json"]
  first, second, third = in_one_process(
    "launch/evaluate.py", plain, faulty, own
  )
  wanted = f"--recipe_file {files / 'own.py'}"
  assert_one_clear_line(first, "Unknown recipe 'mine_only'", wanted)
  assert_one_clear_line(second, "faulty.py, line 4: ZeroDivisionError")
  code, output, errors = third
  assert code == 0, errors
  assert json.loads(output)["recipe"] == "mine_only"


def test_a_reader_that_closes_the_pipe_ends_the_program_silently():
  program = shlex.join([sys.executable, "launch/evaluate.py", "--help"])
  done = call("bash", "-c", f"{program} | true; exit ${{PIPESTATUS[0]}}")
  assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.usefixtures("results")
def test_a_run_is_repeated_with_its_own_recipe(files, monkeypatch):
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))
  again = runpy.run_path(str(REPO / "launch" / "again.py"))["get_config"]
  saved = json.loads((files / "run" / "config.json").read_text())
  with pytest.raises(ConfigError, match="own.py; add --recipe_file"):
    again(str(files / "run" / "config.json"))
  run_recipe_file(files / "own.py")
  config = again(str(files / "run" / "config.json"))
  assert config.recipe.name == "mine_only"
  assert config.recipe.spice == 3
  assert json.loads(json.dumps(config.to_dict())) == saved


def test_one_file_is_itself_under_another_name(files, monkeypatch, capsys):
  """As a configuration that holds its recipe, and as --recipe_file."""
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))
  runpy.run_path(str(files / "own.py"), run_name="config")
  (files / "other.py").write_text(OWN)
  with pytest.raises(SystemExit):
    run_recipe_file(files / "other.py")
  error = capsys.readouterr().err
  assert f"--recipe_file {files / 'other.py'}, line 5: ValueError" in error
  assert "mine_only' is registered already" in error
  (files / "link.py").symlink_to(files / "own.py")
  run_recipe_file(files / "link.py")
