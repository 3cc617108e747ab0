"""The parts that decoders share: caches, cached attention, causal blocks.

A cache holds the keys and values of one layer as [batch, kv_heads, tokens,
depth], so that products with them move nothing, and a step writes its token in
place. Beams never move: the keys of a token stay in the row that computed them,
and `Origin` says which row that is, for each token of each beam. The queries of
all beams are multiplied by the keys of all beams of their sequence, one product
of matrices that reads every key once, and each beam picks its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models.encoder import Parts
from figs_jax.nn.attention import attend
from figs_jax.nn.layers import rows_dot_general

_STEPS = 20  # from which on a transposed head pays
_LEAST = float(jnp.finfo(jnp.float32).min)
Rotation = tuple[Array, Array]  # cosines and sines, [#batch, tokens, depth / 2]


class KeysValues(NamedTuple):
  """Keys and values of some tokens, each [batch, kv_heads, tokens, depth]."""

  keys: Array
  values: Array


class Origin(NamedTuple):
  """Where the tokens of each beam were computed.

  Attributes:
    place: Position of the current token, from 0.
    rows: Beam that computed each token, int [batch, beams, tokens].
  """

  place: Array
  rows: Array

  @classmethod
  def first(cls, batch: int, beams: int, length: int) -> Origin:
    """The origin before the first step of up to `length` tokens."""
    own = jnp.broadcast_to(jnp.arange(beams)[:, None], (batch, beams, length))
    return cls(jnp.int32(0), own)

  @property
  def beams(self) -> int:
    """Number of beams."""
    return self.rows.shape[1]

  def take(self, rows: Int[Array, " rows"]) -> Origin:
    """Beams that continue these rows of batch * beams."""
    batch, beams, length = self.rows.shape
    taken = self.rows.reshape(-1, length)[rows].reshape(batch, beams, length)
    later = (jnp.arange(length) > self.place)[None, None]
    own = Origin.first(batch, beams, length).rows
    return self._replace(rows=jnp.where(later, own, taken))

  def empty(self, heads: int, depth: int, dtype: Any) -> KeysValues:
    """Room for the keys and values of all tokens of one layer."""
    batch, beams, length = self.rows.shape
    room = jnp.zeros((batch, heads, length * beams, depth), dtype)
    return KeysValues(room, room)

  def written(self, past: KeysValues, now: KeysValues) -> KeysValues:
    """The cache with the current token.

    Args:
      past: Cache of the layer.
      now: Its keys and values of the current token of each row, each
        [batch * beams, kv_heads, depth].
    """

    def one(old: Array, new: Array) -> Array:
      rows = new.reshape(-1, self.beams, *new.shape[1:]).swapaxes(1, 2)
      start = (0, 0, self.place * self.beams, 0)
      return jax.lax.dynamic_update_slice(old, rows.astype(old.dtype), start)

    return KeysValues(*map(one, past, now))

  def own(self) -> Bool[Array, "batch 1 beams 1 tokens beams"]:
    """Whether a beam has its token from each row, and attends to it."""
    seen = (jnp.arange(self.rows.shape[-1]) <= self.place)[:, None]
    own = self.rows[..., None] == jnp.arange(self.beams)[None, None, None]
    return (own & seen[None, None])[:, None, :, None]


def attend_cached(
  queries: Float[Array, "rows heads depth"],
  past: KeysValues | None = None,
  origin: Origin | None = None,
  bias: Float[Array, "heads tokens"] | None = None,
  shared: KeysValues | None = None,
  seen: Bool[Array, "batch inputs"] | None = None,
) -> Float[Array, "rows inner"]:
  """softmax(q k' + bias) v of one token per row, over cached keys.

  Args:
    queries: Scaled queries; rows are batch * beams.
    past: Keys and values of the tokens of the beams.
    origin: Which of them belong to a beam; given with `past`.
    bias: Bias of the logits of `past`.
    shared: Keys and values that the beams of a sequence share.
    seen: Mask of `shared`; given with it.

  Returns:
    The heads side by side.
  """
  some = past or shared
  assert some is not None
  rows, heads, depth = queries.shape
  batch, groups = some.keys.shape[:2]
  # Queries that share keys: those of the beams and of grouped heads.
  shape = (batch, rows // batch, groups, heads // groups, depth)
  queries = queries.reshape(shape).swapaxes(1, 2)
  flat = queries.reshape(batch, groups, -1, depth)
  parts: list[tuple[Array, Array]] = []
  if past is not None and origin is not None:
    logits = _products(flat, past.keys).reshape(*queries.shape[:-1], -1)
    own = origin.own()
    beams = origin.beams
    logits = logits.reshape(*logits.shape[:-1], -1, beams)
    logits = logits[..., 0] if beams == 1 else jnp.where(own, logits, 0).sum(-1)
    if bias is not None:
      logits = logits + bias.reshape(1, groups, 1, heads // groups, -1)
    parts.append((jnp.where(own.any(-1), logits, _LEAST), past.values))
  if shared is not None and seen is not None:
    logits = _products(flat, shared.keys).reshape(*queries.shape[:-1], -1)
    mask = seen[:, None, None, None]
    parts.append((jnp.where(mask, logits, _LEAST), shared.values))
  most = [logits.max(-1, keepdims=True) for logits, _ in parts]
  top = most[0] if len(most) == 1 else jnp.maximum(*most)
  total, out = jnp.zeros_like(top), jnp.zeros_like(top)
  for logits, values in parts:
    weights = jnp.exp(logits - top)
    total += weights.sum(-1, keepdims=True)
    if values.shape[2] != weights.shape[-1]:  # the keys of all beams
      assert origin is not None
      weights = jnp.where(origin.own(), weights[..., None], 0)
    weights = weights.reshape(batch, groups, flat.shape[2], -1)
    out += jnp.einsum(
      "bgqk,bgkd->bgqd",
      weights.astype(values.dtype),
      values,
      preferred_element_type=jnp.float32,
    ).reshape(queries.shape)
  out = (out / total).astype(queries.dtype)
  return out.swapaxes(1, 2).reshape(rows, heads * depth)


def _products(
  queries: Float[Array, "batch groups queries depth"],
  keys: Float[Array, "batch groups keys depth"],
) -> Float[Array, "batch groups queries keys"]:
  return jnp.einsum(
    "bgqd,bgkd->bgqk", queries, keys, preferred_element_type=jnp.float32
  )


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x²) + epsilon) * scale (arXiv 1910.07467), in float32."""

  def __init__(self, parts: Parts, width: int, epsilon: float = 1e-6):
    self.scale = nnx.Param(jnp.ones((width,), parts.param_dtype))
    self.dtype, self.epsilon = parts.dtype, epsilon

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    scale = self.scale[...].astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(square + self.epsilon)
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(self.dtype)


def rotated(
  x: Float[Array, "batch tokens heads depth"], rotation: Rotation | None
) -> Float[Array, "batch tokens heads depth"]:
  """Rotary positions (arXiv 2104.09864): pairs (i, i + depth / 2) are turned.

  >>> half_turn = (-jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
  >>> rotated(jnp.array([[[[1.0, 2.0]]]]), half_turn).tolist()
  [[[[-1.0, -2.0]]]]
  """
  if rotation is None:
    return x
  cosine, sine = (each[:, :, None] for each in rotation)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cosine - second * sine, second * cosine + first * sine)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class CausalAttention(nnx.Module):
  """softmax(q k' / sqrt(depth)) v, each token over itself and those before.

  Consecutive query heads share a key head if there are fewer of them (grouped
  queries, arXiv 2305.13245).

  Args:
    parts: Dtypes and random streams of the model.
    width: Width of the tokens.
    heads: Number of query heads.
    kv_heads: Number of key and value heads, a divisor of heads.
    head_dim: Width of a head.
    use_bias: Whether the projections have biases.
    dropout: Dropout rate of the attention weights.
    init: Standard deviations of q, k and v, and of o.
  """

  def __init__(
    self,
    parts: Parts,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    use_bias: bool,
    dropout: float,
    init: tuple[float, float],
  ):
    self.heads, self.kv_heads = heads, kv_heads
    inner = heads * head_dim
    normal = [nnx.initializers.normal(deviation) for deviation in init]
    first = {"use_bias": use_bias, "kernel_init": normal[0]}
    self.q = parts.linear(width, inner, **first)
    self.k = parts.linear(width, kv_heads * head_dim, **first)
    self.v = parts.linear(width, kv_heads * head_dim, **first)
    self.o = parts.linear(
      inner, width, use_bias=use_bias, kernel_init=normal[1]
    )
    self.dropout = parts.dropout(dropout)

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "#batch tokens tokens"],
    rotation: Rotation | None,
  ) -> tuple[Float[Array, "batch tokens width"], KeysValues]:
    """Attention among all tokens, and their keys and values."""
    batch, tokens, _ = x.shape
    queries, keys, values = self._projected(x, rotation)
    grouped = queries.reshape(batch, tokens, self.kv_heads, -1, keys.shape[-1])
    logits = jnp.einsum(
      "bqhgd,bkhd->bhgqk", grouped, keys, preferred_element_type=jnp.float32
    )
    logits = jnp.where(seen[:, None, None], logits, _LEAST)
    # One row of weights per query of each of the heads that share keys.
    logits = logits.reshape(batch, self.kv_heads, -1, tokens)
    out = attend(logits, values, self.dropout, scale=keys.shape[-1] ** -0.5)
    out = out.reshape(batch, -1, tokens, *values.shape[2:])
    out = self.o(jnp.moveaxis(out, 1, 3).reshape(batch, tokens, -1))
    return out, KeysValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))

  def step(
    self,
    x: Float[Array, "rows width"],
    rotation: Rotation | None,
    past: KeysValues,
    origin: Origin,
    prompt: KeysValues,
    seen: Bool[Array, "batch prompt"],
  ) -> tuple[Float[Array, "rows width"], KeysValues]:
    """Attention of the next token, and the cache with it."""
    queries, *now = (
      each[:, 0] for each in self._projected(x[:, None], rotation)
    )
    past = origin.written(past, KeysValues(*now))
    queries = queries * queries.shape[-1] ** -0.5
    out = attend_cached(queries, past, origin, shared=prompt, seen=seen)
    return self.o(out), past

  def _projected(
    self, x: Float[Array, "batch tokens width"], rotation: Rotation | None
  ) -> tuple[Array, Array, Array]:
    queries = self.q(x).reshape(*x.shape[:2], self.heads, -1)
    keys, values = (
      part(x).reshape(*x.shape[:2], self.kv_heads, -1)
      for part in (self.k, self.v)
    )
    return rotated(queries, rotation), rotated(keys, rotation), values


class CausalBlock(nnx.Module):
  """x += attn(norm1(x)); x += mlp(norm2(x)), with dropout of both branches."""

  def __init__(
    self,
    norms: Sequence[nnx.Module],
    attn: CausalAttention,
    mlp: nnx.Module,
    dropout: nnx.Dropout,
  ):
    self.norm1, self.norm2 = norms
    self.attn, self.mlp, self.dropout = attn, mlp, dropout

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "#batch tokens tokens"],
    rotation: Rotation | None,
  ) -> Float[Array, "batch tokens width"]:
    """Applies the block to all tokens."""
    return self.remember(x, seen, rotation)[0]

  def remember(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "#batch tokens tokens"],
    rotation: Rotation | None,
  ) -> tuple[Float[Array, "batch tokens width"], KeysValues]:
    """Applies the block to all tokens; returns their keys and values too."""
    out, cache = self.attn(self.norm1(x), seen, rotation)
    x = x + self.dropout(out)
    return x + self.dropout(self.mlp(self.norm2(x))), cache

  def step(
    self, x: Float[Array, "rows width"], rotation: Rotation | None, *cache: Any
  ) -> tuple[Float[Array, "rows width"], KeysValues]:
    """Applies the block to the next token, with the cache of its attention."""
    out, past = self.attn.step(self.norm1(x), rotation, *cache)
    x = x + out
    return x + self.mlp(self.norm2(x)), past


def tied_head(embed: nnx.Embed, dtype: Any) -> Float[Array, "width vocab"]:
  """The kernel of a head that is the embedding.

  Args:
    embed: Embedding, [vocab, width].
    dtype: Dtype of the product.

  >>> tied_head(nnx.Embed(16, 8, rngs=nnx.Rngs(0)), jnp.bfloat16).shape
  (8, 16)
  """
  return embed.embedding[...].astype(dtype).T


def head_of_steps(
  head: Any, embed: nnx.Embed, dtype: Any, rows: int, steps: int
) -> Float[Array, "width vocab"] | None:
  """`tied_head` for a number of steps; None without one, or if it does not pay.

  On a CPU transposing takes as long as 14 products with one row. It saves
  nothing of these, and of those with 2 to 32 rows as much as .7 of one (XLA's
  product with [width, vocab] against [vocab, width]), so it pays from 20 steps
  on.

  Args:
    head: Linear layer, or None if the head is the embedding.
    embed: Embedding.
    dtype: Dtype of the product.
    rows: Rows of a step, sequences times beams.
    steps: Largest number of steps.

  >>> embed = nnx.Embed(16, 8, rngs=nnx.Rngs(0))
  >>> for rows, steps in ((1, 64), (4, 8), (4, 64)):
  ...   kernel = head_of_steps(None, embed, jnp.float32, rows, steps)
  ...   print(rows, steps, kernel if kernel is None else kernel.shape)
  1 64 None
  4 8 None
  4 64 (8, 16)
  """
  pays = rows > 1 and steps >= _STEPS
  return tied_head(embed, dtype) if head is None and pays else None


def head_logits(
  x: Float[Array, "*batch width"],
  head: Any,
  embed: nnx.Embed,
  dtype: Any,
  kernel: Float[Array, "width vocab"] | None = None,
) -> Float[Array, "*batch vocab"]:
  """Float32 logits of a head of its own, or of the embedding.

  Args:
    x: Tokens after the last norm.
    head: Linear layer, or None if the head is the embedding.
    embed: Embedding.
    dtype: Dtype of the product with the embedding.
    kernel: `tied_head(embed, dtype)`, if it was computed before.

  >>> embed = nnx.Embed(16, 8, rngs=nnx.Rngs(0))
  >>> x = embed.embedding[jnp.array([3])]  # the embedding of id 3
  >>> head_logits(x, None, embed, jnp.float32).argmax()
  Array(3, dtype=int32)
  """
  if head is not None:
    return head(x).astype(jnp.float32)
  kernel = tied_head(embed, dtype) if kernel is None else kernel
  return rows_dot_general(x, kernel, preferred_element_type=jnp.float32)


def checked_ids(model: Any, name: str, ids: Any) -> Int[Array, "batch length"]:
  """Integer ids [batch, length] of the vocabulary of a model.

  Args:
    model: Model with an attribute `vocab`.
    name: Name of the ids in error messages.
    ids: Ids, whose values are checked outside of a trace only.

  Raises:
    ValueError: If the shape, the dtype or a value is invalid.

  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16}
  >>> model = models.create("gpt2", "custom", length=4, **sizes)
  >>> try:
  ...   checked_ids(model, "inputs", jnp.array([[3, 16]]))
  ... except ValueError as error:
  ...   print(error)
  GPT2: expected inputs with ids from 0 to 15, got 16; use the vocabulary of ...
  """
  family = type(model).__name__
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(
      f"{family}: expected {name} of integer ids [batch, length], got shape"
      f" {ids.shape} and dtype {ids.dtype}"
    )
  if not isinstance(ids, jax.core.Tracer) and ids.size:
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= model.vocab:
      wrong = least if least < 0 else most
      raise ValueError(
        f"{family}: expected {name} with ids from 0 to {model.vocab - 1}, got"
        f" {wrong}; use the vocabulary of the model, or set vocab="
      )
  return jnp.asarray(ids)
