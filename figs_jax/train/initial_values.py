"""Checks of the variables that a run starts from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.tree import flatten, path_str
from figs_jax.core.types import Array


def check_finite(params: Any) -> None:
  """Raises ValueError at a parameter with NaN or infinity, by its path.

  Tracers are not checked.

  Args:
    params: Nested dict of arrays.

  >>> try:
  ...   check_finite({"fc": {"bias": jnp.array([1.0, jnp.inf])}})
  ... except ValueError as error:
  ...   print(error)
  fc/bias: expected finite initial values, got NaN or infinity in float32; ...
  """
  for path, leaf in flatten(params).items():
    if not isinstance(leaf, jax.core.Tracer) and not _is_finite(leaf):
      raise ValueError(
        f"{path}: expected finite initial values, got NaN or infinity in"
        f" {leaf.dtype}; use a wider param_dtype, or other weights"
      )


def check_leaves(params: Any, rest: Any) -> None:
  """Raises ValueError at variables that no checkpoint can hold.

  Args:
    params: Nested dict of parameters.
    rest: Nested dict of other variables.

  >>> try:
  ...   check_leaves({"fc": {"bias": jnp.zeros(0)}}, {})
  ... except ValueError as error:
  ...   print(error)
  fc/bias: expected at least one entry, got shape (0,); remove the variable ...
  """
  keystr = jax.tree_util.keystr
  for tree in (params, rest):
    paths: dict[str, str] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
      path = path_str(keys)
      if jnp.size(leaf) == 0:
        raise ValueError(
          f"{path}: expected at least one entry, got shape {jnp.shape(leaf)};"
          " remove the variable from the model"
        )
      # Checkpoints and exported files separate by ".", rules by "/".
      name = path.replace("/", ".")
      if name in paths:
        raise ValueError(
          f"{keystr(keys)} and {paths[name]}: expected different names, but"
          f" both are saved as {name}; rename one of them"
        )
      paths[name] = keystr(keys)


def _is_finite(leaf: Any) -> bool:
  if isinstance(leaf, jax.Array) and jax.default_backend() != "cpu":
    return bool(_all_finite(leaf))
  if not isinstance(leaf, jax.Array):
    return bool(np.isfinite(leaf).all())
  # Part by part, each of them once; this compiles nothing.
  parts = {str(shard.index): shard.data for shard in leaf.addressable_shards}
  return all(np.isfinite(np.asarray(part)).all() for part in parts.values())


@jax.jit
def _all_finite(leaf: Array) -> Array:
  return jnp.isfinite(leaf).all()
