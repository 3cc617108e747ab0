"""Trees of arrays in float32, in which sums and updates are computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def wide(tree: Any) -> Any:
  """The leaves in float32, which sums need; wider ones as they are.

  Args:
    tree: Tree of arrays.

  >>> wide({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
  dtype('float32')
  """

  def widen(leaf):
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      if jnp.finfo(leaf.dtype).bits >= 32:
        return leaf.astype(leaf.dtype)  # no longer weakly typed
      # Else XLA may skip the rounding that gave the leaf its value.
      leaf = jax.lax.optimization_barrier(leaf)
    return leaf.astype(jnp.float32)

  return jax.tree.map(widen, tree)


def cast(tree: Any, dtype: Any) -> Any:
  """The floating-point leaves in a dtype, others as they are.

  Args:
    tree: Tree of arrays.
    dtype: Dtype of the result.

  >>> cast([jnp.ones(2), jnp.ones(2, int)], "bfloat16")[0].dtype
  dtype(bfloat16)
  """

  def one(leaf):
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if floating else leaf

  return jax.tree.map(one, tree)


def cast_like(tree: Any, like: Any) -> Any:
  """The leaves in the dtypes of another tree.

  Args:
    tree: Tree of arrays.
    like: Tree of the same structure.

  >>> cast_like([jnp.ones(2)], [jnp.ones(2, jnp.bfloat16)])[0].dtype
  dtype(bfloat16)
  """
  return jax.tree.map(lambda leaf, to: leaf.astype(to.dtype), tree, like)
