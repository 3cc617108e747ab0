"""The forward and backward passes of a step: one, or one per point.

States are `figs_jax.train.state.TrainState`s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax import nn
from figs_jax.core.types import Array
from figs_jax.nn.recomputed import refuse_writes
from figs_jax.train.losses import (
  Mean,
  as_mean,
  check_result,
  kl_divergence,
)
from figs_jax.train.point_statistics import at_point, with_point


def value_fn_of(
  state: Any, batch: Any, leak: Array, key: Array
) -> Callable[..., Array]:
  """The step's loss as a function of the params, for line searches."""
  rest, points = state.rest, state.recipe.points

  def value_fn(params, masks=state.masks):  # optax passes masks= where it can
    params = jax.tree.map(lambda x, y: x.astype(y.dtype), params, state.params)
    loss_of = _loss_of(state, leak)
    if points is None:
      return loss_of(params, masks, rest, batch, key)[0]

    def one(teacher, masks, point):
      own = at_point(rest, state.statistics, point)
      soft = None if teacher is None else (teacher, point)
      loss, (_, _, teacher) = loss_of(params, masks, own, batch, key, soft)
      return teacher, loss

    return state.bound.over_points(
      one,
      _first_teacher(state, leak, rest, batch, key),
      state.params,
      state.step,
      seed=state.seed,
    )[1]

  return value_fn


def mean_gradients(
  state: Any, batch: Any, leak: Array, key: Array
) -> tuple[Any, Array, Any, Any]:
  """(gradients, loss, metrics, rest) of a batch, over its micro-batches."""
  one_grad = jax.grad(_loss_of(state, leak), has_aux=True)

  def grad(params, rest, batch, key):
    """(gradients, (means, rest)), the mean over points if there are any."""
    if state.recipe.points is None:
      grads, (means, rest, _) = one_grad(params, state.masks, rest, batch, key)
      return grads, (means, rest)

    def one(carry, masks, point):
      rest, teacher = carry
      own = at_point(rest, state.statistics, point)
      soft = None if teacher is None else (teacher, point)
      grads, (means, new, teacher) = one_grad(
        params, masks, own, batch, key, soft
      )
      rest = with_point(rest, state.statistics, point, new)
      return (rest, teacher), (wide(grads), wide(means))

    teacher = _first_teacher(state, leak, rest, batch, key)
    (rest, _), (grads, means) = state.bound.over_points(
      one, (rest, teacher), params, state.step, seed=state.seed
    )
    return grads, (means, rest)

  count = state.grad_accum_steps
  if count == 1:
    grads, (means, rest) = grad(state.params, state.rest, batch, key)
    return cast_like(grads, state.params), *_values(means), rest

  sizes = {(*jnp.shape(leaf), 1)[0] for leaf in jax.tree.leaves(batch)}
  if any(size % count for size in sizes):
    raise ValueError(
      f"expected a batch size that grad_accum_steps={count} divides, got"
      f" {', '.join(map(str, sorted(sizes)))}"
    )
  # Strided, so that each device splits its own share of the batch.
  micro = jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
  )
  keys = jax.random.split(key, count)

  def body(rest, xs):
    """Sums of a micro-batch with weight w: w times its mean gradient, means."""
    grads, (means, rest) = grad(state.params, rest, *xs)
    means = wide(means)
    weight = means[0].weight
    grads = jax.tree.map(lambda g: g * weight.astype(g.dtype), wide(grads))
    return rest, (grads, means)

  first = jax.tree.map(lambda x: x[0], (micro, keys))
  shapes = jax.eval_shape(body, state.rest, first)[1]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(carry, xs):
    rest, total = carry
    rest, one = body(rest, xs)
    return (rest, jax.tree.map(jnp.add, total, one)), None

  (rest, (grads, means)), _ = jax.lax.scan(
    add, (state.rest, zeros), (micro, keys)
  )
  grads = jax.tree.map(lambda g: Mean(g, means[0].weight).value, grads)
  return cast_like(grads, state.params), *_values(means), rest


def _loss_of(state: Any, leak: Array) -> Callable[..., Any]:
  """(params, masks, rest, batch, key, soft) -> loss, (means, rest, logits).

  `soft` is None, or (logits of the densest point, index of the point): all
  other points then follow these logits in place of the labels.
  """

  def loss_of(params, masks, rest, batch, key, soft=None):
    streams, key = jax.random.split(key)
    model = nn.merge(
      state.graphdef, params, masks, leak, nn.reseed(rest, streams)
    )
    refuse_writes(model)
    logits = None
    if soft is None:
      result = state.loss(model, batch, key)
    else:
      result, logits = _followed(state, model, batch, key, *soft)
    check_result(result)
    loss, metrics = result
    means = jax.tree.map(as_mean, (loss, metrics), is_leaf=_is_mean)
    return means[0].value, (means, nn.split(model)[3], logits)

  return loss_of


def _followed(
  state: Any, model: Any, batch: Any, key: Array, teacher: Array, point: Array
) -> tuple[Any, Array]:
  """The loss of a point with the densest one as its teacher, and new logits.

  The densest comes first: its logits replace the teacher's.
  """
  rows = state.loss.rows(model, batch, key)
  own = jax.lax.stop_gradient(rows.logits)
  is_densest = point == len(state.recipe.points.patterns) - 1
  soft = kl_divergence(teacher, rows.logits)
  losses = jnp.where(is_densest, rows.losses.astype(soft.dtype), soft)
  result = rows._replace(losses=losses).means()
  return result, jnp.where(is_densest, own, teacher)


def _first_teacher(
  state: Any, leak: Array, rest: Any, batch: Any, key: Array
) -> Array | None:
  """Logits of the batch's shape, before any pass; None without distillation."""
  if not state.recipe.points.distill:
    return None

  def logits(rest):
    own = at_point(rest, state.statistics, 0)
    model = nn.merge(state.graphdef, state.params, state.masks, leak, own)
    return state.loss.rows(model, batch, key).logits

  shape = jax.eval_shape(logits, nn.reseed(rest, key))
  return jnp.zeros(shape.shape, shape.dtype)


def _is_mean(value: Any) -> bool:
  return isinstance(value, Mean)


def _values(means: Any) -> Any:
  return jax.tree.map(lambda mean: mean.value, means, is_leaf=_is_mean)


def wide(tree: Any) -> Any:
  """The leaves in float32, which sums need; wider ones as they are."""

  def widen(leaf):
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      if jnp.finfo(leaf.dtype).bits >= 32:
        return leaf.astype(leaf.dtype)  # no longer weakly typed
      # Else XLA may skip the rounding that gave the leaf its value.
      leaf = jax.lax.optimization_barrier(leaf)
    return leaf.astype(jnp.float32)

  return jax.tree.map(widen, tree)


def cast_like(tree: Any, like: Any) -> Any:
  return jax.tree.map(lambda leaf, to: leaf.astype(to.dtype), tree, like)
