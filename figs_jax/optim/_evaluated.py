"""The weights that a schedule-free optimizer is evaluated at."""

from __future__ import annotations

from typing import Any

import jax
from optax import contrib


def evaluated_params(opt_state: Any, params: Any) -> Any:
  """The average x of a schedule-free optimizer (2405.15682), or the params.

  `optax.contrib.schedule_free` keeps z beside the params, which are
  y = (1 - b1) z + b1 x, the weights whose gradient is taken. x is computed as
  y + (1 / b1 - 1) (y - z), so that a weight that has never moved stays exactly.

  Args:
    opt_state: State of any optimizer. Schedule-free states in it are looked up
      by their type, in wrappers as well.
    params: Parameters.

  Returns:
    A tree like `params`, in its dtypes; `params` itself if the state has none
    that is schedule-free.

  >>> import jax.numpy as jnp, optax
  >>> params, tx = {"w": jnp.array([1.0])}, contrib.schedule_free_sgd(0.5)
  >>> updates, state = tx.update(params, tx.init(params), params)
  >>> evaluated_params(state, optax.apply_updates(params, updates))
  {'w': Array([0.5], dtype=float32)}
  """
  moved: dict[Any, tuple[Any, Any]] = {}
  for free in _free_states(opt_state):
    for path, z in jax.tree_util.tree_leaves_with_path(free.z):
      moved[path] = (free.b1, z)
  if not moved:
    return params

  def one(path: Any, y: Any) -> Any:
    if path not in moved:
      return y
    b1, z = moved[path]
    wide = y.astype(z.dtype)
    return (wide + (1 / b1 - 1) * (wide - z)).astype(y.dtype)

  return jax.tree_util.tree_map_with_path(one, params)


def is_schedule_free(opt_state: Any) -> bool:
  """Whether an optimizer state holds that of a schedule-free optimizer.

  Args:
    opt_state: State of any optimizer.

  >>> is_schedule_free(contrib.schedule_free_sgd(0.1).init({}))
  True
  """
  return bool(_free_states(opt_state))


def _free_states(opt_state: Any) -> list[contrib.ScheduleFreeState]:
  """The schedule-free states in a state, in wrappers as well."""
  is_free = lambda node: isinstance(node, contrib.ScheduleFreeState)  # noqa: E731
  return list(filter(is_free, jax.tree.leaves(opt_state, is_leaf=is_free)))
