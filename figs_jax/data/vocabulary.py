"""Vocabularies of bytes or sentencepiece pieces.

Ids follow T5: 0 is padding, 1 the end, 2 unknown, then the pieces, then the
sentinels of span corruption, of which the first has the last id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from figs_jax.data.wordpiece import WordPiece

PAD, EOS, UNK = 0, 1, 2
_SPECIAL = 3
# With 256 bytes and 3 special ids this makes 384, as in ByT5.
_BYTE_SENTINELS = 125
_PIECE_SENTINELS = 100  # as in T5
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's sign for a space


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Byte b of the UTF-8 text is id b + 3 (Xue et al., arXiv 2105.13626).

  >>> Bytes().encode("né").tolist(), Bytes().decode([113, 198, 172])
  ([113, 198, 172], 'né')
  """

  size: int = _SPECIAL + 256

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    raw = np.frombuffer(text.encode(), np.uint8)
    return raw.astype(np.int32) + _SPECIAL

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; invalid UTF-8 becomes "\\ufffd"."""
    raw = bytes(i - _SPECIAL for i in ids if i >= _SPECIAL)
    return raw.decode(errors="replace")

  def byte_lengths(self) -> np.ndarray:
    """Number of raw text bytes of each id, int32 [size]."""
    return np.repeat(np.array([0, 1], np.int32), [_SPECIAL, 256])


class SentencePiece:
  """A sentencepiece model whose ids 0, 1, 2 are pad, end, unknown.

  Args:
    proto: Contents of a `.model` file.

  Raises:
    ValueError: If sentencepiece is not installed, `proto` is not a valid model,
      or the model has other special ids.
  """

  def __init__(self, proto: bytes):
    self._processor = _sentencepiece().SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(proto)
    except (RuntimeError, OSError) as error:
      raise ValueError("not a sentencepiece model") from error
    processor = self._processor
    special = processor.pad_id(), processor.eos_id(), processor.unk_id()
    if special != (PAD, EOS, UNK):
      raise ValueError(
        f"expected pad, end and unknown ids (0, 1, 2), got {special}; train it"
        " with pad_id=0, eos_id=1, unk_id=2, as for T5"
      )
    self.size: int = processor.GetPieceSize()

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32."""
    return np.array(self._processor.Encode(text), np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids."""
    return self._processor.Decode([int(i) for i in ids])

  def byte_lengths(self) -> np.ndarray:
    """Number of raw text bytes of each id, int32 [size]."""
    processor, lengths = self._processor, np.zeros(self.size, np.int32)
    for i in range(_SPECIAL, self.size):
      if processor.IsByte(i):
        lengths[i] = 1
      elif not processor.IsControl(i):
        piece = processor.IdToPiece(i).replace(_SPACE, " ")
        lengths[i] = len(piece.encode())
    return lengths


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """A codec and the sentinels that follow its ids.

  Attributes:
    codec: `Bytes()`, a `SentencePiece`, or the `WordPiece` of a BERT, which has
      ids of its own for unknown words and ends.
    sentinels: Number of ids that stand for replaced spans.

  >>> vocabulary = Vocabulary(Bytes(), sentinels=2)
  >>> vocabulary.encode("né").tolist(), vocabulary.size
  ([113, 198, 172], 261)
  >>> vocabulary.decode([113, 198, 172, vocabulary.sentinel(0), 1, 113])
  'né<extra_id_0>'
  """

  codec: Bytes | SentencePiece | WordPiece
  sentinels: int

  @property
  def size(self) -> int:
    """Number of ids, which are 0..size-1."""
    return self.codec.size + self.sentinels

  def sentinel(self, index: int) -> int:
    """The id of a sentinel; sentinel 0 has the last id, 1 the one before.

    Args:
      index: Index of the sentinel.

    Raises:
      ValueError: If there are fewer sentinels.
    """
    if not 0 <= index < self.sentinels:
      raise ValueError(
        f"Expected a sentinel below {self.sentinels}, got {index}; shorten the"
        " inputs or lengthen the spans"
      )
    return self.size - 1 - index

  def encode(self, text: str) -> np.ndarray:
    """Encodes a text as int32 ids, without an end token."""
    return self.codec.encode(text)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Decodes ids up to the first end token, skipping padding.

    Sentinels become "<extra_id_0>" etc., invalid UTF-8 becomes "\\ufffd".
    """
    parts: list[str] = []
    run: list[int] = []
    for number in [*(int(i) for i in ids), EOS]:
      is_piece = UNK <= number < self.codec.size
      if is_piece:
        run.append(number)
        continue
      if run:
        parts.append(self.codec.decode(run))
        run = []
      if number == EOS:
        break
      if self.codec.size <= number < self.size:
        parts.append(f"<extra_id_{self.size - 1 - number}>")
    return "".join(parts)

  def byte_lengths(self) -> np.ndarray:
    """Number of raw text bytes of each id, int32 [size]; 0 for special ids.

    Raises:
      TypeError: If the vocabulary is a `WordPiece`.

    >>> lengths = Vocabulary(Bytes(), sentinels=2).byte_lengths()
    >>> lengths[[0, 1, 113, 260]].tolist()
    [0, 0, 1, 0]
    """
    if isinstance(self.codec, WordPiece):
      raise TypeError("the pieces of a BERT do not keep spaces and case")
    tail = np.zeros(self.sentinels, np.int32)
    return np.concatenate([self.codec.byte_lengths(), tail])


def byte_vocabulary() -> Vocabulary:
  """Bytes with 125 sentinels: 384 ids.

  >>> byte_vocabulary().size, byte_vocabulary().sentinel(0)
  (384, 383)
  """
  return Vocabulary(Bytes(), _BYTE_SENTINELS)


def piece_vocabulary(path: str) -> Vocabulary:
  """Reads a sentencepiece model from a file and adds T5's 100 sentinels.

  Args:
    path: Path of the `.model` file.

  Raises:
    ValueError: If the file cannot be read or as in `SentencePiece`.
  """
  try:
    with open(path, "rb") as file:
      return Vocabulary(SentencePiece(file.read()), _PIECE_SENTINELS)
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise ValueError(
      f"vocabulary {path!r}: {reason}; expected 'bytes', 'sentencepiece:SIZE'"
      " or the path of a sentencepiece model"
    ) from error


def train_pieces(texts: Iterable[str], size: int, path: str) -> None:
  """Trains a unigram sentencepiece model unless its file exists.

  Text is not normalized and unknown characters fall back to bytes, so that
  decoding restores the text (except U+2581, sentencepiece's sign for a space,
  which becomes a space).

  Args:
    texts: Texts of the training split.
    size: Number of pieces, including special ids.
    path: Path of the `.model` file, which is written atomically.

  Raises:
    ValueError: If sentencepiece is not installed or cannot learn that many
      pieces.

  >>> with tempfile.TemporaryDirectory() as folder:
  ...   train_pieces(["to be", "or not to be"], 267, f"{folder}/a.model")
  ...   vocabulary = piece_vocabulary(f"{folder}/a.model")
  >>> vocabulary.size, vocabulary.decode(vocabulary.encode("not to be"))
  (367, 'not to be')
  """
  if os.path.exists(path):
    return
  trainer, proto = _sentencepiece().SentencePieceTrainer, io.BytesIO()
  try:
    trainer.Train(
      sentence_iterator=(line for text in texts for line in text.split("\n")),
      model_writer=proto,
      vocab_size=size,
      model_type="unigram",
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNK,
      bos_id=-1,
      byte_fallback=True,
      user_defined_symbols=["\n"],
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      character_coverage=1.0,
      max_sentence_length=2**16,
      num_threads=1,  # the same model every time
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = re.sub(r"^.*?\] *", "", str(error).strip().splitlines()[-1])
    raise ValueError(
      f"a sentencepiece vocabulary of {size}: {reason}"
    ) from error
  folder = os.path.dirname(path)
  os.makedirs(folder, exist_ok=True)
  handle, part = tempfile.mkstemp(prefix=".incomplete.", dir=folder)
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(proto.getvalue())
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(part)


def _sentencepiece() -> Any:
  try:
    import sentencepiece
  except ImportError as error:
    raise ValueError(
      "sentencepiece is not installed: run pip install 'figs_jax[text]', or use"
      " the vocabulary 'bytes'"
    ) from error
  return sentencepiece
