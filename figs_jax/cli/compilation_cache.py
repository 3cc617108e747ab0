"""Keeps compiled programs on disk, so that a second start compiles nothing.

JAX looks compiled programs up in a directory. Its key leaves out what XLA
compiles in for a CPU: the number of usable cores and the instruction sets. So
each combination of both has a directory of its own, and a run gives the same
bits with and without it. The entries are code: nobody else may write there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib

from figs_jax.train import machine

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SWITCH = "jax_enable_compilation_cache"
# Every program counts: a start compiles dozens of small ones.
_OPTIONS = {
  "jax_persistent_cache_min_compile_time_secs": 0.0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
}
_MAX_BYTES = 2**29
# Before, XLA logged two errors for each entry that it read on a CPU.
_QUIET_SINCE = (0, 10, 2)
_ERROR = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)':"
  " (.*)"
)
_log = logging.getLogger("figs_jax")


def enable() -> Path | None:
  """Keeps the programs that this process compiles in the user's cache.

  The directory is `figs_jax/programs` in XDG_CACHE_HOME or ~/.cache, of mode
  0700 and at most 512 MiB: the programs used longest ago go first. Call it
  before the first compilation.

  Returns:
    The directory. None if JAX_COMPILATION_CACHE_DIR is set, which JAX follows
    itself, JAX's cache is switched off, jaxlib is older than 0.10.2, or the
    directory cannot be used, for which one line is logged.
  """
  if _VARIABLE in os.environ:
    return None
  if not getattr(jax.config, _SWITCH):
    return None
  if jaxlib.version.__version_info__ < _QUIET_SINCE:
    return None
  try:
    cache = _user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    programs = cache / "figs_jax" / "programs"
    directory = programs / _key()
    for path in (programs.parent, programs, directory):
      path.mkdir(0o700, exist_ok=True)
      _make_private(path)
    _remove_oldest(programs, _MAX_BYTES)
  except (OSError, RuntimeError) as error:
    _log.warning(
      "compiled programs are not kept: %s; set %s to a directory of your own",
      error,
      _VARIABLE,
    )
    return None
  _heal(directory)
  jax.config.update("jax_compilation_cache_dir", str(directory))
  for name, value in _OPTIONS.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  return directory


def _user_cache() -> Path:
  """Directory for caches by the XDG specification, which ignores relative ones.

  Raises:
    RuntimeError: If the user has no home directory.
  """
  given = Path(os.environ.get("XDG_CACHE_HOME", ""))
  return given if given.is_absolute() else Path.home() / ".cache"


def _key() -> str:
  """Version of the compiler, and a digest of what it compiles for."""
  parts = (
    machine.processor(),
    machine.processor_features(),
    str(machine.usable_cores()),
  )
  digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
  return f"{jaxlib.__version__}-{digest[:16]}"


def _make_private(path: Path) -> None:
  """Takes all rights from others, or refuses a directory of another user.

  Raises:
    PermissionError: If others own it, or could write to it until now.
  """
  if not hasattr(os, "getuid"):  # Windows: the home directory is private
    return
  status = path.stat()
  if status.st_uid != os.getuid():
    raise PermissionError(
      f"{path} belongs to user {status.st_uid}, who could place code there"
    )
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise PermissionError(
      f"{path} could be written by others, who may have placed code there;"
      " remove it"
    )
  if status.st_mode & 0o77:
    path.chmod(0o700)


def _remove_oldest(directory: Path, most: int) -> None:
  """Removes the files used longest ago until the others have `most` bytes.

  Args:
    directory: Directory whose subdirectories hold the files.
    most: Number of bytes to keep.
  """
  files = []
  for path in directory.glob("*/*"):
    try:
      status = path.stat()
    except FileNotFoundError:  # by another process that removes files
      continue
    last_use = max(status.st_atime, status.st_mtime)
    files.append((last_use, status.st_size, path))
  total = 0
  for _, size, path in sorted(files, reverse=True):
    total += size
    if total > most:
      path.unlink(missing_ok=True)


def _heal(directory: Path) -> None:
  """Removes entries that JAX cannot read or write, and remarks on it once.

  JAX writes an entry in place and never replaces one: without this, what a
  full disk or a kill has cut short would be compiled at every start.
  """
  show = warnings.showwarning
  remarks: set[str] = set()

  def heal(message: Any, *args: Any, **options: Any) -> None:
    error = _ERROR.match(str(message))
    if not error:
      show(message, *args, **options)
      return
    doing, name, reason = error.groups()
    try:
      for path in directory.glob(f"{name}-*"):
        path.unlink(missing_ok=True)
    except OSError as more:
      reason = str(more)
    if doing not in remarks:
      remarks.add(doing)
      _log.warning("%s: %s a compiled program: %s", directory, doing, reason)

  warnings.showwarning = heal
