"""Where an export goes: whole or not at all, and never over what is there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path


class ExportError(ValueError):
  """Weights that cannot be written as asked, or a file that lies."""


@contextlib.contextmanager
def replacing(
  path: str | Path,
  *,
  overwrite: bool = False,
  own: Collection[str] | None = None,
) -> Iterator[Path]:
  """A path to write to, which becomes `path` at the end if nothing failed.

  Where `path` is a link, what it leads to is written. What is on the disk is
  whole even if the machine stops in between.

  Args:
    path: of a file, or with `own` of a directory, which is made.
    overwrite: replaces what is there.
    own: the names of a directory's files; one that holds others is kept.

  Raises:
    ExportError: as `check_free`, or the file system refuses.
  """
  check_free(path, overwrite=overwrite, own=own)
  where = Path(os.path.realpath(path))
  part = where.with_name(f".part-{os.getpid()}-{where.name}")
  old = where.with_name(f".old-{os.getpid()}-{where.name}")
  try:
    if own is not None:
      part.mkdir()
    yield part
    # Another program may have been quicker.
    check_free(path, overwrite=overwrite, own=own)
    _to_disk(part)
    if where.is_dir():
      where.replace(old)
    part.replace(where)
    _sync(where.parent)
  except OSError as error:
    raise unreadable(path, error) from error
  finally:
    # Whatever came between, Ctrl-C too: one of the two stays.
    if old.is_dir() and not where.exists():
      old.replace(where)
    for rest in (part, old):
      if rest.is_dir():
        shutil.rmtree(rest)
      rest.unlink(missing_ok=True)


def _to_disk(part: Path) -> None:
  for inner in part.iterdir() if part.is_dir() else ():
    _sync(inner)
  _sync(part)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    # A file system may know no such thing, of a directory above all.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
  finally:
    os.close(handle)


def check_free(
  path: str | Path,
  *,
  overwrite: bool = False,
  own: Collection[str] | None = None,
) -> None:
  """Raises where nothing could be written.

  Args:
    path: of the file or directory to come.
    overwrite: as in `replacing`.
    own: as in `replacing`.

  Raises:
    ExportError: something else is there, or there is no directory for it.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   check_free(f"{folder}/new.safetensors")
  """
  where = Path(os.path.realpath(path))
  is_taken = False
  try:
    if not where.parent.is_dir():
      raise ExportError(f"{path}: there is no such directory; make it first")
    if own is None and where.is_dir():
      raise ExportError(f"{path}: this is a directory; name a file in it")
    if own is not None and where.is_dir():
      names = {each.name for each in where.iterdir()}
      for other in sorted(names - set(own)):
        raise ExportError(
          f"{path}: this directory holds {other!r} too; name a new one"
        )
      is_taken = bool(names)
    elif where.is_symlink() or where.exists():
      # A link here leads to itself.
      if own is not None or where.is_symlink() or not where.is_file():
        kind = "regular file" if own is None else "directory"
        raise ExportError(f"{path}: this is no {kind}; name another")
      is_taken = True
  except OSError as error:
    raise unreadable(path, error) from error
  if is_taken and not overwrite:
    raise ExportError(f"{path}: it exists; name another or add --overwrite")


def line(error: Exception) -> str:
  """What a library said, in one line.

  >>> line(ValueError("this\\nand that"))
  'this'
  """
  text = str(error).strip().splitlines() or [type(error).__name__]
  return text[0].removeprefix("Error while deserializing header: ")[:160]


def unreadable(path: str | Path, error: OSError) -> ExportError:
  """The error of a path that the file system refuses."""
  return ExportError(f"{path}: {error.strerror or line(error)}")
