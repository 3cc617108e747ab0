"""Attention and positions within the segments of packed rows.

A row of tokens holds several sequences one after the other; segment ids, from
1, say which one a token belongs to, and 0 is padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Int


def same_segment(
  queries: Int[Array, "batch queries"], keys: Int[Array, "batch keys"]
) -> Bool[Array, "batch queries keys"]:
  """Whether a query may attend to a key, one of its own segment.

  Args:
    queries: Segment of each query.
    keys: Segment of each key; nothing attends to padding.

  >>> segments = jnp.array([[1, 1, 2, 0]])
  >>> same_segment(segments, segments).astype(int).tolist()
  [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]]
  """
  return (queries[:, :, None] == keys[:, None]) & (keys > 0)[:, None]


def segment_positions(
  segments: Int[Array, "batch tokens"],
) -> Int[Array, "batch tokens"]:
  """The position of each token in its segment, from 0.

  >>> segment_positions(jnp.array([[1, 1, 2, 2, 2, 0]])).tolist()
  [[0, 1, 0, 1, 2, 0]]
  """
  index = jnp.arange(segments.shape[1])[None]
  before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  first = jnp.where(segments != before, index, 0)
  return index - jax.lax.cummax(first, axis=1)
