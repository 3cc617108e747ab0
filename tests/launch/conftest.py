"""Data sets that runs in other processes share."""

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  from figs_jax import data

  path = tmp_path_factory.mktemp("data")
  data.load("digits", "train", data_dir=str(path))
  return str(path)
