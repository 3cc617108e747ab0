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
from figs_jax.core.types import Array, Float, Int

# A number of an optimizer: `optax.inject_hyperparams` makes it an array.
Scalar = float | int | Float[Array, ""] | Int[Array, ""]
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


def map_like(fn: Callable[..., Any], like: Any, state: Any, *rest: Any) -> Any:
  """`fn(leaf, *rest_leaves)` at the leaves of a state that mirror `like`.

  Those are the leaves of the subtrees that are structured like `like`, as far
  as they have the shape of their counterpart; where `like` or the subtree has
  no leaf, nothing is done. `rest` is structured like `like`.

  >>> like, state = {"w": jnp.ones(2)}, {"n": 3, "mu": {"w": jnp.zeros(2)}}
  >>> map_like(lambda leaf: leaf + 1, like, state)
  {'mu': {'w': Array([1., 1.], dtype=float32)}, 'n': 3}
  """
  leaves, treedef = jax.tree.flatten(like, is_leaf=absent)
  others = [treedef.flatten_up_to(tree) for tree in rest]

  def parts(node):
    """The counterparts of the leaves of `like`; None if it is no mirror."""
    try:
      found = treedef.flatten_up_to(node)
    except (ValueError, TypeError):
      return None
    simple = (absent(x) or jax.tree_util.all_leaves([x]) for x in found)
    return found if all(simple) else None

  def one(leaf, part, *other):
    if absent(leaf) or absent(part) or jnp.shape(part) != jnp.shape(leaf):
      return part
    return fn(part, *other)

  def visit(node):
    found = parts(node)
    if found is None:
      return node
    return treedef.unflatten(
      one(*corresponding) for corresponding in zip(leaves, found, *others)
    )

  return jax.tree.map(visit, state, is_leaf=lambda x: parts(x) is not None)


def promoted_dtype(*arrays: Any) -> Any:
  """The common dtype of arrays, also where promotion is strict.

  >>> promoted_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float16))
  dtype('float32')
  """
  with jax.numpy_dtype_promotion("standard"):
    return jnp.result_type(*arrays)


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
