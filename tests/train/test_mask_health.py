"""No alarm for any recipe, and one for each kind of unhealthy masks."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax
from figs_jax import recipes
from figs_jax.core import NM, MaskedKernel
from figs_jax.core.masks import nm_mask
from figs_jax.train import loop
from figs_jax.train.mask_health import (
  MaskHealth,
  layer_means,
  mean_over_seeds,
)
from figs_jax.train.state import TrainState, update
from tests.contract.table import FIRST

pytestmark = pytest.mark.standard_promotion
STEPS, WIDTH = 40, 32
RATE = optax.cosine_decay_schedule(1e-3, STEPS)  # the trainer's default
NAMES = [row.name for row in FIRST if row.name != "cosine_leak"]  # a test's


class Net(nnx.Module):
  """Three layers; the output of the second may be left out."""

  def __init__(self, dead=False):
    rngs = nnx.Rngs(0)
    self.a, self.b, self.c = (
      nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)
    )
    self.dead = dead

  def __call__(self, x):
    x = jnp.tanh(self.a(x))
    return self.c(x + jnp.tanh(self.b(x)) * (0.0 if self.dead else 1.0))


def loss(model, batch, key):
  del key
  x, y = batch
  return jnp.mean((model(x) - y) ** 2), {}


def data():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(STEPS, 16, WIDTH)).astype(np.float32)
  return x, np.tanh(x[..., ::-1])


def lines_of(recipe, tx=None, *, every=1, dead=False):
  """The verdicts of a run of STEPS steps, diagnosed every so often."""
  sparse = recipe.sparse
  model = figs_jax.sparsify(Net(dead), "1:4") if sparse else Net(dead)
  tx = recipe.adamw(RATE) if tx is None else recipe.transform(tx)
  state = TrainState.create(model, recipe, tx, loss=loss, diagnose_every=every)
  _, metrics = jax.jit(functools.partial(jax.lax.scan, update))(state, data())
  metrics = jax.tree.map(np.asarray, metrics)
  health, lines = MaskHealth(state.bound), []
  for i in range(every - 1, STEPS, every):
    layers = {
      path: {name: float(values[i]) for name, values in each.items()}
      for path, each in metrics["layers"].items()
    }
    lines += health.verdicts(i + 1, layers, float(metrics["stage"][i]))
  return lines


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_alarms_at_its_defaults(name):
  options = {"rank": 0} if name == "slope" else {}
  assert lines_of(recipes.create(name, "1:4", STEPS, **options)) == []


def test_masks_that_still_flip_in_the_fine_tune_phase():
  recipe = recipes.create("ste", "1:4", STEPS)
  (line,) = lines_of(recipe, optax.adamw(0.1))
  assert line.startswith("unhealthy masks at step 37: ")  # it starts at 36
  assert "/kernel still flips " in line and " (and 2 more kernels)" in line
  assert "look at layers/*/flip_rate" in line


@dataclasses.dataclass(frozen=True)
class OneMore:
  """A criterion that keeps one weight too many in each group."""

  def __call__(self, kernel, pattern, axis, n=None):
    more = NM(pattern.n + 1, pattern.m)
    return nm_mask(jnp.abs(kernel.weight), more, axis)


def test_a_density_that_is_not_the_patterns():
  recipe = recipes.create("ste", "1:4", STEPS, dense=0.25)
  recipe = dataclasses.replace(recipe, criterion=OneMore())
  (line,) = lines_of(recipe)
  assert line == (
    "unhealthy masks at step 10: a/kernel keeps 0.5 of its entries, expected"
    " 0.25 (1:4) (and 2 more kernels); look at layers/*/density and the"
    " criterion of the recipe"
  )


def test_a_layer_that_the_optimizer_leaves_out():
  recipe = recipes.create("ste", "1:4", STEPS)
  groups = {name: name for name in "abc"}
  transforms = {
    "a": optax.adamw(1e-2), "b": optax.set_to_zero(), "c": optax.adamw(1e-2),
  }  # fmt: skip
  tx = optax.multi_transform(
    transforms,
    lambda params: {
      name: jax.tree.map(lambda _, name=name: groups[name], params[name])
      for name in params
    },
  )
  lines = [line for line in lines_of(recipe, tx) if "flips" not in line]
  (line,) = lines
  assert ": b/kernel has not flipped once where others" in line
  assert "look at layers/*/flip_rate" in line


def test_a_layer_without_a_gradient():
  (line,) = lines_of(recipes.create("sr_ste", "1:4", STEPS), dead=True, every=5)
  assert line.startswith(
    "unhealthy masks at step 20: the gradient of b/kernel has a signal-to-noise"
    " ratio of 0 twice in a row; look at layers/*/grad_snr_kept"
  )


def row(**changes):
  healthy = {
    "density": 0.25,
    "flip_rate": 0.0,
    "sad": 0.0,
    "grad_snr_kept": 0.1,
  }
  return healthy | changes


def health(name="ste", **options):
  recipe = recipes.create(name, "1:4", 100, **options)
  leaves = {path: MaskedKernel((64, 64), NM(1, 4)) for path in "ab"}
  return MaskHealth(recipe.bind(leaves))


def test_a_gradient_of_nan_and_each_kind_once():
  masks = health()
  bad = {"a": row(), "b": row(grad_snr_kept=float("nan"))}
  steps = [masks.verdicts(step, bad) for step in (5, 20, 30, 40)]
  assert [len(lines) for lines in steps] == [0, 0, 1, 0]
  assert "gradient of b has a signal-to-noise ratio of nan" in steps[2][0]
  # One step with a gradient starts the count anew.
  masks = health()
  for grads in (0.0, 0.1, 0.0, 0.1):
    each = {"a": row(), "b": row(grad_snr_kept=grads)}
    assert masks.verdicts(20, each) == []


def test_a_rare_refresh_makes_up_for_many_steps():
  flips = {"a": row(flip_rate=0.25, sad=1024.0)}
  assert health("ste", refresh_every=33).verdicts(99, flips) == []
  assert len(health("ste", refresh_every=11).verdicts(99, flips)) == 1


def test_few_flips_of_a_small_kernel_are_chance():
  flips = {"a": row(flip_rate=0.05, sad=8.0), "b": row()}
  assert health().verdicts(99, flips) == []
  assert len(health().verdicts(99, {"a": row(flip_rate=0.05, sad=16.0)})) == 1
  # The step at which one_shot prunes is the first of its fine-tune phase.
  change = {"a": row(flip_rate=0.75, sad=3072.0)}
  assert health("one_shot").verdicts(90, change) == []


def test_step_before_its_switch_may_be_dense():
  dense = {"a": row(density=1.0)}
  assert health("step").verdicts(20, dense, 0.0) == []
  assert len(health("step").verdicts(20, dense, 1.0)) == 1
  assert health("ste", dense=0.5).verdicts(20, dense) == []


def test_nested_masks_may_be_below_their_pattern():
  low, high = {"a": row(density=0.2)}, {"a": row(density=0.3)}
  assert health("figs", nested=True).verdicts(80, low) == []
  assert len(health("figs", nested=True).verdicts(80, high)) == 1


def test_a_new_stage_is_no_flip_of_a_frozen_kernel():
  masks = health("figs", k=2)
  first = masks._line.boundaries(2)[1]
  for step in range(first - 20, first + 20):
    new = 100.0 if step == first else 0.0
    lines = masks.verdicts(step, {"a": row(sad=20.0 + new), "b": row(sad=new)})
    if lines:
      break
  assert "b has not flipped once" in lines[0] and step < first


def test_means_are_over_layers():
  layers = {"a": row(flip_rate=0.1), "b": row(flip_rate=0.3)}
  means = layer_means(layers)
  assert means["masks/flip_rate"] == pytest.approx(0.2)
  assert means["masks/density"] == 0.25
  assert layer_means({}) == {}
  assert mean_over_seeds(np.array([1.0, np.nan, 3.0])) == 2.0
  assert np.isnan(mean_over_seeds(np.array(np.nan)))  # and warns of nothing


def test_a_run_logs_the_verdict(tmp_path, tiny_config, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("figs_jax"), "propagate", True)
  config = tiny_config(
    "ste",
    total_steps=20,
    diagnose_every=1,
    seeds=2,
    **{"optimizer.learning_rate": 0.1, "optimizer.schedule": "constant"},
  )
  loop.train(config, tmp_path)
  verdicts = [r for r in caplog.records if "unhealthy" in r.getMessage()]
  assert len(verdicts) == 1 and verdicts[0].levelname == "WARNING"
  assert "still flips" in verdicts[0].getMessage()
