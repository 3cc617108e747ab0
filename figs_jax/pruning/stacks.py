"""Scanned blocks as lists of blocks, and back.

`figs_jax.models.stack` runs both, and the layers of a list can be pruned one
after another.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.models import FAMILIES
from figs_jax.nn.kernel_axes import DENSE_TYPES, stacked_shape

M = TypeVar("M", bound=nnx.Module)
Path = tuple[Any, ...]
# The attribute in which models of our families keep their blocks.
_NAME = "blocks"


def unstack(model: M) -> list[Path]:
  """Makes lists of the stacked blocks of a model, in place.

  Returns:
    Path of the parent of every list that was made.

  Raises:
    ValueError: If a model of another class has stacked layers.

  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 2, "heads": 2, "image_size": 4}
  >>> model = models.create("vit", "custom/2", scan=True, **sizes)
  >>> unstack(model), len(model.blocks)
  ([()], 2)
  """
  places = []
  for path, parent in list(nnx.iter_modules(model)):
    depth = _depth(parent)
    if depth and type(model) not in FAMILIES.values():
      raise ValueError(
        f"{type(model).__name__}: expected one layer after another for"
        f" calibrated pruning, got {depth} stacked layers at"
        f" {'/'.join(map(str, path)) or 'the model'}; build it without scan or"
        " vmap"
      )
    blocks = getattr(parent, _NAME, None)
    if isinstance(blocks, nnx.Module) and (depth := _depth(blocks)):
      graphdef, state = nnx.split(blocks)
      parts = [
        nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state))
        for i in range(depth)
      ]
      setattr(parent, _NAME, nnx.List(parts))
      places.append(tuple(path))
  return places


def restack(model: M, places: list[Path]) -> None:
  """The inverse of `unstack`, in place."""
  modules = {tuple(path): module for path, module in nnx.iter_modules(model)}
  for path in places:
    parts = [nnx.split(block) for block in getattr(modules[path], _NAME)]
    graphdef, states = parts[0][0], [state for _, state in parts]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *states)
    setattr(modules[path], _NAME, nnx.merge(graphdef, stacked))


def _depth(module: nnx.Module) -> int:
  """Number of stacked copies of a module whose layers are all stacked; or 0."""
  leads = {
    stacked_shape(layer, type(module).__name__)
    for _, layer in nnx.iter_modules(module)
    if isinstance(layer, DENSE_TYPES)
  }
  if len(leads) != 1:
    return 0
  (lead,) = leads
  return lead[0] if lead else 0
