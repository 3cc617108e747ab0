"""Several processes as one run: they join, agree, and stop together.

Every process runs the same program over one mesh of all their devices. Each
reads its own part of a batch; what is written for people comes from the first
process alone; checkpoints are written by all of them to one shared directory.
With a single process everything here is what it would be without this file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from figs_jax.train.config import ConfigError

# Seconds that an ending process waits for the others before it gives them up.
_SHUTDOWN = 60
# Looks, a second apart, for another host's file: NFS remembers for up to a
# minute that there was none.
_LOOKS = 90
_LINE = 1000  # bytes of a failure that others hear of
_COUNT, _INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_ADDRESS = "JAX_COORDINATOR_ADDRESS"

# What JAX's own errors begin with where a new start would meet them again.
_OURS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


class JoinError(RuntimeError):
  """The other processes are not there, or not yet."""


def join() -> None:
  """Makes this process one of a run; call it before any device is asked for.

  Who the others are is read from JAX_COORDINATOR_ADDRESS (host:port of the
  first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID where they are set, and
  else, by `jax.distributed.initialize`, from what SLURM, Open MPI, Kubernetes
  or a TPU pod says. Processes but the first log errors only. From here on, an
  exception that nobody catches ends this process at once, with code 1, or 134
  (as of an abort) where it may be that a peer died: others would have to wait
  for one that waits for them.

  Raises:
    ValueError: nothing says who the others are, or it is no sense.
    JoinError: they were not found; a later start may find them.
  """
  try:
    count, index = _given(os.environ)
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except RuntimeError as error:
    raise JoinError(
      f"--distributed: the processes of this run do not find each other"
      f" ({error}); start all of them again"
    ) from error
  except ValueError as error:
    raise ValueError(
      f"--distributed: the processes of this run cannot be joined ({error});"
      f" start it under SLURM or on a TPU pod, or set {_ADDRESS}, {_COUNT} and"
      f" {_INDEX}"
    ) from error
  _leave_on_error()
  if not is_first():
    logging.getLogger("figs_jax").setLevel(logging.ERROR)


def _leave_on_error() -> None:
  show = sys.excepthook

  def hook(kind, error, trace):
    show(kind, error, trace)
    if is_stray(error):
      return
    sys.stderr.flush()
    os._exit(_exit_code(error))  # JAX's exit handler is where the waiting is

  sys.excepthook = hook


def _exit_code(error: BaseException) -> int:
  """1, or that of an abort where the error may be the death of a peer.

  >>> _exit_code(jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset"))
  134
  >>> _exit_code(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"))
  1
  """
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if of_jax and not str(error).startswith(_OURS):
    return 128 + signal.SIGABRT
  return 1


def _given(
  environment: Mapping[str, str],
) -> tuple[int, int] | tuple[None, None]:
  """How many processes there are and which is this one; None where not said.

  >>> _given({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
  (2, 1)
  >>> _given({})
  (None, None)
  """
  count, index = environment.get(_COUNT), environment.get(_INDEX)
  if count is None and index is None:
    return None, None
  if not (count and count.isdecimal() and index and index.isdecimal()):
    raise ValueError(f"{_COUNT}={count!r} and {_INDEX}={index!r}: not numbers")
  return int(count), int(index)


def is_first() -> bool:
  """Whether this process writes what people read; True for a single one."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_shared(path: Path) -> None:
  """Every process must see the file that the first has written.

  Raises:
    ConfigError: one does not, so the directory is not shared; all raise it.
  """
  barrier(f"written {path.name}")
  seen = _look_until(np.all, path.exists)
  if not seen.all():
    blind = ", ".join(map(str, np.flatnonzero(~seen)))
    raise ConfigError(
      f"{path}: process {blind} does not see what process 0 wrote; put"
      " --workdir on a file system that all hosts share"
    )


def check_same(path: Path, listing: Callable[[], Sequence[int]]) -> None:
  """Every process must find the same numbers in a directory.

  Raises:
    ConfigError: they do not, in all of them.
  """

  def digest() -> np.uint32:
    return np.uint32(zlib.crc32(repr(list(listing())).encode()))

  seen = _look_until(lambda found: (found == found[0]).all(), digest)
  if other := ", ".join(map(str, np.flatnonzero(seen != seen[0]))):
    raise ConfigError(
      f"{path}: process {other} finds other steps there than process 0; put"
      " --workdir on a file system that all hosts share"
    )


def _look_until(
  agreed: Callable[[np.ndarray], Any], look: Callable[[], Any]
) -> np.ndarray:
  """What each process sees, when it is agreed or there were enough looks.

  They look together, so that no one waits long for another, nor stays behind.
  """
  for _ in range(_LOOKS):
    seen = _everywhere(look())
    if agreed(seen):
      break
    time.sleep(1)
  return seen


def _everywhere(here: bool | np.uint32) -> np.ndarray:
  """What each process has for `here`, by process.

  >>> _everywhere(True).tolist()
  [True]
  """
  return np.ravel(multihost_utils.process_allgather(np.asarray(here)))


def first_failure(mine: str | None) -> str | None:
  """The words, and process, of the first that failed; None where none did.

  Args:
    mine: what went wrong in this process, None where nothing did.

  >>> first_failure(None)
  >>> first_failure("not a checkpoint")
  'process 0: not a checkpoint'
  """
  line = np.zeros(_LINE, np.uint8)  # as long in every process
  words = (mine or "").encode()[:_LINE]
  line[: len(words)] = np.frombuffer(words, np.uint8)
  lines = np.reshape(multihost_utils.process_allgather(line), (-1, _LINE))
  for index, found in enumerate(lines):
    if words := found.tobytes().rstrip(b"\0"):
      return f"process {index}: {words.decode(errors='ignore')}"
  return None


def global_batch(sharding: Sharding, local: Any) -> Any:
  """Arrays over all processes from this one's rows of each."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), local
  )


def whole(array: Any) -> np.ndarray:
  """A host copy of all of an array; every process must ask for it.

  >>> whole(jax.numpy.arange(3)).tolist()
  [0, 1, 2]
  """
  split = not (
    getattr(array, "is_fully_addressable", True)
    or getattr(array, "is_fully_replicated", True)
  )
  if split:
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
  """Yields `stop(step)`: whether SIGTERM came, to be asked at every step.

  With several processes it is enough that one of them gets the signal, and all
  hear of it at the same step. The handler of before comes back after.
  """
  if jax.process_count() > 1:
    # JAX's own handler; Python's would take the signal away from it.
    yield multihost_utils.reached_preemption_sync_point
    return
  stopped = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda _: stopped.is_set()
    return
  before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
  try:
    yield lambda _: stopped.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


def is_stray(error: BaseException) -> bool:
  """Whether an exception that nobody caught ends nothing.

  When Orbax meets a damaged file, its other reads end after their event loop
  and hand this to `sys.excepthook`, from a thread of their own; the error
  itself reaches us as an exception.

  >>> is_stray(RuntimeError("Event loop is closed"))
  True
  """
  return type(error) is RuntimeError and str(error) == "Event loop is closed"
