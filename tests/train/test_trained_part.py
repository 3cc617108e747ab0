"""Training a part of a model: the rest stays bit-equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core import tree
from figs_jax.optim import ScaleByStepAdamState
from figs_jax.recipes.optimizer_requirements import states_of
from figs_jax.train.experiment import build
from figs_jax.train.schema import ConfigError
from figs_jax.train.state import update
from figs_jax.train.trained_part import training_only

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


def test_the_criterion_of_step_leaves_frozen_kernels_out():
  """Else they count as settled, and the switch comes too early."""
  recipe = recipes.create("step", "kernel: 1:2", 10, dense=0.0, t_min=0.5)
  params = {name: {"kernel": jnp.ones((2, 2))} for name in ("body", "head")}
  masks = {name: {"kernel": jnp.eye(2, dtype=bool)} for name in params}
  grads = {name: {"kernel": jnp.full((2, 2), 3.0)} for name in params}
  values = []
  for rules, own in (("head", params), ("", {"head": params["head"]})):
    tx = training_only(recipe.adamw(0.1), rules)
    few, shown, seen = (
      {name: each[name] for name in own} for each in (params, grads, masks)
    )
    _, state = tx.update(shown, tx.init(few), few, masks=seen)
    (adam,) = states_of(ScaleByStepAdamState, state)
    values.append(np.asarray(adam.window))
  np.testing.assert_array_equal(*values)
  assert values[0].any()
