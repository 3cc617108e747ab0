"""Corrupted inputs and targets hold the segment, whole and in order."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.data.span_corruption import SpanCorruption
from figs_jax.data.vocabulary import EOS, byte_vocabulary

VOCABULARY = byte_vocabulary()
CORRUPTIONS = st.builds(
  SpanCorruption,
  st.integers(3, 300),
  st.floats(0.02, 0.8),
  st.floats(1.0, 12.0),
).filter(lambda corruption: corruption.spans <= VOCABULARY.sentinels)


def restored(inputs, targets):
  """The segment, from the definition: spans go back where they were."""
  assert inputs[-1] == targets[-1] == EOS
  first = VOCABULARY.codec.size
  spans, current = {}, None
  for token in targets[:-1].tolist():
    if token >= first:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  segment = []
  for token in inputs[:-1].tolist():
    segment += spans.pop(token) if token >= first else [token]
  assert not spans
  return segment


@settings(deadline=None, max_examples=200)
@given(CORRUPTIONS, st.data())
def test_nothing_is_lost(corruption, data):
  length = data.draw(st.integers(2, corruption.segment_length))
  seed = data.draw(st.integers(0, 2**32))
  rng = np.random.default_rng(seed)
  # Ends inside a segment, between documents, are tokens like any other.
  segment = rng.integers(1, 259, length).astype(np.int32)
  inputs, targets = corruption(segment, rng, VOCABULARY)
  assert inputs.dtype == targets.dtype == np.int32
  assert restored(inputs, targets) == segment.tolist()
  noise, spans = corruption.counts(length)
  assert len(inputs) == length - noise + spans + 1 <= corruption.input_length
  assert len(targets) == noise + spans + 1 <= corruption.target_length
  marks = [VOCABULARY.sentinel(i) for i in range(spans)]
  assert [t for t in inputs if t >= 259] == marks
  assert [t for t in targets if t >= 259] == marks


@settings(deadline=None)
@given(CORRUPTIONS)
def test_segments_are_as_long_as_fits(corruption):
  rng = np.random.default_rng(0)
  lengths = []
  for extra in (0, 1):
    segment = np.full(corruption.segment_length + extra, 9, np.int32)
    inputs, targets = corruption(segment, rng, VOCABULARY)
    lengths.append(len(inputs))
    if not extra:
      assert len(targets) == corruption.target_length
  assert lengths[0] <= corruption.input_length < lengths[1]


@pytest.mark.parametrize("length", [16, 64, 100, 128, 255, 256])
def test_usual_segments_fill_the_inputs(length):
  corruption = SpanCorruption(length)
  segment = np.full(corruption.segment_length, 9, np.int32)
  inputs, _ = corruption(segment, np.random.default_rng(0), VOCABULARY)
  assert len(inputs) == length


# 512 -> 568, 114 is what T5's pre-training uses; 256 by hand: of 284 tokens
# round(42.6) = 43 in round(14.3) = 14 spans, 241 + 14 + 1 and 43 + 14 + 1.
@pytest.mark.parametrize(
  ("inputs", "segment", "targets"), [(512, 568, 114), (256, 284, 58)]
)
def test_the_lengths_of_t5(inputs, segment, targets):
  corruption = SpanCorruption(inputs)
  assert corruption.segment_length == segment
  assert corruption.target_length == targets


def test_every_placement_is_equally_likely():
  # 4 of 7 stay and 3 go in 2 spans: 3 ways to split the 4, 2 to split the 3.
  corruption = SpanCorruption(20, density=3 / 7, mean_span=1.5)
  assert corruption.counts(7) == (3, 2)
  rng, seen = np.random.default_rng(0), collections.Counter()
  segment = np.arange(10, 17, dtype=np.int32)
  draws = 3000
  for _ in range(draws):
    inputs, _ = corruption(segment, rng, VOCABULARY)
    seen[tuple(inputs)] += 1
  assert len(seen) == 6
  # Six standard deviations of a count.
  spread = 6 * (draws * 1 / 6 * 5 / 6) ** 0.5
  assert all(abs(count - draws / 6) < spread for count in seen.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"input_length": 2}, "input length of 3 or more.*got 2"),
    ({"input_length": 9, "density": 1.0}, r"density in \(0, 1\), got 1.0"),
    ({"input_length": 9, "mean_span": 0.5}, "mean span of 1 or more, got 0.5"),
  ],
)
def test_bad_values_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    SpanCorruption(**options)
