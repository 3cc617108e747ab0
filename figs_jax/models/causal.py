"""What GPT-2 and Llama share: tokens in, logits of the next token out.

Every id is a token unless a mask says otherwise. Padding may lie on either
side: positions count the tokens of the mask, and nothing attends to padding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import word_table
from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models import stack
from figs_jax.models.decoder import (
  KeysValues,
  Origin,
  Rotation,
  checked_ids,
  head_logits,
  head_of_steps,
)
from figs_jax.models.shapes import Shape
from figs_jax.models.sizes import check_positive
from figs_jax.nn import Channels, masked_leaves
from figs_jax.nn.initializers import drawing_dtype, in_float32
from figs_jax.nn.segments import same_segment, segment_positions

_BLOCK = r"blocks/(?:\d+/)?"


class Cache(NamedTuple):
  """The state of decoding between steps.

  Attributes:
    past: Keys and values of the new tokens, of each block.
    origin: Which of them belong to a beam.
    prompt: Keys and values of the prompt, of each block.
    seen: Mask of the prompt without its last token, [batch, prompt].
    position: Position of the last token of each prompt, [batch].
    head: Embedding as the kernel of the head, [width, vocab]; None if the head
      has its own, or transposing would not pay.
  """

  past: tuple[KeysValues, ...]
  origin: Origin
  prompt: tuple[KeysValues, ...]
  seen: Array
  position: Array
  head: Array | None

  def take(self, rows: Int[Array, " rows"]) -> Cache:
    """Beams that continue these rows."""
    return self._replace(origin=self.origin.take(rows))


# Of attention, in which the value heads of a group keep their place.
MOVABLE_HEADS = Channels(
  _BLOCK + "attn", producers="v", consumer="o", heads="heads"
)


class CausalLM(nnx.Module):
  """A language model; a family adds its blocks, `embed`, `norm` and `head`."""

  task: ClassVar[str] = "causal_text"
  words: ClassVar[dict[str, str]] = word_table(
    ff=_BLOCK + "mlp/(?:fc1|fc2|gate|up|down)/kernel",
    q=_BLOCK + "attn/q/kernel",
    k=_BLOCK + "attn/k/kernel",
    v=_BLOCK + "attn/v/kernel",
    o=_BLOCK + "attn/o/kernel",
    head="head/kernel",
  )
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_dim: int
  vocab: int
  length: int
  input_length: int
  remat: str
  dtype: Any
  embed: nnx.Embed
  blocks: Any
  norm: Any
  head: Any
  dropout: nnx.Dropout

  def __call__(
    self,
    tokens: Int[Array | np.ndarray, "batch tokens"],
    mask: Bool[Array | np.ndarray, "batch tokens"] | None = None,
    segment_ids: Int[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> Float[Array, "batch tokens vocab"]:
    """Computes float32 logits of the token after each of them.

    Args:
      tokens: Ids.
      mask: Whether an id is a token, as opposed to padding. Defaults to all;
        padding on the right needs no mask, since no token attends to it.
      segment_ids: Segments of packed rows (`nn.segments`), in the place of a
        mask. Defaults to one per row.

    Raises:
      ValueError: If a mask and segments are given, ids are not integers [batch,
        length], lie outside the vocabulary or are too many. Values are not
        checked inside a trace, where the logits of such an id are NaN.
    """
    tokens = self.ids("tokens", tokens)
    self._check_length(tokens.shape[1])
    if mask is not None and segment_ids is not None:
      raise ValueError(
        f"{type(self).__name__}: expected a mask or segment_ids, got both;"
        " segment 0 is padding"
      )
    x, seen, rotation = self._first(tokens, mask, segment_ids)
    x, _ = stack.run_blocks(self.blocks, x, seen, rotation, remat=self.remat)
    return self._logits(x)

  def counted_rows(
    self,
    tokens: Int[Array | np.ndarray, "batch tokens"],
    mask: Bool[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> dict[str, Bool[Array, "batch tokens"]]:
    """Rows of layers without padding, for `figs_jax.prune`.

    Returns:
      Mask of the tokens for all layers, or nothing if all ids are tokens.
    """
    del tokens
    return {} if mask is None else {".*": jnp.asarray(mask)}

  def ids(self, name: str, ids: Any) -> Int[Array, "batch length"]:
    """Checks that ids are integers [batch, length] of the vocabulary.

    Args:
      name: Name of the ids in error messages.
      ids: Ids, whose values are checked outside of a trace only.

    Raises:
      ValueError: If the shape, the dtype or a value is invalid.
    """
    return checked_ids(self, name, ids)

  def start(
    self,
    inputs: Int[Array | np.ndarray, "batch prompt"],
    max_length: int,
    beams: int = 1,
    mask: Bool[Array, "batch prompt"] | None = None,
  ) -> tuple[Int[Array, " batch"], Cache]:
    """The last token of each prompt, and the cache of `step`.

    Args:
      inputs: Prompts, each of one token or more.
      max_length: Largest number of new tokens.
      beams: Rows of each sequence.
      mask: Whether an id is a token, as opposed to padding. Defaults to all.

    Raises:
      ValueError: If the prompt is empty, or longer than the model takes with
        the new tokens.
    """
    batch, length = inputs.shape
    if length < 1:
      raise ValueError(
        f"{type(self).__name__}: expected a prompt of one token or more, got"
        f" inputs of shape {inputs.shape}"
      )
    self._check_length(length + max_length - 1)
    inputs = jnp.asarray(inputs)
    tokens = jnp.ones(inputs.shape, bool) if mask is None else mask
    x, seen, rotation = self._first(inputs, mask)
    prompt = []
    for block in stack.listed(self.blocks):
      x, own = block.remember(x, seen, rotation)
      prompt.append(own)
    # The last token is the first one of `step`.
    last = length - 1 - jnp.argmax(tokens[:, ::-1], axis=1)
    origin = Origin.first(batch, beams, max_length)
    room = origin.empty(self.kv_heads, self.head_dim, self.dtype)
    return inputs[jnp.arange(batch), last].astype(jnp.int32), Cache(
      past=(room,) * len(prompt),
      origin=origin,
      prompt=tuple(prompt),
      seen=tokens & (jnp.arange(length)[None] != last[:, None]),
      position=tokens.sum(1) - 1,
      head=head_of_steps(
        self.head, self.embed, self.dtype, batch * beams, max_length
      ),
    )

  def step(
    self, cache: Cache, tokens: Int[Array, " rows"], place: Int[Array, ""]
  ) -> tuple[Float[Array, "rows vocab"], Cache]:
    """Computes the next token's logits.

    Args:
      cache: Cache from `start` or the previous step.
      tokens: Current token of each row; the last of the prompt at place 0.
      place: Number of the step, from 0 to `max_length` - 1.
    """
    origin = cache.origin._replace(place=place)
    position = jnp.repeat(cache.position + place, origin.beams)[:, None]
    x, rotation = self._embedded(tokens[:, None], position)
    x, past = x[:, 0], []
    blocks = stack.listed(self.blocks)
    for block, own, prompt in zip(blocks, cache.past, cache.prompt):
      x, own = block.step(x, rotation, own, origin, prompt, cache.seen)
      past.append(own)
    logits = self._logits(x, cache.head)
    return logits, cache._replace(past=tuple(past), origin=origin)

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct]:
    """Arguments of a call on `batch` rows of `input_length`, as shapes."""
    return (jax.ShapeDtypeStruct((batch, self.input_length), jnp.int32),)

  def gemms(
    self,
    batch: int,
    seq: int | None = None,
    phase: str | None = None,
    context: int | None = None,
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`."""
    return self.shape().gemms(batch, seq, phase, context)

  def non_gemms(
    self,
    batch: int,
    seq: int | None = None,
    phase: str | None = None,
    context: int | None = None,
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    return self.shape().non_gemms(batch, seq, phase, context)

  def shape(self) -> Shape:
    """The sizes and patterns of the model, `input_length` tokens long."""
    sizes: dict[str, Any] = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(Shape)
      if hasattr(self, field.name)
    }
    leaves = masked_leaves(self).items()
    own: dict[str, Any] = {
      "length": self.input_length,
      "tied": self.head is None,
      "scan": not isinstance(self.blocks, nnx.List),
      "patterns": {path: leaf.pattern for path, leaf in leaves},
    }
    return Shape(**sizes | self._kind() | own)

  def _kind(self) -> dict[str, Any]:
    """The fields of `Shape` that the family decides."""
    raise NotImplementedError

  def _embedded(
    self,
    tokens: Int[Array, "batch tokens"],
    position: Int[Array, "#batch tokens"] | None,
  ) -> tuple[Float[Array, "batch tokens width"], Rotation | None]:
    """The input of the blocks, and the rotation of queries and keys.

    Args:
      tokens: Ids.
      position: Their positions. None stands for 0, 1, 2, ...
    """
    raise NotImplementedError

  def _first(
    self,
    tokens: Int[Array, "batch tokens"],
    mask: Bool[Array | np.ndarray, "batch tokens"] | None,
    segment_ids: Int[Array | np.ndarray, "batch tokens"] | None = None,
  ) -> tuple[Array, Array, Rotation | None]:
    """The input of the blocks, the mask of attention, and the rotation."""
    length = tokens.shape[1]
    seen = jnp.asarray(np.tril(np.ones((1, length, length), bool)))
    position = None
    if mask is not None:
      seen &= jnp.asarray(mask)[:, None]
      position = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    if segment_ids is not None:
      segments = jnp.asarray(segment_ids)
      seen &= same_segment(segments, segments)
      position = segment_positions(segments)
    x, rotation = self._embedded(tokens, position)
    return self.dropout(x), seen, rotation

  def _check_length(self, length: int) -> None:
    """Raises ValueError if a family has no positions for so many tokens."""

  def _make_embedding(self, parts: Any, rows: int, deviation: float) -> Any:
    # Looked up in float32: the gradient adds up many rows.
    return nnx.Embed(
      rows,
      self.width,
      dtype=drawing_dtype(parts.param_dtype),
      param_dtype=parts.param_dtype,
      embedding_init=in_float32(nnx.initializers.normal(deviation)),
      rngs=parts.rngs,
    )

  def _logits(
    self,
    x: Float[Array, "*batch width"],
    head: Float[Array, "width vocab"] | None = None,
  ) -> Float[Array, "*batch vocab"]:
    x = self.norm(x)
    return head_logits(x, self.head, self.embed, self.dtype, head)

  def _check_sizes(self) -> None:
    check_positive(
      self, "width", "depth", "heads", "kv_heads", "head_dim", "mlp_dim",
      "vocab", "length", "input_length",
    )  # fmt: skip
