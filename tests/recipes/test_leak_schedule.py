"""Where a leak ends: at the step of its formula, however numbers round."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
