"""A resumed run says what has changed around it."""

import os

import pytest

from figs_jax.train import data_position, loop, machine
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import ConfigError


def test_cores_are_those_that_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
  assert machine.current()["cores"] == 1


@pytest.mark.standard_promotion
def test_a_resumed_run_says_what_changed(
  tmp_path, tiny_config, monkeypatch, caplog
):
  loop.train(tiny_config(total_steps=2, checkpoint_every=2), tmp_path)
  with Checkpointer(tmp_path) as checkpoints:
    meta = checkpoints.meta()
  assert meta["machine"] == machine.current()
  count = meta["data"]["num_examples"]
  again = tiny_config(
    total_steps=3,
    checkpoint_every=3,
    allow_change=("total_steps", "checkpoint_every"),
  )
  now = machine.current() | {"cores": 77}
  monkeypatch.setattr(machine, "current", lambda: now)
  monkeypatch.setattr(
    data_position,
    "data_set",
    lambda _: {"num_examples": count + 1, "data_set": "x"},
  )
  loop.train(again, tmp_path)
  assert "another machine: cores 77 (was" in caplog.text
  assert f"examples, got x with {count + 1}: the saved" in caplog.text
  with Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.meta()["data"]["next_example"] == again.batch_size


def test_an_old_checkpoint_gives_no_warning():
  assert not machine.changed({}, machine.current())


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path, tiny_config):
  config = tiny_config(batch_size=2**20)
  with pytest.raises(ConfigError, match="expected at most the .* examples"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()
