"""What the readers of one's own data have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from figs_jax.data import digits


@dataclasses.dataclass(frozen=True)
class Options:
  """How data of one's own are read.

  Attributes:
    mixed_sizes: Whether the images of a folder may differ in size.
    text_column: Column of the text of a table. Defaults to that of a usual
      name, and so do the others.
    label_column: Column of labels.
    target_column: Column of target texts.
    others: Whether a column of labels or targets beside the text is "required",
      "optional" or "ignored", or one of "scores" is required.
    stream: Whether training reads files of text in order, without an index.
  """

  mixed_sizes: bool = False
  text_column: str | None = None
  label_column: str | None = None
  target_column: str | None = None
  others: str = "required"
  stream: bool = False

  @classmethod
  def of(cls, fields: Any) -> Options:
    """The options among fields, a mapping such as `config.data`.

    >>> Options.of({"mixed_sizes": True, "name": "folder:cats"}).mixed_sizes
    True
    """
    names = [field.name for field in dataclasses.fields(cls)]
    own = cls(**{name: fields[name] for name in names if name in fields})
    if "objective" in fields:
      return own.for_objective(fields["objective"])
    return own

  def for_objective(self, objective: str) -> Options:
    """The options that read what an objective of `data.masked_text` needs.

    >>> DEFAULTS.for_objective("masked").others
    'ignored'
    """
    others = {"masked": "ignored", "scores": "scores"}.get(
      objective, "optional"
    )
    return dataclasses.replace(self, others=others)


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Opened:
  """A file or directory whose structure has been checked.

  Attributes:
    path: Its path.
    digest: SHA-256 of its content, in hexadecimal.
    features: Features of an example, of tfds, by name.
    examples: Function that returns the examples of each split.
    check: Function that raises ValueError if an example cannot be read.
  """

  path: Path
  digest: str
  features: Mapping[str, Any]
  examples: Callable[[], Mapping[str, Iterable[dict[str, Any]]]]
  check: Callable[[], None] = lambda: None


def digest_of(path: Path) -> str:
  """SHA-256 of a file, in hexadecimal.

  Args:
    path: File.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   digest_of(Path(file.name))[:12]  # of no bytes
  'e3b0c44298fc'
  """
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_all(
  root: Path, files: Iterable[Path], others: Iterable[Any] = ()
) -> str:
  """SHA-256 of the places and content of files, and of other values.

  Args:
    root: Directory, or the only file.
    files: Files below it.
    others: Values that decide what is read.
  """
  digest = hashlib.sha256(repr(tuple(others)).encode())
  for file in files:
    place = os.fsencode(file.relative_to(root) if file != root else "")
    digest.update(place + b"\0" + digest_of(file).encode())
  return digest.hexdigest()


def held_out(where: str, labels: np.ndarray, fix: str) -> np.ndarray:
  """True for every fifth example of a class, the test part.

  Args:
    where: Place of the labels, for the error.
    labels: Class of each example, from 0, int [n].
    fix: What to add instead, for the error.

  Raises:
    ValueError: If no class has five examples.

  >>> held_out("a.csv", np.array([0, 1, 0, 0, 0, 0]), "a split").tolist()
  [False, False, False, False, False, True]
  """
  test = digits.is_test(labels)
  if not test.any():
    raise ValueError(
      f"{where}: expected a class with at least 5 examples, of which the fifth"
      f" is for testing, got {np.bincount(labels).max()}; add {fix}"
    )
  return test
