"""Initializers of parameters in low precision."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array


def drawing_dtype(dtype: Any) -> Any:
  """The dtype to draw parameters in: float32 or wider.

  Draws in fewer bits take few values: 128 in bfloat16, NaN in float8_e4m3fn.
  """
  narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
  return jnp.dtype(jnp.float32 if narrow else dtype)


def in_float32(init: nnx.Initializer) -> nnx.Initializer:
  """The initializer that draws in float32 or wider and casts.

  >>> import jax
  >>> init = in_float32(nnx.initializers.normal(1.0))
  >>> init(jax.random.key(0), (2,), jnp.bfloat16).dtype
  dtype(bfloat16)
  """

  def draw(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    return init(key, shape, drawing_dtype(dtype)).astype(dtype)

  return draw
