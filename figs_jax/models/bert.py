"""BERT, a bidirectional encoder (Devlin et al., arXiv 1810.04805).

Post-norm: a LayerNorm follows each residual addition. The embeddings of tokens,
positions and token types are learned, added and normalized.

One class has the models that `transformers` splits, by `output`:

  tokens     logits of every token, from a transform and the transposed token
             embedding (a masked language model)
  classes    logits of classes, from the pooler (sequence classification)
  pooled     tanh of a linear layer of the first token
  embedding  mean of the tokens, scaled to length 1, as in sentence-transformers
             (Reimers and Gurevych, arXiv 1908.10084)

Id 0 is padding, which is not attended to. The head for next-sentence prediction
is left out.

Initialization follows the authors' code (google-research/bert): truncated
normal .02 for kernels and embeddings, zero biases. LayerNorms, the softmax and
the outputs are float32 for any dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import nearest, word_table
from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models import non_gemm, stack
from figs_jax.models.encoder import MLP, Parts, activated
from figs_jax.models.gemm import row
from figs_jax.models.sizes import (
  check_heads,
  check_positive,
  completed,
  of_variant,
  published,
)
from figs_jax.nn import Attention, Channels
from figs_jax.nn.initializers import drawing_dtype, in_float32
from figs_jax.nn.layers import rows_dot_general
from figs_jax.nn.segments import same_segment, segment_positions

PAD = 0
OUTPUTS = ("tokens", "classes", "pooled", "embedding")
_GELUS = ("exact", "tanh")
_KERNEL = {"kernel_init": nnx.initializers.truncated_normal(0.02)}
_SMALLEST = 1e-12  # norm that an embedding is divided by at least


def _size(width: int, depth: int, heads: int | None = None) -> dict[str, int]:
  # All of Google's have heads of 64 channels.
  return {"width": width, "depth": depth, "heads": heads or width // 64}


SIZES: dict[str, dict[str, int]] = {
  "tiny": _size(128, 2),
  "mini": _size(256, 4),
  "small": _size(512, 4),
  "medium": _size(512, 8),
  "base": _size(768, 12),
  "large": _size(1024, 24),
  "minilm-l6": _size(384, 6, 12),
  "minilm-l12": _size(384, 12, 12),
  "custom": {},
}


class BertBlock(nnx.Module):
  """x = norm1(x + attn(x)); x = norm2(x + mlp(x))."""

  def __init__(
    self,
    parts: Parts,
    width: int,
    heads: int,
    mlp_dim: int,
    *,
    dropout: float,
    attention_dropout: float,
    norm_epsilon: float,
    gelu: str,
    relu2: bool,
  ):
    self.attn = Attention(
      width,
      heads,
      dropout=attention_dropout,
      dtype=parts.dtype,
      param_dtype=parts.param_dtype,
      rngs=parts.rngs,
      **_KERNEL,
    )
    self.norm1 = parts.norm(width, norm_epsilon)
    self.mlp = MLP(parts, width, mlp_dim, 0.0, _KERNEL, gelu, relu2)
    self.norm2 = parts.norm(width, norm_epsilon)
    self.dropout = parts.dropout(dropout)

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    seen: Bool[Array, "batch 1 #tokens tokens"],
  ) -> Float[Array, "batch tokens width"]:
    """Applies the block; attention sees the tokens where `seen` is True."""
    x = self.norm1(x + self.dropout(self.attn(x, seen)))
    return self.norm2(x + self.dropout(self.mlp(x)))


class TokenHead(nnx.Module):
  """norm(act(transform(x))) embedding^T + bias, logits of every token."""

  def __init__(
    self,
    parts: Parts,
    width: int,
    vocab: int,
    norm_epsilon: float,
    gelu: str,
    relu2: bool,
  ):
    self.transform = parts.linear(width, width, **_KERNEL)
    self.norm = parts.norm(width, norm_epsilon)
    self.bias = nnx.Param(jnp.zeros((vocab,), parts.param_dtype))
    self.gelu, self.relu2 = gelu, relu2

  def __call__(
    self,
    x: Float[Array, "batch tokens width"],
    embedding: Float[Array, "vocab width"],
  ) -> Float[Array, "batch tokens vocab"]:
    """Float32 logits of every token."""
    hidden = activated(self.transform(x), self.gelu, self.relu2)
    logits = rows_dot_general(
      self.norm(hidden), embedding.T, preferred_element_type=jnp.float32
    )
    bias = self.bias[...].astype(jnp.float32)
    return logits + jnp.expand_dims(bias, (0, 1))


class BERT(nnx.Module):
  """BERT from token ids to logits or embeddings.

  Args:
    width: Width of the tokens.
    depth: Number of blocks.
    heads: Number of attention heads; divides width.
    mlp_dim: Width of the feed-forward layers. Defaults to 4 * width.
    output: "tokens", "classes", "pooled" or "embedding"; see the module.
    num_classes: Number of logits of "classes".
    vocab: Number of ids.
    length: Number of positions, the most tokens of a sequence.
    token_types: Number of token types.
    dropout: Dropout rate after the embeddings, each attention block, each
      feed-forward layer and the pooler of "classes".
    attention_dropout: Dropout rate of the attention weights.
    input_length: Length of the inputs that `gemms` assumes. Defaults to
      length.
    scan: Whether to scan over one stacked block (`models.stack`).
    remat: Whether to recompute each block in the backward pass.
    remat_policy: What is kept of a block that is recomputed: "block", its input
      alone; or "dots", also its products with kernels.
    norm_epsilon: Epsilon of every LayerNorm.
    gelu: "exact", or "tanh" for its approximation.
    relu2: Whether the activation of the feed-forward layers and of the head of
      tokens is the squared ReLU, not gelu.
    dtype: Dtype of the computation, as in "bfloat16". Outputs are float32.
    param_dtype: Dtype of the parameters.
    rngs: Random streams `params` and, with any dropout, `dropout`.

  Raises:
    ValueError: If a size is below 1, heads do not divide width, or an option is
      unknown.
  """

  task: ClassVar[str] = "masked_text"
  words: ClassVar[dict[str, str]] = word_table(
    ff=r"blocks/(?:\d+/)?mlp/fc[12]/kernel",
    q=r"blocks/(?:\d+/)?attn/q/kernel",
    k=r"blocks/(?:\d+/)?attn/k/kernel",
    v=r"blocks/(?:\d+/)?attn/v/kernel",
    o=r"blocks/(?:\d+/)?attn/o/kernel",
    head=r"(?:token_head/transform|pooler|head)/kernel",
  )
  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(r"blocks/(?:\d+/)?mlp", producers="fc1", consumer="fc2"),
    Channels(
      r"blocks/(?:\d+/)?attn", producers="v", consumer="o", heads="num_heads"
    ),
  )

  def __init__(
    self,
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int | None = None,
    output: str = "tokens",
    num_classes: int = 2,
    vocab: int = 30522,
    length: int = 512,
    token_types: int = 2,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    input_length: int | None = None,
    scan: bool = False,
    remat: bool = False,
    remat_policy: str = "block",
    norm_epsilon: float = 1e-12,
    gelu: str = "exact",
    relu2: bool = False,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.width, self.depth, self.heads = width, depth, heads
    self.mlp_dim = 4 * width if mlp_dim is None else mlp_dim
    self.output, self.num_classes = output, num_classes
    self.vocab, self.length, self.token_types = (
      vocab,
      length,
      token_types,
    )
    self.input_length = length if input_length is None else input_length
    self.norm_epsilon, self.gelu = norm_epsilon, gelu
    self.relu2 = relu2
    self.remat = stack.remat_of(remat, remat_policy)
    self.dtype = jnp.dtype(dtype)
    self._check()
    param_dtype = jnp.dtype(param_dtype)
    parts = Parts(self.dtype, param_dtype, rngs)

    def embed(rows: int) -> nnx.Embed:
      return nnx.Embed(
        rows,
        width,
        # Looked up in float32: the gradient adds up many rows.
        dtype=drawing_dtype(param_dtype),
        param_dtype=param_dtype,
        embedding_init=in_float32(nnx.initializers.truncated_normal(0.02)),
        rngs=rngs,
      )

    self.token_embed = embed(vocab)
    self.position_embed = embed(length)
    self.type_embed = embed(token_types)
    self.embed_norm = parts.norm(width, norm_epsilon)
    self.dropout = parts.dropout(dropout)

    def block(rngs: nnx.Rngs) -> BertBlock:
      return BertBlock(
        dataclasses.replace(parts, rngs=rngs),
        width,
        heads,
        self.mlp_dim,
        dropout=dropout,
        attention_dropout=attention_dropout,
        norm_epsilon=norm_epsilon,
        gelu=gelu,
        relu2=relu2,
      )

    self.blocks = stack.build_blocks(block, depth, scan=scan, rngs=rngs)
    if output == "tokens":
      self.token_head = TokenHead(
        parts, width, vocab, norm_epsilon, gelu, relu2
      )
    if output in ("classes", "pooled"):
      self.pooler = parts.linear(width, width, **_KERNEL)
    if output == "classes":
      self.head = parts.linear(width, num_classes, **_KERNEL)

  @classmethod
  def from_variant(
    cls, variant: str, *, rngs: nnx.Rngs, **options: Any
  ) -> BERT:
    """Creates a published size ("base", "minilm-l6") or "custom".

    Args:
      variant: "tiny", "mini", "small" and "medium" (arXiv 1908.08962), "base"
        and "large", "minilm-l6" and "minilm-l12" (arXiv 2002.10957). "custom"
        takes width, depth and heads from the options; with a published size,
        options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16}
    >>> model = BERT.from_variant("custom", rngs=nnx.Rngs(0), **sizes)
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

    >>> BERT.sizes("base")
    {'width': 768, 'depth': 12, 'heads': 12}
    """
    return of_variant("BERT", variant, SIZES)

  def __call__(
    self,
    inputs: Int[Array | np.ndarray, "batch tokens"],
    types: Int[Array | np.ndarray, "batch tokens"] | None = None,
    segment_ids: Int[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> Float[Array, "batch ..."]:
    """Computes what `output` says, in float32.

    Args:
      inputs: Ids; 0 is padding and not attended to.
      types: Token types, as 1 in the second text of a pair. Defaults to 0.
      segment_ids: Segments of packed rows (`nn.segments`), for the output
        "tokens" only. Defaults to one per row.

    Returns:
      [batch, tokens, vocab] for "tokens", [batch, classes] for "classes", and
      [batch, width] for "pooled" and "embedding".

    Raises:
      ValueError: If ids or types are not integers [batch, tokens], there are
        more tokens than positions, or ids lie outside the vocabulary. Values
        are not checked inside a trace, where the result of such an id is NaN.
    """
    if segment_ids is not None and self.output != "tokens":
      raise ValueError(
        "BERT: expected output='tokens' of packed rows, since others have one"
        f" result per row, got output={self.output!r}"
      )
    x, is_token = self.encode(inputs, types, segment_ids)
    if self.output == "embedding":
      return _sentence_embedding(x, is_token)
    if self.output == "tokens":
      embedding = self.token_embed.embedding[...].astype(self.dtype)
      return self.token_head(x, embedding)
    pooled = jnp.tanh(self.pooler(x[:, 0]))
    if self.output == "classes":
      pooled = self.head(self.dropout(pooled))
    return pooled.astype(jnp.float32)

  def encode(
    self,
    inputs: Int[Array | np.ndarray, "batch tokens"],
    types: Int[Array | np.ndarray, "batch tokens"] | None = None,
    segment_ids: Int[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> tuple[Float[Array, "batch tokens width"], Bool[Array, "batch tokens"]]:
    """The last block's output, and True where the ids are not padding.

    Raises:
      ValueError: If the inputs or types are invalid, as in a call.
    """
    inputs = _ids("inputs", inputs, self.vocab, "vocab")
    length = inputs.shape[1]
    if length > self.length:
      raise ValueError(
        f"BERT: expected at most {self.length} tokens, the number of"
        f" positions, got {length}; cut the inputs or set length="
      )
    if types is None:
      types = jnp.zeros_like(inputs)
    types = _ids("types", types, self.token_types, "token_types")
    if types.shape != inputs.shape:
      raise ValueError(
        f"BERT: expected types of the shape {inputs.shape} of the inputs, got"
        f" {types.shape}"
      )
    x = self.token_embed(inputs) + self.type_embed(types)
    is_token = inputs != PAD
    if segment_ids is None:
      seen = is_token[:, None, None]
      places = self.position_embed.embedding[...][None, :length]
    else:
      segments = jnp.asarray(segment_ids)
      seen = same_segment(segments, segments)[:, None]
      places = self.position_embed(segment_positions(segments))
    x = x + places.astype(x.dtype)
    x = self.dropout(self.embed_norm(x.astype(self.dtype)))
    x, _ = stack.run_blocks(self.blocks, x, seen, remat=self.remat)
    return x, is_token

  def counted_rows(
    self,
    inputs: Int[Array | np.ndarray, "batch tokens"],
    types: Int[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> dict[str, Bool[Array, "batch ..."]]:
    """Rows of layers without padding, for `figs_jax.prune`.

    Returns:
      Mask by regex of paths: tokens that are not padding, and texts whose first
      token is not.
    """
    del types
    is_token = jnp.asarray(inputs) != PAD
    return {"blocks/.*|token_head/.*": is_token, "pooler|head": is_token[:, 0]}

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Arguments of a call on `batch` inputs with token types, as shapes."""
    shape = (batch, self.input_length)
    return (jax.ShapeDtypeStruct(shape, jnp.int32),) * 2

  def gemms(self, batch: int, seq: int | None = None) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`; `seq` replaces `input_length`."""
    length = seq or self.input_length
    tokens, width = batch * length, self.width
    depth, products = width // self.heads, batch * self.heads
    rows = []
    for name, block, count in stack.named("blocks", self.blocks):
      attn, mlp = f"{name}/attn", f"{name}/mlp"
      fc1, fc2 = block.mlp.fc1, block.mlp.fc2
      hidden, many = fc1.out_features, products * count
      for part in ("q", "k", "v"):
        layer = getattr(block.attn, part)
        rows.append(row(f"{attn}/{part}", tokens, width, width, layer, count))
      rows += [
        row(f"{attn}/qk", length, length, depth, None, many),
        row(f"{attn}/av", length, depth, length, None, many),
        row(f"{attn}/o", tokens, width, width, block.attn.o, count),
        row(f"{mlp}/fc1", tokens, hidden, width, fc1, count),
        row(f"{mlp}/fc2", tokens, width, hidden, fc2, count),
      ]
    if self.output == "tokens":
      rows += [
        row(
          "token_head/transform",
          tokens,
          width,
          width,
          self.token_head.transform,
        ),
        row("token_head", tokens, self.vocab, width),
      ]
    if self.output in ("classes", "pooled"):
      rows.append(row("pooler", batch, width, width, self.pooler))
    if self.output == "classes":
      rows.append(row("head", batch, self.num_classes, width, self.head))
    return rows

  def non_gemms(
    self, batch: int, seq: int | None = None
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    length = seq or self.input_length
    tokens, width = batch * length, self.width
    size, logits = tokens * width, batch * self.heads * length**2
    # Rows of tokens and types, and of the positions, which the batch shares.
    read = 2 * size + length * width
    rows = [
      non_gemm.row("embed", "embedding", read, size),
      non_gemm.norm("embed_norm", tokens, width),
    ]
    act = "relu2" if self.relu2 else "gelu"
    for name, block, count in stack.named("blocks", self.blocks):
      hidden = tokens * block.mlp.fc1.out_features
      rows += [
        non_gemm.softmax(f"{name}/attn/softmax", logits, count),
        non_gemm.residual(f"{name}/attn/residual", size, count),
        non_gemm.norm(f"{name}/norm1", tokens, width, count),
        non_gemm.activation(f"{name}/mlp/{act}", hidden, count),
        non_gemm.residual(f"{name}/mlp/residual", size, count),
        non_gemm.norm(f"{name}/norm2", tokens, width, count),
      ]
    if self.output == "tokens":
      rows += [
        non_gemm.activation(f"token_head/{act}", size),
        non_gemm.norm("token_head/norm", tokens, width),
      ]
    if self.output in ("classes", "pooled"):
      rows.append(non_gemm.activation("pooler/tanh", batch * width))
    if self.output == "embedding":
      rows.append(non_gemm.row("pool", "pooling", size, batch * width))
    return rows

  def _check(self) -> None:
    check_positive(
      self, "width", "depth", "mlp_dim", "num_classes", "vocab", "length",
      "token_types", "input_length",
    )  # fmt: skip
    check_heads("BERT", self.width, self.heads)
    for name, known in (("output", OUTPUTS), ("gelu", _GELUS)):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f"BERT: unknown {name}={value!r}: {nearest(value, known)}"
        )
    if self.input_length > self.length:
      raise ValueError(
        f"BERT: expected input_length of at most length={self.length},"
        f" the number of positions, got {self.input_length}; shorten the inputs"
        " or set length="
      )


def _sentence_embedding(
  x: Float[Array, "batch tokens width"], is_token: Bool[Array, "batch tokens"]
) -> Float[Array, "batch width"]:
  """The mean of the tokens that are not padding, scaled to length 1."""
  wide, weights = x.astype(jnp.float32), is_token.astype(jnp.float32)
  count = jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
  mean = (wide * weights[..., None]).sum(axis=1) / count
  square = (mean**2).sum(axis=-1, keepdims=True)
  # The root's gradient at 0 is infinite.
  return mean * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST**2))


def _ids(name: str, ids: Any, count: int, option: str) -> Array:
  """Checks that ids are integers [batch, tokens] from 0 to count - 1."""
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(
      f"BERT: expected {name} of integers [batch, tokens], got shape"
      f" {ids.shape} and dtype {ids.dtype}"
    )
  if not isinstance(ids, jax.core.Tracer) and ids.size:
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= count:
      raise ValueError(
        f"BERT: expected {name} from 0 to {count - 1}, got"
        f" {least if least < 0 else most}; use those of the model, or set"
        f" {option}="
      )
  return jnp.asarray(ids)
