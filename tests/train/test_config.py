"""Configurations: every file under every recipe, and clear errors."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from figs_jax import recipes
from figs_jax.analysis._study_cells import fingerprint
from figs_jax.data import DataError
from figs_jax.models import vit
from figs_jax.train import schema
from figs_jax.train.config import (
  ConfigError,
  changes,
  completed,
  default_config,
  differences,
  plain,
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


@pytest.mark.parametrize("form", vit.FORMS)
def test_the_form_of_a_variant_decides_its_options(tiny_config, form):
  config = tiny_config("dense", variant=f"{form}-custom/2")
  config.model.pool = None
  model = build(config).abstract_dense
  for name, value in vit.FORMS[form].items():
    assert getattr(model, name) == value


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


@pytest.mark.standard_promotion  # optax mixes dtypes
def test_a_warm_up_is_a_share_or_a_count():
  """Runs that saved a count resume under a share of as many steps."""
  config = default_config("ste")
  config.total_steps, config.optimizer.warmup_steps = 600, 0.05
  saved = plain(config)
  saved["optimizer"]["warmup_steps"] = 30  # as before shares
  assert changes(saved, config) == ([], [])
  count = config_dict.ConfigDict(completed(saved))
  steps = np.arange(600)
  rates = [jax.vmap(learning_rate(each))(steps) for each in (config, count)]
  np.testing.assert_array_equal(*rates)
  assert rates[0].argmax() == 30
  assert fingerprint(config) == fingerprint(count)
  # Longer runs warm up longer, so that this is another run.
  config.total_steps = 1200
  assert changes(saved, config)[1] == ["optimizer.warmup_steps", "total_steps"]


@pytest.mark.parametrize(
  ("warmup", "total", "steps"),
  [
    (0.0, 20, 0),
    (0.05, 20, 1),
    (0.29, 100, 29),  # 0.29 * 100 < 29
    (15 / 350, 109474, 15 * 1281167 // 4096),
    (30, 600, 30),
    (0.999, 10, 9),
  ],
)
def test_steps_of_a_warm_up(warmup, total, steps):
  assert schema.warmup_steps(warmup, total) == steps


@pytest.mark.parametrize("warmup", [1.5, 20, 0.99999999999])
def test_a_warm_up_leaves_steps(warmup):
  config = default_config("ste")
  config.total_steps, config.optimizer.warmup_steps = 20, warmup
  with pytest.raises(ConfigError, match="a share below 1, as in 0.05, or an"):
    schema.check(config)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_shortened(name):
  config = load(name).get_config("figs")
  config.total_steps = 20
  schema.check(config)


def test_a_recipe_is_not_changed_by_its_name():
  config = default_config("figs")
  config.recipe.name = "ste"
  with pytest.raises(ConfigError, match=r"--config=FILE:ste.*'ste'"):
    schema.check(config)


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
