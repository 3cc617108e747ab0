"""Low-rank adapters beside masked kernels: y = x W~ + (x A) B.

The sparse kernel and the two factors stay apart, in training, in evaluation and
in exported weights: W~ + A B is dense, and merging would undo the pattern.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.nn.kernel_axes import stacked_shape
from figs_jax.nn.layers import Masked

M = TypeVar("M", bound=nnx.Module)


def with_adapters(model: M, rank: int, key: Array | None = None) -> M:
  """Returns the model with an adapter beside every masked kernel.

  The input stays as it is and shares all arrays with the result. A is drawn
  (He, uniform), B is 0, so that the function stays the same. Works on abstract
  arrays and inside a trace. The factors are dense; a rule of `sparsify` that
  names `adapter/lora_a/kernel` masks them.

  Args:
    model: Model from `sparsify`. Layers that have an adapter keep it.
    rank: Rank of the adapters.
    key: Key of the draws, which differ by the path of the layer. Defaults to
      `jax.random.key(0)`.

  Raises:
    ValueError: If the rank is below 1, no layer is masked, or one is not an
      `nnx.Linear`.

  >>> from figs_jax.nn import SparseLinear
  >>> layer = SparseLinear(8, 4, pattern="1:4", rngs=nnx.Rngs(0))
  >>> both, x = with_adapters(layer, 2), jnp.ones((1, 8))
  >>> both.adapter.lora_a.shape, bool((both(x) == layer(x)).all())
  ((8, 2), True)
  """
  if rank < 1:
    raise ValueError(f"rank: expected at least 1, got {rank}")
  model = nnx.clone(model)
  key = jax.random.key(0) if key is None else key
  layers = [
    ("/".join(map(str, path)), layer)
    for path, layer in nnx.iter_modules(model)
    if isinstance(layer, Masked) and layer.pattern is not None
  ]
  if not layers:
    raise ValueError(
      f"{type(model).__name__}: expected a model with masked layers; call"
      " figs_jax.sparsify(model, rules) first"
    )
  for path, layer in layers:
    if not isinstance(layer, nnx.Linear):
      raise ValueError(
        f"{path}: expected nnx.Linear for an adapter, got"
        f" {type(layer).__name__}; leave it dense with the rule"
        f' ("{path}/kernel", None)'
      )
    if not hasattr(layer, "adapter"):
      layer.adapter = _adapter(layer, rank, path, key)
  return model


def has_adapters(model: nnx.Module) -> bool:
  """Whether a layer of the model has an adapter.

  Args:
    model: Any NNX module.

  >>> has_adapters(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
  False
  """
  return any(hasattr(layer, "adapter") for _, layer in nnx.iter_modules(model))


def _adapter(layer: nnx.Linear, rank: int, path: str, key: Array) -> nnx.LoRA:
  lead = stacked_shape(layer, f"{path}/kernel")
  of_path = jax.random.fold_in(key, zlib.crc32(path.encode()))

  def build() -> nnx.LoRA:
    lora = nnx.LoRA(
      layer.in_features,
      rank,
      layer.out_features,
      dtype=layer.dtype,
      param_dtype=layer.param_dtype,
      rngs=nnx.Rngs(of_path),
    )
    if lead:  # one adapter per layer of a stack
      stack = tuple(range(len(lead)))
      draw = nnx.initializers.he_uniform(batch_axis=stack)
      a, b = ((*lead, *f.shape) for f in (lora.lora_a, lora.lora_b))
      lora.lora_a.set_value(draw(of_path, a, layer.param_dtype))
      lora.lora_b.set_value(jnp.zeros(b, layer.param_dtype))
    return lora

  abstract = isinstance(layer.kernel.get_raw_value(), jax.ShapeDtypeStruct)
  return nnx.eval_shape(build) if abstract else build()
