"""Splits a model into dictionaries of arrays, and merges them again.

`split` returns nested dicts of arrays with the same keys for parameters and
masks, for use under jit, grad and vmap. `merge` rebuilds the model from them
inside any trace. Its variables belong to that trace, so batch statistics and
random streams may be updated there and read with another `split`.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Float
from figs_jax.nn.kernel_axes import stacked_shape
from figs_jax.nn.layers import Masked
from figs_jax.nn.variables import Leak, Mask

Tree = dict[Any, Any]


def split(model: nnx.Module) -> tuple[nnx.GraphDef[Any], Tree, Tree, Tree]:
  """Splits a model into (graphdef, params, masks, rest) without copies.

  Args:
    model: Any NNX model, sparse or not.

  Returns:
    `graphdef` is static and hashable. `params` holds arrays by path, as in
    `params["blocks"][0]["attn"]["q"]["kernel"]`. `masks` is structured like
    params, with a Boolean array at every masked kernel and None elsewhere.
    `rest` holds all other variables (batch statistics, random streams). The
    leak is not included: it is a function of the step, passed to `merge`.

  >>> from figs_jax.nn import SparseLinear
  >>> model = SparseLinear(4, 2, pattern="1:4", rngs=nnx.Rngs(0))
  >>> _, params, masks, rest = split(model)
  >>> masks["bias"], masks["kernel"].shape, rest
  (None, (4, 2), {})
  """
  graphdef, params, masks, _, rest = nnx.split(
    model, nnx.Param, Mask, Leak, ...
  )
  params, masks, rest = (
    nnx.to_pure_dict(state) for state in (params, masks, rest)
  )
  return graphdef, params, _beside(params, masks), rest


def merge(
  graphdef: nnx.GraphDef[Any],
  params: Tree,
  masks: Tree,
  leak: Float[Array, ""] | float,
  rest: Tree,
) -> Any:
  """The inverse of `split`, with this leak in every masked layer.

  Args:
    graphdef: Static part of the model, from `split`.
    params: Parameters, structured as those of `split`.
    masks: Masks, structured as those of `split`.
    leak: Scalar D; masked layers use w * (m + D * not m).
    rest: Other variables, structured as those of `split`.

  >>> from figs_jax.nn import SparseLinear
  >>> model = SparseLinear(4, 2, pattern="1:4", rngs=nnx.Rngs(0))
  >>> graphdef, params, masks, rest = split(model)
  >>> @jax.grad
  ... def slope(params):
  ...   return merge(graphdef, params, masks, 0.5, rest)(jnp.ones(4)).sum()
  >>> slope(params)["kernel"].shape
  (4, 2)
  """
  leak = jnp.asarray(leak, jnp.float32)
  model = nnx.merge(graphdef, params, _variables(masks, leak), rest)
  for path, layer in nnx.iter_modules(model):
    if isinstance(layer, Masked) and layer.pattern is not None:
      lead = stacked_shape(layer, "/".join(map(str, path)))
      if lead:
        layer.leak.set_value(jnp.broadcast_to(leak, lead))
  return model


def reseed(rest: Tree, key: Array) -> Tree:
  """Restarts every random stream in `rest` from `key` and its own path.

  Dropout becomes a pure function of the key, for example with the step folded
  into it. Each stream keeps its shape and its generator.

  Args:
    rest: Other variables, from `split`.
    key: Typed key, as from `jax.random.key`.

  >>> model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
  >>> graphdef, _, _, rest = split(model)
  >>> first, second = (reseed(rest, jax.random.key(i)) for i in range(2))
  >>> bool(first["rngs"]["key"] == second["rngs"]["key"])
  False
  """

  def renew(tree: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(tree, dict):
      return tree
    tree = {k: renew(v, (*path, str(k))) for k, v in tree.items()}
    if _is_key(tree.get("key")) and "count" in tree:
      tree["key"] = _key_like(tree["key"], key, "/".join(path))
      tree["count"] = jnp.zeros_like(tree["count"])
    return tree

  return renew(rest, ())


def scales(rest: Tree, masks: Any) -> Tree:
  """S-STE's scales as a tree structured like the masks, None if there is none.

  Args:
    rest: Other variables, from `split`.
    masks: Masks from the same `split`.

  >>> from figs_jax.core import Flow
  >>> from figs_jax.nn import SparseLinear, with_flow
  >>> model = SparseLinear(4, 2, pattern="1:4", rngs=nnx.Rngs(0))
  >>> _, _, masks, rest = split(with_flow(model, Flow(soft=True)))
  >>> betas = scales(rest, masks)
  >>> betas["bias"], betas["kernel"].shape
  (None, ())
  """
  return {
    name: scales(rest.get(name, {}), child)
    if isinstance(child, dict)
    else (None if child is None else rest.get("scale"))
    for name, child in masks.items()
  }


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _key_like(stream: Array, key: Array, name: str) -> Array:
  """A key with the shape and generator of a stream, from `key` and a name."""
  new = jax.random.fold_in(key, zlib.crc32(name.encode()))
  if new.dtype != stream.dtype:
    seed = jax.random.bits(new, dtype=jnp.uint32)
    new = jax.random.key(seed, impl=jax.random.key_impl(stream))
  return jax.random.split(new, stream.shape) if stream.shape else new


def _beside(params: Any, masks: Tree) -> Any:
  """The masks as a tree structured like the parameters, None elsewhere."""
  return {
    name: _beside(child, masks.get(name, {}))
    if isinstance(child, dict)
    else (masks.get("kernel_mask") if name == _masked_name(params) else None)
    for name, child in params.items()
  }


def _masked_name(params: Tree) -> str:
  """The parameter of a layer that its mask is for, see `kernel_name`."""
  return "kernel" if "kernel" in params else "embedding"


def _variables(masks: Any, leak: Array) -> Tree:
  """The inverse of `_beside`, with a leak beside every mask."""
  variables: Tree = {}
  for name, child in masks.items():
    if isinstance(child, dict):
      variables[name] = _variables(child, leak)
    elif child is not None:
      variables |= {"kernel_mask": child, "leak": leak}
  return variables
