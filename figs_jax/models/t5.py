"""T5, an encoder-decoder transformer (Raffel et al., arXiv 1910.10683).

Pre-norm with RMS norms and without biases; relative positions are learned
biases of the attention logits, which are not scaled. Version 1.0 has relu and a
head that is tied to the embedding, with scaled inputs; version 1.1 and mT5 have
a gated gelu and a head that is untied, without the scale.

Ids follow the T5 vocabularies: 0 is padding and starts the decoder, 1 ends a
sequence.

Initialization follows Mesh TensorFlow: normal with deviation fan_in^-1/2 for
kernels, (fan_in head_dim)^-1/2 for the query, which includes the scale, and 1
for embeddings. Hugging Face's code has deviation 1 for an untied head; here it
is fan_in^-1/2, as in Mesh TensorFlow, so that the first logits are near 1.

Norms, attention logits with their softmax, position biases and the logits are
float32 for any dtype.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import word_table
from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models import non_gemm, stack
from figs_jax.models.decoder import (
  KeysValues,
  Origin,
  checked_ids,
  head_logits,
  head_of_steps,
)
from figs_jax.models.encoder import Parts
from figs_jax.models.gemm import row
from figs_jax.models.sizes import (
  check_positive,
  completed,
  of_variant,
  published,
)
from figs_jax.models.t5_stack import (
  DecoderBlock,
  EncoderBlock,
  Stack,
  StackShape,
  normal,
)
from figs_jax.nn import Channels
from figs_jax.nn.initializers import drawing_dtype, in_float32
from figs_jax.nn.segments import same_segment, segment_positions

PAD, EOS = 0, 1


def _size(
  width: int, depth: int, heads: int, mlp_dim: int, head_dim: int = 64
) -> dict[str, Any]:
  return {
    "width": width,
    "depth": depth,
    "heads": heads,
    "mlp_dim": mlp_dim,
    "head_dim": head_dim,
  }


_V1_1 = {"gated": True, "tied": False}
SIZES: dict[str, dict[str, Any]] = {
  "small": _size(512, 6, 8, 2048),
  "base": _size(768, 12, 12, 3072),
  "large": _size(1024, 24, 16, 4096),
  "3b": _size(1024, 24, 32, 16384, head_dim=128),
  "11b": _size(1024, 24, 128, 65536, head_dim=128),
  "v1_1-small": {**_size(512, 8, 6, 1024), **_V1_1},
  "v1_1-base": {**_size(768, 12, 12, 2048), **_V1_1},
  "v1_1-large": {**_size(1024, 24, 16, 2816), **_V1_1},
  "v1_1-xl": {**_size(2048, 24, 32, 5120), **_V1_1},
  "v1_1-xxl": {**_size(4096, 24, 64, 10240), **_V1_1},
  "custom": {},
}
_BLOCK = r"(?:en|de)coder/blocks/(?:\d+/)?"


class Cache(NamedTuple):
  """The state of decoding between steps.

  Attributes:
    past: Keys and values of the tokens so far, of each block.
    origin: Which of them belong to a beam.
    memory: Keys and values of the inputs, of each block.
    inputs_seen: Mask of the inputs, [batch, inputs].
    bias: Position bias, [heads, tokens, tokens].
    head: Embedding as the kernel of the head, [width, vocab]; None if the head
      has its own, or transposing would not pay.
  """

  past: tuple[KeysValues, ...]
  origin: Origin
  memory: tuple[KeysValues, ...]
  inputs_seen: Array
  bias: Array
  head: Array | None

  def take(self, rows: Int[Array, " rows"]) -> Cache:
    """Beams that continue these rows."""
    return self._replace(origin=self.origin.take(rows))


class T5(nnx.Module):
  """T5 from token ids to logits with teacher forcing.

  `figs_jax.models.decode` generates sequences.

  Args:
    width: Width of the tokens.
    depth: Number of encoder blocks.
    decoder_depth: Number of decoder blocks. Defaults to depth.
    heads: Number of heads of every attention.
    head_dim: Width of a head; heads * head_dim may differ from width.
    mlp_dim: Width of the feed-forward layers. Defaults to 4 * width.
    gated: Whether to use gelu(x wi_0) * (x wi_1) instead of relu(x wi).
    relu2: Whether the squared ReLU takes the place of gelu or relu.
    tied: Whether the head is the embedding.
    scaled: Whether to scale the input of the head by width^-1/2. Defaults to
      `tied`.
    vocab: Number of ids.
    num_buckets: Number of buckets of relative positions.
    max_distance: Distance from which on all offsets share a bucket.
    dropout: Dropout rate after the embeddings, of attention weights, in the
      feed-forward layers, after every branch and after the final norms.
    input_length: Length of the inputs that `gemms` assumes.
    target_length: Length of the targets that `gemms` assumes.
    scan: Whether to scan over one stacked block per stack (`models.stack`).
    remat: Whether to recompute each block in the backward pass.
    remat_policy: What is kept of a block that is recomputed: "block", its input
      alone; or "dots", also its products with kernels.
    dtype: Dtype of the computation, as in "bfloat16". Logits are float32. In
      float16 activations would overflow, so it is refused.
    param_dtype: Dtype of the parameters.
    rngs: Random streams `params` and, with dropout, `dropout`.

  Raises:
    ValueError: If a size is below 1, the buckets do not fit the distance, or
      dtype is float16.
  """

  task: ClassVar[str] = "text_to_text"
  words: ClassVar[dict[str, str]] = word_table(
    ff=_BLOCK + r"mlp/w(?:i|i_0|i_1|o)/kernel",
    q=_BLOCK + r"(?:attn|cross)/q/kernel",
    k=_BLOCK + r"(?:attn|cross)/k/kernel",
    v=_BLOCK + r"(?:attn|cross)/v/kernel",
    o=_BLOCK + r"(?:attn|cross)/o/kernel",
    head=r"head/kernel",
  )
  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(_BLOCK + "mlp", producers="wi|wi_[01]", consumer="wo"),
    Channels(
      _BLOCK + "(?:attn|cross)", producers="v", consumer="o", heads="heads"
    ),
  )

  def __init__(
    self,
    *,
    width: int,
    depth: int,
    decoder_depth: int | None = None,
    heads: int,
    head_dim: int = 64,
    mlp_dim: int | None = None,
    gated: bool = False,
    relu2: bool = False,
    tied: bool = True,
    scaled: bool | None = None,
    vocab: int = 32128,
    num_buckets: int = 32,
    max_distance: int = 128,
    dropout: float = 0.0,
    input_length: int = 512,
    target_length: int = 114,
    scan: bool = False,
    remat: bool = False,
    remat_policy: str = "block",
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.width, self.depth, self.heads = width, depth, heads
    self.decoder_depth = depth if decoder_depth is None else decoder_depth
    self.head_dim, self.vocab = head_dim, vocab
    self.gated, self.relu2, self.tied = gated, relu2, tied
    self.scaled = tied if scaled is None else scaled
    self.mlp_dim = 4 * width if mlp_dim is None else mlp_dim
    self.num_buckets, self.max_distance = num_buckets, max_distance
    self.input_length, self.target_length = input_length, target_length
    self.remat = stack.remat_of(remat, remat_policy)
    self.dtype = jnp.dtype(dtype)
    self._check()
    param_dtype = jnp.dtype(param_dtype)
    parts = Parts(self.dtype, param_dtype, rngs)
    shape = StackShape(
      width=width,
      heads=heads,
      head_dim=head_dim,
      mlp_dim=self.mlp_dim,
      gated=gated,
      relu2=relu2,
      num_buckets=num_buckets,
      max_distance=max_distance,
      dropout=dropout,
      scan=scan,
    )
    # Looked up in float32: the gradient adds up many rows.
    self.shared = nnx.Embed(
      vocab,
      width,
      dtype=drawing_dtype(param_dtype),
      param_dtype=param_dtype,
      embedding_init=in_float32(nnx.initializers.normal(1.0)),
      rngs=rngs,
    )
    self.encoder = Stack(parts, shape, depth, EncoderBlock)
    self.decoder = Stack(parts, shape, self.decoder_depth, DecoderBlock)
    self.head = (
      None
      if tied
      else parts.linear(
        width,
        vocab,
        use_bias=False,
        preferred_element_type=jnp.float32,
        **normal(width),
      )
    )

  @classmethod
  def from_variant(cls, variant: str, *, rngs: nnx.Rngs, **options: Any) -> T5:
    """Creates a published size ("base", "v1_1-xl") or "custom".

    Args:
      variant: "small", "base", "large", "3b" or "11b" for version 1.0, "v1_1-"
        followed by "small", "base", "large", "xl" or "xxl" for version 1.1.
        "custom" takes width, depth and heads from the options; with a published
        size, options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16}
    >>> model = T5.from_variant("custom", rngs=nnx.Rngs(0), **sizes)
    >>> ids = jnp.array([[5, 6, 1]])
    >>> model(ids, ids).shape
    (1, 3, 16)
    """
    sizes = completed(cls, variant, options, published(SIZES))
    return cls(rngs=rngs, **sizes)

  @staticmethod
  def sizes(variant: str) -> dict[str, Any]:
    """The options that the name of a variant stands for.

    Raises:
      ValueError: If the variant is unknown.

    >>> T5.sizes("v1_1-small")["gated"]
    True
    """
    return of_variant("T5", variant, SIZES)

  def __call__(
    self,
    inputs: Int[Array | np.ndarray, "rows inputs"],
    targets: Int[Array | np.ndarray, "batch targets"],
    segment_ids: tuple[Any, Any] | None = None,
  ) -> Float[Array, "batch targets vocab"]:
    """Computes float32 logits of each target token given those before it.

    Args:
      inputs: Ids, a row per target; 0 is padding and not attended to.
      targets: Ids; the decoder sees them shifted right after a 0.
      segment_ids: Segments of the inputs and of the targets of packed rows
        (`nn.segments`), each of the shape of its ids. Defaults to one per row.

    Raises:
      ValueError: If ids are not integers [batch, length], the batches differ,
        or ids lie outside the vocabulary. Values are not checked inside a
        trace, where the logits of such an id are NaN.
    """
    inputs, targets = self.ids("inputs", inputs), self.ids("targets", targets)
    # Not len(): an exported program's batch is a symbol.
    rows, given = inputs.shape[0], targets.shape[0]
    if rows != given:
      raise ValueError(
        f"T5: expected one target per input, got {rows} rows of inputs and"
        f" {given} of targets"
      )
    tokens = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
    length = tokens.shape[1]
    seen = jnp.asarray(np.tril(np.ones((1, 1, length, length), bool)))
    if segment_ids is None:
      encoded, inputs_seen = self.encode(inputs)
    else:
      own, mine = (jnp.asarray(ids) for ids in segment_ids)
      encoded = self._encoded(inputs, same_segment(own, own)[:, None])
      inputs_seen = same_segment(mine, own)[:, None]
      seen &= same_segment(mine, mine)[:, None]
      tokens = jnp.where(segment_positions(mine) == 0, PAD, tokens)
    x = self.decoder(
      self._embed(tokens),
      seen,
      encoded,
      inputs_seen,
      remat=self.remat,
    )
    return self._logits(x)

  def ids(self, name: str, ids: Any) -> Int[Array, "batch length"]:
    """Checks that ids are integers [batch, length] of the vocabulary.

    Args:
      name: Name of the ids in error messages.
      ids: Ids, whose values are checked outside of a trace only.

    Raises:
      ValueError: If the shape, the dtype or a value is invalid.
    """
    return checked_ids(self, name, ids)

  def counted_rows(
    self,
    inputs: Int[Array | np.ndarray, "batch inputs"],
    targets: Int[Array | np.ndarray, "batch targets"],
  ) -> dict[str, Bool[Array, "batch _"]]:
    """Rows of layers without padding, for `figs_jax.prune`.

    Returns:
      Mask by regex of paths: tokens of the inputs that are not padding, and
      positions of the decoder that predict a target that is not padding.
    """
    return {
      r"encoder/.*|decoder/.*/cross/[kv]": jnp.asarray(inputs) != PAD,
      r"decoder/.*|head": jnp.asarray(targets) != PAD,
    }

  def encode(
    self,
    inputs: Int[Array | np.ndarray, "batch inputs"],
    mask: Bool[Array, "batch inputs"] | None = None,
  ) -> tuple[
    Float[Array, "batch inputs width"], Bool[Array, "batch 1 1 inputs"]
  ]:
    """The encoder's output and the mask of its tokens, by default not 0."""
    inputs = self.ids("inputs", inputs)
    seen = (inputs != PAD if mask is None else mask)[:, None, None]
    return self._encoded(inputs, seen), seen

  def _encoded(
    self,
    inputs: Int[Array, "batch inputs"],
    seen: Bool[Array, "batch 1 #inputs inputs"],
  ) -> Float[Array, "batch inputs width"]:
    return self.encoder(self._embed(inputs), seen, remat=self.remat)

  def start(
    self,
    inputs: Int[Array | np.ndarray, "batch inputs"],
    max_length: int,
    beams: int = 1,
    mask: Bool[Array, "batch inputs"] | None = None,
  ) -> tuple[Int[Array, " batch"], Cache]:
    """The first token of each sequence, and the cache of `step`.

    Args:
      inputs: Ids.
      max_length: Largest number of tokens.
      beams: Rows of each sequence.
      mask: Inputs to attend to. Defaults to those that are not 0.
    """
    encoded, inputs_seen = self.encode(inputs, mask)
    blocks = stack.listed(self.decoder.blocks)
    batch = encoded.shape[0]
    origin = Origin.first(batch, beams, max_length)
    room = origin.empty(self.heads, self.head_dim, self.dtype)
    return jnp.full(batch, PAD, jnp.int32), Cache(
      past=(room,) * len(blocks),
      origin=origin,
      memory=tuple(block.remember(encoded) for block in blocks),
      inputs_seen=inputs_seen[:, 0, 0],
      bias=self.decoder.position_bias(max_length)[0],
      head=head_of_steps(
        self.head, self.shared, self.dtype, batch * beams, max_length
      ),
    )

  def step(
    self, cache: Cache, tokens: Int[Array, " rows"], place: Int[Array, ""]
  ) -> tuple[Float[Array, "rows vocab"], Cache]:
    """Computes the next token's logits.

    Args:
      cache: Cache from `start` or the previous step.
      tokens: Current token of each row; padding at place 0.
      place: Position of the tokens, from 0 to `max_length` - 1.
    """
    bias = jax.lax.dynamic_index_in_dim(cache.bias, place, 1, keepdims=False)
    origin = cache.origin._replace(place=place)
    x, past = self._embed(tokens), []
    blocks = stack.listed(self.decoder.blocks)
    for block, own, memory in zip(blocks, cache.past, cache.memory):
      x, own = block.step(x, own, origin, bias, memory, cache.inputs_seen)
      past.append(own)
    logits = self._logits(self.decoder.norm(x), cache.head)
    return logits, cache._replace(past=tuple(past), origin=origin)

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Arguments of a call on `batch` inputs and targets, as shapes."""
    lengths = self.input_length, self.target_length
    return tuple(jax.ShapeDtypeStruct((batch, n), jnp.int32) for n in lengths)

  def gemms(self, batch: int, seq: int | None = None) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`; `seq` replaces `input_length`."""
    inputs, targets = seq or self.input_length, self.target_length
    rows = []
    for name, block, count in stack.named(
      "encoder/blocks", self.encoder.blocks
    ):
      rows += block.attn.gemms(f"{name}/attn", batch, inputs, inputs, count)
      rows += block.mlp.gemms(f"{name}/mlp", batch * inputs, count)
    for name, block, count in stack.named(
      "decoder/blocks", self.decoder.blocks
    ):
      rows += block.attn.gemms(f"{name}/attn", batch, targets, targets, count)
      rows += block.cross.gemms(f"{name}/cross", batch, targets, inputs, count)
      rows += block.mlp.gemms(f"{name}/mlp", batch * targets, count)
    layer = self.shared if self.head is None else self.head
    head = row("head", batch * targets, self.vocab, self.width, layer)
    return [*rows, head]

  def non_gemms(
    self, batch: int, seq: int | None = None
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    inputs, targets = seq or self.input_length, self.target_length
    stacks = (
      ("encoder", self.encoder, inputs, ("attn",)),
      ("decoder", self.decoder, targets, ("attn", "cross")),
    )
    rows = []
    for stack_name, one, length, attentions in stacks:
      tokens, bias = batch * length, self.heads * length**2
      size, hidden = tokens * self.width, tokens * self.mlp_dim
      rows += [
        non_gemm.row(f"{stack_name}/embed", "embedding", size, size),
        non_gemm.row(f"{stack_name}/bias", "embedding", bias, bias),
      ]
      for name, block, count in stack.named(f"{stack_name}/blocks", one.blocks):
        operands = len(block.mlp.names)
        for part in attentions:
          keys = inputs if part == "cross" else length
          logits = batch * self.heads * length * keys
          own = 0 if part == "cross" else bias
          rows += [
            non_gemm.norm(f"{name}/{part}_norm", tokens, self.width, count, 1),
            non_gemm.softmax(f"{name}/{part}/softmax", logits, count, own),
            non_gemm.residual(f"{name}/{part}/residual", size, count),
          ]
        usual = "gelu" if self.gated else "relu"
        act = f"{name}/mlp/{'relu2' if self.relu2 else usual}"
        rows += [
          non_gemm.norm(f"{name}/mlp_norm", tokens, self.width, count, 1),
          non_gemm.activation(act, hidden, count, operands),
          non_gemm.residual(f"{name}/mlp/residual", size, count),
        ]
      rows.append(non_gemm.norm(f"{stack_name}/norm", tokens, self.width, 1, 1))
    return rows

  def _embed(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
    return self.shared(ids).astype(self.dtype)

  def _logits(
    self,
    x: Float[Array, "*batch width"],
    head: Float[Array, "width vocab"] | None = None,
  ) -> Float[Array, "*batch vocab"]:
    if self.scaled:
      x = x * self.width**-0.5
    return head_logits(x, self.head, self.shared, self.dtype, head)

  def _check(self) -> None:
    if self.dtype == jnp.float16:
      raise ValueError(
        "T5: expected dtype float32 or bfloat16, got float16, in which its"
        " activations overflow (above 65,504); use bfloat16"
      )
    check_positive(
      self, "width", "depth", "decoder_depth", "heads", "head_dim", "mlp_dim",
      "vocab", "input_length", "target_length",
    )  # fmt: skip
    # The encoder has half of the buckets for each side, half of them exact.
    if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
      raise ValueError(
        "T5: expected at least 4 buckets and a distance above half of them, got"
        f" num_buckets={self.num_buckets} and max_distance={self.max_distance}"
      )
