"""Data sets made from installed packages, prepared safely on first use.

Each caller builds in its own directory and renames the result into place, so
that a killed process leaves either nothing or a complete data set. If two
processes prepare at once, one wins and the other uses its result. A damaged or
incomplete copy is replaced, since it holds no data of the user's own.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator

import tensorflow_datasets as tfds

_Builder = type[tfds.core.GeneratorBasedBuilder]
_STALE_SECONDS = 3600.0


def prepare(kind: _Builder, data_dir: str) -> tfds.core.GeneratorBasedBuilder:
  """Prepares a data set below `data_dir` unless an intact copy exists.

  Args:
    kind: Class of the builder.
    data_dir: Local directory; created if it does not exist.

  Returns:
    The builder of the prepared data set.

  Raises:
    ValueError: If `data_dir` is a remote address.
    OSError: If the directory cannot be written.
  """
  if "://" in data_dir:
    raise ValueError(
      f"{kind.name}: data_dir {data_dir!r} is remote; {kind.name} is prepared"
      " on first use and needs a local directory"
    )
  if builder := sound(kind, data_dir):
    return builder
  prefix = f".incomplete.{kind.name}."
  _remove_stale(data_dir, prefix)
  os.makedirs(data_dir, exist_ok=True)
  scratch = tempfile.mkdtemp(prefix=prefix, dir=data_dir)
  try:
    fresh = kind(data_dir=scratch, file_format="array_record")
    with _silent():
      fresh.download_and_prepare()
    _move_into_place(kind, fresh.data_dir, data_dir, scratch)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  # Metadata is read at construction, so a new builder sees the new files.
  return kind(data_dir=data_dir)


def sound(
  kind: _Builder, data_dir: str
) -> tfds.core.GeneratorBasedBuilder | None:
  """The builder, if all records exist and pass array_record's checksums."""
  try:
    builder = kind(data_dir=data_dir)
    if not (builder.data_path.exists() and builder.is_prepared()):
      return None
    for split, info in builder.info.splits.items():
      raw = builder.as_data_source(split).data_source
      if len(raw.__getitems__(range(len(raw)))) != info.num_examples:
        return None
  except Exception:  # Whatever a damaged file raises, it is prepared again.
    return None
  return builder


def _move_into_place(
  kind: _Builder, source: str, data_dir: str, scratch: str
) -> None:
  target = os.path.join(data_dir, os.path.relpath(source, scratch))
  os.makedirs(os.path.dirname(target), exist_ok=True)
  for attempt in range(10):
    try:
      os.rename(source, target)  # Fails when a non-empty target is there.
      return
    except OSError:
      if sound(kind, data_dir):
        return
      # Somebody else may have moved the damaged copy first.
      with contextlib.suppress(FileNotFoundError):
        os.rename(target, os.path.join(scratch, f"damaged{attempt}"))
  raise OSError(
    f"{kind.name}: cannot replace {target}; delete it and try again"
  )


def _remove_stale(data_dir: str, prefix: str) -> None:
  """Removes old leftovers of killed preparations."""
  with contextlib.suppress(FileNotFoundError):
    for entry in os.scandir(data_dir):
      if entry.name.startswith(prefix):
        with contextlib.suppress(FileNotFoundError):
          if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Hides the progress bars and messages of tfds; errors still raise."""
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    yield
