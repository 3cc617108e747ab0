"""Points: what a step trains, and the mean over it."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core import NM, nm_mask
from figs_jax.core.tree import MaskedKernel
from figs_jax.recipes.points import Points

FOUR = "1:8,2:8,4:8,8:8"
LEAVES = {
  "a/kernel": MaskedKernel((16, 3), NM(1, 8)),
  "b/kernel": MaskedKernel((3, 24), NM(1, 8), -1),
}


def bound(**options):
  options = {"patterns": FOUR} | options
  return recipes.create("nested", "1:8", 40, **options).bind(LEAVES)


def params(seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    for name, shape in (("a", (16, 3)), ("b", (3, 24)))
  } | {"bias": jnp.ones(3)}


@pytest.mark.parametrize("sampled", [0, 1, 2])
def test_a_step_draws_both_ends_and_different_ones_between(sampled):
  points = Points.parse(FOUR, sampled)
  draw = jax.jit(lambda step: points.draw(step, 7))
  counts = Counter()
  for step in range(200):
    last, first, *between = draw(step).tolist()
    assert (last, first) == (3, 0)
    assert len(set(between)) == sampled and set(between) <= {1, 2}
    counts.update([last, first, *between])
  shares = [counts[i] / 200 for i in range(4)]
  # 1/2 within four standard errors.
  np.testing.assert_allclose(shares, points.shares, atol=4 * 0.5 / 200**0.5)
  assert sum(points.shares) == points.passes == 2 + sampled


def test_draws_are_those_of_the_seed_and_the_step():
  points = Points.parse(FOUR)
  rows = {seed: [points.draw(t, seed)[2].item() for t in range(30)] for seed in
          (0, 1)}  # fmt: skip
  assert rows[0] != rows[1]
  assert rows[0] == [points.draw(t, 0)[2].item() for t in range(30)]


def test_ranks_hold_the_mask_of_every_n():
  whole, w = bound(), params()
  ranks = whole.ranks(w)
  assert ranks["bias"] is None
  masks = [whole.cut(w, n) for n in range(1, 9)]
  for n, mask in enumerate(masks, 1):
    for name, axis in (("a", -2), ("b", -1)):
      want = nm_mask(jnp.abs(w[name]["kernel"]), NM(n, 8), axis)
      np.testing.assert_array_equal(mask[name]["kernel"], want)
      if n > 1:
        smaller = masks[n - 2][name]["kernel"]
        assert not jnp.any(smaller & ~mask[name]["kernel"])
  for mask, own in zip(
    jax.tree.leaves(masks[0]), jax.tree.leaves(whole.masks(5, w))
  ):
    np.testing.assert_array_equal(mask, own)


@pytest.mark.parametrize("step", [0, 3, 4, 11])
def test_the_mean_is_that_of_a_loop(step):
  """Also of the carry, in the order of the draw; dense at first."""
  whole, w = bound(dense=0.1), params()

  def loss(w, masks):
    seen = whole.effective(w, masks)
    return jnp.sum(jnp.sin(seen["a"]["kernel"])) + jnp.sum(
      seen["b"]["kernel"] ** 2
    )

  def body(carry, masks, point):
    return carry * 4 + point, jax.value_and_grad(loss)(w, masks)

  carry, (value, grads) = jax.jit(
    lambda w: whole.over_points(body, jnp.int32(0), w, step)
  )(w)
  drawn = whole.recipe.points.draw(step).tolist()
  assert int(carry) == np.polyval(drawn, 4)
  counts = [8 if step < 4 else whole.recipe.points.counts[i] for i in drawn]
  passes = [jax.value_and_grad(loss)(w, whole.cut(w, n)) for n in counts]
  np.testing.assert_allclose(value, np.mean([v for v, _ in passes]), rtol=1e-5)
  for name in ("a", "b"):
    want = np.mean([g[name]["kernel"] for _, g in passes], 0)
    np.testing.assert_allclose(grads[name]["kernel"], want, rtol=1e-5)


def test_n_is_traced_so_that_the_body_is_traced_once_per_program():
  traces = []

  def body(carry, masks, point):
    traces.append(1)
    return carry, jnp.float32(masks["a"]["kernel"].sum())

  step_fn = jax.jit(lambda w, t: bound(sampled=2).over_points(body, 0, w, t)[1])
  values = [float(step_fn(params(), jnp.int32(t))) for t in range(3)]
  assert len(traces) <= 2  # for shapes, and for the loop
  assert values == [48 / 8 * (1 + 2 + 4 + 8) / 4] * 3


def test_recipes_without_points_say_so():
  plain = recipes.create("ste", "1:8", 10).bind(LEAVES)
  with pytest.raises(ValueError, match="recipe 'ste' has no points"):
    plain.over_points(lambda c, m, p: (c, m), None, params(), 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"patterns": "2:8,1:8"}, "the sparsest first and each n once"),
    ({"patterns": "1:8,1:8"}, "the sparsest first and each n once"),
    ({"patterns": "1:8"}, "expected at least two"),
    ({"patterns": "1:8,2:4"}, "one m for all"),
    ({"patterns": "2:8,8:8"}, "expected the target 1:8 first"),
    ({"patterns": "1:8;8:8"}, "Invalid N:M pattern"),
    ({"sampled": -1}, "sampled: expected a number from 0, got -1"),
    ({"transposable": True}, "are not nested"),
    ({"refresh_every": 2}, "refresh_every: expected 1"),
  ],
)
def test_illegal_options_are_named(options, message):
  with pytest.raises(ValueError, match=f"nested: .*{message}"):
    recipes.create("nested", "1:8", 10, **options)


def test_one_pattern_for_all_kernels():
  with pytest.raises(
    ValueError, match="one pattern for all masked .* 1:8, 2:8"
  ):
    recipes.create("nested", "ff: 1:8, q: 2:8", 10)
  with pytest.raises(ValueError, match="for all masked kernels, got dense"):
    recipes.create("nested", "ff: dense", 10)


def test_points_check_what_they_are_given():
  with pytest.raises(
    ValueError, match="sampled: expected a number from 0 to 1"
  ):
    Points.parse("1:8,2:8,8:8", sampled=2)
  doubled = recipes.create("nested", "ff: 1:8, q: 1:8", 10, sampled=99).points
  assert doubled == Points.parse(FOUR, sampled=2)
  assert recipes.create("nested", "2:4", 10).points.passes == 2


def test_describe_and_the_picture_show_the_points():
  from figs_jax.recipes.picture import timeline_table

  recipe = recipes.create("nested", "1:8", 100, patterns=FOUR, dense=0.1)
  text = recipe.describe()
  assert "points: 1:8, 2:8, 4:8, 8:8" in text
  assert "each step trains 3 of them, a pass each: 8:8, 1:8 and 1" in text
  table = timeline_table(recipe)
  assert [str(nm) for nm in table.targets] == FOUR.split(",")
  assert table.density[:, 5].tolist() == [1, 1, 1, 1]
  assert table.density[:, 50].tolist() == [1 / 8, 1 / 4, 1 / 2, 1]


def test_recipes_with_other_points_differ():
  one = recipes.create("nested", "1:8", 10, sampled=1)
  assert one != recipes.create("nested", "1:8", 10, sampled=2)
  assert hash(one) == hash(dataclasses.replace(one))
