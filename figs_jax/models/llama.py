"""Llama, a causal language model (arXiv 2307.09288, 2407.21783).

Pre-norm with RMS norms and without biases, rotary positions, query heads in
groups that share keys and values, and a gated silu. The head is a kernel of its
own or, in small models of version 3.2, the embedding. Kernels and embeddings
start with deviation .02. Norms, rotations, softmax and logits are float32 for
any dtype.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.types import Array, Float, Int
from figs_jax.models import stack
from figs_jax.models.causal import MOVABLE_HEADS, CausalLM
from figs_jax.models.decoder import (
  CausalAttention,
  CausalBlock,
  RMSNorm,
  Rotation,
)
from figs_jax.models.encoder import Parts, squared_relu
from figs_jax.models.shapes import SHAPES
from figs_jax.models.sizes import (
  check_heads,
  completed,
  of_variant,
  published,
)
from figs_jax.nn import Channels

_OPTIONS = (
  "width", "depth", "heads", "kv_heads", "head_dim", "mlp_dim", "vocab",
  "length", "tied",
)  # fmt: skip
# Base and scaling of the rotary positions, by generation.
_ROPE: dict[str, dict[str, float]] = {
  "2": {"rope_theta": 1e4},
  "3": {"rope_theta": 5e5},
  "3.1": {"rope_theta": 5e5, "rope_factor": 8.0},
  "3.2": {"rope_theta": 5e5, "rope_factor": 32.0},
}


def _sizes(name: str) -> dict[str, Any]:
  shape = SHAPES["llama"][name]
  generation = next(
    full.partition("-")[0]
    for full, each in SHAPES["llama"].items()
    if each is shape and "-" in full
  )
  sizes = {option: getattr(shape, option) for option in _OPTIONS}
  return sizes | _ROPE[generation]


SIZES: dict[str, dict[str, Any]] = {
  name: _sizes(name) for name in SHAPES["llama"]
} | {"custom": {}}


class Llama(CausalLM):
  """Llama from token ids to logits of the next token.

  `figs_jax.models.decode` generates sequences.

  Args:
    width: Width of the tokens.
    depth: Number of blocks.
    heads: Number of query heads.
    kv_heads: Number of key and value heads, a divisor of heads. Defaults to
      heads.
    head_dim: Width of a head, an even number. Defaults to width / heads.
    mlp_dim: Width of the feed-forward layers. Defaults to 4 * width.
    tied: Whether the head is the embedding.
    vocab: Number of ids.
    length: Longest sequence that the model is for; longer ones are computed.
    rope_theta: Base of the wavelengths of rotary positions.
    rope_factor: Factor by which long wavelengths are stretched, as from version
      3.1 on; 1 stretches none.
    rope_low: Wavelengths above rope_length / rope_low are stretched in full.
    rope_high: Wavelengths below rope_length / rope_high are kept.
    rope_length: Length of the sequences before the stretch.
    attention_dropout: Dropout rate of the attention weights.
    norm_epsilon: Epsilon of every norm.
    relu2: Whether the squared ReLU takes the place of silu.
    input_length: Length of the sequences that `gemms` assumes. Defaults to
      length.
    scan: Whether to scan over one stacked block (`models.stack`).
    remat: Whether to recompute each block in the backward pass.
    remat_policy: What is kept of a block that is recomputed: "block", its input
      alone; or "dots", also its products with kernels.
    dtype: Dtype of the computation, as in "bfloat16". Logits are float32.
    param_dtype: Dtype of the parameters.
    rngs: Random streams `params` and, with dropout, `dropout`.

  Raises:
    ValueError: If a size is below 1, heads do not divide, head_dim is odd, or
      rope_high is not above rope_low.
  """

  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(r"blocks/(?:\d+/)?mlp", producers="gate|up", consumer="down"),
    MOVABLE_HEADS,
  )

  def __init__(
    self,
    *,
    width: int,
    depth: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_dim: int | None = None,
    tied: bool = False,
    vocab: int = 32000,
    length: int = 2048,
    rope_theta: float = 10000.0,
    rope_factor: float = 1.0,
    rope_low: float = 1.0,
    rope_high: float = 4.0,
    rope_length: int = 8192,
    attention_dropout: float = 0.0,
    norm_epsilon: float = 1e-5,
    relu2: bool = False,
    input_length: int | None = None,
    scan: bool = False,
    remat: bool = False,
    remat_policy: str = "block",
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.width, self.depth, self.vocab, self.length = (
      width,
      depth,
      vocab,
      length,
    )
    self.heads, self.tied = heads, tied
    self.kv_heads = heads if kv_heads is None else kv_heads
    if head_dim is None:
      check_heads("Llama", width, heads)
    self.head_dim = width // heads if head_dim is None else head_dim
    self.mlp_dim = 4 * width if mlp_dim is None else mlp_dim
    self.input_length = length if input_length is None else input_length
    self.rope_theta, self.rope_factor = float(rope_theta), float(rope_factor)
    self.rope_low, self.rope_high = float(rope_low), float(rope_high)
    self.rope_length, self.norm_epsilon = rope_length, norm_epsilon
    self.relu2 = relu2
    self.remat = stack.remat_of(remat, remat_policy)
    self.dtype = jnp.dtype(dtype)
    self._check()
    parts = Parts(self.dtype, jnp.dtype(param_dtype), rngs)
    self.embed = self._make_embedding(parts, vocab, 0.02)
    self.dropout = parts.dropout(0.0)

    def block(rngs: nnx.Rngs) -> CausalBlock:
      own = dataclasses.replace(parts, rngs=rngs)
      attn = CausalAttention(
        own,
        width,
        heads,
        self.kv_heads,
        self.head_dim,
        use_bias=False,
        dropout=attention_dropout,
        init=(0.02, 0.02),
      )
      norms = [RMSNorm(own, width, norm_epsilon) for _ in range(2)]
      mlp = GatedMLP(own, width, self.mlp_dim, relu2)
      return CausalBlock(norms, attn, mlp, own.dropout(0.0))

    self.blocks = stack.build_blocks(block, depth, scan=scan, rngs=rngs)
    self.norm = RMSNorm(parts, width, norm_epsilon)
    self.head = (
      None
      if tied
      else parts.linear(
        width,
        vocab,
        use_bias=False,
        preferred_element_type=jnp.float32,
        kernel_init=_normal,
      )
    )

  @classmethod
  def from_variant(
    cls, variant: str, *, rngs: nnx.Rngs, **options: Any
  ) -> Llama:
    """Creates a published size ("8b") or "custom".

    Args:
      variant: "1b" and "3b" (of version 3.2), "8b" and "70b" (3), "7b" and
        "13b" (2), one with its generation, as in "2-70b", or "custom", which
        takes width, depth and heads from the options; with a published size,
        options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "kv_heads": 1, "vocab": 16}
    >>> model = Llama.from_variant("custom", rngs=nnx.Rngs(0), **sizes)
    >>> model(jnp.array([[5, 6, 1]])).shape
    (1, 3, 16)
    """
    sizes = completed(cls, variant, options, published(SIZES))
    return cls(rngs=rngs, **sizes)

  @staticmethod
  def sizes(variant: str) -> dict[str, Any]:
    """The options that the name of a variant stands for.

    Raises:
      ValueError: If the variant is unknown.

    >>> Llama.sizes("8b")["kv_heads"]
    8
    """
    return of_variant("Llama", variant, SIZES)

  def _kind(self) -> dict[str, Any]:
    return {"family": "llama", "rotary": True, "gated": True, "biases": False}

  def _embedded(
    self,
    tokens: Int[Array, "batch tokens"],
    position: Int[Array, "#batch tokens"] | None,
  ) -> tuple[Float[Array, "batch tokens width"], Rotation | None]:
    rates = rotary_rates(
      self.head_dim,
      self.rope_theta,
      self.rope_factor,
      self.rope_low,
      self.rope_high,
      self.rope_length,
    )
    if position is None:
      position = jnp.arange(tokens.shape[1])[None]
    angles = position[..., None].astype(jnp.float32) * rates[None, None]
    return self.embed(tokens).astype(self.dtype), (
      jnp.cos(angles),
      jnp.sin(angles),
    )

  def _check(self) -> None:
    self._check_sizes()
    check_heads("Llama", self.heads, self.kv_heads)
    if self.head_dim % 2:
      raise ValueError(
        "Llama: expected an even head_dim, whose halves rotary positions turn,"
        f" got {self.head_dim}"
      )
    if not 0 < self.rope_low < self.rope_high:
      raise ValueError(
        "Llama: expected 0 < rope_low < rope_high, got"
        f" rope_low={self.rope_low} and rope_high={self.rope_high}"
      )


_normal = nnx.initializers.normal(0.02)


class GatedMLP(nnx.Module):
  """down(act(gate(x)) * up(x)), arXiv 2002.05202; act is silu or relu²."""

  def __init__(self, parts: Parts, width: int, hidden: int, relu2: bool):
    self.relu2 = relu2
    options = {"use_bias": False, "kernel_init": _normal}
    self.gate = parts.linear(width, hidden, **options)
    self.up = parts.linear(width, hidden, **options)
    self.down = parts.linear(hidden, width, **options)

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    act = squared_relu if self.relu2 else jax.nn.silu
    return self.down(act(self.gate(x)) * self.up(x))


def rotary_rates(
  head_dim: int,
  theta: float,
  factor: float = 1.0,
  low: float = 1.0,
  high: float = 4.0,
  length: int = 8192,
) -> Float[np.ndarray, " pairs"]:
  """Radians per token of each pair of channels, float32.

  rate_i = theta^(-2 i / head_dim), a wavelength of 2 pi / rate_i tokens. With a
  factor, wavelengths above length / low become that many times as long, those
  below length / high are kept, and between them the rates are interpolated, as
  the code of Llama 3.1 does.

  Args:
    head_dim: Width of a head.
    theta, factor, low, high, length: Same as the options rope_* of `Llama`.

  >>> rotary_rates(4, 10000.0).tolist()
  [1.0, 0.009999999776482582]
  """
  powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  rates = (1.0 / np.float32(theta) ** powers).astype(np.float32)
  if factor == 1:
    return rates
  turns = length * rates / (2 * math.pi)  # in `length` tokens
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (rates * (kept + (1 - kept) / factor)).astype(np.float32)
