"""Files of a sweep's columns, written chunk by chunk."""

from __future__ import annotations

import contextlib
import csv
import itertools
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


@contextlib.contextmanager
def write_csv(path: pathlib.Path, names: Sequence[str]) -> Iterator[Any]:
  """A function that appends columns to a table."""
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names)
    yield lambda columns: writer.writerows(
      zip(*(columns[name].tolist() for name in names))
    )


@contextlib.contextmanager
def write_npz(path: pathlib.Path, names: Sequence[str]) -> Iterator[Any]:
  """A function that adds columns to an archive, as arrays "name.chunk"."""
  chunk = itertools.count()
  with zipfile.ZipFile(path, "w") as archive:

    def put(columns):
      index = next(chunk)
      for name in names:
        with archive.open(f"{name}.{index}.npy", "w") as member:
          np.lib.format.write_array(member, columns[name])

    yield put
