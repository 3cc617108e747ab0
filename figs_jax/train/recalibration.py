"""Batch statistics of the finished weights, at the end of a run.

Running statistics describe the weights that were trained. Where the finished
ones differ from them, since masks or the leak change last or weights are
averaged, the means over some training batches take their place: in the last
checkpoint, so that what is evaluated is what is exported.

The statistics of a run's earlier checkpoints are the running ones. There a
finished model has weights that no batch has seen, if its recipe trains dense or
with a leak at that step.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax import nn
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.types import Array, Bool
from figs_jax.nn.batch_norm import mean_over_batches, with_statistics
from figs_jax.optim import is_schedule_free
from figs_jax.train import seeds
from figs_jax.train.distributed import global_batch
from figs_jax.train.experiment import Experiment
from figs_jax.train.sharding import batch_sharding
from figs_jax.train.state import (
  TrainState,
  averaged_statistics,
  evaluation_model,
  finish,
)


def recalibrated(state: TrainState, batches: Iterable[Any]) -> TrainState:
  """The state with batch statistics of its finished weights.

  `state.finished()` then normalizes by them, and `finished(ema=True)` by those
  of the averaged weights.

  Args:
    state: State without a seed axis.
    batches: Batches as the state's loss expects them, at least one. All else
      than batch normalization is in evaluation mode.

  Returns:
    The state; unchanged without batch normalization, or if the recipe has
    points, each of which has statistics of its own.

  Raises:
    ValueError: If `batches` is empty.

  >>> import optax
  >>> from flax import nnx
  >>> from figs_jax import recipes
  >>> state = TrainState.create(
  ...   nnx.BatchNorm(1, rngs=nnx.Rngs(0)),
  ...   recipes.create("dense", "1:2", total_steps=1), optax.sgd(0.1),
  ...   loss=lambda model, x, key: (jnp.mean(model(x)), {}))
  >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
  >>> recalibrated(state, batches).finished().mean[...].tolist()
  [4.0]
  """
  if state.recipe.points or not _has_batch_norm(state):
    return state
  return _with(state, mean_over_batches(_of_batch(state, x) for x in batches))


def is_stale(state: TrainState) -> Bool[Array, ""]:
  """Whether the finished weights are not those of the last forward pass."""
  if is_schedule_free(state.opt_state):
    return jnp.array(True)
  switched = state.recipe.switched(state.opt_state)
  last = jnp.maximum(state.step - 1, 0)
  leaks = state.recipe.at(last, switched).leak != 0
  masks, current = finish(state)[1], unpack_masks(state.masks, state.params)
  changed = [
    (mask != now).any()
    for mask, now in zip(jax.tree.leaves(masks), jax.tree.leaves(current))
  ]
  if not changed:
    return jnp.array(False)
  return jnp.stack(changed).any() | leaks


def at_the_end(
  experiment: Experiment,
  state: TrainState | list[TrainState],
  batches: Iterable[Any],
  mesh: jax.sharding.Mesh,
  shardings: Any,
) -> TrainState | list[TrainState]:
  """The states of a run's last step, recalibrated if they need it.

  They do if `is_stale`, or if weights are averaged. Seeds are recalibrated one
  after the other.

  Args:
    experiment: Experiment of the run.
    state: State of all seeds, or of each.
    batches: This process's training batches; the first
      `config.recalibrate_batch_norm` of them are read.
    mesh: Mesh over which to split the batches.
    shardings: Shardings of a state of all seeds.
  """
  count = experiment.config.recalibrate_batch_norm
  one = state[0] if isinstance(state, list) else state
  if one.seed.shape:
    one = jax.eval_shape(partial(seeds.take, seed=0), one)
  if not count or one.recipe.points or not _has_batch_norm(one):
    return state  # points have statistics of their own in training
  lone = shardings
  states = [state] if isinstance(state, TrainState) else state
  if experiment.seeds:
    lone = seeds.lone_shardings(shardings)
    states = seeds.apart(state) if isinstance(state, TrainState) else state
  stale = [
    i
    for i, each in enumerate(states)
    if each.ema is not None or _is_stale(each)
  ]
  if not stale:
    return state
  place = partial(global_batch, batch_sharding(mesh))
  parts: dict[int, list[Any]] = {i: [] for i in stale}
  for batch in itertools.islice(batches, count):
    for i in stale:
      own = batch
      if experiment.batch_axis == 0:
        own = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
      parts[i].append(_of_batch(states[i], place(own)))
  write = jax.jit(_with, out_shardings=lone)
  for i in stale:
    states[i] = write(states[i], mean_over_batches(parts[i]))
  if isinstance(state, list):
    return states
  return seeds.together(states, shardings) if experiment.seeds else states[0]


_is_stale = jax.jit(is_stale)


@jax.jit
def _of_batch(state: TrainState, batch: Any) -> list[Any]:
  """The statistics of one batch: of the finished and the averaged weights."""
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)

  def statistics(state: TrainState, params: Any, masks: Any) -> Any:
    model = evaluation_model(state, params, masks)
    return nn.batch_statistics(model, lambda net: state.loss(net, batch, key))

  result = [statistics(state, *finish(state))]
  if state.ema is not None:
    averaged = averaged_statistics(state)
    result.append(statistics(averaged, *finish(state, ema=True)))
  return result


def _with(state: TrainState, statistics: list[Any]) -> TrainState:
  own, *averaged = statistics
  new = {"rest": with_statistics(state.rest, own)}
  if averaged:
    new["ema_statistics"] = with_statistics(state.ema_statistics, averaged[0])
  return dataclasses.replace(state, **new)


def _has_batch_norm(state: TrainState) -> bool:
  result = []

  def look(state: TrainState) -> None:
    model = evaluation_model(state, state.params, state.masks)
    result.append(nn.has_batch_norm(model))

  jax.eval_shape(look, state)
  return result[0]
