"""A state's model with hard N:M zeros, at its target or another point.

States are `figs_jax.train.state.TrainState`s.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from figs_jax import nn
from figs_jax.core._flow import Flow
from figs_jax.core.pattern import NM, VNM
from figs_jax.core.precision import cast_like
from figs_jax.core.types import Array
from figs_jax.nn.batch_norm import with_statistics
from figs_jax.nn.point_statistics import at_point
from figs_jax.optim import evaluated_params


def check_point(state: Any, point: NM | str) -> NM:
  """The pattern of a point that the kernels of a state can be cut to.

  Raises:
    ValueError: If no kernel is masked, one has another m, the recipe rescales
      its weights (S-STE), or lacks batch statistics of the point.
  """
  nm, recipe = NM.parse(point), state.recipe
  if not state.bound.kernels:
    raise ValueError(f"point {nm}: expected a model with masked kernels")
  for path, leaf in state.bound.leaves.items():
    if isinstance(leaf.pattern, VNM):
      raise ValueError(
        f"point {nm}: expected N:M kernels, which are cut by |w|, got {path}"
        f" with {leaf.pattern}"
      )
    if leaf.pattern.m != nm.m:
      raise ValueError(
        f"point {nm}: expected the m of {path}, which is {leaf.pattern}; one"
        " point cuts all kernels"
      )
  if recipe.flow.soft:
    raise ValueError(
      f"point {nm}: recipe {recipe.name!r} rescales weights for its own"
      " pattern, so they cannot be cut to another"
    )
  points = recipe.points
  if points and state.statistics and nm not in points.patterns:
    known = ", ".join(map(str, points.patterns))
    raise ValueError(
      f"point {nm}: expected one of {known}, which have batch statistics"
    )
  return nm


def point_index(state: Any, point: NM | None) -> int:
  """The index of a point among the batch statistics; 0 if there are none."""
  points = state.recipe.points
  if points is None or point is None or not state.statistics:
    return 0
  return points.patterns.index(point)


def finish(
  state: Any, *, ema: bool = False, n: int | Array | None = None
) -> tuple[Any, Any]:
  """(params, masks), finished, with pruned entries exactly 0; traceable.

  The weights of a schedule-free optimizer are its average. Masks of averaged
  weights are chosen from them, unless the recipe chooses by more than weights.

  Args:
    state: State without a seed axis.
    ema: Whether to take the averaged weights.
    n: Number of the largest |w| to keep of each group, in place of the target
      pattern.
  """
  if ema and state.ema is None:
    raise ValueError(
      "expected averaged weights, got a state without; train with"
      " config.ema_decay > 0"
    )
  bound, params = state.bound, state.params
  weights = evaluated_params(state.opt_state, state.weights)
  averaged = ema or weights is not state.weights
  if ema:
    weights = state.ema
  if averaged:
    params = cast_like(weights, params)
  if n is not None:
    masks = bound.cut(weights, n)
  elif averaged and not state.recipe.is_stateful:
    masks = bound.target(weights, seed=state.seed)
  else:
    switched = state.recipe.switched(state.opt_state)
    masks = bound.final(
      weights, state.masks, state.step, switched, seed=state.seed
    )
  return bound.finish(params, masks, nn.scales(state.rest, masks)), masks


def averaged_statistics(state: Any) -> Any:
  """The state with the averaged batch statistics in place of its own."""
  rest = with_statistics(state.rest, state.ema_statistics)
  return dataclasses.replace(state, rest=rest)


def evaluation_model(
  state: Any, params: Any, masks: Any, point: int | Array = 0
) -> nnx.Module:
  """The evaluation model of parameters and masks from `finish`; traceable.

  Args:
    state: State without a seed axis.
    params, masks: What `finish` returned.
    point: Index of the point whose batch statistics to take, `point_index`.
  """
  zero = jnp.zeros((), jnp.float32)
  rest = at_point(state.rest, state.statistics, point)
  model = nn.merge(state.graphdef, params, masks, zero, rest)
  model = nn.with_flow(model, Flow())  # `finish` has applied S-STE
  model.eval()
  return model
