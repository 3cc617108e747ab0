"""Paths and masked kernels of parameter trees.

A mask tree has the structure of its parameter tree, with None at dense leaves.
A path is the keys joined by "/", as in `blocks/0/attn/q/kernel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from figs_jax.core.pattern import NM


@dataclasses.dataclass(frozen=True)
class MaskedKernel:
  """Shape, pattern and group axis of one masked kernel."""

  shape: tuple[int, ...]
  pattern: NM
  axis: int | tuple[int, ...] = -2


def path_str(path: tuple[Any, ...]) -> str:
  """A key path of `jax.tree_util` as "a/b/c".

  >>> jax.tree_util.tree_map_with_path(
  ...   lambda p, _: path_str(p), {"a": [0, 1]})
  {'a': ['a/0', 'a/1']}
  """
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
  """Leaves by path. None leaves are kept, so that mask trees align.

  >>> flatten({"a": {"kernel": 1, "bias": None}})
  {'a/bias': None, 'a/kernel': 1}
  """
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda x: x is None
  )
  return {path_str(path): leaf for path, leaf in leaves}


def map_masked(
  fn: Callable[..., Any], masks: Any, tree: Any, *rest: Any
) -> Any:
  """`fn(mask, leaf, *rest_leaves)` at masked leaves, `leaf` elsewhere.

  >>> map_masked(lambda m, x: x * m, {"a": 0, "b": None}, {"a": 3, "b": 4})
  {'a': 0, 'b': 4}
  """
  return jax.tree.map(
    lambda m, x, *r: x if m is None else fn(m, x, *r),
    masks,
    tree,
    *rest,
    is_leaf=lambda x: x is None,
  )


def map_paths(
  fn: Callable[[str, Any], Any], tree: Any, table: Mapping[str, Any]
) -> Any:
  """`fn(table[path], leaf)` at the paths in the table, None elsewhere."""

  def one(path, leaf):
    key = path_str(path)
    return fn(table[key], leaf) if key in table else None

  return jax.tree_util.tree_map_with_path(one, tree)
