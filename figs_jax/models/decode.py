"""Greedy decoding and beam search, after an encoder or after a prompt.

Inputs and their keys and values are computed once; each step computes one token
per row from a cache of the earlier ones. Shapes are static and the loop is part
of the compiled program, which ends early when all rows have ended. Stacked
blocks are taken apart, and masks are applied to kernels, before the loop.

A model provides `ids`, which checks the inputs, `start(inputs, max_length,
beams, mask)`, which gives the current token of each sequence and a cache whose
rows `take` reorders, and `step(cache, tokens, place)`, which gives the next
logits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.models import stack
from figs_jax.nn.layers import Masked, set_pattern

PAD, EOS = 0, 1
# Below any sum of log-probabilities, but finite, so that it can be divided.
_NEVER = -1e9


def greedy(
  model: Any,
  inputs: Int[Array | np.ndarray, "batch inputs"],
  max_length: int,
  *,
  mask: Bool[Array | np.ndarray, "batch inputs"] | None = None,
  eos: int = EOS,
) -> Int[Array, "batch max_length"]:
  """Decodes greedily: each step takes the most likely next token.

  Args:
    model: Model with the methods named above, such as `models.T5`; dropout is
      disabled.
    inputs: Ids of the inputs of an encoder, or of the prompt.
    max_length: Largest number of new tokens, including the end.
    mask: Inputs that are tokens, as opposed to padding on either side. Defaults
      to those that are not 0 for an encoder, and to all of a prompt.
    eos: Id that ends a sequence: 1 in our vocabularies and T5's, 50256 in
      GPT-2's.

  Returns:
    New ids, padded with 0 after the end.

  Raises:
    ValueError: If the length is below 1, or the inputs or the mask are invalid.

  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16}
  >>> model = models.create("t5", "custom", **sizes)
  >>> greedy(model, np.array([[5, 6, 1]]), max_length=4).shape
  (1, 4)
  """
  _at_least_one(max_length=max_length)
  inputs = model.ids("inputs", inputs)
  mask = _checked(mask, inputs)
  return _greedy(*nnx.split(model), inputs, mask, max_length, eos)


def beam_search(
  model: Any,
  inputs: Int[Array | np.ndarray, "batch inputs"],
  beams: int,
  max_length: int,
  length_penalty: float = 1.0,
  early_stopping: bool | np.bool_ | str = False,
  *,
  mask: Bool[Array | np.ndarray, "batch inputs"] | None = None,
  eos: int = EOS,
) -> tuple[Int[Array, "batch max_length"], Float[Array, " batch"]]:
  """Decodes by beam search.

  The score of a sequence is the sum of its tokens' log-probabilities divided by
  its length (including the end) to the power of `length_penalty`. A sequence
  that ends, or is cut at `max_length`, is kept if it is among the `beams` best
  continuations of its step.

  Args:
    model: Model, see `greedy`.
    inputs, max_length, mask, eos: Same as for `greedy`.
    beams: Number of sequences to follow.
    length_penalty: Exponent of the length; above 0 it favors long sequences,
      below 0 short ones.
    early_stopping: When a row of the batch stops, as in Hugging Face's
      `generate`. True: once `beams` sequences have ended. False: once, in
      addition, the best running sequence at its present length would not beat
      the worst of them; with a length penalty above 0 a longer one still could.
      "never": as False, but for the length with the best possible score, so
      that no better sequence is missed among those followed.

  Returns:
    (ids as in `greedy`, scores).

  Raises:
    ValueError: If beams is below 1, early_stopping is invalid, or as in
      `greedy`.

  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 16}
  >>> model = models.create("t5", "custom", **sizes)
  >>> tokens, scores = beam_search(model, np.array([[5, 1]]), 3, max_length=4)
  >>> tokens.shape, scores.shape
  ((1, 4), (1,))
  """
  _at_least_one(beams=beams, max_length=max_length)
  # 1 equals True, but only True itself stops where True does.
  if isinstance(early_stopping, np.bool_):
    early_stopping = bool(early_stopping)
  if not isinstance(early_stopping, bool) and early_stopping != "never":
    raise ValueError(
      "Expected early_stopping of False, True or 'never', got"
      f" {early_stopping!r}"
    )
  if model.vocab < 2:
    raise ValueError(
      "Expected a vocabulary of 2 or more ids for beam search, got"
      f" {model.vocab}"
    )
  inputs = model.ids("inputs", inputs)
  mask = _checked(mask, inputs)
  penalty = jnp.float32(length_penalty)
  options = (beams, max_length, early_stopping, eos)
  return _beam_search(*nnx.split(model), inputs, mask, penalty, *options)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _greedy(graphdef, state, inputs, mask, length, eos):
  model = _stepping(graphdef, state)
  first, cache = model.start(inputs, length, 1, mask)
  batch, stepping = inputs.shape[0], nnx.split(model)

  def going(carry):
    place, _, done, *_ = carry
    return (place < length) & ~done.all()

  def step(carry):
    place, last, done, tokens, cache = carry
    logits, cache = _merge(*stepping).step(cache, last, place)
    last = jnp.where(done, PAD, jnp.argmax(logits, -1).astype(jnp.int32))
    tokens = tokens.at[:, place].set(last)
    return place + 1, last, done | (last == eos), tokens, cache

  start = (
    jnp.int32(0),
    first,
    jnp.zeros(batch, bool),
    jnp.full((batch, length), PAD, jnp.int32),
    cache,
  )
  return jax.lax.while_loop(going, step, start)[3]


class _Beams(NamedTuple):
  """Running and ended sequences, best first; `open` rows may still improve."""

  place: Array
  tokens: Array
  scores: Array
  ended_tokens: Array
  ended_scores: Array
  ended: Array
  open: Array
  cache: Any


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _beam_search(
  graphdef, state, inputs, mask, penalty, beams, length, early, eos
):
  model = _stepping(graphdef, state)
  first_token, cache = model.start(inputs, length, beams, mask)
  batch, stepping = inputs.shape[0], nnx.split(model)

  def normed(scores, count):
    return scores / jnp.asarray(count, jnp.float32) ** penalty

  def going(s):
    unfilled = ~s.ended.all() if early is True else True
    return (s.place < length) & s.open.any() & unfilled

  def step(s):
    place, count = s.place, s.place + 1
    before = jnp.where(
      place > 0, s.tokens[:, :, place - 1], first_token[:, None]
    )
    logits, cache = _merge(*stepping).step(s.cache, before.reshape(-1), place)
    vocab = logits.shape[-1]
    scores = jax.nn.log_softmax(logits).reshape(batch, beams, vocab)
    scores = (scores + s.scores[..., None]).reshape(batch, -1)
    # Each sequence has at most one end, so at least `beams` do not end.
    scores, index = jax.lax.top_k(scores, 2 * beams)
    parent, token = index // vocab, index % vocab
    tokens = _pick(s.tokens, parent).at[:, :, place].set(token)
    ends = (token == eos) | (count == length)

    kept = ends & (jnp.arange(2 * beams) < beams)[None] & s.open[:, None]
    if early is True:
      kept &= ~s.ended.all(axis=1, keepdims=True)
    candidates = jnp.where(kept, normed(scores, count), _NEVER)
    every = jnp.concatenate([s.ended_scores, candidates], axis=1)
    ended_scores, best = jax.lax.top_k(every, beams)
    ended = _pick(jnp.concatenate([s.ended, kept], axis=1), best)
    ended_tokens = _pick(jnp.concatenate([s.ended_tokens, tokens], 1), best)

    running, on = jax.lax.top_k(jnp.where(ends, _NEVER, scores), beams)
    longest = jnp.where(penalty > 0, length, count)
    hoped = normed(running[:, 0], longest if early == "never" else count)
    improves = (hoped > ended_scores[:, -1]) | ~ended.all(axis=1)
    rows = jnp.arange(batch)[:, None] * beams + _pick(parent, on)
    return _Beams(
      place=count,
      tokens=_pick(tokens, on),
      scores=running,
      ended_tokens=ended_tokens,
      ended_scores=ended_scores,
      ended=ended,
      open=s.open & improves,
      cache=cache.take(rows.reshape(-1)),
    )

  # All beams start equal, so only the first one counts.
  first = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER)
  blank = jnp.full((batch, beams, length), PAD, jnp.int32)
  start = _Beams(
    place=jnp.int32(0),
    tokens=blank,
    scores=jnp.tile(first[None], (batch, 1)),
    ended_tokens=blank,
    ended_scores=jnp.full((batch, beams), _NEVER),
    ended=jnp.zeros((batch, beams), bool),
    open=jnp.ones(batch, bool),
    cache=cache,
  )
  last = jax.lax.while_loop(going, step, start)
  return last.ended_tokens[:, 0], last.ended_scores[:, 0]


def _pick(x: Array, index: Int[Array, "batch chosen"]) -> Array:
  """x[batch, index]."""
  index = index.reshape(index.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _stepping(graphdef: Any, state: Any) -> Any:
  """The model for many steps, with all that they share computed once."""
  model = _merge(graphdef, state)
  model.eval()
  stack.unstack(model)
  kernels = set()
  for _, layer in list(nnx.iter_modules(model)):
    if isinstance(layer, Masked) and layer.pattern:
      if id(layer.kernel) not in kernels:  # two layers may hold the same one
        kernels.add(id(layer.kernel))
        layer.kernel.set_value(layer.effective_kernel())
      set_pattern(layer, None)
  return model


def _merge(graphdef: Any, state: Any) -> Any:
  """Merges a model inside the current trace, such as a loop's body."""
  return nnx.merge(graphdef, state, copy=True)


def _checked(
  mask: Any, inputs: Int[Array | np.ndarray, "batch inputs"]
) -> Bool[Array, "batch inputs"] | None:
  """The mask of the inputs, in which every row has a token."""
  if mask is None:
    return None
  if mask.shape != inputs.shape or mask.dtype != bool:
    raise ValueError(
      f"Expected a Boolean mask of the shape of the inputs, {inputs.shape}, got"
      f" shape {mask.shape} and dtype {mask.dtype}"
    )
  if not isinstance(mask, jax.core.Tracer):
    empty = np.flatnonzero(~np.asarray(mask).any(1))
    if empty.size:
      raise ValueError(
        f"Expected a token in every row of the mask, got none in row {empty[0]}"
      )
  return jnp.asarray(mask)


def _at_least_one(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f"Expected {name} of 1 or more, got {number}")
