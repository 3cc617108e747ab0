"""Multi-head attention whose four kernels each carry their own mask."""

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
    dim: width of the input and of the output.
    num_heads: divides `dim`.
    patterns: one pattern for the four kernels, or a mapping from some of "q",
      "k", "v", "o" to theirs. None is dense.
    grad_mode: as in `Masked`.
    qkv_bias: whether q, k and v have a bias; o always has one.
    dropout: rate on the attention weights, in training mode.
    dtype: of the computation; None promotes inputs and parameters. The softmax
      is always taken in float32.
    param_dtype: of the parameters.
    kernel_init: of the four kernels.
    rngs: streams `params` and, with dropout, `dropout`.

  Raises:
    ValueError: num_heads does not divide dim, an unknown part in `patterns`,
      or an illegal pattern.

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
        f"attention: {num_heads} heads do not divide the width {dim}; choose"
        " a width that is a multiple of the number of heads"
      )
    if not isinstance(patterns, Mapping):
      patterns = dict.fromkeys(_PARTS, patterns)
    for part in patterns:
      if part not in _PARTS:
        raise ValueError(
          f"attention has no kernel {part!r}: {nearest(part, _PARTS)}"
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
      x: the tokens.
      mask: True = may be attended, broadcast to [batch, heads, query, key].
    """
    q, k, v = (self._heads(part, x) for part in (self.q, self.k, self.v))
    if self.dropout.rate and not self.dropout.deterministic:
      out = _attend(q, k, v, mask, self.dropout)
    else:
      out = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return self.o(out.reshape(*x.shape[:-1], self.dim))

  def _heads(
    self, projection: SparseLinear, x: Float[Array, "batch tokens dim"]
  ) -> Float[Array, "batch tokens heads depth"]:
    return projection(x).reshape(*x.shape[:-1], self.num_heads, -1)


def _attend(
  q: Float[Array, "batch tokens heads depth"],
  k: Float[Array, "batch tokens heads depth"],
  v: Float[Array, "batch tokens heads depth"],
  mask: Bool[Array, "#batch #heads #tokens #tokens"] | None,
  dropout: nnx.Dropout,
) -> Float[Array, "batch tokens heads depth"]:
  """What `jax.nn.dot_product_attention` computes, with dropped weights."""
  logits = jnp.einsum(
    "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
  )
  logits *= q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = dropout(jax.nn.softmax(logits, axis=-1))
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
