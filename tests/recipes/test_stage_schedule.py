"""The first steps of stages: every schedule against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.recipes import create
from figs_jax.recipes.stage_schedule import Cubic, Equal, Every, Fixed, Once

spans = st.tuples(
  st.integers(1, 12), st.integers(0, 50), st.integers(0, 300)
).map(lambda t: (t[0], t[1], t[1] + t[2]))


@given(spans)
@settings(deadline=None)
def test_stages_begin_in_order_within_the_decay_phase(span):
  stages, start, end = span
  long = max((end - start) // stages, 1)
  fixed = [Fixed(long)] if end - start >= stages else []
  for schedule in (Equal(), *fixed, Cubic()):
    firsts = schedule(stages, start, end)
    assert len(firsts) == stages
    assert list(firsts) == sorted(firsts)
    assert start <= firsts[0] and firsts[-1] <= end


@given(spans)
@settings(deadline=None)
def test_equal_is_the_floor_of_the_share(span):
  stages, start, end = span
  firsts = np.asarray(Equal()(stages, start, end))
  for step in range(start, end):
    wanted = 1 + (step - start) * stages // (end - start)
    assert (step >= firsts).sum() == wanted


@given(spans)
@settings(deadline=None)
def test_cubic_is_the_published_schedule(span):
  """s(t) = 1 - (1 - t)^3 of the way; stage i from s >= i / S on, exactly."""
  stages, start, end = span
  firsts = Cubic()(stages, start, end)
  steps = end - start
  if not steps:
    return
  for step in range(start, end + 1):
    left = steps - (step - start)
    # S * s(t) in integers over steps^3
    done = stages * (steps**3 - left**3) // steps**3
    assert sum(step >= first for first in firsts) == done


def test_due():
  steps = jnp.arange(7)
  np.testing.assert_array_equal(jax.vmap(Every(3))(steps), steps % 3 == 0)
  assert not jax.vmap(Once())(steps).any()


def test_gradual_prunes_along_the_cubic():
  recipe = create("gradual", "4:16", 1000, dense=0.1, finetune=0.1)
  counts = [recipe.pattern_at(step).n for step in range(0, 1000, 5)]
  assert counts == sorted(counts, reverse=True)
  assert recipe.pattern_at(99).n == 16 and recipe.pattern_at(900).n == 4
  for step in range(100, 900, 7):
    t = (step - 100) / 800
    pruned = 16 - recipe.pattern_at(step).n
    assert pruned <= 12 * (1 - (1 - t) ** 3) + 1e-9 < pruned + 1 + 1e-6


def test_structure_decay_with_its_own_frequency():
  recipe = create("structure_decay", "1:16", 1000, dense=0.1, freq=100)
  counts = [recipe.pattern_at(step).n for step in range(0, 1000, 50)]
  assert counts == [16] * 2 + [15] * 2 + [4] * 2 + [2] * 2 + [1] * 12


def aqt_mask(weights, start, freq, step, count):
  """The mask of `step` as AQT's code keeps it, from its loop over steps."""
  mask = np.ones(weights[0].shape, bool)
  for at in range(step + 1):
    if at >= start and (at - start) % freq == 0:
      kept = np.argsort(-np.abs(weights[at]), kind="stable")
      mask = np.isin(np.arange(kept.size), kept[: count((at - start) // freq)])
  return mask


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("name", ["mask_decay", "structure_decay"])
def test_masks_are_renewed_at_stairs_as_in_aqt(name, fixed):
  """Not at every step, and with the same rhythm after the last stair."""
  weights = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
  stairs = {"mask_decay": {"omega": 1 / 5}, "structure_decay": {}}[name]
  count = 5 if stairs else 4
  freq = 40 // count
  if fixed:
    stairs["freq"] = freq
  targets = [15, 4, 2, 1]

  def kept(stair):
    return 1 if name == "mask_decay" else targets[min(stair, 3)]

  def run(**options):
    recipe = create(
      name, "1:16", 60, dense=1 / 6, finetune=1 / 6, **stairs, **options
    )
    bound = recipe.bind({"w": MaskedKernel((16,), NM(1, 16), 0)})
    masks, rows = None, []
    follow = jax.jit(bound.masks)
    for step in range(60):
      params = {"w": jnp.asarray(weights[step])}
      first = bound.masks(0, params) if masks is None else masks
      masks = follow(jnp.int32(step), params, first)
      rows.append(np.asarray(masks["w"]))
    return np.array(rows)

  wanted = np.array([aqt_mask(weights, 10, freq, s, kept) for s in range(60)])
  np.testing.assert_array_equal(run(), wanted)
  assert (run(refresh_every=1) != wanted).sum() > 38


def test_mask_decay_stairs():
  recipe = create("mask_decay", "1:4", 1000, dense=0.1, finetune=0.1)
  leaks = [recipe.leak_at(100 + 50 * i) for i in range(17)]
  np.testing.assert_array_equal(leaks, 1 - np.arange(17) / 16)
  assert recipe.leak_at(149) == 1.0 and recipe.leak_at(899) == 1 / 16
  slow = create("mask_decay", "1:4", 1000, dense=0.1, freq=20, omega=0.3)
  got = [slow.leak_at(100 + 20 * i) for i in range(6)]
  np.testing.assert_allclose(got, [1, 0.7, 0.4, 0.1, 0, 0], atol=1e-6)
  assert got[4] == 0.0


@pytest.mark.parametrize(
  "name,options,message",
  [
    ("mask_decay", {"omega": 0.0}, r"omega: expected .* \(0, 1\], got 0.0"),
    (
      "mask_decay",
      {"freq": 0},
      "steps per stage: expected .* at least 1, got 0",
    ),
    ("mask_decay", {"freq": 50}, "16 stages of 50 steps do not fit"),
    ("structure_decay", {"freq": 90}, "2 stages of 90 steps do not fit"),
    ("transposable", {"transposable": False}, "use the recipe sr_ste"),
    ("rigl", {"refresh_every": 90}, "nothing would ever grow"),
    ("dense", {"mvue": "1:2"}, "a dense model has none"),
    (
      "mask_decay",
      {"grad_mode": "masked"},
      "expected 'damped' or 'ste', got 'masked'",
    ),
    (
      "structure_decay",
      {"grad_mode": "damped"},
      "expected 'masked' or 'ste', got 'damped'",
    ),
    ("gradual", {"criterion": "magnitud"}, "Did you mean 'magnitude'"),
    ("gradual", {"criterion": "random", "transposable": True}, "both choose"),
    ("rigl", {"transposable": True}, "both choose"),
    ("rigl", {"share": 1.5}, "share: expected .*, got 1.5"),
    (
      "set",
      {"scope": "layer"},
      "scope: expected 'group' or 'leaf', got 'layer'",
    ),
    ("set", {"until": 0.0}, r"until: expected .* \(0, 1\], got 0.0"),
    ("s_ste", {"transposable": True}, "does not fit"),
    ("sr_ste", {"mode": "backwards"}, "Did you mean 'backward'"),
    (
      "annealed_decay",
      {"mode": "backward"},
      "mode: expected 'into_grad' or 'decoupled'",
    ),
    ("annealed_decay", {"until": 2.0}, "until: expected .*, got 2.0"),
    ("mdgf_sdgf", {"structure": "geo"}, "structure: expected 'geometric' or"),
    ("ste", {"mvue": "3:2"}, "1 <= n <= m"),
  ],
)
def test_bad_options_are_one_line(name, options, message):
  with pytest.raises(ValueError, match=message) as error:
    create(name, "1:4", 100, **options)
  assert "\n" not in str(error.value)


def test_dynamic_training_renews_masks_in_a_run_of_any_length():
  for total, every in ((100_000, 100), (1000, 50), (40, 2), (3, 1)):
    assert create("rigl", "1:4", total).timeline.due == Every(every)
  assert create("set", "1:4", 1000, refresh_every=7).timeline.due == Every(7)


def test_one_shot_may_come_after_the_last_step():
  recipe = create("one_shot", "1:4", 100, dense=1.0, finetune=0.0)
  assert recipe.pattern_at(99).is_dense
  assert recipe.pattern_at(100).n == 1
