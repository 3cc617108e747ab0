"""Phases of a run against a loop that asks the recipe about every step."""

import dataclasses
import itertools

import jax.numpy as jnp
import pytest

from figs_jax import models, nn, recipes
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.models.phases import phases_of
from figs_jax.recipes.stage_schedule import Cubic

STEPS = 90
RULES = Rules.parse("ff: 1:8, qk: 2:4")
ONE = Rules.parse("ff: 1:8, qk: 1:8")


def small(rules=RULES):
  sizes = {"width": 64, "depth": 1, "heads": 2, "mlp_dim": 96}
  model = models.abstract(
    "vit", "custom/4", image_size=8, num_classes=10, **sizes
  )
  return model if rules is None else nn.sparsify(model, rules)


def by_every_step(model, recipe):
  """(patterns by layer, whether forward is sparse) of each step.

  Of nested patterns, all steps at the first come before those at the second.
  """
  bound = recipe.bind(nn.masked_leaves(model))
  line, result = recipe.timeline, []
  points = recipe.points.patterns if recipe.points else (None,)
  for point, step in itertools.product(points, range(recipe.total_steps)):
    flag = line.switched_by(step)
    patterns = {}
    for kernel in bound.kernels:
      m = kernel.leaf.pattern.m
      stage = int(line.stage(len(kernel.stages), jnp.int32(step), flag))
      name = kernel.path.removesuffix("/kernel")
      patterns[name] = point or (NM(m, m), *kernel.stages)[stage]
    sparse = float(recipe.at(step, flag).leak) == 0
    result.append((patterns, sparse))
  return result


def patterns_of(phase):
  return {
    row["name"]: row["pattern"]
    for row in phase.layers
    if row["pattern"] is not None
  }


@pytest.mark.parametrize("name", recipes.names())
def test_phases_are_the_steps_of_every_recipe(name):
  # Nested patterns have one target, and here each step trains them all.
  nested = name == "nested"
  rules, options = (ONE, {"sampled": 9}) if nested else (RULES, {})
  model, recipe = small(rules), recipes.create(name, rules, STEPS, **options)
  phases = phases_of(model, recipe, batch=3)
  spread = [
    (patterns_of(phase), phase.forward)
    for phase in phases
    for _ in range(phase.steps)
  ]
  passes = recipe.points.passes if nested else 1
  assert sum(phase.steps for phase in phases) == STEPS * passes
  assert min(phase.steps for phase in phases) > 0
  for step, (got, wanted) in enumerate(
    zip(spread, by_every_step(model, recipe), strict=True)
  ):
    assert got == wanted, step
  rows = models.gemms_of(model, 3)
  along_both = recipe.transposable or recipe.flow.double_pruned
  for phase in phases:
    assert phase.weight_gradient == recipe.flow.mvue
    assert phase.input_gradient == (phase.forward and along_both)
    sizes = [{k: v for k, v in r.items() if k != "pattern"} for r in rows]
    for row, size in zip(phase.layers, sizes, strict=True):
      assert row | size == row


def test_kernels_with_unequal_stages():
  recipe = recipes.create("sdgf_stepwise", RULES, STEPS)
  line = dataclasses.replace(recipe.timeline, stage_schedule=Cubic())
  recipe, model = dataclasses.replace(recipe, timeline=line), small()
  got = [
    (patterns_of(phase), phase.forward)
    for phase in phases_of(model, recipe)
    for _ in range(phase.steps)
  ]
  assert got == by_every_step(model, recipe)
  # Under this schedule the kernel with fewer stages begins later.
  assert any(
    NM(4, 4) in result.values() and NM(7, 8) in result.values()
    for result, _ in got
  )


@dataclasses.dataclass(frozen=True)
class Pulses:
  """A leak that comes and goes, and does not say where it ends."""

  def __call__(self, step):
    return jnp.where(step % 3 == 0, 0.5, 0.0)


def test_pulses_of_a_leak_are_gathered_within_a_stage():
  plain = recipes.create("sdgf_stepwise", RULES, STEPS)
  recipe, model = dataclasses.replace(plain, leak=Pulses()), small()
  steps = by_every_step(model, recipe)
  phases = phases_of(model, recipe)
  for sparse in (False, True):
    for patterns in {tuple(result.items()): 0 for result, _ in steps}:
      got = sum(
        phase.steps
        for phase in phases
        if phase.forward is sparse and patterns_of(phase) == dict(patterns)
      )
      assert got == steps.count((dict(patterns), sparse))


def test_few_phases_for_many_steps_and_a_part_of_a_run():
  model = small()
  recipe = recipes.create("figs", RULES, 2**31 - 1)
  phases = phases_of(model, recipe)
  assert sum(phase.steps for phase in phases) == 2**31 - 1
  assert len(phases) < 12
  # 2^30 steps end within the decay phase: a prefix, its last phase cut short.
  part = phases_of(model, recipe, steps=2**30)
  last = 2**30 - sum(phase.steps for phase in part[:-1])
  assert part == (
    *phases[: len(part) - 1],
    phases[len(part) - 1]._replace(steps=last),
  )
  assert phases_of(model, recipe, steps=0) == ()


def test_a_model_without_masks_is_dense_throughout():
  recipe = recipes.create("ste", "1:8", STEPS)
  for phase in phases_of(small(None), recipe):
    assert all(row["pattern"] is None for row in phase.layers)


def test_bad_requests():
  recipe = recipes.create("ste", RULES, STEPS)
  with pytest.raises(ValueError, match=f"Expected steps .*got {STEPS + 1}"):
    phases_of(small(), recipe, steps=STEPS + 1)
  with pytest.raises(ValueError, match="'ste' never switches; leave it out"):
    phases_of(small(), recipe, switched_at=3)
