"""GPT-2, a causal language model (Radford et al. 2019).

Pre-norm with LayerNorms and biases, learned positions, the tanh gelu, and a
head that is the embedding. Initialization follows the released code: deviation
.02 for kernels and embeddings, .01 for positions; the last kernel of a branch
has .02 / sqrt(2 depth). Norms, softmax and logits are float32 for any dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Float, Int
from figs_jax.models import stack
from figs_jax.models.causal import MOVABLE_HEADS, CausalLM
from figs_jax.models.decoder import CausalAttention, CausalBlock, Rotation
from figs_jax.models.encoder import MLP, Parts
from figs_jax.models.shapes import SHAPES
from figs_jax.models.sizes import (
  check_heads,
  completed,
  of_variant,
  published,
)
from figs_jax.nn import Channels

_OPTIONS = ("width", "depth", "heads", "mlp_dim", "vocab", "length")
SIZES: dict[str, dict[str, Any]] = {
  name: {option: getattr(shape, option) for option in _OPTIONS}
  for name, shape in SHAPES["gpt2"].items()
} | {"custom": {}}


class GPT2(CausalLM):
  """GPT-2 from token ids to logits of the next token.

  `figs_jax.models.decode` generates sequences.

  Args:
    width: Width of the tokens.
    depth: Number of blocks.
    heads: Number of attention heads; divides width.
    mlp_dim: Width of the feed-forward layers. Defaults to 4 * width.
    vocab: Number of ids.
    length: Number of positions, the longest sequence.
    dropout: Dropout rate after the embeddings and every branch.
    attention_dropout: Dropout rate of the attention weights.
    norm_epsilon: Epsilon of every LayerNorm.
    relu2: Whether the feed-forward activation is the squared ReLU, not gelu.
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
    ValueError: If a size is below 1, heads do not divide the width, or
      input_length is above length.
  """

  words: ClassVar[dict[str, str]] = {
    word: paths for word, paths in CausalLM.words.items() if word != "head"
  }
  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(r"blocks/(?:\d+/)?mlp", producers="fc1", consumer="fc2"),
    MOVABLE_HEADS,
  )

  def __init__(
    self,
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int | None = None,
    vocab: int = 50257,
    length: int = 1024,
    dropout: float = 0.0,
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
    self.heads = self.kv_heads = heads
    check_heads("GPT2", width, heads)
    self.head_dim = width // heads
    self.mlp_dim = 4 * width if mlp_dim is None else mlp_dim
    self.input_length = length if input_length is None else input_length
    self.norm_epsilon, self.relu2 = norm_epsilon, relu2
    self.remat = stack.remat_of(remat, remat_policy)
    self.dtype = jnp.dtype(dtype)
    self._check_sizes()
    self._check_length(self.input_length)
    parts = Parts(self.dtype, jnp.dtype(param_dtype), rngs)
    self.embed = self._make_embedding(parts, vocab, 0.02)
    self.positions = self._make_embedding(parts, length, 0.01)
    self.dropout = parts.dropout(dropout)
    last = 0.02 * (2 * depth) ** -0.5

    def block(rngs: nnx.Rngs) -> CausalBlock:
      own = dataclasses.replace(parts, rngs=rngs)
      attn = CausalAttention(
        own,
        width,
        heads,
        heads,
        self.head_dim,
        use_bias=True,
        dropout=attention_dropout,
        init=(0.02, last),
      )
      # Its branch has the dropout.
      mlp = MLP(own, width, self.mlp_dim, 0.0, _init(0.02), "tanh", relu2)
      mlp.fc2 = own.linear(self.mlp_dim, width, **_init(last))
      norms = [own.norm(width, norm_epsilon) for _ in range(2)]
      return CausalBlock(norms, attn, mlp, own.dropout(dropout))

    self.blocks = stack.build_blocks(block, depth, scan=scan, rngs=rngs)
    self.norm = parts.norm(width, norm_epsilon)
    self.head = None

  @classmethod
  def from_variant(
    cls, variant: str, *, rngs: nnx.Rngs, **options: Any
  ) -> GPT2:
    """Creates a published size ("small") or "custom".

    Args:
      variant: "small" (124 M parameters), "medium", "large", "xl", or "custom",
        which takes width, depth and heads from the options; with a published
        size, options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16, "length": 4}
    >>> model = GPT2.from_variant("custom", rngs=nnx.Rngs(0), **sizes)
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

    >>> GPT2.sizes("xl")["width"]
    1600
    """
    return of_variant("GPT2", variant, SIZES)

  def _kind(self) -> dict[str, Any]:
    return {"family": "gpt2"}

  def _embedded(
    self,
    tokens: Int[Array, "batch tokens"],
    position: Int[Array, "#batch tokens"] | None,
  ) -> tuple[Float[Array, "batch tokens width"], Rotation | None]:
    if position is None:  # a slice, as opposed to a gather
      places = self.positions.embedding[None, : tokens.shape[1]]
      places = places.astype(self.positions.dtype)
    else:
      places = self.positions(position)
    return (self.embed(tokens) + places).astype(self.dtype), None

  def _check_length(self, length: int) -> None:
    if length > self.length:
      raise ValueError(
        f"GPT2: expected at most length={self.length} tokens, the number of"
        f" positions, got {length}; shorten the sequences or set length="
      )


def _init(deviation: float) -> dict[str, nnx.Initializer]:
  return {"kernel_init": nnx.initializers.normal(deviation)}
