"""Atomic writes: a file appears whole or not at all, and replaces nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path


class ExportError(ValueError):
  """Weights that cannot be written as asked, or a damaged file."""


@contextlib.contextmanager
def replacing(
  path: str | Path,
  *,
  overwrite: bool = False,
  own: Collection[str] | None = None,
) -> Iterator[Path]:
  """Yields a path to write to, which becomes `path` at the end without errors.

  A link is followed. The result on disk is whole even if the machine stops in
  between.

  Args:
    path: Path of a file or, with `own`, of a directory, which is created.
    overwrite: Whether to replace an existing file or directory.
    own: Names of the files of a directory; one with other files is not
      replaced.

  Raises:
    ExportError: If the path is not free (see `check_free`), or the file system
      refuses.
  """
  check_free(path, overwrite=overwrite, own=own)
  where = Path(os.path.realpath(path))
  try:
    with _ended_by_sigterm(), _folder_in(where.parent) as folder:
      mode = _mode(where, folder)
      part, old = folder / "new", folder / "old"
      if own is not None:
        part.mkdir()
      try:
        yield part
      except ExportError as error:  # name the path that the user gave
        message = str(error).replace(str(part), str(path))
        raise ExportError(message) from error
      _to_disk(part, mode)
      # Another program may have created it meanwhile.
      check_free(path, overwrite=overwrite, own=own)
      try:
        if where.is_dir():
          where.replace(old)
        part.replace(where)
      finally:
        # Even after Ctrl-C one of the two stays.
        if old.is_dir() and not where.exists():
          old.replace(where)
      _sync(where.parent)
  except OSError as error:
    raise unreadable(path, error) from error


@contextlib.contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
  """A new temporary folder, removed at the end."""
  folder = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
  try:
    yield folder
  finally:
    shutil.rmtree(folder)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
  """Turns SIGTERM into an exception, so that no partial file stays behind."""
  is_ours = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  )
  if is_ours:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    yield
  finally:
    if is_ours:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _mode(where: Path, folder: Path) -> int:
  """The permissions of the replaced file, or of a new file."""
  probe = folder / "mode"
  probe.touch()
  return stat.S_IMODE((where if where.is_file() else probe).stat().st_mode)


def _to_disk(part: Path, mode: int) -> None:
  """Sets the permissions and flushes to disk."""
  for file in part.iterdir() if part.is_dir() else (part,):
    file.chmod(mode)
    _sync(file)
  if part.is_dir():
    _sync(part)


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    # Some file systems do not support this, especially for directories.
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
  """Raises if nothing can be written to a path.

  Args:
    path: Path of the new file or directory.
    overwrite: Whether an existing file or directory may be replaced.
    own: Names of the files of a directory, see `replacing`.

  Raises:
    ExportError: If the path exists, or its parent is not a directory.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   check_free(f"{folder}/new.safetensors")
  """
  is_taken = False
  try:
    where = Path(os.path.realpath(path))
    if not where.parent.is_dir():
      raise ExportError(f"{path}: no such directory; create it first")
    if own is None and where.is_dir():
      raise ExportError(f"{path}: expected a file, got a directory")
    if own is not None and where.is_dir():
      names = {each.name for each in where.iterdir()}
      for other in sorted(names - set(own)):
        raise ExportError(
          f"{path}: the directory also holds {other!r}; use a new one"
        )
      is_taken = bool(names)
    elif where.is_symlink() or where.exists():
      # A link at this point leads to itself.
      if own is not None or where.is_symlink() or not where.is_file():
        kind = "regular file" if own is None else "directory"
        raise ExportError(f"{path}: not a {kind}; use another path")
      is_taken = True
  except (OSError, ValueError) as error:  # such as a name with a NUL
    if isinstance(error, ExportError):
      raise
    raise unreadable(path, error) from error
  if is_taken and not overwrite:
    raise ExportError(f"{path}: it exists; name another or add --overwrite")


def printable(text: str) -> str:
  r"""The text with all unprintable characters escaped.

  >>> printable("\x1b[31mred")
  '\\x1b[31mred'
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def line(error: Exception) -> str:
  """The message of a library in one line.

  >>> line(ValueError("this\\nand that"))
  'this'
  """
  text = str(error).strip().splitlines() or [type(error).__name__]
  for words in (
    "Error while deserializing header: ",
    "Error while serializing: ",
  ):
    text[0] = text[0].removeprefix(words)
  return printable(text[0])[:160]


def unreadable(path: str | Path, error: OSError | ValueError) -> ExportError:
  """The error for a path that the file system refuses."""
  return ExportError(f"{path}: {getattr(error, 'strerror', '') or line(error)}")
