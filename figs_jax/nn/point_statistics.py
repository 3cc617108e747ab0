"""Batch statistics for each point of a nested recipe.

A kernel cut to another n has other activations, so every point has a mean and
variance of its own: their leaves in `rest` have a leading axis of points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.tree import flatten, path_str

Paths = tuple[str, ...]


def statistics_of(model: nnx.Module) -> Paths:
  """The paths of a model's batch statistics.

  >>> statistics_of(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
  ('mean', 'var')
  """
  state = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
  return tuple(sorted(flatten(state)))


def with_axis(rest: Any, paths: Paths, points: int) -> Any:
  """The variables with a copy of the statistics for every point.

  >>> with_axis({"mean": jnp.zeros(2)}, ("mean",), 3)["mean"].shape
  (3, 2)
  """
  return _at(rest, paths, lambda x: jnp.repeat(x[None], points, axis=0))


def at_point(rest: Any, paths: Paths, point: Any) -> Any:
  """The variables of a model at one point, by its index.

  >>> rest = with_axis({"mean": jnp.zeros(2)}, ("mean",), 3)
  >>> at_point(rest, ("mean",), 1)["mean"].shape
  (2,)
  """
  return _at(rest, paths, lambda x: x[point])


def with_point(rest: Any, paths: Paths, point: Any, new: Any) -> Any:
  """The variables of all points after one of them has changed.

  >>> rest = with_axis({"mean": jnp.zeros(1)}, ("mean",), 3)
  >>> new = {"mean": jnp.ones(1)}
  >>> with_point(rest, ("mean",), 1, new)["mean"].ravel().tolist()
  [0.0, 1.0, 0.0]
  """

  def one(path: Any, old: Any, value: Any) -> Any:
    return old.at[point].set(value) if path_str(path) in paths else value

  return jax.tree_util.tree_map_with_path(one, rest, new)


def _at(rest: Any, paths: Paths, fn: Callable[[Any], Any]) -> Any:
  def one(path: Any, leaf: Any) -> Any:
    return fn(leaf) if path_str(path) in paths else leaf

  return jax.tree_util.tree_map_with_path(one, rest)
