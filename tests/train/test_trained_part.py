"""Training a part of a model: the rest stays bit-equal."""

import jax
import numpy as np
import pytest

from figs_jax.core import tree
from figs_jax.train.experiment import build
from figs_jax.train.schema import ConfigError
from figs_jax.train.state import update

pytestmark = pytest.mark.standard_promotion


def trained(config, steps=2):
  """Parameters by path before and after some steps."""
  experiment = build(config)
  state = experiment.state()
  size = experiment.config.data.image_size
  batch = {
    "image": np.random.default_rng(0).normal(size=(4, size, size, 1)),
    "label": np.arange(4),
  }
  batch["image"] = batch["image"].astype(np.float32)
  step = jax.jit(update)
  before = tree.flatten(state.params)
  for _ in range(steps):
    state, _ = step(state, batch)
  return before, tree.flatten(state.params)


@pytest.mark.parametrize(
  ("rules", "name"),
  [("head", "adamw"), ("head, blocks/0/mlp/.*", "sgd"), ("", "adamw")],
)
def test_only_what_rules_match_changes(rules, name, tiny_config):
  config = tiny_config("dense", train_only=rules, total_steps=4)
  config.optimizer.name = name
  config.optimizer.weight_decay = 0.1  # of the frozen ones, too
  before, after = trained(config)
  starts = [r.strip().removesuffix(".*") for r in rules.split(",")]
  for path, value in before.items():
    free = any(path.startswith(start) for start in starts)
    same = np.array_equal(value, after[path])
    assert same != free or path.endswith("attn/k/bias"), path


def test_frozen_gradients_do_not_count_in_the_norm_that_clips(tiny_config):
  """Clipped to a tiny norm, sgd moves the head by exactly rate * norm."""
  config = tiny_config("dense", train_only="head", total_steps=4)
  config.optimizer.name, config.optimizer.clip = "sgd", 1e-3
  config.optimizer.momentum, config.optimizer.weight_decay = 0.0, 0.0
  config.optimizer.learning_rate = 1.0
  config.optimizer.schedule, config.optimizer.warmup_steps = "constant", 0
  before, after = trained(config, steps=1)
  moved = sum(((after[p] - v) ** 2).sum() for p, v in before.items())
  np.testing.assert_allclose(np.sqrt(moved), 1e-3, rtol=1e-3)


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ("haed", "train_only: 'haed' matches no parameter, did you mean 'head'"),
    ("head(", r"train_only: expected regular expressions, got 'head\('"),
  ],
)
def test_a_rule_that_matches_nothing_is_one_line(rules, message, tiny_config):
  with pytest.raises(ConfigError, match=message) as error:
    build(tiny_config("dense", train_only=rules))
  assert "\n" not in str(error.value)
