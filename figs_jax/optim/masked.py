"""How a transform reads `masks=`: the argument, its checks, the walk over it.

A mask tree has the shape of the updates, with None at dense leaves. Updates may
themselves hold None or `optax.MaskedNode` (a leaf another wrapper hides); those
are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.tree import path_str

MISSING: Any = object()


def absent(leaf: Any) -> bool:
  """True for a leaf that is not there: None, or hidden by `optax.masked`."""
  return leaf is None or isinstance(leaf, optax.MaskedNode)


def map_leaves(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """`fn(leaf, *rest_leaves)` at every leaf that is there.

  >>> map_leaves(lambda u, m: (u, m), {"a": 1, "b": None}, {"a": 2, "b": None})
  {'a': (1, 2), 'b': None}
  """
  return jax.tree.map(
    lambda leaf, *others: leaf if absent(leaf) else fn(leaf, *others),
    tree,
    *rest,
    is_leaf=absent,
  )


def aligned(masks: Any, updates: Any, transform: str) -> Any:
  """The masks in the tree structure of `updates`, None where there is none.

  Args:
    masks: the `masks=` argument; None says that no leaf has a mask.
    updates: the tree that the masks belong to.
    transform: who asks, for the error message.

  Raises:
    ValueError: `masks=` was not given, has another structure than the updates,
      or a mask has another shape than its leaf.
  """
  if masks is MISSING:
    raise ValueError(
      f"{transform} reads masks=, which is missing: call tx.update(grads,"
      " opt_state, params, masks=masks), None at dense leaves"
    )

  def check(path, update, mask):
    if absent(update) or mask is None:
      return None
    if jnp.shape(mask) != jnp.shape(update):
      raise ValueError(
        f"{transform}: mask of shape {jnp.shape(mask)} at {path_str(path)},"
        f" whose update has {jnp.shape(update)}; give one mask per kernel"
      )
    return mask

  if masks is None:
    return map_leaves(lambda update: None, updates)
  try:
    masks = jax.tree.map(lambda u, m: m, updates, masks, is_leaf=absent)
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{transform}: masks= must be shaped like the params, None at dense"
      f" leaves, but: {error}"
    ) from error
  return jax.tree_util.tree_map_with_path(check, updates, masks, is_leaf=absent)
