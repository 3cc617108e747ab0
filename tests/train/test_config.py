"""Configurations: every file under every recipe, and clear errors."""

import importlib.util
from pathlib import Path

import jax
import pytest

from figs_jax import recipes
from figs_jax.data import DataError
from figs_jax.train import schema
from figs_jax.train.config import (
  ConfigError,
  completed,
  default_config,
  differences,
  recipe_of,
)
from figs_jax.train.experiment import build
from figs_jax.train.optimizer import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
# Files of studies have cells; tests/analysis/test_study.py expands them.
NAMES = sorted(
  path.stem
  for path in CONFIGS.glob("*.py")
  if not path.stem.startswith("study_")
)


def load(name):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("recipe", recipes.names())
@pytest.mark.parametrize("name", NAMES)
def test_every_config_under_every_recipe(name, recipe):
  module = load(name)
  config = module.get_config(recipe)
  schema.check(config)
  assert recipe_of(config).name == recipe
  assert "Command:" in module.__doc__
  assert "Hardware:" in module.__doc__


def test_the_paper_hyper_parameters():
  config = load("imagenet_vit_b16").get_config("figs")
  assert config.batch_size == 4096
  assert config.total_steps == 350 * 1281167 // 4096
  optimizer = config.optimizer
  assert (optimizer.b1, optimizer.b2) == (0.9, 0.999)
  assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-3, 0.01)
  assert (optimizer.clip, config.mixup) == (1.0, 0.5)
  assert config.loss == "bce"


def test_the_paper_hyper_parameters_for_text():
  glue = load("glue_t5_base").get_config("figs")
  assert (glue.batch_size, glue.total_steps) == (128, 100_000)
  assert (glue.optimizer.learning_rate, glue.pattern) == (1e-3, "ff: 1:32")
  wmt = load("wmt_transformer").get_config("figs")
  assert (wmt.optimizer.b1, wmt.optimizer.b2) == (0.9, 0.98)
  assert wmt.total_steps == 200_000
  for step in (1000, 4000, 200_000):
    rate = float(learning_rate(wmt)(step))
    assert rate == pytest.approx(0.0625 / step**0.5, rel=1e-5)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("total_steps", 0, "total_steps: expected an integer in .*, got 0"),
    ("grad_accum_steps", 3, "multiple of grad_accum_steps=3"),
    ("loss", "mse", r"loss: expected one of 'softmax', 'bce', got 'mse'"),
    ("mixup", -1.0, r"mixup: expected a number in \[0, 1000\], got -1.0"),
    ("seeds_mode", "magic", "seeds_mode: expected one of .*, got 'magic'"),
    ("ema_decay", 1.0, r"ema_decay: expected a number in \[0, 1\), got 1.0"),
    ("optimizer.warmup_steps", 1000, "less than total_steps"),
    ("data.name", "digitz", "digits"),
    ("pattern", "fff: 1:4", "did you mean 'ff'"),
    ("pattern", "ff: 1:5", "not a multiple of m=5"),
    ("pattern", "ff 1:4", "Invalid rules"),
    ("recipe.dense", 1.5, "dense"),
    ("family", "vitt", "vit"),
    ("pattern", "1:5", "not a multiple of m=5"),
  ],
)
@pytest.mark.standard_promotion
def test_illegal_values(tiny_config, field, value, message):
  config = tiny_config("figs", **{field: value})
  with pytest.raises((ValueError, DataError), match=message) as error:
    build(config)
  assert "\n" not in str(error.value)


@pytest.mark.standard_promotion
def test_one_pattern_for_every_kernel(tiny_config):
  leaves = build(tiny_config("ste", pattern="1:2")).abstract_state.bound.leaves
  assert "head/kernel" in leaves


@pytest.mark.standard_promotion
def test_step_takes_a_window(tiny_config):
  state = build(tiny_config("step", **{"recipe.window": 3})).abstract_state
  assert any(x.shape == (3,) for x in jax.tree.leaves(state.opt_state))


def test_unknown_recipe_suggests_the_nearest():
  with pytest.raises(ConfigError, match="did you mean 'figs'"):
    default_config("fig")


def test_differences_ignore_what_changes_no_number():
  saved = default_config("ste").to_dict()
  now = default_config("ste")
  now.keep, now.log_every = 7, 3
  assert differences(saved, now.to_dict()) == []
  now.recipe.dense = 0.2
  now.optimizer.b1 = 0.8
  assert differences(saved, now.to_dict()) == ["optimizer.b1", "recipe.dense"]


def test_a_run_from_before_a_field_was_renamed_is_refused():
  saved = default_config("ste").to_dict()
  saved["accumulate"] = saved.pop("grad_accum_steps")
  with pytest.raises(ConfigError, match=r"expected config.grad_accum") as error:
    completed(saved)
  assert "config.accumulate" in str(error.value)
  assert "\n" not in str(error.value)
