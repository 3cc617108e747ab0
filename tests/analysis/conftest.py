"""Small runs, each trained once for all tests of this directory."""

import pytest

from figs_jax.train.loop import train

STEPS = 6


@pytest.fixture(scope="session")
def sparse_workdir(tmp_path_factory, tiny_config):
  """Two seeds of SR-STE: every step is a checkpoint and is diagnosed."""
  workdir = tmp_path_factory.mktemp("sparse")
  config = tiny_config(
    "sr_ste", seeds=2, total_steps=STEPS, checkpoint_every=1, keep=STEPS,
    diagnose_every=1, log_every=1,
  )  # fmt: skip
  config.optimizer.learning_rate = 0.02  # so that masks change at once
  train(config, workdir)
  return workdir


@pytest.fixture(scope="session")
def short_workdir(tmp_path_factory, tiny_config):
  """Two steps of STE with one checkpoint; both steps are diagnosed."""
  workdir = tmp_path_factory.mktemp("short")
  config = tiny_config(
    "ste", total_steps=2, checkpoint_every=2, keep=1, diagnose_every=1, seed=1
  )
  train(config, workdir)
  return workdir
