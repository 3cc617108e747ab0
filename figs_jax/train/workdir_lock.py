"""One trainer per workdir: a lock file with a heartbeat.

The file holds the holder's host, process id, boot id and start, and its
modification time is renewed every few seconds. A process that finds the file
of a dead holder takes it over: at once if the holder ran under the same kernel
and is gone, else after no heartbeat came for a minute. Readers of a run need no
lock.

The directory may be on NFS, of which it needs this (written from the protocol
and the Linux client's documentation, and not tested on a mounted NFS):

* Creating with O_EXCL is atomic: an exclusive CREATE in version 3, an exclusive
  OPEN in version 4. Version 2 has no such operation.
* Renaming onto an existing file is atomic on the server, so that a reader sees
  either content. Of several that replace a stale file, the last one has it;
  each reads it again after a second, and a later `check` finds what came later.
* Opening a file asks the server for its attributes (close-to-open consistency),
  unless it is mounted with `nocto`. Every look opens the file anew.
* A heartbeat is a SETATTR of "the server's time", and no write.

No clocks of two hosts are compared: a heartbeat is a modification time that
differs from the one seen before, and the minute is measured by the monotonic
clock of the process that waits. Byte-range locks and hard links are not used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from figs_jax.train import distributed

FILE = "trainer.lock"
_log = logging.getLogger("figs_jax")
_BEAT = 5.0  # seconds between heartbeats
_STALE = 60.0  # seconds without one, after which the holder is dead
_DYING = 240.0  # seconds in which the processes of an earlier start end
_SETTLE = 1.0  # seconds in which others may take over the same stale file
_ID = ("host", "pid", "since")


class LockedError(ValueError):
  """Another process trains in this workdir."""


class LockLostError(RuntimeError):
  """Another process has taken over this workdir, or it was deleted."""


class WorkdirLock:
  """The right to write to a workdir, held from `acquire` to `release`.

  Args:
    workdir: Directory of the run; `acquire` creates it if needed, and `release`
      removes it if it is still empty.

  >>> import tempfile
  >>> workdir = tempfile.mkdtemp()
  >>> lock = WorkdirLock(workdir)
  >>> lock.acquire()
  True
  >>> try:
  ...   WorkdirLock(workdir).acquire()
  ... except LockedError as error:
  ...   print("is training here" in str(error))
  True
  >>> lock.release()
  """

  def __init__(self, workdir: str | Path):
    self.path = Path(workdir).resolve() / FILE
    self._me = _identity() | {"token": uuid.uuid4().hex}
    self._made: list[Path] = []
    self._watched: tuple[Any, float] | None = None
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> bool:
    """Takes the lock; False while it is not clear whether a holder lives.

    Call it again after a second in that case.

    Raises:
      LockedError: If another process holds it.
      OSError: If the directory cannot be written.
    """
    for folder in (self.path.parent, *self.path.parent.parents):
      if folder.exists():
        break
      self._made.append(folder)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if not self._create():
      content, beat = _read(self.path)
      if content is None:  # released meanwhile
        return False
      if not self._is_stale(content, beat):
        return False
      self._take_over(content)
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()
    return True

  def check(self) -> None:
    """Raises a LockLostError if the lock was held and is now another's."""
    if self._thread is None:
      return
    holder, _ = _read(self.path)
    if holder is None:
      raise LockLostError(
        f"{self.path}: this file of the run is gone, so its directory was"
        " deleted or moved; stopping"
      )
    if holder.get("token") != self._me["token"]:
      raise LockLostError(
        f"{self.path.parent}: {_named(holder)} has taken over this run, since"
        f" this process gave no sign for {_STALE:.0f} s; stopping"
      )

  def release(self) -> None:
    """Gives the lock back; does nothing if it is not held."""
    self._ended.set()
    if self._thread is not None:
      self._thread.join()
      # A directory that was deleted or made read-only cannot hinder anyone.
      with contextlib.suppress(OSError, LockLostError):
        self.check()
        self.path.unlink()
      self._thread = None
    with contextlib.suppress(OSError):
      for folder in self._made:
        folder.rmdir()  # raises unless it is empty

  def _create(self) -> bool:
    """Whether the lock file did not exist and was created."""
    try:
      with open(self.path, "x", encoding="utf-8") as file:
        file.write(json.dumps(self._me))
    except FileExistsError:
      return False
    return True

  def _is_stale(self, holder: dict[str, Any], beat: int) -> bool:
    """Whether the holder is dead; False also if this is not yet clear.

    Raises:
      LockedError: If the holder lives.
    """
    if holder.get("kernel") == self._me["kernel"]:
      if _started(holder.get("pid")) != holder.get("started"):
        return True
      raise self._locked(holder)
    now = time.monotonic()
    sign = (holder.get("token"), beat)
    if self._watched is None:
      _log.info(
        "%s: %s was training here; waiting up to %.0f s for a sign of it",
        self.path.parent,
        _named(holder),
        _STALE,
      )
      self._watched = sign, now
    if sign != self._watched[0]:
      self._watched = sign, now
      raise self._locked(holder)
    return now - self._watched[1] >= _STALE

  def _locked(self, holder: dict[str, Any]) -> LockedError:
    return LockedError(
      f"{self.path.parent}: {_named(holder)} is training here; use another"
      " --workdir, or stop that process first"
    )

  def _take_over(self, holder: dict[str, Any]) -> None:
    """Replaces the lock file of a dead holder.

    Raises:
      LockedError: If another process was quicker.
    """
    part = self.path.with_name(f".{FILE}-{self._me['token']}")
    part.write_text(json.dumps(self._me), encoding="utf-8")
    part.replace(self.path)
    time.sleep(_SETTLE)  # of several that replace it, the last one has it
    winner, _ = _read(self.path)
    if winner is None or winner.get("token") != self._me["token"]:
      raise self._locked(winner or holder)
    _log.warning(
      "%s: took over from %s, which is gone",
      self.path.parent,
      _named(holder),
    )

  def _beat(self) -> None:
    while not self._ended.wait(_BEAT):
      # What is lost is noticed by `check`.
      with contextlib.suppress(OSError):
        os.utime(self.path)


@contextlib.contextmanager
def held(workdir: str | Path) -> Iterator[WorkdirLock]:
  """Holds the lock of a workdir; with several processes, the first one does.

  Several processes wait for the holder to end: it may be of their own earlier
  start, on a host that the launcher has lost but that still runs.

  Raises:
    LockedError: If another run holds it.
    ConfigError: If the first process of this run raises; in the others.
    OSError: If the directory cannot be written.
  """
  lock = WorkdirLock(workdir)
  patience = _DYING if jax.process_count() > 1 else 0.0
  try:
    distributed.by_first(_patient(lock.acquire, patience))
    yield lock
  finally:
    lock.release()


def _patient(acquire: Callable[[], bool], seconds: float) -> Callable[[], bool]:
  """`acquire` that returns False, and does not raise, while a holder lives."""
  deadline = time.monotonic() + seconds
  held_by: set[str] = set()

  def attempt() -> bool:
    try:
      return acquire()
    except LockedError as error:
      if time.monotonic() >= deadline:
        raise
      if str(error) not in held_by:
        held_by.add(str(error))
        _log.warning("%s; waiting up to %.0f s for its end", error, seconds)
      return False

  return attempt


def _identity() -> dict[str, Any]:
  """Host, process and, as far as they can be had, kernel and start."""
  pid = os.getpid()
  return {
    "host": socket.gethostname(),
    "pid": pid,
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    "kernel": _kernel(),
    "started": _started(pid),
  }


def _kernel() -> str:
  """Boot id and namespace of process ids; a unique text where there is none."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # not Linux: only the heartbeat decides
    return uuid.uuid4().hex


def _started(pid: Any) -> str | None:
  """Start of a process in ticks since the boot; None if it is gone."""
  try:
    stat = Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  # Field 22; the name, field 2 in parentheses, may hold spaces. Z is a zombie.
  fields = stat.rpartition(")")[2].split()
  return None if fields[0] in "ZX" else fields[19]


def _read(path: Path) -> tuple[dict[str, Any] | None, int]:
  """(content, time of the last heartbeat); content is None without a file."""
  try:
    with open(path, encoding="utf-8") as file:  # NFS looks anew at an opening
      beat = os.fstat(file.fileno()).st_mtime_ns
      content = json.loads(file.read())
  except FileNotFoundError:
    return None, 0
  except ValueError:
    return {}, 0 if not path.exists() else path.stat().st_mtime_ns
  return (content if isinstance(content, dict) else {}), beat


def _named(holder: dict[str, Any]) -> str:
  """
  >>> _named({"host": "a", "pid": 3, "since": "2026-01-01 00:00:00"})
  'process 3 on a (since 2026-01-01 00:00:00)'
  """
  host, pid, since = (holder.get(name, "?") for name in _ID)
  return f"process {pid} on {host} (since {since})"
