"""A recipe as a function of the step: stage, leak, pattern, table."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core._flow import Flow
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.recipes import create, names, options, register, registry

PUBLISHED = (
  "dense", "figs", "mdgf_exp", "mdgf_linear", "sdgf_geometric",
  "sdgf_stepwise", "sr_ste", "ste", "step",
)  # fmt: skip
SPARSE = [name for name in PUBLISHED if name != "dense"]
MIXED = "head: dense, ff: 1:16, qk: 2:4"


def test_the_catalogue():
  assert set(PUBLISHED) <= set(names())
  assert list(names()) == sorted(names())


@pytest.mark.parametrize("pattern", ["1:16", MIXED])
@pytest.mark.parametrize("name", PUBLISHED)
def test_eager_twins_agree_with_at_under_jit_at_every_step(name, pattern):
  recipe = create(name, pattern, total_steps=120)
  at = jax.jit(recipe.at)
  stages = set()
  for step in range(121):
    switched = name == "step" and step > 60  # T_max = .50 T
    moment = at(step, switched)
    assert float(moment.leak) == recipe.leak_at(step)
    assert moment.leak.dtype == jnp.float32
    stages.add(int(moment.stage))
    if pattern == "1:16":
      patterns = (NM(16, 16), *recipe.pattern_schedule(NM(1, 16), None))
      assert recipe.pattern_at(step) == patterns[int(moment.stage)]
  assert stages == set(range(max(stages) + 1))


@pytest.mark.parametrize("total", [1, 2, 7, 100, 12_345])
@pytest.mark.parametrize("name", SPARSE)
def test_fine_tuning_is_strictly_binary(name, total):
  """D is exactly 0, under jit as in the eager twin; dense means D = 1."""
  recipe = create(name, "1:4", total)
  line = recipe.timeline
  steps = jnp.arange(total + 1)
  late = steps > (line.switch.t_max if line.switch else -1)
  leak = np.asarray(jax.jit(jax.vmap(recipe.at))(steps, late).leak)
  assert np.all(leak[line.finetune_start :] == 0.0)
  if name != "step":
    assert np.all(leak[: line.dense_end] == 1.0)
    assert recipe.pattern_at(total) == NM(1, 4)
  else:
    dense = ~late & (steps < line.finetune_start)
    np.testing.assert_array_equal(leak == 1, dense)
  assert np.all((leak >= 0) & (leak <= 1))


@pytest.mark.parametrize("total", [40, 1000, 98_765])
def test_mdgf_linear_reaches_zero_at_seventy_percent(total):
  recipe = create("mdgf_linear", "1:8", total)
  start, end = recipe.timeline.dense_end, round(0.7 * total)
  steps = np.arange(total)
  leak = np.asarray(jax.jit(jax.vmap(recipe.at))(jnp.asarray(steps)).leak)
  wanted = np.clip(1 - (steps - start) / (end - start), 0, 1)
  np.testing.assert_allclose(leak, wanted, atol=2e-6)
  np.testing.assert_array_equal(leak[end:], 0.0)
  assert leak[end - 1] > 0


@pytest.mark.parametrize("total", [40, 1000, 98_765])
def test_mdgf_exp_is_cut_below_a_thousandth(total):
  recipe = create("mdgf_exp", "1:8", total)
  start, end = recipe.timeline.dense_end, round(0.7 * total)
  steps = np.arange(total)
  leak = np.asarray(jax.jit(jax.vmap(recipe.at))(jnp.asarray(steps)).leak)
  wanted = 1e-3 ** (np.maximum(steps - start, 0) / (end - start))
  wanted[end + 1 :] = 0.0
  np.testing.assert_allclose(leak, wanted, rtol=2e-5)
  np.testing.assert_array_equal(leak[end + 1 :], 0.0)
  np.testing.assert_allclose(leak[end], 1e-3, rtol=1e-5)


def test_decay_options():
  rate = create("mdgf_linear", "1:8", 1000, dense=0.1, beta=0.01)
  assert rate.leak_at(150) == pytest.approx(0.5)
  assert [rate.leak_at(s) for s in (200, 201)] == [0.0, 0.0]
  early = create("mdgf_exp", "1:8", 1000, dense=0.0, beta=math.log(2))
  assert early.leak_at(9) == pytest.approx(2**-9)
  assert early.leak_at(10) == 0.0, "2**-10 is below 1e-3"
  late = create("mdgf_linear", "1:8", 1000, zero_at=0.95, finetune=0.2)
  assert late.leak_at(799) > 0 and late.leak_at(800) == 0.0
  with pytest.raises(ValueError, match="give one"):
    create("mdgf_exp", "1:8", 1000, beta=0.1, zero_at=0.5)
  with pytest.raises(ValueError, match="beta: expected a positive number"):
    create("mdgf_exp", "1:8", 1000, beta=-0.1)
  with pytest.raises(ValueError, match=r"\(0, 1\]"):
    create("mdgf_linear", "1:8", 1000, zero_at=0.0)


def first_steps(recipe):
  """pattern -> the first step that has it, in order."""
  seen = {}
  for step in range(recipe.total_steps):
    seen.setdefault(str(recipe.pattern_at(step)), step)
  return seen


def test_boundaries_of_the_published_chains():
  stepwise = create("sdgf_stepwise", "1:16", 100, dense=0.10, finetune=0.16)
  assert first_steps(stepwise) == {
    # 74 decay steps in 5 shares: ceil(i * 74 / 5) after the dense phase
    "16:16": 0, "15:16": 10, "8:16": 25, "4:16": 40, "2:16": 55, "1:16": 70,
  }  # fmt: skip
  figs = create("figs", "1:4", 100, dense=0.10, finetune=0.10)
  assert first_steps(figs) == {
    "4:4": 0, "8:32": 10, "4:16": 30, "2:8": 50, "1:4": 70,
  }  # fmt: skip


def test_rules_keep_their_shape():
  recipe = create(
    "sdgf_stepwise", MIXED, 100, dense=0.1, finetune=0.1, refresh_every=100
  )
  assert recipe.pattern_at(0) == Rules.parse("head: dense, ff: 16:16, qk: 4:4")
  assert recipe.pattern_at(49) == Rules.parse("head: dense, ff: 4:16, qk: 3:4")
  assert recipe.pattern_at(99) == recipe.pattern == Rules.parse(MIXED)
  due = jax.vmap(recipe.at)(jnp.arange(100)).refresh
  starts = {10, 26, 42, 58, 74} | {10, 50}  # five stages, and two
  assert set(np.flatnonzero(due).tolist()) == {0} | starts


def test_step_assumes_t_max_unless_told():
  recipe = create("step", "1:4", 100)
  assert recipe.timeline.switch == type(recipe.timeline.switch)(10, 50)
  assert recipe.pattern_at(50) == NM(4, 4) and recipe.pattern_at(51) == NM(1, 4)
  assert recipe.pattern_at(20, switched=True) == NM(1, 4)
  assert recipe.leak_at(20) == 1.0 and recipe.leak_at(20, switched=True) == 0.0
  moment = jax.vmap(recipe.at, (None, 0))(20, jnp.array([False, True]))
  assert moment.stage.tolist() == [0, 1] and moment.leak.tolist() == [1, 0]


def test_step_switches_neither_in_the_dense_nor_the_fine_tune_phase():
  late = create("step", "1:4", 100, dense=0.3, t_min=0.1, t_max=0.2)
  assert (late.timeline.switch.t_min, late.timeline.switch.t_max) == (30, 30)
  soon = create("step", "1:4", 100, finetune=0.6)
  assert soon.timeline.switch.t_max == 39
  assert soon.pattern_at(40) == NM(1, 4), "fine-tuning starts masked"


def test_dense_is_dense_throughout():
  recipe = create("dense", "1:4", 100, dense=0.1, finetune=0.2)
  assert not recipe.sparse and all(
    (recipe.pattern_at(s), recipe.leak_at(s)) == (NM(4, 4), 1.0)
    for s in range(101)
  )


@pytest.mark.parametrize("name", PUBLISHED)
def test_frozen_hashable_equal_and_printable(name):
  a, b = create(name, MIXED, 100), create(name, Rules.parse(MIXED), 100)
  assert a == b and hash(a) == hash(b) and repr(a) == repr(b)
  assert " at 0x" not in repr(a), "repr identifies a recipe across processes"
  assert a != create(name, MIXED, 101)
  with pytest.raises(dataclasses.FrozenInstanceError):
    a.name = "other"


@pytest.mark.parametrize("name", PUBLISHED)
def test_describe_covers_every_step_once(name):
  recipe = create(name, "1:16", 200)
  head, columns, *rows = recipe.describe().splitlines()
  assert head == f"{name}: 1:16, 200 steps"
  assert columns.split() == ["steps", "phase", "pattern", "leak", "gradient"]
  spans = [row.split()[0].split("..") for row in rows if ".." in row.split()[0]]
  covered = [s for a, b in spans for s in range(int(a), int(b) + 1)]
  assert covered == list(range(200))
  for row, (first, last) in zip(rows, spans):
    assert row.split()[2] == str(recipe.pattern_at(int(first)))
    assert str(recipe.pattern_at(int(last))) in row


def test_describe_shows_the_range_of_the_leak():
  text = create("mdgf_linear", "1:4", 100, dense=0.1, finetune=0.2).describe()
  assert [line.split() for line in text.splitlines()[2:6]] == [
    ["0..9", "dense", "4:4", "1", "all", "kept"],
    ["10..69", "sparse", "1:4", "1..0.01667", "ste"],
    ["70..79", "sparse", "1:4", "0", "ste"],
    ["80..99", "fine-tune", "1:4", "0", "ste"],
  ]


@pytest.mark.parametrize(
  "args,kwargs,message",
  [
    (("fig", "1:4", 10), {}, "did you mean 'figs'"),
    (
      ("figs", "1:4", 10),
      {"kk": 2},
      "figs: unknown option 'kk', did you mean 'k'",
    ),
    (("ste", "1:4", 10), {"refreshevery": 2}, "did you mean 'refresh_every'"),
    (("ste", "1:4", 10), {"k": 2}, "ste: unknown option 'k'"),
    (("figs", "1:4", 10), {"k": 3}, "power of two"),
    (("figs", "1:", 10), {}, "Invalid N:M pattern"),
    (("figs", "ff 1:4", 10), {}, "Invalid rules"),
    (("ste", "1:4", 0), {}, "ste: total_steps: expected .*, got 0"),
    (
      ("figs", "1:4", 10),
      {"grad_mode": "damped"},
      "grad_mode: expected 'ste' or 'masked', got 'damped'",
    ),
    (
      ("mdgf_exp", "1:4", 10),
      {"grad_mode": "masked"},
      "grad_mode: expected 'ste' or 'damped', got 'masked'",
    ),
    (
      ("sr_ste", "1:4", 10),
      {"mode": "intograd"},
      "sr_ste: mode: expected .* Did you mean 'into_grad'",
    ),
    (
      ("sr_ste", "1:4", 10),
      {"decay": -1.0},
      "sr_ste: decay: expected a number of at least 0, got -1.0",
    ),
    (("step", "1:4", 10), {"t_min": 0.6}, "must not exceed"),
    (("step", "1:4", 10), {"t_max": 1.0}, "t_max: expected .*, got 1.0"),
  ],
)
def test_errors_name_the_nearest_fix(args, kwargs, message):
  with pytest.raises(ValueError, match=message) as error:
    create(*args, **kwargs)
  assert "\n" not in str(error.value)


def test_options_are_listed_with_their_defaults():
  assert options("sdgf_geometric") == {
    "dense": 0.0125, "finetune": 0.10, "refresh_every": 1,
    "transposable": False, "mvue": "", "k": 16, "grad_mode": "ste",
    "nested": False,
  }  # fmt: skip


def test_a_user_adds_one_builder(monkeypatch):
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))

  @dataclasses.dataclass(frozen=True)
  class Half:
    def __call__(self, step):
      return jnp.full_like(step, 0.5, jnp.float32)

  def half_leak(plain, *, grad_mode="masked"):
    """Half of every pruned weight stays."""
    return dataclasses.replace(plain, leak=Half(), flow=Flow(grad_mode))

  published = register("half_leak")(half_leak)
  recipe = create("half_leak", "2:4", 100)
  assert recipe == published("2:4", 100) == recipes.half_leak("2:4", 100)
  assert (recipe.leak_at(50), recipe.leak_at(99)) == (0.5, 0.0)
  assert recipe.grad_mode == "masked" and "half_leak" in names()
  assert "half_leak" in dir(recipes)
  with pytest.raises(ValueError, match="registered already"):
    register("half_leak")(lambda plain: plain)
  again = register("half_leak")(half_leak)  # a cell run again
  assert recipes.half_leak is again and again.builder is half_leak
  early = register("early", dense=0.5)(published)  # under another name
  assert early("2:4", 100).timeline.dense_end == 50
  assert early("2:4", 100).name == "early"
