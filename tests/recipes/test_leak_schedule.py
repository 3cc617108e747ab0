"""Where a leak ends: at the step of its formula, however numbers round."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.recipes import create, leak_schedule
from figs_jax.recipes.timeline import Timeline

LINE = Timeline.of_fractions(3000, dense=0, finetune=0)


def test_a_linear_leak_of_slope_one_over_k_ends_after_k_steps():
  for k in range(1, 2500):
    assert leak_schedule.linear(LINE, 1 / k, None).end == k, k


def test_other_slopes_end_where_the_formula_is_not_positive():
  for beta in np.random.default_rng(0).uniform(1e-3, 1, 500).tolist():
    end = leak_schedule.linear(LINE, beta, None).end
    slope = Fraction(beta)
    assert 1 - slope * end <= Fraction(1, 2**24) < 1 - slope * (end - 1)


def test_stairs_of_one_over_k_are_k():
  for k in range(1, 500):
    stairs = leak_schedule.staircase(LINE, 1 / k, freq=2)
    assert stairs.end == 2 * k, k


def test_an_exponential_leak_is_a_thousandth_before_it_is_zero():
  for k in range(1, 1000):
    rate = float(np.log(1000) / k)
    assert leak_schedule.exponential(LINE, rate, None).end == k + 1, k


@pytest.mark.parametrize(
  ("name", "options", "zero"),
  [
    ("mdgf_linear", {"beta": 1 / 49}, 49),
    ("mask_decay", {"omega": 1 / 49, "freq": 1}, 49),
    ("mdgf_exp", {"beta": float(np.log(1000) / 61)}, 62),
  ],
)
def test_the_leak_of_a_recipe_is_exactly_zero_under_jit(name, options, zero):
  recipe = create(name, "1:4", 200, dense=0, finetune=0, **options)
  leaks = jax.jit(jax.vmap(recipe.leak))(jnp.arange(zero + 3))
  assert (leaks[:zero] > 1e-5).all()
  assert (leaks[zero:] == 0).all()


@pytest.mark.parametrize("grad_mode", ["ste", "damped"])
@pytest.mark.parametrize(
  ("name", "options", "zero"),
  [
    ("mdgf_linear", {}, 140),
    ("mdgf_linear", {"beta": 1 / 49}, 59),
    ("mdgf_linear", {"zero_at": 1.0}, 180),
    ("mdgf_exp", {}, 141),
    ("mdgf_exp", {"beta": 1e-4}, 180),
    ("mdgf_sdgf", {"k": 2}, 141),
    ("mdgf_sdgf", {"k": 2, "decay": "linear"}, 140),
    ("mask_decay", {}, 180),
    ("mask_decay", {"omega": 0.3, "freq": 7}, 38),
  ],
)
def test_a_pruned_nan_stays_out_from_the_step_at_which_d_is_zero(
  name, options, zero, grad_mode
):
  """Eagerly and under jit, in the forward pass and in the gradient."""
  recipe = create(
    name, "1:4", 200, dense=0.05, finetune=0.1, grad_mode=grad_mode, **options
  )
  bound = recipe.bind({"w": MaskedKernel((4,), NM(1, 4), 0)})
  params = {"w": jnp.array([4.0, 1.0, jnp.nan, 2.0])}
  masks = {"w": jnp.array([True, False, False, False])}

  def values(step):
    leak = recipe.at(step).leak
    total = lambda p: bound.effective(p, masks, leak)["w"].sum()  # noqa: E731
    value, pullback = jax.vjp(total, params)
    return leak, value, pullback(jnp.ones(()))[0]["w"]

  for run in (values, jax.jit(values)):
    assert run(jnp.int32(zero - 1))[0] > 0
    for step in (zero, zero + 1, 199, 200):
      leak, value, grad = run(jnp.int32(step))
      assert leak == 0 and value == 4.0
      pruned = 0.0 if grad_mode == "damped" else 1.0
      np.testing.assert_array_equal(grad, [1.0, pruned, pruned, pruned])


@pytest.mark.parametrize(
  "name", ["ste", "sdgf_stepwise", "figs", "structure_decay"]
)
def test_recipes_without_a_leak_have_none_after_the_dense_phase(name):
  recipe = create(name, "1:4", 200, dense=0.1)
  leaks = jax.jit(jax.vmap(lambda step: recipe.at(step).leak))(jnp.arange(201))
  np.testing.assert_array_equal(leaks, np.arange(201) < 20)
