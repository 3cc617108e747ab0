"""A state as arrays under names, which is how a checkpoint holds it."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.tree import path_str
from figs_jax.train import distributed


def named_leaves(state: Any) -> dict[str, Any]:
  """Arrays of a state by dotted path; typed random keys as their raw data.

  >>> sorted(named_leaves({"params": {"a": {"kernel": jnp.ones(2)}}}))
  ['params.a.kernel']
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {path_str(p).replace("/", "."): _raw(leaf) for p, leaf in leaves}


def from_leaves(like: Any, leaves: dict[str, Any]) -> Any:
  """A state built as `like` is, of the arrays that `named_leaves` gave.

  >>> state = {"key": jax.random.key(0), "kernel": jnp.ones(2)}
  >>> from_leaves(state, named_leaves(state))["key"].dtype
  key<fry>
  """
  flat, treedef = jax.tree_util.tree_flatten(like)
  built = [
    jax.random.wrap_key_data(leaves[name]) if _is_key(old) else leaves[name]
    for name, old in zip(named_leaves(like), flat)
  ]
  return jax.tree_util.tree_unflatten(treedef, built)


def crc32(leaf: jax.Array) -> int:
  """Of all of an array; where processes share it, each must ask."""
  host = np.ascontiguousarray(distributed.whole(leaf))
  return zlib.crc32(host.view(np.uint8).data)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.eval_shape(jax.random.key_data, leaf)
  return jax.random.key_data(leaf)
