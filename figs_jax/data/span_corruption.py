"""Span corruption, T5's pre-training task (Raffel et al., arXiv 1910.10683).

Random spans of a segment are taken out; a sentinel stands in each one's place.
The targets are the sentinels, each followed by its span:

  segment  The cat sat on the mat .
  inputs   The <0> sat on <1> . <end>
  targets  <0> cat <1> the mat <end>

Number and total length of the spans follow from the segment's length alone, so
that all shapes are static; only the places are drawn.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from figs_jax.data.vocabulary import EOS, Vocabulary


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """How much is taken out, of segments as long as fits into the inputs.

  Attributes:
    input_length: tokens of a corrupted segment, sentinels and end included.
    density: share of a segment's tokens that is taken out.
    mean_span: tokens per span, on average.

  Raises:
    ValueError: a value out of its range.

  >>> corruption = SpanCorruption(512)  # of T5's own configuration
  >>> corruption.segment_length, corruption.target_length
  (568, 114)
  """

  input_length: int
  density: float = 0.15
  mean_span: float = 3.0

  def __post_init__(self):
    if not 0 < self.density < 1:
      raise ValueError(f"noise density {self.density}: must be in (0, 1)")
    if self.mean_span < 1:
      raise ValueError(f"mean span {self.mean_span}: must be at least 1")
    if self.input_length < 3:
      raise ValueError(
        f"input length {self.input_length}: at least 3, for a token, a"
        " sentinel and the end"
      )

  def counts(self, length: int) -> tuple[int, int]:
    """(tokens taken out, spans) of a segment of at least 2 tokens.

    >>> SpanCorruption(512).counts(100)
    (15, 5)
    """
    noise = min(max(round(length * self.density), 1), length - 1)
    spans = max(round(noise / self.mean_span), 1)
    return noise, min(spans, length - noise)

  @functools.cached_property
  def segment_length(self) -> int:
    """Tokens of the longest segment whose inputs fit."""
    length = 2
    while self._corrupted(length + 1) <= self.input_length:
      length += 1
    return length

  @functools.cached_property
  def target_length(self) -> int:
    """Tokens of the targets of a whole segment, the end included."""
    return sum(self.counts(self.segment_length)) + 1

  @functools.cached_property
  def spans(self) -> int:
    """Spans of a whole segment; so many sentinels are needed."""
    return self.counts(self.segment_length)[1]

  def _corrupted(self, length: int) -> int:
    noise, spans = self.counts(length)
    return length - noise + spans + 1

  def __call__(
    self, segment: np.ndarray, rng: np.random.Generator, vocabulary: Vocabulary
  ) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of a segment, int32, each with its end, unpadded.

    Every way of placing the spans is equally likely; a segment begins with
    what stays and ends with a span, as in T5.

    Args:
      segment: int32 ids, 2 to `segment_length` of them.
      rng: draws the places.
      vocabulary: for the sentinels.

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
