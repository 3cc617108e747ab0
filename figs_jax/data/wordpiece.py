"""The WordPiece tokenization of BERT (google-research/bert, `tokenization.py`).

Text is cleaned, split at spaces and around punctuation and CJK characters, and
in uncased vocabularies lowered without accents. Each word is then cut into the
longest pieces of the vocabulary from its left; pieces that go on a word begin
with "##".

The names of special tokens are ordinary text: "[MASK]" in a text is five words,
so that no text can pretend to be one. `tokenizers` reads it as the mask.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PAD = "[PAD]"
_SPECIAL = (_PAD, "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST = 100  # letters of a word; longer ones are unknown
_WORDS = 2**16  # words whose pieces are kept
# Blocks of CJK ideographs, first and last character.
_CJK = (
  (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
  """A WordPiece vocabulary.

  Args:
    pieces: Pieces in the order of their ids; [PAD] is the first.
    lower: Whether to lower text and to strip its accents.

  Attributes:
    size: Number of ids.
    cls: Id of [CLS], which begins a sequence.
    sep: Id of [SEP], which ends each text.
    mask: Id of [MASK].
    unk: Id of [UNK].

  Raises:
    ValueError: If a special token is missing or [PAD] is not the first piece.

  >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able"]
  >>> vocabulary = WordPiece(pieces)
  >>> vocabulary.encode("Unable, ünable").tolist()
  [5, 6, 1, 5, 6]
  >>> vocabulary.decode([2, 5, 6, 3, 0])
  'unable'
  """

  def __init__(self, pieces: Sequence[str], *, lower: bool = True):
    self._pieces = tuple(pieces)
    # The last of equal pieces counts, as in the reference code.
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    for name in _SPECIAL:
      if name not in self._ids:
        raise ValueError(f"expected the piece {name}, got none")
    if self._ids[_PAD]:
      raise ValueError(f"expected {_PAD} as id 0, got {self._ids[_PAD]}")
    self.lower, self.size = lower, len(self._pieces)
    self.unk, self.cls, self.sep, self.mask = (
      self._ids[name] for name in _SPECIAL[1:]
    )
    self._cut = functools.lru_cache(_WORDS)(self._pieces_of)

  def __reduce__(self) -> Any:  # without the cache
    make = functools.partial(WordPiece, lower=self.lower)
    return make, (self._pieces,)

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32, without special tokens."""
    ids = [i for word in words(text, lower=self.lower) for i in self._cut(word)]
    return np.array(ids, np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    """The words of ids, without padding, [CLS] and [SEP]."""
    left_out = {0, self.cls, self.sep}
    pieces = [self._pieces[i] for i in ids if i not in left_out]
    return " ".join(pieces).replace(" ##", "")

  def ordinary(self) -> np.ndarray:
    """The ids of all pieces but special tokens, int32."""
    special = [self._ids[name] for name in _SPECIAL]
    return np.setdiff1d(np.arange(self.size, dtype=np.int32), special)

  def _pieces_of(self, word: str) -> list[int]:
    """Ids of the longest pieces from the left, or [UNK] for the whole word."""
    if len(word) > _LONGEST:
      return [self.unk]
    ids, start = [], 0
    while start < len(word):
      prefix = "##" if start else ""
      for end in range(len(word), start, -1):
        piece = self._ids.get(prefix + word[start:end])
        if piece is not None:
          break
      else:
        return [self.unk]
      ids.append(piece)
      start = end
    return ids


def words(text: str, *, lower: bool = True) -> list[str]:
  """Splits a text at spaces and around punctuation and CJK characters.

  Args:
    text: Any text.
    lower: Whether to lower it and to strip its accents.

  >>> words("Größe: 3,5 km²")
  ['große', ':', '3', ',', '5', 'km²']
  """
  kept = [c for c in text if not _is_dropped(c)]
  text = "".join(
    " " if c.isspace() else f" {c} " if _is_cjk(c) else c for c in kept
  )
  if lower:
    text = "".join(
      c for c in unicodedata.normalize("NFD", text)
      if unicodedata.category(c) != "Mn"
    )  # fmt: skip
    # By character, so that the last sigma of a word is as any other.
    text = "".join(c.lower() for c in text)
  return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def read_wordpiece(path: str | Path) -> WordPiece:
  """Reads vocab.txt, or the tokenizer.json of `tokenizers`.

  A vocab.txt is uncased unless tokenizer_config.json beside it says otherwise.

  Args:
    path: File that ends in .txt or .json.

  Raises:
    ValueError: If the file cannot be read or has another format.

  >>> import tempfile
  >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "##t"]
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = Path(folder) / "vocab.txt"
  ...   _ = file.write_text("\\n".join(pieces))
  ...   read_wordpiece(file).encode("Not so").tolist()
  [5, 6, 1]
  """
  path = Path(path)
  try:
    if path.suffix == ".json":
      return _of_json(json.loads(path.read_bytes()))
    if path.suffix != ".txt":
      raise ValueError("expected vocab.txt or tokenizer.json")
    pieces = path.read_text("utf-8").split("\n")
    pieces = [piece.rstrip("\r") for piece in pieces]
    lower, beside = True, path.parent / "tokenizer_config.json"
    if beside.is_file():
      fields = json.loads(beside.read_bytes())
      lower = fields.get("do_lower_case", True)
    return WordPiece(
      pieces[:-1] if pieces[-1:] == [""] else pieces, lower=lower
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise ValueError(
      f"vocabulary 'wordpiece:{path}': {reason}; give the vocab.txt or"
      " tokenizer.json of a BERT"
    ) from error


def _of_json(fields: Any) -> WordPiece:
  model, normalizer = fields["model"], fields["normalizer"]
  kinds = model.get("type", "WordPiece"), normalizer["type"]
  if kinds != ("WordPiece", "BertNormalizer"):
    raise ValueError(
      f"expected a WordPiece with a BertNormalizer, got {kinds[0]} with"
      f" {kinds[1]}"
    )
  lower, strip = normalizer["lowercase"], normalizer.get("strip_accents")
  plain = normalizer["clean_text"] and normalizer["handle_chinese_chars"]
  if not plain or strip not in (None, lower):
    raise ValueError(
      "expected clean_text and handle_chinese_chars, and strip_accents as"
      " lowercase, got other values"
    )
  vocab = model["vocab"]
  pieces = sorted(vocab, key=vocab.get)
  if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
    raise ValueError("expected each id from 0 once, got others")
  return WordPiece(pieces, lower=lower)


def _is_dropped(c: str) -> bool:
  """Control, format and private characters, and U+FFFD."""
  if c in "\t\n\r":
    return False
  # Unassigned ones stay, as in `tokenizers`; the reference code drops them.
  return c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")


def _is_cjk(c: str) -> bool:
  return c >= "\u3400" and any(first <= ord(c) <= last for first, last in _CJK)


def _is_punctuation(c: str) -> bool:
  if c.isascii():
    return c.isprintable() and not c.isalnum() and c != " "
  return unicodedata.category(c)[0] == "P"
