"""`with_flow`: how the masked kernels of a model act."""

from __future__ import annotations

import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core._flow import Flow
from figs_jax.core.pattern import NM
from figs_jax.core.soft import kernel_scale
from figs_jax.core.types import Array, Float
from figs_jax.nn.kernel_axes import Axis, kernel_name, stacked_shape
from figs_jax.nn.layers import Masked
from figs_jax.nn.logical_axes import logical_axes
from figs_jax.nn.neural_gradient import NeuralGradient
from figs_jax.nn.variables import Scale

M = TypeVar("M", bound=nnx.Module)


def with_flow(model: M, flow: Flow) -> M:
  """Returns the model with this flow in every masked layer.

  The input stays as it is and shares all arrays with the result. Variables that
  an earlier flow added are removed: `with_flow(model, Flow())` has no scales or
  random streams of a flow.

  * `flow.soft` gives every masked kernel a `Scale`: beta of the current kernel
    and its N:M mask (one per kernel of a stack, one for a tied kernel).
  * `flow.mvue` gives every masked layer a `NeuralGradient` with its own random
    stream, seeded by the path of the layer; `reseed` restarts it from a key.

  Works on abstract arrays (`nnx.eval_shape`) and inside a trace.

  Args:
    model: Model, for example from `sparsify`.
    flow: Gradient mode, soft kernels and pruning of neural gradients.

  >>> from figs_jax.nn import SparseLinear
  >>> model = SparseLinear(8, 4, pattern="1:4", rngs=nnx.Rngs(0))
  >>> with_flow(model, Flow("masked")).flow.grad_mode
  'masked'
  >>> float(with_flow(model, Flow(soft=True)).scale[...]) > 1
  True
  """
  model = nnx.clone(model)
  scales: dict[int, Scale] = {}
  for path, layer in list(nnx.iter_modules(model)):
    if not isinstance(layer, Masked):
      continue
    for name in ("scale", "neural_gradient"):
      if hasattr(layer, name):
        delattr(layer, name)
    layer.flow = flow
    pattern, axis = layer.pattern, layer.group_axis
    if pattern is None or axis is None:
      continue
    name = "/".join(map(str, path))
    lead = stacked_shape(layer, name)
    words = logical_axes(f"{name}/{kernel_name(layer)}", layer.kernel.ndim)
    if any(words):
      layer.words = words[len(lead) :]
    if flow.soft:
      # One variable where layers share a kernel.
      if id(layer.kernel) not in scales:
        scales[id(layer.kernel)] = Scale(scale_of(layer, pattern, axis, lead))
      layer.scale = scales[id(layer.kernel)]
    if flow.mvue is not None:
      layer.neural_gradient = _stream(flow.mvue, name, lead, _abstract(layer))
  return model


def _abstract(layer: Masked) -> bool:
  return isinstance(layer.kernel.get_raw_value(), jax.ShapeDtypeStruct)


def scale_of(
  layer: Masked, pattern: NM, axis: Axis, lead: tuple[int, ...]
) -> Array | jax.ShapeDtypeStruct:
  """beta of each kernel of the stack; abstract if the kernel is."""
  if _abstract(layer):
    return jax.ShapeDtypeStruct(lead, jnp.float32)

  def one(kernel: Float[Array, "*shape"]) -> Array:
    return kernel_scale(kernel, pattern, axis).astype(jnp.float32)

  for _ in lead:
    one = jax.vmap(one)
  return one(layer.kernel[...])


def _stream(
  pattern: NM, name: str, lead: tuple[int, ...], abstract: bool
) -> NeuralGradient:
  """A stream seeded by the name of the layer, one per layer of a stack."""

  def build() -> NeuralGradient:
    seed = zlib.crc32(name.encode())
    key = jax.random.fold_in(jax.random.key(0), seed)
    return NeuralGradient(pattern, jax.random.split(key, lead) if lead else key)

  return nnx.eval_shape(build) if abstract else build()
