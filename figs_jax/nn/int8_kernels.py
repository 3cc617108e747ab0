"""Kernels rounded to 8-bit integers, for the accuracy of int8 weights.

Only weights are rounded: w is replaced by s q with q = round(w / s), the even
one of two nearest, and s = max |w| / 127 over the inputs of an output channel,
so that q is in [-127, 127] and zeros stay zeros. Products are computed in the
model's own dtype, with activations that are not rounded.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from figs_jax.core.groups import Axis
from figs_jax.core.types import Array, Float
from figs_jax.nn.kernel_axes import DENSE_TYPES, contraction_axis

_MOST = 127


def rounded_to_int8(
  kernel: Float[Array, "*shape"], axis: Axis
) -> Float[Array, "*shape"]:
  """The float32 values s q of a kernel, with a scale s per output channel.

  Args:
    kernel: Weights.
    axis: Axes of the inputs, over which a scale is shared.

  >>> kernel = jnp.array([[127.0, 0.0], [-33.4, 254.0]])
  >>> rounded_to_int8(kernel, -2).tolist()
  [[127.0, 0.0], [-33.0, 254.0]]
  """
  wide = kernel.astype(jnp.float32)
  most = jnp.abs(wide).max(axis, keepdims=True)
  scale = jnp.where(most == 0, 1.0, most / _MOST)
  return jnp.clip(jnp.round(wide / scale), -_MOST, _MOST) * scale


def round_kernels_to_int8(model: nnx.Module) -> None:
  """Rounds the kernels of all dense layers in place, masked or not.

  These are the kernels of `nnx.Linear`, `nnx.LinearGeneral`, `nnx.Einsum`,
  `nnx.Conv` and their masked versions. Biases, norms and embeddings stay.

  Args:
    model: Model, also inside of a trace.

  >>> model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
  >>> model.kernel.set_value(jnp.array([[127.0, 0.0], [-33.4, 254.0]]))
  >>> round_kernels_to_int8(model)
  >>> model(jnp.eye(2)).tolist()
  [[127.0, 0.0], [-33.0, 254.0]]
  """
  for _, layer in nnx.iter_modules(model):
    if isinstance(layer, DENSE_TYPES):
      _round_kernel(layer)


def _round_kernel(layer: Any) -> None:
  axis = _input_axes(layer)
  if axis is not None:
    layer.kernel.set_value(rounded_to_int8(layer.kernel[...], axis))


def _input_axes(layer: nnx.Module) -> Axis | None:
  if isinstance(layer, nnx.Conv):  # positions of the window too
    return tuple(range(-len(layer.kernel_shape), -1))
  return contraction_axis(layer)
