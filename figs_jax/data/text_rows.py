"""Rows of text of one's own, checked, and split into training and test."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.data.opened import held_out

# Rows with their places, for errors.
Rows = Iterable[tuple[str, Mapping[str, Any]]]


class Columns(NamedTuple):
  """The columns that are read.

  `other` has labels, targets or scores, or is "" for nothing.
  """

  text: str
  other: str
  is_label: bool
  is_score: bool = False


def in_splits(
  where: str, tables: Mapping[str, Rows], columns: Columns, fix: str
) -> tuple[list[str], dict[str, list[tuple[str, Any]]]]:
  """The names of the labels, and pairs of texts by split.

  Args:
    where: Place of all of them, for errors.
    tables: Rows of each split, "train" first. Without others, every fifth
      example of a label is held out as "test".
    columns: The columns that are read.
    fix: How to give a test part, for errors.

  Raises:
    ValueError: If a row is wrong, or a label of another split is not in train.
  """
  names: list[str] = []
  splits = {}
  for split, rows in tables.items():
    pairs = list(_pairs(rows, columns, names if split != "train" else None))
    if not pairs:
      raise ValueError(f"{where}: expected rows in {split}, got none")
    if split == "train" and columns.is_label:
      names = _in_order({label for _, label in pairs})
      if len(names) < 2:
        raise ValueError(
          f"{where}: expected two or more labels in column {columns.other}, got"
          f" only {names[0]!r}"
        )
    splits[split] = pairs
  if len(splits) == 1:
    pairs = splits["train"]
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index.get(other, 0) for _, other in pairs])
    test = held_out(where, labels, fix)
    for split, chosen in (("train", ~test), ("test", test)):
      splits[split] = [pairs[i] for i in np.flatnonzero(chosen)]
  return names, splits


def _pairs(
  rows: Rows, columns: Columns, names: Sequence[str] | None
) -> Iterator[tuple[str, Any]]:
  """Each text with its label, target or score; labels must be in names."""
  for where, row in rows:
    for name in columns[:2]:
      if name and name not in row:
        raise ValueError(
          f"{where}: expected a column {name}, got {', '.join(row) or 'none'}"
        )
    text = _text(f"{where}: {columns.text}", row[columns.text])
    if not columns.other:
      yield text, ""
      continue
    place = f"{where}: {columns.other}"
    if columns.is_score:
      yield text, _score(place, row[columns.other])
      continue
    if not columns.is_label:
      yield text, _text(place, row[columns.other])
      continue
    label = _label(place, row[columns.other])
    if names is not None and label not in names:
      raise ValueError(
        f"{place}: expected a label of train ({', '.join(names[:8])}"
        f"{', ...' * (len(names) > 8)}), got {label}"
      )
    yield text, label


def _text(where: str, value: Any) -> str:
  if not isinstance(value, str) or not value.strip():
    got = "an empty one" if isinstance(value, str) else repr(value)[:40]
    raise ValueError(f"{where}: expected text, got {got}")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{where}: expected text, got half a character") from error
  return value


def _score(where: str, value: Any) -> float:
  """A finite number, which may be written as text.

  >>> _score("row 0", " 2.5 "), _score("row 0", -1)
  (2.5, -1.0)
  """
  try:
    score = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    score = math.nan
  if not math.isfinite(score):
    raise ValueError(
      f"{where}: expected a finite number as the score, got {repr(value)[:40]}"
    )
  return score


def _label(where: str, value: Any) -> str:
  """A label as a word, without spaces around it.

  >>> _label("row 0", True), _label("row 0", 7), _label("row 0", " so  so ")
  ('true', '7', 'so so')
  """
  if isinstance(value, bool):
    return str(value).lower()
  word = str(value) if isinstance(value, int) else value
  if isinstance(word, str):
    word = " ".join(word.split())
  if not word or not isinstance(word, str) or re.fullmatch(r"-\d+", word):
    raise ValueError(
      f"{where}: expected a label, a word or an integer of 0 or more, got"
      f" {repr(value)[:40]}"
    )
  return _text(where, word)


def _in_order(labels: Iterable[str]) -> list[str]:
  """Labels sorted as numbers if all are, and else as words.

  >>> _in_order({"10", "2"}), _in_order({"10", "2", "x"})
  (['2', '10'], ['10', '2', 'x'])
  """
  words = sorted(labels)
  numbers = all(re.fullmatch("[0-9]+", word) for word in words)
  return sorted(words, key=int) if numbers else words
