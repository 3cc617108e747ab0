"""A model as pure dictionaries, and back: the way through jit, grad and vmap.

`split` gives nested dicts of arrays, keyed alike for parameters and masks.
`merge` rebuilds the model from them inside any trace; its variables belong to
that trace, so batch statistics and random streams may be updated there and
read back with another `split`.
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
  """(graphdef, params, masks, rest) as nested dicts; nothing is copied.

  Args:
    model: any NNX model, sparse or not.

  Returns:
    Four things. graphdef is static and hashable. params holds arrays by path,
    as in `params["blocks"][0]["attn"]["q"]["kernel"]`. masks is shaped like
    params: a Bool array at every masked kernel, None elsewhere. rest holds
    every other variable (batch statistics, random streams). The leak is in
    none of them: it is a function of the step, given to `merge`.

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
  """The model of `split`, with these arrays and this leak in every layer.

  Args:
    graphdef, params, masks, rest: as `split` gave them, or new values.
    leak: scalar D; masked layers run on w * (m + D * not m).

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
  """`rest` with every random stream restarted from `key` and its own path.

  So dropout becomes a pure function of the key: fold the step into it. Each
  stream keeps its shape and its kind of generator.

  Args:
    rest: from `split`.
    key: a typed key, as from `jax.random.key`.

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
  """S-STE's scales as a tree of the masks' shape, None where there is none.

  Args:
    rest: of `split`.
    masks: of the same `split`.

  >>> from figs_jax.core import Flow
  >>> from figs_jax.nn import SparseLinear, with_flow
  >>> model = SparseLinear(4, 2, pattern="1:4", rngs=nnx.Rngs(0))
  >>> _, _, masks, rest = split(with_flow(model, Flow(soft=True)))
  >>> found = scales(rest, masks)
  >>> found["bias"], found["kernel"].shape
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
  """A key of the stream's shape and generator, from `key` and a name."""
  new = jax.random.fold_in(key, zlib.crc32(name.encode()))
  if new.dtype != stream.dtype:
    seed = jax.random.bits(new, dtype=jnp.uint32)
    new = jax.random.key(seed, impl=jax.random.key_impl(stream))
  return jax.random.split(new, stream.shape) if stream.shape else new


def _beside(params: Any, masks: Tree) -> Any:
  """The masks as a tree of the parameters' shape, None where there is none."""
  return {
    name: _beside(child, masks.get(name, {}))
    if isinstance(child, dict)
    else (masks.get("kernel_mask") if name == "kernel" else None)
    for name, child in params.items()
  }


def _variables(masks: Any, leak: Array) -> Tree:
  """The inverse of `_beside`, with a leak beside every mask."""
  found: Tree = {}
  for name, child in masks.items():
    if isinstance(child, dict):
      found[name] = _variables(child, leak)
    elif child is not None:
      found |= {"kernel_mask": child, "leak": leak}
  return found
