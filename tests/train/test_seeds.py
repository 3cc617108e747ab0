"""Many seeds under one step: each as if it had run alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import recipes
from figs_jax.train import seeds
from figs_jax.train.state import TrainState, update
from tests.compilations import compilations

pytestmark = pytest.mark.standard_promotion
SEEDS = [3, 5, 11]


class Net(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(8, 16, rngs=rngs)
    self.drop = nnx.Dropout(0.1, rngs=rngs)
    self.out = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(self.drop(nnx.relu(self.hidden(x))))


def maker(name, parts=1):
  recipe = recipes.create(name, "1:4", total_steps=30)

  def make(seed):
    model = Net(nnx.Rngs(jax.random.key(seed)))
    model = figs.sparsify(model, recipe)
    tx = recipe.adamw(1e-2)
    return TrainState.create(
      model,
      recipe,
      tx,
      seed=seed,
      grad_accum_steps=parts,
      diagnose_every=10,
    )

  return make


def batch_of(i):
  key = jax.random.key(100 + i)
  image = jax.random.normal(key, (12, 8))
  return {"image": image, "label": jnp.arange(12) % 3}


@pytest.fixture(
  scope="module",
  params=[
    "figs",
    "step",
    pytest.param("sr_ste", marks=pytest.mark.slow),
    pytest.param("mdgf_exp", marks=pytest.mark.slow),
  ],
)
def single_runs(request):
  """Recipe, the last state of each seed, and losses [step][seed]."""
  make = jax.jit(maker(request.param))
  step = jax.jit(update, donate_argnums=0)
  losses, states = np.zeros((30, len(SEEDS))), [make(seed) for seed in SEEDS]
  for i in range(30):
    for k, state in enumerate(states):
      states[k], metrics = step(state, batch_of(i))
      losses[i, k] = metrics["loss"]
  return request.param, states, losses


def test_each_seed_equals_its_single_run(single_runs):
  name, lone, losses = single_runs
  make = maker(name)
  state = jax.jit(lambda: seeds.create_states(make, SEEDS))()
  assert state.step.shape == ()
  many = jax.jit(functools.partial(seeds.step_seeds), donate_argnums=0)
  with compilations("step_seeds") as compiled:
    for i in range(30):
      state, metrics = many(state, batch_of(i))
      np.testing.assert_allclose(metrics["loss"], losses[i], rtol=2e-3)
  assert len(compiled) == 1
  assert int(state.step) == 30
  for k in range(len(SEEDS)):
    taken = seeds.take(state, k)
    assert jax.tree.structure(taken.params) == jax.tree.structure(
      lone[k].params
    )
    same = [
      np.mean(np.asarray(a) == np.asarray(b))
      for a, b in zip(
        jax.tree.leaves(taken.masks), jax.tree.leaves(lone[k].masks)
      )
    ]
    assert min(same) > 0.95
    for a, b in zip(
      jax.tree.leaves(taken.params), jax.tree.leaves(lone[k].params)
    ):
      np.testing.assert_allclose(a, b, atol=5e-3)


def test_seeds_in_turn_give_the_bits_of_their_single_runs(single_runs):
  name, lone, losses = single_runs
  make = maker(name)
  state = jax.jit(lambda: seeds.create_states(make, SEEDS))()
  step = jax.jit(functools.partial(update), donate_argnums=0)
  many, states = seeds.InTurn(step), seeds.apart(state)
  with compilations("update") as compiled:
    for i in range(30):
      states, metrics = many(states, batch_of(i))
      got = [float(each["loss"]) for each in metrics]
      np.testing.assert_allclose(got, losses[i], rtol=2e-3)
      if i == 14:  # as at a checkpoint
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        states = seeds.apart(seeds.together(states, shardings))
  assert len(compiled) == 1
  assert int(states[0].step) == 30
  for one, wanted in zip(states, lone):
    for field in ("params", "masks", "opt_state"):
      trees = getattr(one, field), getattr(wanted, field)
      jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_seed_on_its_own_batches(parts):
  """Losses and weights of single runs that read one batch of each stack."""
  make = maker("ste", parts)
  state = seeds.create_states(make, SEEDS)
  turns = seeds.apart(state)
  lone, step = [make(seed) for seed in SEEDS], jax.jit(update)
  many = jax.jit(functools.partial(seeds.step_seeds, batch_axis=0))
  in_turn = seeds.InTurn(step, batch_axis=0)
  for i in range(4):
    own = [batch_of(10 * i + k) for k in range(len(SEEDS))]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    losses = []
    for k, batch in enumerate(own):
      lone[k], metrics = step(lone[k], batch)
      losses.append(metrics["loss"])
    state, metrics = many(state, stack)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    turns, metrics = in_turn(turns, stack)
    assert [each["loss"] for each in metrics] == losses
  for one, turn, wanted in zip(seeds.singles(state), turns, lone):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      one.params,
      wanted.params,
    )
    jax.tree.map(np.testing.assert_array_equal, turn.params, wanted.params)


def test_a_batch_of_another_number_of_seeds_is_refused():
  state = seeds.create_states(maker("ste"), SEEDS)
  with pytest.raises(ValueError, match=r"axis of 3 seeds, got .*\(12,\)"):
    seeds.step_seeds(state, batch_of(0), batch_axis=0)
  with pytest.raises(ValueError, match=r"axis of 3 seeds, got .*\(12,\)"):
    seeds.InTurn(update, 0)(seeds.apart(state), batch_of(0))


def test_branches_stay_branches():
  """The step is not batched, so the refresh's cond is not a select."""
  state = seeds.create_states(maker("figs"), SEEDS)
  text = str(jax.make_jaxpr(seeds.step_seeds)(state, batch_of(0)))
  assert " cond[" in text


def test_mean_and_error():
  mean, error = seeds.mean_and_se([0.9, 0.94, 0.92, math.nan])
  assert mean == pytest.approx(0.92)
  assert error == pytest.approx(np.std([0.9, 0.94, 0.92], ddof=1) / 3**0.5)
  assert math.isnan(seeds.mean_and_se([math.nan])[0])
  assert math.isnan(seeds.mean_and_se([1.0])[1])
