"""What a workdir of somebody else may not choose."""

import os
import runpy
from pathlib import Path

import jax
import pytest

from figs_jax.analysis.history import histories
from figs_jax.cli.export import export_run
from figs_jax.data import own_vocabulary, sources, stdlib_text
from figs_jax.recipes import registry
from figs_jax.train import loop, workdir
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import ConfigError, default_config, recipe_sha256
from figs_jax.train.experiment import build
from figs_jax.train.log_writer import FILE, read_log
from figs_jax.train.workdir import (
  _check_paths,
  _check_sizes,
  initial_weights,
  is_own,
  restore,
)


def test_a_workdir_that_others_can_write_is_not_ours(tmp_path):
  tmp_path.chmod(0o755)
  meta = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
  meta.parent.mkdir(parents=True)
  meta.touch()
  for path in (tmp_path, *tmp_path.rglob("*")):
    path.chmod(0o755)
  assert is_own(tmp_path)
  for path in (tmp_path, *tmp_path.rglob("*")):
    path.chmod(0o777)
    assert not is_own(tmp_path)
    path.chmod(0o755)


def test_a_workdir_of_another_owner_is_not_ours(tmp_path, monkeypatch):
  tmp_path.chmod(0o755)
  uid = os.getuid()
  monkeypatch.setattr(os, "getuid", lambda: uid + 1)
  assert not is_own(tmp_path)


def test_a_strangers_path_is_one_line_with_the_flag(tmp_path, tiny_config):
  tmp_path.chmod(0o777)
  config = tiny_config("ste")
  config.data.data_dir = "/elsewhere"
  with pytest.raises(
    ConfigError, match="'/elsewhere' is not used.*--data_dir="
  ):
    _check_paths(tmp_path, config, None)
  _check_paths(tmp_path, config, "mine")
  tmp_path.chmod(0o755)
  config.data.data_dir = str(tmp_path / "none")
  with pytest.raises(ConfigError, match="not prepared.*only read.*--data_dir="):
    _check_paths(tmp_path, config, None)
  assert not (tmp_path / "none").exists()


@pytest.fixture
def shared(tmp_path, tiny_config):
  """A dense run that others can write, of a data directory that is theirs."""
  config = tiny_config("dense", total_steps=1)
  state = jax.jit(build(config).state)()
  config.data.data_dir = "/elsewhere"
  path = tmp_path / "shared"
  with Checkpointer(path) as checkpoints:
    checkpoints.save(1, state, {}, config.to_dict(), {"accuracy": 0.0})
  (path / "config.json").write_text(config.to_json())
  path.chmod(0o777)
  return path


@pytest.mark.standard_promotion
def test_every_reader_of_a_shared_run_takes_ones_own_data_dir(
  shared, tiny_config, data_dir, tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
  start = tiny_config("dense", init_from=str(shared))

  def weights(data_dir):
    start.data.data_dir = data_dir
    return initial_weights(build(start))

  def exported(data_dir):
    out = tmp_path / "a.safetensors"
    return export_run(shared, out, "packed", data_dir=data_dir)

  def restored(data_dir):
    (run,) = histories([shared], data_dir=data_dir)
    return run.model

  for read in (weights, exported, restored):
    with pytest.raises(
      ConfigError, match="--data_dir=.*training.*--config.data.data_dir="
    ):
      read(None)
    assert read(data_dir)


OWN = """
from figs_jax.recipes import register


@register("mine_hashed")
def mine_hashed(plain):
  return plain
"""


@pytest.mark.standard_promotion
def test_a_recipe_file_of_other_content_is_refused(
  tiny_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))
  file = tmp_path / "own.py"

  def run_file(text):
    file.write_text(text)
    runpy.run_path(str(file))
    return recipe_sha256("mine_hashed")

  first = run_file(OWN)
  config = tiny_config("mine_hashed", total_steps=1)
  config.recipe_sha256 = first
  state = jax.jit(build(config).state)()
  saved = config.to_dict()
  with Checkpointer(tmp_path / "run") as checkpoints:
    checkpoints.save(1, state, {}, saved, {"accuracy": 0.0})
  restore(tmp_path / "run")
  config.recipe_sha256 = second = run_file(OWN + "# edited")
  line = f"SHA-256 {first[:12]}.*got {second[:12]}.*original file"
  with pytest.raises(ConfigError, match=line):
    restore(tmp_path / "run")
  with pytest.raises(ConfigError, match=line + ".*allow_change=.*sha256"):
    loop._changes(saved, config, "run")
  config.allow_change = ("recipe_sha256",)
  assert loop._changes(saved, config, "run") == ["recipe_sha256"]
  del saved["recipe_sha256"]  # a run of an older version
  assert loop._changes(saved, config, "run") == []


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("name", "npz:/a.npz"),
    ("name", "folder:/a"),
    ("name", "text:/a.csv"),
    ("source", "/a"),
  ],
)
def test_a_strangers_source_of_data_is_not_read(
  field, value, tmp_path, tiny_config
):
  tmp_path.chmod(0o777)
  config = tiny_config("ste")
  config.data.data_dir = "/elsewhere"
  config.data[field] = value
  with pytest.raises(ConfigError, match=f"data .* '{value}' is not used"):
    _check_paths(tmp_path, config, "mine")


def test_a_deep_row_of_metrics_is_skipped(tmp_path):
  (tmp_path / FILE).write_text("[" * 10**5 + '\n{"step": 1}\n')
  assert read_log(tmp_path) == [{"step": 1}]


def test_no_vocabulary_is_trained_in_a_saved_data_directory(tmp_path):
  stdlib_text.prepare(str(tmp_path / "data"))
  tmp_path.chmod(0o755)
  config = default_config("ste", "t5")
  config.data.data_dir = str(tmp_path / "data")
  _check_paths(tmp_path, config, None)
  config.data.vocabulary = "sentencepiece:400"
  with pytest.raises(ConfigError, match="with 'sentencepiece:400' is not prep"):
    _check_paths(tmp_path, config, None)
  root = config.data.data_dir
  builder = sources.find("stdlib_text", data_dir=root)
  pieces = Path(own_vocabulary.path_of_pieces("400", builder, root))
  pieces.parent.mkdir()
  pieces.touch()
  _check_paths(tmp_path, config, None)


def test_sizes_beyond_the_saved_arrays_are_refused(tiny_config):
  config = tiny_config("ste")
  leaves = {f"a{i}": {"shape": [4, 16]} for i in range(8)}
  _check_sizes("run", config, leaves)
  config.model.depth = 9
  with pytest.raises(ConfigError, match="run: expected depth of at most 8"):
    _check_sizes("run", config, leaves)
  config.model.scan = True
  _check_sizes("run", config, leaves)


def test_saved_arrays_beyond_the_memory_are_refused(tiny_config, monkeypatch):
  config = tiny_config("ste")
  leaves = {f"a{i}": {"shape": [4, 16]} for i in range(8)}
  monkeypatch.setattr(workdir, "machine_memory", lambda: 512)
  _check_sizes("run", config, leaves)
  monkeypatch.setattr(workdir, "machine_memory", lambda: 511)
  with pytest.raises(ConfigError, match="run: expected at most 511 bytes"):
    _check_sizes("run", config, leaves)
