"""What a disk refuses is one line: a mistake of the user's, or a saved run."""

import errno
import os
import shutil
import time

import pytest

from figs_jax.train import loop
from figs_jax.train.checkpoint import SaveError
from figs_jax.train.config import ConfigError
from figs_jax.train.log_writer import MetricLog
from figs_jax.train.workdir_lock import LockLostError


def full(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")


@pytest.mark.parametrize("place", ["", "below"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, tiny_config, place):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ConfigError, match="cannot be written .* set --workdir"):
    loop.train(tiny_config(), tmp_path / "file" / place)
  assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_at_the_start_is_refused(
  tmp_path, tiny_config, monkeypatch
):
  monkeypatch.setattr(loop, "_write_config", full)
  with pytest.raises(ConfigError, match="No space left on device"):
    loop.train(tiny_config(), tmp_path / "run")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.standard_promotion
def test_a_disk_that_fills_names_the_last_good_step(
  tmp_path, tiny_config, monkeypatch
):
  write = MetricLog.write

  def until_full(log, step, row):
    full() if step > 2 else write(log, step, row)

  monkeypatch.setattr(MetricLog, "write", until_full)
  config = tiny_config(total_steps=4, checkpoint_every=2, log_every=1)
  with pytest.raises(
    SaveError, match="No space left .* last good checkpoint is step 2 in"
  ):
    loop.train(config, tmp_path)
  assert not (tmp_path / "trainer.lock").exists()


@pytest.mark.standard_promotion
def test_events_that_the_disk_refuses_are_one_line(tmp_path, tiny_config):
  (tmp_path / "tensorboard").write_text("mine")
  with pytest.raises(SaveError, match="tensorboard.*; no checkpoint was saved"):
    loop.train(tiny_config(total_steps=2, log_every=1), tmp_path)


@pytest.mark.standard_promotion
def test_a_workdir_deleted_in_the_run_is_one_line(
  tmp_path, tiny_config, monkeypatch
):
  write = MetricLog.write

  def until_deleted(log, step, row):
    write(log, step, row)
    if step == 3:
      # In a save, rmtree itself may fail over files that come and go.
      while not (tmp_path / "run/checkpoints/2").exists():
        time.sleep(0.01)
      shutil.rmtree(tmp_path / "run")

  monkeypatch.setattr(MetricLog, "write", until_deleted)
  config = tiny_config(total_steps=4, checkpoint_every=2, log_every=1)
  with pytest.raises(LockLostError, match="directory was deleted or moved"):
    loop.train(config, tmp_path / "run")
