"""Low-rank adapters that begin to learn late in a run (arXiv 2405.16325)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.tree import path_str
from figs_jax.core.types import Array
from figs_jax.optim._pass_masks import pass_masks


class LazyAdaptersState(NamedTuple):
  """State of `lazy_adapters`.

  Attributes:
    count: Number of updates, int32 scalar.
    inner: State of the optimizer.
  """

  count: Array
  inner: Any


def lazy_adapters(
  tx: optax.GradientTransformation, start: int
) -> optax.GradientTransformationExtraArgs:
  """An optimizer that leaves adapters as they are before a step.

  Until then the optimizer sees gradients of 0 for them, so that their moments
  stay 0, and their updates are 0, weight decay included.

  Args:
    tx: Optimizer.
    start: Number of updates without the adapters, which are the leaves below a
      key `adapter`, as `figs_jax.nn.with_adapters` makes them.

  >>> params = {"kernel": jnp.ones(2), "adapter": {"lora_b": jnp.zeros(2)}}
  >>> grads = jax.tree.map(jnp.ones_like, params)
  >>> tx = lazy_adapters(optax.sgd(0.5), start=1)
  >>> first, state = tx.update(grads, tx.init(params))
  >>> second, _ = tx.update(grads, state)
  >>> [x["adapter"]["lora_b"].tolist() for x in (first, second)]
  [[0.0, 0.0], [-0.5, -0.5]]
  """
  tx = pass_masks(tx)

  def held(tree: Any, count: Array) -> Any:
    def one(keys, leaf):
      if "adapter" not in path_str(keys).split("/"):
        return leaf
      return jnp.where(count >= start, leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(one, tree)

  def init(params: Any) -> LazyAdaptersState:
    return LazyAdaptersState(jnp.zeros([], jnp.int32), tx.init(params))

  def update(updates, state, params=None, **extra):
    updates = held(updates, state.count)
    updates, inner = tx.update(updates, state.inner, params, **extra)
    count = jnp.asarray(optax.safe_increment(state.count))
    return held(updates, state.count), LazyAdaptersState(count, inner)

  return optax.GradientTransformationExtraArgs(init, update)
