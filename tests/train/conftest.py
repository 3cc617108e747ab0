"""Small experiments on digits that every test of training starts from."""

import pytest

from figs_jax.train.config import default_config


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  from figs_jax import data

  path = tmp_path_factory.mktemp("data")
  data.load("digits", "train", data_dir=str(path))
  return str(path)


@pytest.fixture(scope="session")
def tiny_config(data_dir):
  """A factory: recipe, overrides -> a configuration that trains in seconds."""

  def make(recipe="figs", **overrides):
    config = default_config(recipe)
    config.family, config.variant = "vit", "custom/4"
    config.model.update(
      {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64, "pool": "gap"}
    )
    config.pattern = "ff: 1:4"
    config.total_steps = 40
    config.batch_size = 16
    config.data.data_dir = data_dir
    config.data.eval_batch_size = 90
    config.log_every = 5
    config.diagnose_every = 10
    config.checkpoint_every = 10
    config.progress = False
    config.update_from_flattened_dict(overrides)
    return config

  return make
