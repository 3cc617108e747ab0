"""Splits documents into segments of one length.

A split that fits into memory is encoded once: its documents, each with its end
token, are concatenated and cut into segments. A larger split stays on disk:
example i is a random part of document i if that is long, or document i and the
documents that follow it if it is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from figs_jax.data.sources import as_text
from figs_jax.data.vocabulary import EOS

Encode = Callable[[str], np.ndarray]
_MOST_DOCUMENTS = 2**14
_MOST_BYTES = 2**26


class Segments(Sequence):
  """A sequence of segments of int32 ids.

  Attributes:
    cached: Whether all segments are in memory.
  """

  def __init__(self, length: int, cached: bool):
    self.length, self.cached = length, cached


class PackedSegments(Segments):
  """Segments cut from one long array.

  Args:
    ids: Ids of all documents, int32, each document with its end token.
    length: Length of a segment.
    whole: Whether to keep a shorter last segment (of at least two ids).

  >>> [x.tolist() for x in PackedSegments(np.arange(8), 3, whole=True)]
  [[0, 1, 2], [3, 4, 5], [6, 7]]
  >>> len(PackedSegments(np.arange(8), 3, whole=False))
  2
  """

  def __init__(self, ids: np.ndarray, length: int, *, whole: bool):
    super().__init__(length, cached=True)
    full, rest = divmod(len(ids), length)
    # A split without a full segment keeps its short one.
    keeps_rest = rest >= 2 and (whole or not full)
    self._ids, self._count = ids, full + keeps_rest

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < self._count:
      raise IndexError(index)
    return self._ids[index * self.length : (index + 1) * self.length]


class Documents(Segments):
  """One whole document per example, with its end token; for packing.

  Args:
    source, length, encode, end: Same as for `segments_of`.
  """

  def __init__(
    self, source: Sequence[Any], length: int, encode: Encode, end: int = EOS
  ):
    super().__init__(length, cached=False)
    self._source, self._encode, self._end = source, encode, end

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    return _ended(self._source[index], self._encode, self._end)


class StreamedSegments(Documents):
  """One example per document, read on access.

  A long document is returned whole; training draws a part of it.
  """

  def __getitem__(self, index: Any) -> Any:
    parts = [super().__getitem__(index)]
    total = len(parts[0])
    if total >= self.length:
      return parts[0]
    for step in range(1, len(self._source)):
      following = (index + step) % len(self._source)
      parts.append(super().__getitem__(following))
      total += len(parts[-1])
      if total >= self.length:
        break
    return np.concatenate(parts)[: self.length]


def document_segments(
  source: Sequence[Any],
  length: int,
  encode: Encode,
  *,
  whole: bool,
  end: int = EOS,
) -> Documents:
  """One example per document: all of it, or a segment that begins with it.

  Args:
    source, length, encode, end: Same as for `segments_of`.
    whole: Whether a document is an example by itself, even if it is short.

  >>> source = [{"text": "a"}, {"text": "bc"}]
  >>> encode = lambda text: np.array([ord(x) for x in text], np.int32)
  >>> for whole in (True, False):
  ...   examples = document_segments(source, 4, encode, whole=whole)
  ...   print([x.tolist() for x in examples])
  [[97, 1], [98, 99, 1]]
  [[97, 1, 98, 99], [98, 99, 1, 97]]
  """
  kind = Documents if whole else StreamedSegments
  return kind(source, length, encode, end)


def segments_of(
  source: Sequence[Any],
  length: int,
  encode: Encode,
  *,
  whole: bool,
  end: int = EOS,
  most_documents: int = _MOST_DOCUMENTS,
  most_bytes: int = _MOST_BYTES,
) -> Segments:
  """Splits the `text` of all examples into segments.

  Args:
    source: Examples with a `text` field.
    length: Length of a segment.
    encode: Function from a text to its ids.
    whole: Whether to keep a shorter last segment, for evaluation.
    end: Id after each document.
    most_documents: Largest number of documents that is held in memory.
    most_bytes: Largest size of the texts that is held in memory, in bytes.

  Returns:
    A sequence of ids, int32 [n]: all of the length, but for a last one that is
    kept, and for long documents of a split that does not fit into memory.

  >>> source = [{"text": "a"}, {"text": "bc"}]
  >>> encode = lambda text: np.array([ord(x) for x in text], np.int32)
  >>> [x.tolist() for x in segments_of(source, 3, encode, whole=True)]
  [[97, 1, 98], [99, 1]]
  """
  streamed = StreamedSegments(source, length, encode, end)
  if len(source) > most_documents:
    return streamed
  parts, left = [], most_bytes
  for i in range(len(source)):
    left -= len(source[i]["text"])
    if left < 0:
      return streamed
    parts.append(_ended(source[i], encode, end))
  return PackedSegments(np.concatenate(parts), length, whole=whole)


def _ended(example: Any, encode: Encode, end: int) -> np.ndarray:
  ids = encode(as_text(example["text"]))
  return np.append(ids, np.int32(end))
