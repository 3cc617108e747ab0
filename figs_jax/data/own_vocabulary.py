"""The vocabulary of a text data set: bytes, a file, or pieces of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from figs_jax.data import sources, text_to_text
from figs_jax.data.python_data import Builder
from figs_jax.data.vocabulary import (
  Vocabulary,
  byte_vocabulary,
  piece_vocabulary,
  train_pieces,
)
from figs_jax.data.wordpiece import read_wordpiece

# Enough to learn the pieces of a language; more only takes longer.
_TRAIN_BYTES = 10 * 2**20


def vocabulary_of(
  name: str,
  builders: Sequence[Builder],
  root: str,
  *,
  wordpiece: bool = False,
) -> Vocabulary:
  """Opens a vocabulary by name; trains it on first use.

  Args:
    name: "bytes", "sentencepiece:SIZE", "wordpiece:FILE", or the path of a
      sentencepiece model.
    builders: Data sets whose training splits the pieces are learned from.
    root: Directory that keeps trained models, below sentencepiece/.
    wordpiece: Whether a WordPiece vocabulary, with the special ids of BERT, is
      allowed.

  Raises:
    ValueError: If the name has another form or the model cannot be read.

  >>> vocabulary_of("bytes", (), "").encode("so").tolist()
  [118, 114]
  """
  if name == "bytes":
    return byte_vocabulary()
  kind, _, size = name.partition(":")
  if kind == "wordpiece" and not wordpiece:
    raise ValueError(
      f"vocabulary {name!r}: expected 'bytes' or a sentencepiece vocabulary,"
      " since this family's ids are those of T5; WordPiece is for the family"
      " bert"
    )
  if kind == "wordpiece":
    return Vocabulary(read_wordpiece(size), sentinels=0)
  if kind != "sentencepiece":
    return piece_vocabulary(name)
  if not (size.isdecimal() and 0 < len(size) < 8):
    raise ValueError(
      f"Unknown vocabulary {name!r}: expected 'bytes', 'sentencepiece:SIZE' as"
      " in 'sentencepiece:1024', or the path of a sentencepiece model"
    )
  path = path_of_pieces(size, builders[0], root)
  if not os.path.exists(path):
    train_pieces(_train_texts(builders), int(size), path)
  return piece_vocabulary(path)


def path_of_pieces(size: str, builder: Builder, root: str) -> str:
  """Path of the model that is trained for "sentencepiece:SIZE".

  Args:
    size: Number of pieces, in decimal.
    builder: First data set that the pieces are learned from.
    root: Directory that keeps trained models.

  >>> from figs_jax.data.python_data import PythonData
  >>> rows = [{"text": "so", "target": "no"}]
  >>> path_of_pieces("1024", PythonData((rows, rows)), "data")
  'data/sentencepiece/python_..._1024.model'
  """
  parts = [builder.name, *_parts_of(builder), size]
  return os.path.join(root, "sentencepiece", "_".join(parts) + ".model")


def _parts_of(builder: Builder) -> list[str]:
  config = builder.builder_config
  name = [config.name.replace("/", "_")] if config else []
  return [*name, str(builder.version)]


def _train_texts(
  builders: Sequence[Builder],
) -> Iterator[str]:
  """Texts from the start of each training split, in equal shares."""
  for builder in builders:
    left = _TRAIN_BYTES // len(builders)
    source = sources.source_of(builder, "train")
    read = text_to_text.reader(builder)
    for i in range(len(source)):
      if left <= 0:
        break
      example = source[i]
      texts = read(example) if read else (sources.as_text(example["text"]),)
      yield from texts
      left -= sum(map(len, texts))
