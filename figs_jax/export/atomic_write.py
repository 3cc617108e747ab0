"""Where an export goes: whole or not at all, and never over what is there."""

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
  try:
    with _ended_by_sigterm(), _folder_in(where.parent) as folder:
      mode = _mode(where, folder)
      part, old = folder / "new", folder / "old"
      if own is not None:
        part.mkdir()
      try:
        yield part
      except ExportError as error:  # in words of what the user named
        told = str(error).replace(str(part), str(path))
        raise ExportError(told) from error
      _to_disk(part, mode)
      # Another program may have been quicker.
      check_free(path, overwrite=overwrite, own=own)
      try:
        if where.is_dir():
          where.replace(old)
        part.replace(where)
      finally:
        # Whatever came between, Ctrl-C too: one of the two stays.
        if old.is_dir() and not where.exists():
          old.replace(where)
      _sync(where.parent)
  except OSError as error:
    raise unreadable(path, error) from error


@contextlib.contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
  """A new folder of this call's own; it goes, with all that is left in it."""
  folder = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
  try:
    yield folder
  finally:
    shutil.rmtree(folder)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
  """SIGTERM as an exception, so that nothing half-written stays behind."""
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
  """The permissions of the file that is replaced, or of any new file."""
  probe = folder / "mode"
  probe.touch()
  return stat.S_IMODE((where if where.is_file() else probe).stat().st_mode)


def _to_disk(part: Path, mode: int) -> None:
  """Files that others can read, which some libraries' are not, and whole."""
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
  is_taken = False
  try:
    where = Path(os.path.realpath(path))
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
  except (OSError, ValueError) as error:  # such as a name with a NUL
    if isinstance(error, ExportError):
      raise
    raise unreadable(path, error) from error
  if is_taken and not overwrite:
    raise ExportError(f"{path}: it exists; name another or add --overwrite")


def printable(text: str) -> str:
  r"""Text whose other characters are escaped, as a terminal should see it.

  >>> printable("\x1b[31mred")
  '\\x1b[31mred'
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def line(error: Exception) -> str:
  """What a library said, in one line.

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
  """The error of a path that the file system refuses."""
  return ExportError(f"{path}: {getattr(error, 'strerror', '') or line(error)}")
