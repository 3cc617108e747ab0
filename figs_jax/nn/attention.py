"""Multi-head attention with a mask of its own for each of the four kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core._flow import GradMode
from figs_jax.core.pattern import NM
from figs_jax.core.rules import nearest
from figs_jax.core.types import Array, Bool, Float
from figs_jax.nn.layers import SparseLinear

_PARTS = ("q", "k", "v", "o")
_glorot = nnx.initializers.xavier_uniform()


class Attention(nnx.Module):
  """softmax(q kᵀ / sqrt(d)) v with projections q, k, v, o (arXiv 1706.03762).

  Args:
    dim: Width of the input and of the output.
    num_heads: Number of heads, a divisor of `dim`.
    patterns: One pattern for all four kernels, or a mapping from "q", "k", "v"
      and "o" to patterns; missing kernels and None are dense.
    grad_mode: Gradient of pruned entries, see `core.flow`.
    qkv_bias: Whether q, k and v have a bias; o always has one.
    dropout: Dropout rate of the attention weights in training mode.
    dtype: Dtype of the computation; None promotes inputs and parameters. The
      softmax is always computed in float32.
    param_dtype: Dtype of the parameters.
    kernel_init: Initializer of the four kernels.
    rngs: Random streams `params` and, with dropout, `dropout`.

  Raises:
    ValueError: If num_heads does not divide dim, or `patterns` has an unknown
      key or an invalid pattern.

  >>> attention = Attention(8, 2, patterns={"q": "1:4"}, rngs=nnx.Rngs(0))
  >>> attention(jnp.ones((1, 5, 8))).shape
  (1, 5, 8)
  """

  q: SparseLinear
  k: SparseLinear
  v: SparseLinear
  o: SparseLinear

  def __init__(
    self,
    dim: int,
    num_heads: int,
    *,
    patterns: NM | str | None | Mapping[str, NM | str | None] = None,
    grad_mode: GradMode = "ste",
    qkv_bias: bool = True,
    dropout: float = 0.0,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    kernel_init: nnx.Initializer = _glorot,
    rngs: nnx.Rngs,
  ):
    if num_heads < 1 or dim % num_heads:
      raise ValueError(
        f"Expected a width that is a multiple of num_heads={num_heads}, got"
        f" dim={dim}"
      )
    if not isinstance(patterns, Mapping):
      patterns = dict.fromkeys(_PARTS, patterns)
    for part in patterns:
      if part not in _PARTS:
        raise ValueError(
          f"Unknown attention kernel {part!r}, {nearest(part, _PARTS)}"
        )
    self.dim, self.num_heads = dim, num_heads
    for part in _PARTS:
      projection = SparseLinear(
        dim,
        dim,
        pattern=patterns.get(part),
        grad_mode=grad_mode,
        use_bias=qkv_bias or part == "o",
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        rngs=rngs,
      )
      setattr(self, part, projection)
    self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)

  def __call__(
    self,
    x: Float[Array, "batch tokens dim"],
    mask: Bool[Array, "#batch #heads #tokens #tokens"] | None = None,
  ) -> Float[Array, "batch tokens dim"]:
    """Self-attention.

    Args:
      x: Tokens.
      mask: Boolean mask, True = may be attended, broadcast to
        [batch, heads, query, key].
    """
    q, k, v = (self._heads(part, x) for part in (self.q, self.k, self.v))
    logits = jnp.einsum(
      "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
    )
    if mask is not None:
      logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    out = attend(logits, v, self.dropout, scale=q.shape[-1] ** -0.5)
    return self.o(out.reshape(*x.shape[:-1], self.dim))

  def _heads(
    self, projection: SparseLinear, x: Float[Array, "batch tokens dim"]
  ) -> Float[Array, "batch tokens heads depth"]:
    return projection(x).reshape(*x.shape[:-1], self.num_heads, -1)


def attend(
  logits: Float[Array, "*batch heads queries keys"],
  values: Float[Array, "*batch keys heads depth"],
  dropout: nnx.Dropout,
  scale: float = 1.0,
) -> Float[Array, "*batch queries heads depth"]:
  """softmax(scale * logits) values, with dropout of the weights.

  Args:
    logits: Logits in float32.
    values: Values, whose dtype the result has.
    dropout: Dropout of the weights.
    scale: Positive factor of the logits.

  >>> logits, values = jnp.zeros((1, 2, 3)), jnp.arange(3.0).reshape(3, 1, 1)
  >>> attend(logits, values, nnx.Dropout(0)).tolist()
  [[[1.0]], [[1.0]]]
  """
  most = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  powers = jnp.exp(scale * (logits - most))
  total = powers.sum(axis=-1, keepdims=True)
  # The output has fewer entries to divide than the weights; without the
  # division it could overflow in float16.
  late = values.dtype == jnp.float32
  weights = dropout(powers if late else powers / total).astype(values.dtype)
  out = jnp.einsum("...hqk,...khd->...qhd", weights, values)
  return out / jnp.swapaxes(total, -3, -2) if late else out
