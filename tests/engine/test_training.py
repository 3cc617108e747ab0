"""Training costs: against single products, and against the models' FLOPs."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import figs_jax
from figs_jax import models, nn, recipes
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.engine import Layers, cost, flops, parse
from figs_jax.engine.training import (
  TrainingPhase,
  nanoseconds,
  run_cost,
  step_cost,
)

STEPS = 60
RULES = Rules.parse("ff: 1:8, qk: 2:4")
PARTS = ("forward", "input_gradient", "weight_gradient")
sizes = st.integers(1, 40)


def small(rules=RULES):
  def build():
    widths = {"width": 64, "depth": 1, "heads": 2, "mlp_dim": 96}
    model = models.create(
      "vit", "custom/4", image_size=8, num_classes=16, **widths
    )
    return nn.sparsify(model, rules)

  return nnx.eval_shape(build)


@pytest.mark.parametrize("name", recipes.names())
def test_flops_are_those_of_the_model_for_every_recipe(name):
  # One target for all kernels.
  rules = Rules.parse("ff: 1:8") if name == "nested" else RULES
  model, recipe = small(rules), recipes.create(name, rules, STEPS)
  for batch in (1, 3):
    run = figs_jax.train_cost(model, recipe, "ws:32x32", batch)
    wanted = figs_jax.train_flops(model, recipe, batch=batch)
    each = [
      sum(n * getattr(c.flops, part) for n, c in zip(run.steps, run.phases))
      for part in PARTS
    ]
    assert each == [getattr(wanted, part) for part in PARTS]
    assert run.total("flops") == wanted.total
    assert run.share("flops") == wanted.share
    assert all(type(part) is int for part in each)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("ste", {"transposable": True}),
    ("ste", {"mvue": "2:4", "dense": 0.3}),
    ("figs", {"k": 16, "dense": 0, "finetune": 0.5, "mvue": "1:2"}),
  ],
)
def test_flops_with_sparse_gradients(name, options):
  rules = "ff: 2:4, head: 1:8"
  model = small(rules)
  recipe = recipes.create(name, rules, STEPS, **options)
  # Three rows of the head do not fill a group of 4.
  run = figs_jax.train_cost(model, recipe, "ws", 3)
  assert (
    run.total("flops") == figs_jax.train_flops(model, recipe, batch=3).total
  )
  assert run.total("flops") < figs_jax.train_cost(
    model, recipes.create(name, rules, STEPS), "ws", 3
  ).total("flops")


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.integers(1, 5), st.integers(1, 5), st.booleans(),
       st.booleans(), st.sampled_from([None, NM(2, 4), NM(1, 2)]))  # fmt: skip
def test_a_step_is_its_three_products(M, N, groups, count, forward, back, mvue):
  nm, K = NM(1, 4), 4 * groups
  N *= 4
  row = {"name": "ff", "M": M, "N": N, "K": K, "pattern": nm, "count": count}
  got = step_cost(
    [row], "ws:8x8", forward=forward, input_gradient=back, weight_gradient=mvue
  )
  singles = [
    {"name": "y", "M": M, "N": N, "K": K, "pattern": nm if forward else None},
    {"name": "dx", "M": M, "N": K, "K": N, "pattern": nm if back else None},
    {"name": "dw", "M": K, "N": N, "K": M, "pattern": mvue},
  ]
  alone = cost(singles, "ws:8x8")
  assert got.cycles._fields == PARTS
  assert list(got.cycles) == [count * int(c) for c in alone.cycles]
  assert list(got.dram_bytes) == [count * int(b) for b in alone.dram_bytes]
  np.testing.assert_allclose(got.energy_pj, count * alone.energy_pj, rtol=1e-12)


def test_only_masked_rows_get_a_pruned_weight_gradient():
  rows = [
    {"name": "ff", "M": 8, "N": 8, "K": 8, "pattern": "8:8"},  # dense stage
    {"name": "qk", "M": 8, "N": 8, "K": 8},
  ]
  table = TrainingPhase(1, rows, weight_gradient="2:4").products()
  assert table.m.tolist() == [8, 1, 1, 1, 4, 1]
  np.testing.assert_array_equal(
    flops(table), 2 * 8**3 * np.array([1, 1, 1, 1, 0.5, 1])
  )


@pytest.mark.parametrize("engine", ["figs", "vegeta", "ws"])
def test_a_run_is_the_sum_of_its_steps(engine):
  row = {"name": "ff", "M": 96, "N": 128, "K": 128, "pattern": "2:4"}
  dense = {**row, "pattern": None}
  run = run_cost([(3, [row], False), (5, [row]), (2, [dense])], engine)
  once = [
    step_cost([row], engine, forward=on).cycles.total for on in (False, True)
  ]
  assert run.total("cycles") == 5 * once[0] + 5 * once[1]
  assert run.share("cycles") == run.total("cycles") / (10 * once[0])
  assert once[1] < once[0]
  assert run.seconds() == run.total("cycles") / 1e9
  assert len({id(step) for step in (*run.phases, *run.dense)}) == 2


def test_a_dense_recipe_costs_the_dense_run():
  rules = "ff: 1:8"
  recipe = recipes.create("dense", rules, STEPS)
  run = figs_jax.train_cost(small(rules), recipe, "vegeta", 2)
  for field in ("cycles", "flops", "dram_bytes", "energy_pj"):
    assert run.share(field) == 1


def test_sums_beyond_int64_are_exact():
  size = 2**21
  row = {"name": "ff", "M": size, "N": size, "K": size, "pattern": "1:2"}
  steps = 2**40
  run = run_cost([(steps, [row])], "ws:128x128")
  assert run.total("flops") == steps * 5 * size**3
  assert run.share("flops") == 5 / 6
  assert run.total("cycles") == steps * sum(
    int(c)
    for c in cost(TrainingPhase(1, [row]).products(), "ws:128x128").cycles
  )
  assert run.total("cycles") > 2**63


def test_clocks():
  row = {"name": "ff", "M": 8, "N": 8, "K": 8}
  run = run_cost([(1, [row])], "ws:8x8")
  assert run.seconds(0.5) == 4 * run.seconds(2)
  slow = run_cost([(1, [row])], "ws:8x8:clock=250")
  assert slow.seconds() == 4 * run_cost([(1, [row])], "ws:8x8").seconds()
  with pytest.raises(
    ValueError, match="clock_ghz: expected a positive number, got nan"
  ):
    nanoseconds(1, parse("ws"), float("nan"))
  with pytest.raises(ValueError, match="expected a positive number, got 0"):
    run.seconds(0)
  with pytest.raises(ValueError, match="tpu:v5e counts nanoseconds"):
    run_cost([(1, [row])], "tpu:v5e").seconds(2)


def test_bad_phases():
  row = {"name": "ff", "M": 8, "N": 8, "K": 8, "pattern": "1:3"}
  with pytest.raises(ValueError, match="expected at least one phase"):
    run_cost([], "ws")
  with pytest.raises(ValueError, match="at least one step in phase 1, got 0"):
    run_cost([(1, [row]), (0, [row])], "ws")
  with pytest.raises(ValueError, match="1:3 does not fit"):
    run_cost([(1, [row])], parse("vegeta"))
  assert Layers.of([row]).m[0] == 3  # the same row is fine elsewhere
  run_cost([(1, [row])], "ws")
