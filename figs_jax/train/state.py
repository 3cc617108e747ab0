"""What training carries, as pure arrays, and one step of it.

The model is split once into a static graph and plain dictionaries; every step
merges them inside the trace, so that jit, grad, vmap and a mesh see nothing
but arrays. Masks in the state are always those of the state's own step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax import nn
from figs_jax.core._flow import Flow
from figs_jax.core.types import Array
from figs_jax.recipes import BoundRecipe, Recipe
from figs_jax.train import diagnostics
from figs_jax.train.losses import cross_entropy

Loss = Callable[[nnx.Module, Any, Array], tuple[Array, dict[str, Array]]]


def _static() -> Any:
  return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Arrays of a run (pytree leaves) and what is static about it.

  Attributes:
    step: int32 scalar, optimizer steps done.
    seed: uint32 scalar; dropout's key is fold_in(seed, step).
    params: nested dict of arrays.
    masks: the same, Bool, None at dense leaves.
    opt_state: the optimizer's state.
    rest: the model's other state (batch statistics, random streams).
    ema: averaged params, or None.
    graphdef, bound, tx, loss: static.
    ema_decay, accumulate, diagnose_every: static options, see `create`.
  """

  step: Any  # leaves may be shapes or axes, so no narrower type
  seed: Any
  params: Any
  masks: Any
  opt_state: Any
  rest: Any
  ema: Any
  graphdef: Any = _static()
  bound: BoundRecipe = _static()
  tx: optax.GradientTransformationExtraArgs = _static()
  loss: Loss = _static()
  ema_decay: float = _static()
  accumulate: int = _static()
  diagnose_every: int = _static()

  @classmethod
  def create(
    cls,
    model: nnx.Module,
    recipe: Recipe,
    tx: optax.GradientTransformation,
    *,
    loss: Loss = cross_entropy,
    seed: int | Array = 0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    diagnose_every: int = 0,
  ) -> TrainState:
    """A state at step 0; the model is copied and stays usable.

    Args:
      model: sparsified, in training mode or not (training mode is set here).
      recipe: decides masks, leak and gradient mode.
      tx: from `recipe.transform(...)`.
      loss: (model, batch, key) -> (scalar, {name: scalar}).
      seed: of dropout and of every other draw inside the step.
      ema_decay: 0 keeps no average.
      accumulate: micro-batches per optimizer step; it divides the batch.
      diagnose_every: steps between mask and gradient statistics, 0 = never.

    Raises:
      ValueError: `tx` lacks what the recipe needs, or the recipe is sparse
        and no layer of the model is.

    >>> import figs_jax as figs, optax
    >>> from flax import nnx
    >>> model = figs.sparsify(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), "1:4")
    >>> recipe = figs.recipes.create("ste", "1:4", total_steps=10)
    >>> tx = recipe.transform(optax.sgd(.1))
    >>> figs.TrainState.create(model, recipe, tx).masks["kernel"].shape
    (8, 4)
    """
    model = nn.with_flow(model, recipe.flow)
    model.train()
    leaves = nn.masked_leaves(model)
    if recipe.sparse and not leaves:
      raise ValueError(
        f"recipe {recipe.name!r} on a model without masked layers: call"
        " figs_jax.sparsify(model, rules) first, or use the recipe 'dense'"
      )
    bound = recipe.bind(leaves)
    tx = optax.with_extra_args_support(tx)
    graphdef, params, _, rest = nn.split(model)
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    opt_state = tx.init(params)
    recipe.check(opt_state)
    return cls(
      step=jnp.zeros((), jnp.int32),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      masks=bound.masks(jnp.zeros((), jnp.int32), params, seed=seed),
      opt_state=opt_state,
      rest=rest,
      ema=jax.tree.map(jnp.copy, params) if ema_decay else None,
      graphdef=graphdef,
      bound=bound,
      tx=tx,
      loss=loss,
      ema_decay=ema_decay,
      accumulate=accumulate,
      diagnose_every=diagnose_every,
    )

  @property
  def recipe(self) -> Recipe:
    """What the masks of this run follow."""
    return self.bound.recipe

  def finished(self, *, ema: bool = False) -> nnx.Module:
    """The model with hard N:M zeros, in evaluation mode.

    Masks that are already in their last stage are kept; others are taken anew
    at the target pattern, as are those of the averaged weights unless the
    recipe chooses masks by more than weights.
    """
    return finished_model(self, *finish(self, ema=ema))


def finish(state: TrainState, *, ema: bool = False) -> tuple[Any, Any]:
  """(params, masks) at the target pattern, pruned entries exactly 0."""
  if ema and state.ema is None:
    raise ValueError(
      "no averaged weights in this state: train with ema_decay > 0"
    )
  bound = state.bound
  params = state.ema if ema else state.params
  if ema and not state.recipe.is_stateful:
    masks = bound.target(params, seed=state.seed)
  else:
    switched = state.recipe.switched(state.opt_state)
    masks = bound.final(
      params, state.masks, state.step, switched, seed=state.seed
    )
  return bound.finish(params, masks, nn.scales(state.rest, masks)), masks


def finished_model(state: TrainState, params: Any, masks: Any) -> nnx.Module:
  """The model of weights from `finish`, in evaluation mode; traceable."""
  zero = jnp.zeros((), jnp.float32)
  model = nn.merge(state.graphdef, params, masks, zero, state.rest)
  model = nn.with_flow(model, Flow())  # S-STE has acted already
  model.eval()
  return model


def with_fresh_masks(state: TrainState) -> TrainState:
  """The state with its masks taken anew from its own step and weights."""
  switched = state.recipe.switched(state.opt_state)
  masks = state.bound.masks(
    state.step, state.params, None, switched, seed=state.seed
  )
  return dataclasses.replace(state, masks=masks)


def update(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
  """One step, untransformed: for your own jit, vmap, scan or mesh."""
  recipe, bound = state.recipe, state.bound
  switched = recipe.switched(state.opt_state)
  moment = recipe.at(state.step, switched)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  grads, loss, metrics, rest = _gradients(state, batch, moment.leak, key)
  updates, opt_state = state.tx.update(
    grads, state.opt_state, state.params, masks=state.masks
  )
  params = optax.apply_updates(state.params, updates)
  masks = bound.masks(
    state.step + 1,
    params,
    state.masks,
    switched=recipe.switched(opt_state),
    was_switched=switched,
    grads=grads,
    seed=state.seed,
  )
  metrics = {
    "loss": loss,
    "leak": moment.leak,
    "stage": moment.stage,
    **metrics,
  }
  if state.diagnose_every:
    metrics["layers"] = diagnostics.every(
      state.diagnose_every, state.step + 1, state.masks, masks, params, grads
    )
  ema = state.ema
  if state.ema_decay:
    ema = optax.incremental_update(params, ema, 1 - state.ema_decay)
  new = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    masks=masks,
    opt_state=opt_state,
    rest=rest,
    ema=ema,
  )
  return new, metrics


@partial(jax.jit, donate_argnums=0)
def train_step(
  state: TrainState, batch: Any
) -> tuple[TrainState, dict[str, Any]]:
  """One compiled step. The old state's buffers are given to the new one.

  Args:
    state: from `TrainState.create`; do not use it again afterwards.
    batch: any pytree of arrays that the state's loss understands.

  Returns:
    The next state and its metrics (loss, leak, stage, those of the loss, and
    `layers` on steps that diagnose).

  >>> import optax
  >>> from figs_jax import recipes
  >>> recipe = recipes.create("ste", "2:4", total_steps=10, dense=0.0)
  >>> dense = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  >>> state = TrainState.create(
  ...   nn.sparsify(dense, recipe.pattern), recipe, optax.sgd(0.1),
  ...   loss=lambda model, x, key: (jnp.mean(model(x) ** 2), {}))
  >>> state, metrics = train_step(state, jnp.ones((8, 4)))
  >>> int(state.step), sorted(metrics)
  (1, ['leak', 'loss', 'stage'])
  """
  return update(state, batch)


def _gradients(state, batch, leak, key):
  """Mean gradients over the micro-batches, and what the loss reported."""

  def loss_of(params, rest, batch, key):
    streams, key = jax.random.split(key)
    model = nn.merge(
      state.graphdef, params, state.masks, leak, nn.reseed(rest, streams)
    )
    loss, metrics = state.loss(model, batch, key)
    return loss, (metrics, nn.split(model)[3])

  grad = jax.value_and_grad(loss_of, has_aux=True)
  count = state.accumulate
  if count == 1:
    (loss, (metrics, rest)), grads = grad(state.params, state.rest, batch, key)
    return grads, loss, metrics, rest

  sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
  if any(size % count for size in sizes):
    raise ValueError(
      f"a batch of {sorted(sizes)} is not divided by accumulate={count}"
    )
  # Every micro-batch takes its part of each device's share of the batch.
  micro = jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
  )
  keys = jax.random.split(key, count)

  def body(rest, xs):
    (loss, (metrics, rest)), grads = grad(state.params, rest, *xs)
    return rest, (grads, loss, metrics)

  first = jax.tree.map(lambda x: x[0], (micro, keys))
  shapes = jax.eval_shape(body, state.rest, first)[1]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(carry, xs):
    rest, total = carry
    rest, one = body(rest, xs)
    return (rest, jax.tree.map(jnp.add, total, one)), None

  (rest, total), _ = jax.lax.scan(add, (state.rest, zeros), (micro, keys))
  grads, loss, metrics = jax.tree.map(
    lambda x: x / jnp.asarray(count, x.dtype), total
  )
  return grads, loss, metrics, rest
