"""Optimizers of optax and their wrappers in a training step.

benchmarks/optimizers.py runs all cases; here each optimizer meets one recipe
and one wrapper, such that all pairs of these occur, and AdamW meets all pairs.
"""

import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import figs_jax as figs
from figs_jax.optim import decay_pruned, pass_masks
from figs_jax.recipes import create
from figs_jax.train.state import TrainState, train_step, update

FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "optimizers.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_optimizers", FILE)
matrix = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(matrix)

pytestmark = [
  pytest.mark.standard_promotion,
  # optax.optimistic_adam is another name of optimistic_adam_v2.
  pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPARSE = [name for name in matrix.RECIPES if name != "step"]
# 5 recipes and 7 wrappers have no common factor.
CASES = [
  (name, SPARSE[i % len(SPARSE)], list(matrix.WRAPPERS)[i % 7])
  for i, name in enumerate(matrix.OPTIMIZERS)
] + [
  ("adamw", *pair)
  for pair in itertools.product(matrix.RECIPES, matrix.WRAPPERS)
]
X = jnp.linspace(-1, 1, 32).reshape(4, 8)


def start(name, wrap, **options):
  recipe = create(name, "fc/.*: 1:4", 10, dense=0.0)
  model = figs.sparsify(matrix.Net(), recipe)
  return TrainState.create(
    model, recipe, wrap(recipe), loss=matrix.squared, **options
  )


def test_the_cases_cover_all_pairs_of_recipe_and_wrapper():
  first = {case[1:] for case in CASES[: len(matrix.OPTIMIZERS)]}
  assert len(first) == len(SPARSE) * len(matrix.WRAPPERS)
  assert len(CASES) <= 150


@pytest.mark.parametrize("optimizer,recipe,wrapper", CASES)
def test_three_steps_compile_once_and_end_exactly_sparse(
  optimizer, recipe, wrapper
):
  assert matrix.case(optimizer, recipe, wrapper) == "ok"


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "muon", "mechanize"])
def test_step_refuses_what_has_another_adam(optimizer):
  assert matrix.case(optimizer, "step", "chain") == "refused"


@pytest.mark.parametrize(
  "optimizer,recipe,reason",
  [
    ("lookahead", "ste", "optax.lookahead cannot train a masked model"),
    ("sophia", "sr_ste", "optax.contrib.sophia cannot train a masked model"),
    ("dpsgd", "ste", "optax.contrib.dpsgd cannot train a masked model"),
    ("factored adafactor", "rigl", "factored or flattened moments only"),
  ],
)
def test_what_cannot_work_says_so_in_one_line(optimizer, recipe, reason):
  assert reason in matrix.case(optimizer, recipe, "plain")


def multi(tx):
  return optax.MultiSteps(tx, 2)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda tx: multi(tx),
    lambda tx: multi(tx).gradient_transformation(),
    lambda tx: optax.chain(multi(tx).gradient_transformation()),
    lambda tx: optax.chain(optax.identity(), multi(tx)),
    lambda tx: multi(optax.chain(optax.identity(), tx)),
    lambda tx: multi(multi_of_one(tx)),
  ],
)
def test_accumulation_by_optax_anywhere_is_accumulation_of_gradients(wrap):
  """Two micro-steps of MultiSteps are one step on both batches."""
  sgd = lambda recipe: recipe.transform(optax.sgd(0.1))  # noqa: E731
  state = start("sr_ste", lambda recipe: wrap(sgd(recipe)))
  halves = X[:2], X[2:]
  for half in halves:
    state, _ = train_step(state, half)
  whole, _ = train_step(start("sr_ste", sgd), X)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    state.params,
    whole.params,
  )


def multi_of_one(tx):
  return optax.MultiSteps(tx, 1).gradient_transformation()


def test_masks_pass_in_a_loop_of_ones_own():
  """Without `pass_masks` a chain drops them in front of MultiSteps."""
  w, masks = {"w": jnp.array([2.0, 4.0])}, {"w": jnp.array([True, False])}
  tx = optax.chain(
    optax.MultiSteps(decay_pruned(0.5), 1).gradient_transformation()
  )
  zero = {"w": jnp.zeros(2)}
  with pytest.raises(ValueError, match="pass_masks"):
    tx.update(zero, tx.init(w), w, masks=masks)
  passing = pass_masks(tx)
  assert passing == pass_masks(passing) == pass_masks(tx)
  assert hash(passing) == hash(pass_masks(tx))
  updates, state = passing.update(zero, passing.init(w), w, masks=masks)
  np.testing.assert_array_equal(updates["w"], [0, 2])
  with pytest.raises(ValueError, match="pass_masks"):  # nothing is left behind
    tx.update(zero, state, w)


@pytest.mark.parametrize(
  "make",
  [
    optax.contrib.prodigy,
    optax.contrib.dog,
    optax.contrib.dowg,
    optax.contrib.cocob,
    lambda: optax.contrib.madgrad(0.1),
    lambda: optax.contrib.mechanize(optax.adam(0.1)),
  ],
)
def test_a_state_owns_its_buffers(make):
  """These keep the params, or one array twice, and a step donates all."""
  state = start("ste", lambda recipe: recipe.transform(make()))
  leaves = jax.tree.leaves((state.params, state.opt_state))
  places = [leaf.unsafe_buffer_pointer() for leaf in leaves]
  assert len(set(places)) == len(places)


def test_an_optimizer_gets_the_loss_its_gradient_and_its_function():
  seen = {}

  def look(updates, state, params, *, value, grad, value_fn, **extra):
    jax.tree.map(np.testing.assert_array_equal, updates, grad)
    seen["value"], seen["again"] = value, value_fn(params)
    seen["grad"], seen["slope"] = grad, jax.grad(value_fn)(params)
    return updates, state

  tx = optax.GradientTransformationExtraArgs(lambda params: (), look)
  state = start("ste", lambda recipe: tx)
  update(state, X)
  np.testing.assert_allclose(seen["value"], seen["again"], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    seen["grad"],
    seen["slope"],
  )


def test_a_line_search_lowers_the_loss():
  state = start("ste", lambda recipe: recipe.transform(optax.lbfgs()))
  losses = []
  for _ in range(4):
    state, metrics = train_step(state, X)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.5 * losses[0]
