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
from figs_jax.nn.batch_norm import (
  mean_over_batches,
  statistics_in,
  with_statistics,
)
from figs_jax.optim import is_schedule_free
from figs_jax.train import seeds
from figs_jax.train.distributed import global_batch, whole
from figs_jax.train.experiment import Experiment
from figs_jax.train.sharding import batch_sharding, metrics_sharding
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
  measure = jax.jit(_of_batch)
  return _with(state, mean_over_batches(measure(state, x) for x in batches))


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

  They do if `is_stale`, or if weights are averaged. Seeds are recalibrated as
  they are trained, together or one after the other.

  Args:
    experiment: Experiment of the run.
    state: State of all seeds, or of each.
    batches: This process's training batches; the first
      `config.recalibrate_batch_norm` of them are read.
    mesh: Mesh of the run.
    shardings: Shardings of a state of all seeds.
  """
  count = experiment.config.recalibrate_batch_norm
  in_turn = isinstance(state, list)
  states = state if isinstance(state, list) else [state]
  one = states[0]
  if one.seed.shape:
    one = jax.eval_shape(partial(seeds.take, seed=0), one)
  if not count or one.recipe.points or not _has_batch_norm(one):
    return state  # points have statistics of their own in training
  if in_turn:
    shardings = seeds.lone_shardings(shardings)
  axis = experiment.batch_axis

  def compiled(fn: Any, *axes: Any, to_state: bool = False) -> Any:
    """`fn` of one state, or of those of all seeds together."""
    if experiment.seeds and not in_turn:
      each = seeds.axes(states[0])
      out = each if to_state else 0
      fn = seeds.over_seeds(fn, (each, *axes), out, mesh)
    # Statistics lie alike, so that sums over batches need no collective.
    places = shardings if to_state else metrics_sharding(mesh)
    return jax.jit(fn, out_shardings=places)

  due = list(map(compiled(_is_due), states))
  if not any(whole(each).any() for each in due):
    return state
  measure = compiled(_of_batch, axis)
  write = compiled(_with, 0, 0, to_state=True)
  place = partial(global_batch, batch_sharding(mesh, axis == 0 and not in_turn))
  parts: list[list[Any]] = [[] for _ in states]
  for batch in itertools.islice(batches, count):
    for i, each in enumerate(states):
      own = batch
      if axis == 0 and in_turn:
        own = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
      # One at a time: XLA's programs for several devices of a CPU wait for each
      # other if two of them are under way.
      parts[i].append(jax.block_until_ready(measure(each, place(own))))
  done = [
    write(each, mean_over_batches(part), flag)
    for each, part, flag in zip(states, parts, due)
  ]
  return done if in_turn else done[0]


def _is_due(state: TrainState) -> Bool[Array, ""]:
  return jnp.array(True) if state.ema is not None else is_stale(state)


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


def _with(
  state: TrainState, statistics: list[Any], due: Any = True
) -> TrainState:
  """The state with these statistics, where they are due."""

  def moved(rest: Any, new: Any) -> Any:
    old = statistics_in(rest, new)
    new = jax.tree.map(partial(jnp.where, due), new, old)
    return with_statistics(rest, new)

  own, *averaged = statistics
  new = {"rest": moved(state.rest, own)}
  if averaged:
    new["ema_statistics"] = moved(state.ema_statistics, averaged[0])
  return dataclasses.replace(state, **new)


def _has_batch_norm(state: TrainState) -> bool:
  result = []

  def look(state: TrainState) -> None:
    model = evaluation_model(state, state.params, state.masks)
    result.append(nn.has_batch_norm(model))

  jax.eval_shape(look, state)
  return result[0]
