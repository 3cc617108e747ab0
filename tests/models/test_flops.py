"""FLOPs of a run: the published table, and a loop over every step."""

import dataclasses
import itertools

import jax.numpy as jnp
import pytest

from figs_jax import models, nn, recipes
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.models.flops import TrainFlops, forward_flops, train_flops

STEPS = 60
PARTS = ("forward", "input_gradient", "weight_gradient")


def abstract(rules=None, variant="B/16", **options):
  model = models.abstract("vit", variant, **options)
  return model if rules is None else nn.sparsify(model, rules)


def small(rules, **options):
  sizes = {"width": 64, "depth": 1, "heads": 2, "mlp_dim": 96}
  return abstract(
    rules, "custom/4", image_size=8, num_classes=10, **sizes, **options
  )


@pytest.mark.parametrize(
  ("pattern", "giga"),
  [
    (None, 34.71),
    ("2:4", 23.61),
    ("1:4", 18.06),
    ("1:8", 15.29),
    ("1:16", 13.90),
    ("1:32", 13.20),
    ("1:128", 12.69),
  ],
)
def test_published_inference_flops_of_vit_base(pattern, giga):
  # arXiv 2402.04744, appendix D: sequence 196, without patches and head.
  model = abstract(pattern and f"ff: {pattern}", pool="gap")
  rows = models.gemms_of(model, batch=1)
  blocks = [row for row in rows if row["name"].startswith("blocks/")]
  assert len(blocks) == 12 * 8
  # Printed with two digits, cut rather than rounded at 1:32.
  assert forward_flops(blocks) / 1e9 == pytest.approx(giga, abs=0.01)


def test_a_last_group_that_k_cuts_keeps_n_at_most():
  row = {"name": "a", "M": 2, "N": 3, "count": 5, "pattern": NM(3, 4)}
  counted = [forward_flops([row | {"K": K}]) for K in (2, 4, 5, 8)]
  assert counted == [2 * 2 * 3 * 5 * kept for kept in (2, 3, 4, 6)]


def by_every_step(model, recipe, batch, steps, switched_at=None):
  """The same by a loop over all steps, from what the recipe says of each."""
  bound = recipe.bind(nn.masked_leaves(model))
  kernels = {k.path: k for k in bound.kernels}
  line, totals = recipe.timeline, dict.fromkeys((*PARTS, "dense"), 0)
  points = recipe.points.patterns if recipe.points else (None,)
  along_both = recipe.transposable or recipe.flow.double_pruned
  for step, point in itertools.product(range(steps), points):
    flag = (
      line.switched_by(step) if switched_at is None else step >= switched_at
    )
    leak = recipe.leak_at(step, flag)
    for row in models.gemms_of(model, batch):
      whole = 2 * row["M"] * row["N"] * row["K"] * row["count"]
      cost = dict.fromkeys(PARTS, whole)
      kernel = kernels.get(row["name"] + "/kernel")
      if kernel is not None:
        stage = int(line.stage(len(kernel.stages), jnp.int32(step), flag))
        if stage and leak == 0:
          nm = point or kernel.stages[stage - 1]
          cost["forward"] = whole * nm.n // nm.m
          if along_both:
            cost["input_gradient"] = cost["forward"]
        if recipe.flow.mvue:
          nm = recipe.flow.mvue
          cost["weight_gradient"] = whole * nm.n // nm.m
      totals["dense"] += 3 * whole
      for part, flops in cost.items():
        totals[part] += flops
  return TrainFlops(**totals)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_against_a_loop_over_its_steps(name):
  # Nested patterns have one target, and here each step trains them all.
  nested = name == "nested"
  rules = Rules.parse(f"ff: 1:8, qk: {'1:8' if nested else '2:4'}")
  model = small(rules)
  options = {"sampled": 9} if nested else {}
  recipe = recipes.create(name, rules, STEPS, **options)
  for steps in (0, 1, 17, STEPS):
    made = train_flops(model, recipe, batch=4, steps=steps)
    assert made == by_every_step(model, recipe, 4, steps)
    assert all(type(part) is int for part in made)
    assert made.total <= made.dense
  whole = train_flops(model, recipe, batch=4)
  assert whole == made
  assert (whole.total < whole.dense) == recipe.sparse


def test_options_against_a_loop():
  model = small("ff: 2:4")
  for name, options in (
    ("ste", {"transposable": True}),
    ("slope", {}),
    ("slope", {"double_pruned": False}),
    ("ste", {"mvue": "1:2", "dense": 0.3}),
    ("mdgf_exp", {"beta": 0.3, "finetune": 0.0}),
    ("mdgf_linear", {"zero_at": 0.4, "transposable": True}),
    ("figs", {"k": 16, "dense": 0, "finetune": 0.5, "mvue": "2:4"}),
  ):
    recipe = recipes.create(name, "2:4", STEPS, **options)
    made = train_flops(model, recipe, batch=4)
    assert made == by_every_step(model, recipe, 4, STEPS), (name, options)
    along_both = recipe.transposable or recipe.flow.double_pruned
    assert (made.input_gradient < made.dense // 3) == along_both
    assert (made.weight_gradient < made.dense // 3) == bool(recipe.flow.mvue)


def test_the_switch_of_step_is_assumed_late_unless_told():
  model = small("ff: 1:8")
  recipe = recipes.create("step", "ff: 1:8", STEPS)
  limits = recipe.timeline.switch
  late = train_flops(model, recipe)
  early = train_flops(model, recipe, switched_at=limits.t_min + 1)
  assert early.total < late.total
  assert late == train_flops(model, recipe, switched_at=limits.t_max + 1)
  assert early == by_every_step(model, recipe, 1, STEPS, limits.t_min + 1)
  for at in (limits.t_min, limits.t_max + 2):
    with pytest.raises(
      ValueError, match="in 7..31, the range of the first masked"
    ):
      train_flops(model, recipe, switched_at=at)
  with pytest.raises(ValueError, match="'ste' never switches"):
    train_flops(model, recipes.create("ste", "ff: 1:8", STEPS), switched_at=5)


@dataclasses.dataclass(frozen=True)
class Pulses:
  """A leak that comes and goes, and does not say where it ends."""

  def __call__(self, step):
    return jnp.where(step % 3 == 0, 0.5, 0.0)


def test_a_leak_of_ones_own_is_asked_at_every_step():
  model = small("ff: 1:8")
  plain = recipes.create("sdgf_stepwise", "ff: 1:8", STEPS)
  recipe = dataclasses.replace(plain, leak=Pulses())
  made = train_flops(model, recipe)
  assert made == by_every_step(model, recipe, 1, STEPS)
  assert made.total > train_flops(model, plain).total


def test_millions_of_steps_are_exact_integers():
  model = small("ff: 1:8")
  steps = 2**31 - 1
  recipe = recipes.create("figs", "ff: 1:8", steps, dense=0, finetune=0)
  made = train_flops(model, recipe, batch=2**17)
  # The density is the same at every stage of figs.
  one = train_flops(
    model, recipes.create("ste", "1:8", 1, dense=0, finetune=0), batch=2**17
  )
  assert made == TrainFlops(*(part * steps for part in one))
  assert made.dense > 2**64


def test_every_mask_may_be_absent():
  model = small(None)
  recipe = recipes.create("ste", "1:8", STEPS)
  made = train_flops(model, recipe, batch=2)
  rows = models.gemms_of(model, 2)
  assert made.forward == STEPS * forward_flops(rows)
  assert made.dense == made.total == 3 * made.forward
  assert made.share == 1
  assert train_flops(model, recipe, steps=0) == (0, 0, 0, 0)
  assert train_flops(model, recipe, steps=0).share == 1
  for steps in (-1, STEPS + 1):
    with pytest.raises(ValueError, match=f"Expected steps .*got {steps}"):
      train_flops(model, recipe, steps=steps)


def test_narrow_layers_pad_the_groups_of_the_neural_gradient():
  # A head sees one row per image: 3 rows in groups of 4 keep 2.
  model = small("head: 1:8, ff: dense", pool="gap")
  recipe = recipes.create("ste", "head: 1:8, ff: dense", STEPS, mvue="2:4")
  made = train_flops(model, recipe, batch=3)
  rows = {row["name"]: row for row in models.gemms_of(model, 3)}
  head = rows["head"]
  assert head["pattern"] == NM(1, 8) and head["M"] == 3
  saved = made.dense // 3 - made.weight_gradient
  assert saved == STEPS * 2 * (3 - 2) * head["N"] * head["K"]
