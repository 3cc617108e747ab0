"""The parts of T5: norms, position bias, attention, feed-forward, stacks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models import stack
from figs_jax.models.decoder import KeysValues, Origin, RMSNorm, attend_cached
from figs_jax.models.encoder import Parts, squared_relu
from figs_jax.models.gemm import row
from figs_jax.nn.attention import attend
from figs_jax.nn.initializers import in_float32


@dataclasses.dataclass(frozen=True)
class StackShape:
  """Sizes and options of both stacks.

  Attributes:
    width: Width of the tokens.
    heads: Number of heads.
    head_dim: Width of a head; heads * head_dim may differ from width.
    mlp_dim: Width of the feed-forward layers.
    gated: Whether wo follows gelu(x wi_0) * (x wi_1) instead of relu(x wi).
    relu2: Whether the squared ReLU takes the place of gelu or relu.
    num_buckets: Number of buckets of relative positions.
    max_distance: Distance from which on all offsets share a bucket.
    dropout: Dropout rate after embeddings, final norms, attention weights, the
      hidden feed-forward layer and every branch.
    scan: Whether to scan over stacked blocks (`models.stack`).
  """

  width: int
  heads: int
  head_dim: int
  mlp_dim: int
  gated: bool
  relu2: bool
  num_buckets: int
  max_distance: int
  dropout: float
  scan: bool


def normal(fan_in: int) -> dict[str, nnx.Initializer]:
  """Initializer of a kernel with deviation fan_in^-1/2."""
  return {"kernel_init": nnx.initializers.normal(fan_in**-0.5)}


def bucket(
  offset: Int[np.ndarray, "*shape"],
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, "*shape"]:
  """The bucket of each offset (key position minus query position).

  Small offsets have their own buckets, larger ones share logarithmic ranges,
  and all beyond `max_distance` share one. If bidirectional, half of the buckets
  are for keys after the query; else those share bucket 0 with the query.

  >>> bucket(np.array([0, -1, 5, -500]), bidirectional=True, num_buckets=32,
  ...        max_distance=128).tolist()
  [0, 1, 21, 15]
  """
  start = np.zeros_like(offset)
  if bidirectional:
    num_buckets //= 2
    start = np.where(offset > 0, num_buckets, 0)
    distance = np.abs(offset)
  else:
    distance = np.maximum(-offset, 0)
  exact = num_buckets // 2
  # In float32, like the reference code, which rounds at the edges of ranges.
  ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
  share = np.log(ratio) / np.float32(math.log(max_distance / exact))
  far = exact + (share * np.float32(num_buckets - exact)).astype(offset.dtype)
  far = np.minimum(far, num_buckets - 1)
  return start + np.where(distance < exact, distance, far)


class PositionBias(nnx.Module):
  """A learned bias per bucket and head, shared by all blocks of a stack."""

  def __init__(self, parts: Parts, shape: StackShape, bidirectional: bool):
    init = in_float32(nnx.initializers.normal(shape.width**-0.5))
    size = (shape.num_buckets, shape.heads)
    table = init(parts.rngs.params(), size, parts.param_dtype)
    self.embedding = nnx.Param(table)
    self.max_distance = shape.max_distance
    self.bidirectional = bidirectional

  def __call__(self, length: int) -> Float[Array, "1 heads length length"]:
    """The float32 bias of all pairs of query and key."""
    place = np.arange(length)
    table = self.embedding[...].astype(jnp.float32)
    buckets = bucket(
      place[None] - place[:, None],
      bidirectional=self.bidirectional,
      num_buckets=table.shape[0],
      max_distance=self.max_distance,
    )
    return table[buckets].transpose(2, 0, 1)[None]


class T5Attention(nnx.Module):
  """softmax(q kᵀ + bias) v, without biases; q's kernel holds the scale."""

  def __init__(self, parts: Parts, shape: StackShape):
    width, inner = shape.width, shape.heads * shape.head_dim
    self.heads = shape.heads
    self.q = parts.linear(
      width, inner, use_bias=False, **normal(width * shape.head_dim)
    )
    self.k = parts.linear(width, inner, use_bias=False, **normal(width))
    self.v = parts.linear(width, inner, use_bias=False, **normal(width))
    self.o = parts.linear(inner, width, use_bias=False, **normal(inner))
    self.dropout = parts.dropout(shape.dropout)

  def keys_values(
    self, x: Float[Array, "batch keys width"]
  ) -> tuple[
    Float[Array, "batch keys heads depth"],
    Float[Array, "batch keys heads depth"],
  ]:
    """Keys and values of x."""
    return self._heads(self.k(x)), self._heads(self.v(x))

  def __call__(
    self,
    x: Float[Array, "batch queries width"],
    keys: Float[Array, "batch keys heads depth"],
    values: Float[Array, "batch keys heads depth"],
    seen: Bool[Array, "#batch 1 #queries keys"],
    bias: Float[Array, "1 heads queries keys"] | None = None,
  ) -> Float[Array, "batch queries width"]:
    """Attention from x to the visible keys."""
    logits = jnp.einsum(
      "bqhd,bkhd->bhqk",
      self._heads(self.q(x)),
      keys,
      preferred_element_type=jnp.float32,
    )
    if bias is not None:
      logits = logits + bias
    # Finite, so that a row without visible keys does not become NaN.
    logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    out = attend(logits, values, self.dropout)
    return self.o(out.reshape(*x.shape[:-1], -1))

  def remembered(self, x: Float[Array, "batch keys width"]) -> KeysValues:
    """Keys and values of x, in the layout of a cache."""
    return KeysValues(*(each.swapaxes(1, 2) for each in self.keys_values(x)))

  def step(
    self, x: Float[Array, "rows width"], **cached: Any
  ) -> Float[Array, "rows width"]:
    """Attention from one token per row; see `decoder.attend_cached`."""
    return self.o(attend_cached(self._heads(self.q(x)), **cached))

  def _heads(
    self, x: Float[Array, "*batch inner"]
  ) -> Float[Array, "*batch heads depth"]:
    return x.reshape(*x.shape[:-1], self.heads, -1)

  def gemms(
    self, name: str, batch: int, queries: int, keys: int, count: int
  ) -> list[dict[str, Any]]:
    """Rows of `figs_jax.models.gemms_of`."""
    width, inner = self.q.in_features, self.q.out_features
    depth, many = inner // self.heads, batch * self.heads * count
    return [
      row(f"{name}/q", batch * queries, inner, width, self.q, count),
      row(f"{name}/k", batch * keys, inner, width, self.k, count),
      row(f"{name}/v", batch * keys, inner, width, self.v, count),
      row(f"{name}/qk", queries, keys, depth, None, many),
      row(f"{name}/av", queries, depth, keys, None, many),
      row(f"{name}/o", batch * queries, width, inner, self.o, count),
    ]


class T5MLP(nnx.Module):
  """wo(relu(wi(x))), or wo(gelu(wi_0(x)) * wi_1(x)) with the tanh gelu."""

  def __init__(self, parts: Parts, shape: StackShape):
    self.relu2 = shape.relu2
    self.names = ("wi_0", "wi_1") if shape.gated else ("wi",)
    width, hidden = shape.width, shape.mlp_dim
    for name in self.names:
      layer = parts.linear(width, hidden, use_bias=False, **normal(width))
      setattr(self, name, layer)
    self.wo = parts.linear(hidden, width, use_bias=False, **normal(hidden))
    self.dropout = parts.dropout(shape.dropout)

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    first, *gate = (getattr(self, name)(x) for name in self.names)
    usual = jax.nn.gelu if gate else jax.nn.relu
    hidden = (squared_relu if self.relu2 else usual)(first)
    hidden = hidden * gate[0] if gate else hidden
    return self.wo(self.dropout(hidden))

  def gemms(self, name: str, rows: int, count: int) -> list[dict[str, Any]]:
    """Rows of `figs_jax.models.gemms_of`."""
    hidden, width = self.wo.in_features, self.wo.out_features
    first = [
      row(f"{name}/{wi}", rows, hidden, width, getattr(self, wi), count)
      for wi in self.names
    ]
    return [*first, row(f"{name}/wo", rows, width, hidden, self.wo, count)]


class EncoderBlock(nnx.Module):
  """x += attn(norm(x)); x += mlp(norm(x))."""

  def __init__(self, parts: Parts, shape: StackShape):
    self.attn_norm = RMSNorm(parts, shape.width)
    self.attn = T5Attention(parts, shape)
    self.mlp_norm = RMSNorm(parts, shape.width)
    self.mlp = T5MLP(parts, shape)
    self.dropout = parts.dropout(shape.dropout)

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "batch 1 #tokens tokens"],
    bias: Float[Array, "1 heads tokens tokens"],
  ) -> Float[Array, "batch tokens width"]:
    h = self.attn_norm(x)
    x = x + self.dropout(self.attn(h, *self.attn.keys_values(h), seen, bias))
    return x + self.dropout(self.mlp(self.mlp_norm(x)))


class DecoderBlock(nnx.Module):
  """An encoder block with cross-attention to the encoder's output."""

  def __init__(self, parts: Parts, shape: StackShape):
    self.attn_norm = RMSNorm(parts, shape.width)
    self.attn = T5Attention(parts, shape)
    self.cross_norm = RMSNorm(parts, shape.width)
    self.cross = T5Attention(parts, shape)
    self.mlp_norm = RMSNorm(parts, shape.width)
    self.mlp = T5MLP(parts, shape)
    self.dropout = parts.dropout(shape.dropout)

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "#batch 1 tokens tokens"],
    bias: Float[Array, "1 heads tokens tokens"],
    encoded: Float[Array, "batch inputs width"],
    inputs_seen: Bool[Array, "batch 1 #tokens inputs"],
  ) -> Float[Array, "batch tokens width"]:
    """Applies the block to all tokens at once."""
    h = self.attn_norm(x)
    x = x + self.dropout(self.attn(h, *self.attn.keys_values(h), seen, bias))
    memory = self.cross.keys_values(encoded)
    return self._rest(x, *memory, inputs_seen)

  def remember(self, encoded: Float[Array, "batch inputs width"]) -> KeysValues:
    """Keys and values of the inputs, shared by all steps."""
    return self.cross.remembered(encoded)

  def step(
    self,
    x: Float[Array, "rows width"],
    past: KeysValues,
    origin: Origin,
    bias: Float[Array, "heads tokens"],
    memory: KeysValues,
    inputs_seen: Bool[Array, "batch inputs"],
  ) -> tuple[Float[Array, "rows width"], KeysValues]:
    """Applies the block to the next token.

    Args:
      x: The token of every row; rows are batch * beams.
      past: Cache of the tokens.
      origin: Which of them belong to a beam.
      bias: Row of the position bias.
      memory: Keys and values of the inputs.
      inputs_seen: Mask of the inputs.

    Returns:
      x, and the cache with the token.
    """
    h = self.attn_norm(x)
    now = self.attn.remembered(h[:, None])
    past = origin.written(past, KeysValues(*(each[:, :, 0] for each in now)))
    x = x + self.attn.step(h, past=past, origin=origin, bias=bias)
    h = self.cross_norm(x)
    x = x + self.cross.step(h, shared=memory, seen=inputs_seen)
    return x + self.mlp(self.mlp_norm(x)), past

  def _rest(self, x, keys, values, seen):
    h = self.cross_norm(x)
    x = x + self.dropout(self.cross(h, keys, values, seen))
    return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Stack(nnx.Module):
  """Blocks of one kind with their position bias, between two dropouts.

  Args:
    parts: Dtypes and random streams of the model.
    shape: Sizes.
    depth: Number of blocks.
    kind: `EncoderBlock` (bidirectional) or `DecoderBlock`.
  """

  def __init__(
    self,
    parts: Parts,
    shape: StackShape,
    depth: int,
    kind: type[EncoderBlock] | type[DecoderBlock],
  ):
    self.position_bias = PositionBias(parts, shape, kind is EncoderBlock)

    def block(rngs: nnx.Rngs) -> nnx.Module:
      return kind(dataclasses.replace(parts, rngs=rngs), shape)

    self.blocks = stack.build_blocks(
      block, depth, scan=shape.scan, rngs=parts.rngs
    )
    self.norm = RMSNorm(parts, shape.width)
    self.dropout = parts.dropout(shape.dropout)

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "#batch 1 #tokens tokens"],
    *memory: Array,
    remat: str,
  ) -> Float[Array, "batch tokens width"]:
    """The normalized output; `memory` has a decoder block's further inputs."""
    bias = self.position_bias(x.shape[1])
    x = self.dropout(x)
    x, _ = stack.run_blocks(self.blocks, x, seen, bias, *memory, remat=remat)
    return self.dropout(self.norm(x))
