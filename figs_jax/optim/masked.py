"""The `masks=` argument of a transform: its checks, and maps over it.

A mask tree is structured like the updates, with None at dense leaves. Updates
may contain None or `optax.MaskedNode` (a leaf hidden by another wrapper), which
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.tree import path_str
from figs_jax.core.types import Array, Float, Int

# A hyperparameter; `optax.inject_hyperparams` makes it an array.
Scalar = float | int | Float[Array, ""] | Int[Array, ""]
MISSING: Any = object()
_ambient: ContextVar[Any] = ContextVar("masks", default=MISSING)


@contextmanager
def ambient_masks(masks: Any) -> Iterator[None]:
  """Masks for the transforms that are called inside without `masks=`.

  If they are missing, those of the scope around it stay.
  """
  token = _ambient.set(_ambient.get() if masks is MISSING else masks)
  try:
    yield
  finally:
    _ambient.reset(token)


def absent(leaf: Any) -> bool:
  """True for None and for a leaf hidden by `optax.masked`."""
  return leaf is None or isinstance(leaf, optax.MaskedNode)


def map_leaves(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """`fn(leaf, *rest_leaves)` at every leaf that is not absent.

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

  These are the leaves of all subtrees structured like `like` that have the
  shape of their counterpart. Absent leaves of `like` or of the subtree stay as
  they are; in the subtree they may stand for a whole branch of `like`, as
  `optax.partition` leaves them under labels of branches. `rest` is structured
  like `like`.

  >>> like, state = {"w": jnp.ones(2)}, {"n": 3, "mu": {"w": jnp.zeros(2)}}
  >>> map_like(lambda leaf: leaf + 1, like, state)
  {'mu': {'w': Array([1., 1.], dtype=float32)}, 'n': 3}
  """

  def mirrored(node):
    """The structure and leaves of a node that mirrors `like`, and `like` there.

    None for any other node.
    """
    leaves, treedef = jax.tree.flatten(node, is_leaf=absent)
    try:
      parts = treedef.flatten_up_to(like)
    except (ValueError, TypeError):
      return None
    for leaf, part in zip(leaves, parts):
      whole = absent(part) or jax.tree_util.all_leaves([part])
      if not whole and not absent(leaf):
        return None
    return treedef, leaves, parts

  def one(leaf, part, *other):
    if absent(leaf) or absent(part) or jnp.shape(part) != jnp.shape(leaf):
      return leaf
    return fn(leaf, *other)

  def visit(node):
    match = mirrored(node)
    if match is None:
      return node
    treedef, leaves, parts = match
    others = [treedef.flatten_up_to(tree) for tree in rest]
    return treedef.unflatten(map(one, leaves, parts, *others))

  return jax.tree.map(visit, state, is_leaf=lambda x: mirrored(x) is not None)


def promoted_dtype(*arrays: Any) -> Any:
  """The common dtype of arrays, even under strict promotion.

  >>> promoted_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float16))
  dtype('float32')
  """
  with jax.numpy_dtype_promotion("standard"):
    return jnp.result_type(*arrays)


def aligned(masks: Any, updates: Any, transform: str) -> Any:
  """The masks in the tree structure of `updates`, None where there is none.

  Args:
    masks: Argument `masks=`; None means that no leaf has a mask. Where it is
      missing, those of `pass_masks` are read.
    updates: Tree that the masks belong to.
    transform: Name of the transform, for the error message.

  Raises:
    ValueError: If `masks=` was not given or has another structure than the
      updates, or a mask has another shape than its leaf.
  """
  if masks is MISSING:
    masks = _ambient.get()
  if masks is MISSING:
    raise ValueError(
      f"{transform} needs masks=: call tx.update(grads, opt_state, params,"
      " masks=masks), with None at dense leaves; where a wrapper of optax drops"
      " it, call that of figs_jax.optim.pass_masks(tx)"
    )

  def check(path, update, mask):
    if absent(update) or mask is None:
      return None
    if jnp.shape(mask) != jnp.shape(update):
      raise ValueError(
        f"{transform}: expected a mask of shape {jnp.shape(update)} at"
        f" {path_str(path)}, got {jnp.shape(mask)}"
      )
    return mask

  if masks is None:
    return map_leaves(lambda update: None, updates)
  try:
    masks = jax.tree.map(lambda u, m: m, updates, masks, is_leaf=absent)
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{transform}: expected masks= structured like the params, with None at"
      f" dense leaves: {error}"
    ) from error
  return jax.tree_util.tree_map_with_path(check, updates, masks, is_leaf=absent)
