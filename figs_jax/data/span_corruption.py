"""Span corruption, T5's pre-training task (Raffel et al., arXiv 1910.10683).

Each of several random spans of a segment is replaced by a sentinel. The targets
are the sentinels, each followed by its span:

  segment  The cat sat on the mat .
  inputs   The <0> sat on <1> . <end>
  targets  <0> cat <1> the mat <end>

The number and the total length of the spans depend on the segment's length
only, so that all shapes are static; only the positions are random.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from figs_jax.data.vocabulary import EOS, Vocabulary


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Span corruption of segments as long as fits into the inputs.

  Attributes:
    input_length: Number of tokens of a corrupted segment, including sentinels
      and the end token.
    density: Share of a segment's tokens to replace.
    mean_span: Average number of tokens per span.

  Raises:
    ValueError: If a value is out of range.

  >>> corruption = SpanCorruption(512)  # of T5's own configuration
  >>> corruption.segment_length, corruption.target_length
  (568, 114)
  """

  input_length: int
  density: float = 0.15
  mean_span: float = 3.0

  def __post_init__(self):
    if not 0 < self.density < 1:
      raise ValueError(f"Expected noise density in (0, 1), got {self.density}")
    if self.mean_span < 1:
      raise ValueError(f"Expected mean span of 1 or more, got {self.mean_span}")
    if self.input_length < 3:
      raise ValueError(
        "Expected input length of 3 or more (a token, a sentinel and the end),"
        f" got {self.input_length}"
      )

  def counts(self, length: int) -> tuple[int, int]:
    """(replaced tokens, spans) of a segment of at least 2 tokens.

    >>> SpanCorruption(512).counts(100)
    (15, 5)
    """
    noise = min(max(round(length * self.density), 1), length - 1)
    spans = max(round(noise / self.mean_span), 1)
    return noise, min(spans, length - noise)

  @functools.cached_property
  def segment_length(self) -> int:
    """Length of the longest segment whose inputs fit."""
    length = 2
    while self._corrupted(length + 1) <= self.input_length:
      length += 1
    return length

  @functools.cached_property
  def target_length(self) -> int:
    """Length of the targets of a whole segment, including the end token."""
    return sum(self.counts(self.segment_length)) + 1

  @functools.cached_property
  def spans(self) -> int:
    """Number of spans, and hence of sentinels, of a whole segment."""
    return self.counts(self.segment_length)[1]

  def _corrupted(self, length: int) -> int:
    noise, spans = self.counts(length)
    return length - noise + spans + 1

  def __call__(
    self, segment: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary
  ) -> tuple[np.ndarray, np.ndarray]:
    """Corrupts a segment: int32 (inputs, targets), unpadded, each with its end.

    Every placement of the spans is equally likely; a segment begins with kept
    tokens and ends with a span, as in T5.

    Args:
      segment: 2 to `segment_length` int32 ids.
      rng: Generator that draws the positions.
      vocabulary: Vocabulary that provides the sentinels.

    >>> from figs_jax.data.vocabulary import byte_vocabulary
    >>> vocabulary, rng = byte_vocabulary(), np.random.default_rng(0)
    >>> corruption = SpanCorruption(20)
    >>> text = vocabulary.encode("The cat sat on the")
    >>> for ids in corruption(text, rng, vocabulary):
    ...   print(vocabulary.decode(ids))
    The cat sat on <extra_id_0>
    <extra_id_0>the
    """
    noise, spans = self.counts(len(segment))
    kept = _parts(len(segment) - noise, spans, rng)
    taken = _parts(noise, spans, rng)
    inputs, targets, at = [], [], 0
    for i in range(spans):
      mark = [vocabulary.sentinel(i)]
      middle, end = at + kept[i], at + kept[i] + taken[i]
      inputs += [segment[at:middle], mark]
      targets += [mark, segment[middle:end]]
      at = end
    last = [EOS]
    return (
      np.concatenate([*inputs, last]).astype(np.int32),
      np.concatenate([*targets, last]).astype(np.int32),
    )


def _parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
  """`count` positive integers of a given sum, all choices equally likely."""
  cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)
