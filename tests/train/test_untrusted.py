"""What a workdir of somebody else may not choose."""

import os

import pytest

from figs_jax.train.config import ConfigError
from figs_jax.train.log_writer import FILE, read_log
from figs_jax.train.workdir import _check_paths, _check_sizes, is_own


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


@pytest.mark.parametrize(
  ("field", "value"), [("name", "npz:/a.npz"), ("source", "/a")]
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


@pytest.mark.parametrize(
  ("name", "scan"), [("depth", False), ("depth", True), ("seeds", False)]
)
def test_sizes_beyond_the_saved_arrays_are_refused(name, scan, tiny_config):
  config = tiny_config("ste")
  leaves = {f"a{i}": {"shape": [4, 16]} for i in range(8)}
  config.model.scan = scan
  _check_sizes("run", config, leaves)
  (config if name == "seeds" else config.model)[name] = 10**6
  with pytest.raises(ConfigError, match=f"run: expected {name} of at most"):
    _check_sizes("run", config, leaves)
