"""Runs of a row in every container, twenty steps under Adam behind a clip.

Every step gets a batch of its own; the loss is a mean squared error.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import figs_jax
from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.core.tree import MaskedKernel

from .containers import CONTAINERS, SIZES, Net, Plain
from .draws import Draws
from .pieces import B1, B2, CLIP, EPS, RATE, TOTAL

SEEDS = (0, 1)


def weights(seed):
  rng = np.random.default_rng(seed)
  return {
    k: (rng.normal(size=shape) / 4).astype(np.float32)
    for k, shape in SIZES.items()
  }


def batches():
  rng = np.random.default_rng(99)
  x = rng.normal(size=(TOTAL, 8, 32)).astype(np.float32)
  y = np.tanh(x[..., :4] + x[..., 4:8]).astype(np.float32)
  return x, y


def recipe_of(row):
  pattern = Rules.parse(row.rules) if "," in row.rules else row.rules
  return recipes.create(row.name, pattern, TOTAL, **row.options)


def optimizer(recipe):
  """Adam behind a clip, which must not see what a recipe adds."""
  clip = optax.clip_by_global_norm(CLIP)
  return recipe.adamw(RATE, B1, B2, EPS, weight_decay=0.0, before=clip)


class Functional:
  """A run on a container of parameters: what a user's own loop does."""

  def __init__(self, row, container, **unknown):
    self.container, self.unknown = container, unknown
    self.recipe = recipe_of(row)
    self.bound = self.recipe.bind(
      {
        container.paths[name]: leaf_of(SIZES[name], nm, container.axis)
        for name, nm in row.targets.items()
      }
    )
    self.tx = optimizer(self.recipe)

  def start(self, w):
    params = self.container.pack(w)
    step, opt_state = jnp.int32(0), self.tx.init(params)
    self.recipe.check(opt_state)
    return {
      "step": step,
      "params": params,
      "masks": self.bound.masks(step, params),
      "opt_state": opt_state,
      "scales": self.bound.scales(params),
    }

  def step(self, state, batch):
    """The next state, and the loss."""
    x, y = batch
    step, params, masks = state["step"], state["params"], state["masks"]
    flag = self.recipe.switched(state["opt_state"])
    leak = self.recipe.at(step, flag).leak

    def loss_of(params, masks):
      seen = self.bound.effective(params, masks, leak, state["scales"])
      return jnp.mean((self.container.apply(seen, x) - y) ** 2)

    def one(carry, masks, point):
      return carry, jax.value_and_grad(loss_of)(params, masks)

    if self.recipe.points is None:
      _, (loss, grads) = one(None, masks, None)
    else:
      _, (loss, grads) = self.bound.over_points(one, None, params, step)
    updates, opt_state = self.tx.update(
      grads, state["opt_state"], params, masks=masks, **self.unknown
    )
    params = optax.apply_updates(params, updates)
    now = self.recipe.switched(opt_state)
    masks = self.bound.masks(step + 1, params, masks, now, flag, grads=grads)
    new = {"step": step + 1, "params": params, "masks": masks}
    return {**state, **new, "opt_state": opt_state}, loss

  def see(self, state):
    """What the reference has too."""
    return _seen(self, **state)

  def finish(self, state):
    """Masks and weights of the finished model."""
    params, masks = state["params"], state["masks"]
    flag = self.recipe.switched(state["opt_state"])
    masks = self.bound.final(params, masks, state["step"], flag)
    params = self.bound.finish(params, masks, state["scales"])
    new = {**state, "params": params, "masks": masks}
    return self.see(new)


class Trained:
  """A run of an NNX module through `TrainState`."""

  def __init__(self, row):
    self.row, self.recipe, self.container = row, recipe_of(row), Plain()

  def start(self, w):
    model = figs_jax.sparsify(Net(w), self.row.rules)
    tx = optimizer(self.recipe)

    def loss(model, batch, key):
      return jnp.mean((model(batch[0]) - batch[1]) ** 2), {}

    return figs_jax.TrainState.create(model, self.recipe, tx, loss=loss)

  def step(self, state, batch):
    state, metrics = figs_jax.train.state.update(state, batch)
    return state, metrics["loss"]

  def see(self, state):
    names = ("step", "params", "masks", "opt_state")
    return _seen(self, **{name: getattr(state, name) for name in names})

  def finish(self, state):
    params, masks = figs_jax.train.state.finish(state)
    return self.see(dataclasses.replace(state, params=params, masks=masks))


def _seen(run, step, params, masks, opt_state, scales=None):
  flag = run.recipe.switched(opt_state)
  everywhere = jax.tree.map(
    lambda mask, leaf: leaf if mask is None else mask,
    masks,
    params,
    is_leaf=lambda x: x is None,
  )
  kept = run.container.unpack(everywhere)
  return {
    "masks": {name: kept[name] for name in run.container.paths},
    "weights": run.container.unpack(params),
    "leak": run.recipe.at(step, flag).leak,
    "switched": flag,
  }


def leaf_of(shape, nm, axis):
  return MaskedKernel(shape if axis == -2 else shape[::-1], NM(*nm), axis)


def run_of(row, kind, **unknown):
  if kind == "nnx":
    return Trained(row)
  return Functional(row, CONTAINERS[kind](), **unknown)


@functools.cache
def draws_of(row, kind):
  container, chance = CONTAINERS.get(kind, Plain), row.options.get("chance", 0)
  return {
    name: Draws(path, SIZES[name], container.axis, chance)
    for name, path in container.paths.items()
  }


def scanned(run, w, data):
  """Every state of a run and the losses, by `lax.scan`."""

  def one(state, batch):
    new, loss = run.step(state, batch)
    return new, (state, run.see(state), loss)

  last, (states, seen, losses) = jax.lax.scan(one, run.start(w), data)
  return states, seen, losses, run.see(last), run.finish(last)


class History(NamedTuple):
  """Two runs as NumPy arrays [seed, step, ...].

  Attributes:
    states: State before each step.
    seen: Masks, weights, leak and flag before each step.
    losses: Loss of each step.
    last: Masks, weights, leak and flag after the last step.
    finished: Masks and weights of the finished model.
  """

  states: Any
  seen: Any
  losses: Any
  last: Any
  finished: Any


def seeds_of(kind):
  """A vmap over seeds is traced once more, so half of the containers have one.

  The programs of "plain" and "linen" are the same, and compiled once.
  """
  return SEEDS if kind in ("plain", "linen") else SEEDS[:1]


@functools.cache
def history(row, kind):
  """The runs from the seeds of a container, one compiled program.

  It returns a list, so that containers whose programs differ in the names of
  their results only share one compilation in JAX's cache.
  """
  run, structures, seeds = run_of(row, kind), [], seeds_of(kind)
  one = functools.partial(scanned, run)
  many = jax.vmap(one, (0, None)) if len(seeds) > 1 else one

  def program(w, data):
    leaves, structure = jax.tree.flatten(many(w, data))
    structures.append(structure)
    return leaves

  w = jax.tree.map(lambda *x: np.stack(x), *map(weights, seeds))
  if many is one:
    w = jax.tree.map(lambda x: x[0], w)
  leaves = [np.asarray(x) for x in jax.jit(program)(w, batches())]
  if many is one:
    leaves = [x[None] for x in leaves]
  return History(*structures[0].unflatten(leaves))
