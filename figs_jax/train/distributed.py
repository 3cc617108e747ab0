"""Several processes as one run: they join, agree and stop together.

Every process runs the same program over one mesh of all devices and reads its
own share of each batch. The first process writes logs and results; all of them
write checkpoints, to one shared directory. With a single process, none of the
functions here changes anything.
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
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from figs_jax.train import exit_codes
from figs_jax.train.config import ConfigError

# Seconds for which an ending process waits for the others.
_SHUTDOWN = 60
# Times to look for another host's file, a second apart: NFS caches its absence
# for up to a minute.
_LOOKS = 90
_LINE = 1000  # longest error message that is sent to the others, in bytes
_COUNT, _INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_ADDRESS = "JAX_COORDINATOR_ADDRESS"

# Prefixes of JAX's errors that a new start would raise again.
_OURS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# Those of a lost peer, as NumPy raises them in a ValueError when it reads the
# result of a collective that failed.
_OF_PEERS = (
  "ABORTED: ", "CANCELLED: ", "DEADLINE_EXCEEDED: ", "FAILED_PRECONDITION: ",
  "INTERNAL: ", "UNAVAILABLE: ", "UNKNOWN: ",
)  # fmt: skip


class JoinError(RuntimeError):
  """The other processes are missing, possibly only for now."""


def initialize(heartbeat_seconds: int = 100) -> None:
  """Joins the processes of a run; call it before any use of a device.

  The processes are given by JAX_COORDINATOR_ADDRESS (host:port of the first
  one), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else detected by
  `jax.distributed.initialize` under SLURM, Open MPI, Kubernetes and on TPU
  pods. All processes but the first log errors only.

  After this call, an uncaught exception ends the process at once, instead of
  waiting for peers that wait for it. The exit code is 1, or 134 (as after an
  abort) if the cause may be the death of a peer.

  Args:
    heartbeat_seconds: Seconds without a heartbeat after which a process counts
      as dead, and the others abort.

  Raises:
    ValueError: If the processes are not given, or invalid.
    JoinError: If they were not found; a later start may find them.
  """
  try:
    count, index = _given(os.environ)
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except RuntimeError as error:
    raise JoinError(
      f"--distributed: the processes of this run cannot find each other"
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
    os._exit(_exit_code(error))  # skips JAX's exit handler, which waits

  sys.excepthook = hook


def _exit_code(error: BaseException) -> int:
  """1, or that of an abort if the cause may be the death of a peer.

  >>> _exit_code(TimeoutError("Timeout waiting at barrier 'checkpoint'."))
  134
  >>> _exit_code(jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset"))
  134
  >>> _exit_code(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"))
  1
  >>> _exit_code(ValueError("UNKNOWN: Gloo AllGather failed: read error"))
  134
  """
  text = str(error)
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  of_numpy = isinstance(error, ValueError) and text.startswith(_OF_PEERS)
  # Orbax raises a TimeoutError if a barrier ends for any reason.
  of_orbax = isinstance(error, TimeoutError)
  if of_orbax or of_numpy or of_jax and not text.startswith(_OURS):
    return exit_codes.ABORTED
  return exit_codes.ERROR


def may_be_of_peer(error: BaseException) -> bool:
  """Whether the cause of an error may be the death of another process."""
  return jax.process_count() > 1 and _exit_code(error) != exit_codes.ERROR


def _given(
  environment: Mapping[str, str],
) -> tuple[int, int] | tuple[None, None]:
  """(number of processes, index of this one), or None for both if unset.

  >>> _given({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
  (2, 1)
  >>> _given({})
  (None, None)
  """
  count, index = environment.get(_COUNT), environment.get(_INDEX)
  if count is None and index is None:
    return None, None
  if not (count and count.isdecimal() and index and index.isdecimal()):
    raise ValueError(
      f"expected numbers, got {_COUNT}={count!r}, {_INDEX}={index!r}"
    )
  return int(count), int(index)


def is_first() -> bool:
  """Whether this process writes logs and results; True for a single one."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for every process."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_shared(path: Path) -> None:
  """Checks that every process sees a file that the first one has written.

  Raises:
    ConfigError: If one does not, so that the directory is not shared; every
      process raises it.
  """
  barrier(f"written {path.name}")
  seen = _look_until(np.all, path.exists)
  if not seen.all():
    blind = ", ".join(map(str, np.flatnonzero(~seen)))
    raise ConfigError(
      f"{path}: process {blind} does not see the file of process 0; set"
      " --workdir to a file system that all hosts share"
    )


def check_same(path: Path, listing: Callable[[], Sequence[int]]) -> None:
  """Checks that every process lists the same steps in a directory.

  Raises:
    ConfigError: If they differ; every process raises it.
  """

  def digest() -> np.uint32:
    return np.uint32(zlib.crc32(repr(list(listing())).encode()))

  seen = _look_until(lambda digests: (digests == digests[0]).all(), digest)
  if other := ", ".join(map(str, np.flatnonzero(seen != seen[0]))):
    raise ConfigError(
      f"{path}: process {other} lists other steps than process 0; set"
      " --workdir to a file system that all hosts share"
    )


def _look_until(
  agreed: Callable[[np.ndarray], Any], look: Callable[[], Any]
) -> np.ndarray:
  """The values of `look` in all processes, once agreed or after `_LOOKS`.

  All processes look together, so that none waits long or falls behind.
  """
  seen = _everywhere(look())
  for _ in range(_LOOKS - 1):
    if agreed(seen):
      break
    time.sleep(1)
    seen = _everywhere(look())
  return seen


def _everywhere(here: bool | np.uint32) -> np.ndarray:
  """The values of `here` in all processes, in order.

  >>> _everywhere(True).tolist()
  [True]
  """
  return np.ravel(multihost_utils.process_allgather(np.asarray(here)))


def first_failure(mine: str | None) -> str | None:
  """Message of the first process that failed; None if all succeeded.

  Args:
    mine: Error message of this process, or None.

  >>> first_failure(None)
  >>> first_failure("not a checkpoint")
  'process 0: not a checkpoint'
  """
  line = np.zeros(_LINE, np.uint8)  # of equal length in every process
  words = (mine or "").encode()[:_LINE]
  line[: len(words)] = np.frombuffer(words, np.uint8)
  lines = np.reshape(multihost_utils.process_allgather(line), (-1, _LINE))
  for index, line in enumerate(lines):
    if words := line.tobytes().rstrip(b"\0"):
      return f"process {index}: {words.decode(errors='ignore')}"
  return None


def by_first(attempt: Callable[[], bool]) -> None:
  """Calls `attempt` in the first process, every second until it returns True.

  The others wait for it.

  Raises:
    ConfigError: If `attempt` raises a ValueError or an OSError; in the others.
  """
  done = False
  while not done:
    error = None
    if is_first():
      try:
        done = attempt()
      except (ValueError, OSError) as mine:
        error = mine
    failed = first_failure(None if error is None else str(error))
    if error is not None:
      raise error
    if failed:
      raise ConfigError(failed)
    done = bool(_everywhere(done)[0])
    if not done:
      time.sleep(1)


def global_batch(sharding: Sharding, local: Any) -> Any:
  """Global arrays from this process's rows of each."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), local
  )


def whole(array: Any) -> np.ndarray:
  """A whole array on this host; a collective if its parts span processes.

  >>> whole(jax.numpy.ones(2)).tolist()
  [1.0, 1.0]
  """
  if _is_spread(array):
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def all_whole(arrays: Any) -> Any:
  """Whole arrays of a pytree, by one program if parts span processes.

  >>> all_whole({"loss": jax.numpy.ones(2)})["loss"].tolist()
  [1.0, 1.0]
  """
  spread = next(filter(_is_spread, jax.tree.leaves(arrays)), None)
  if spread is not None:
    everywhere = NamedSharding(spread.sharding.mesh, PartitionSpec())
    arrays = jax.jit(_same, out_shardings=everywhere)(arrays)
  return jax.tree.map(np.asarray, arrays)


def _same(arrays: Any) -> Any:
  return arrays


def _is_spread(array: Any) -> bool:
  """Whether other processes have parts of an array that this one lacks."""
  spans = isinstance(array, jax.Array) and not array.is_fully_addressable
  return spans and not array.is_fully_replicated


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
  """Yields `stop(step)`: whether a signal came; call it at every step.

  The signals are SIGTERM and SIGUSR1, which SLURM sends before its time limit.
  With several processes, a signal to one of them stops all at the same step.
  The previous handlers are restored afterwards.
  """
  stopped = threading.Event()

  def reached(step: int) -> bool:
    del step
    return stopped.is_set()

  handlers = dict.fromkeys(
    (signal.SIGTERM, signal.SIGUSR1), lambda *_: stopped.set()
  )
  if jax.process_count() > 1:
    # JAX has a handler of SIGTERM, which Python's would replace.
    reached = multihost_utils.reached_preemption_sync_point
    handlers = {signal.SIGUSR1: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
  if threading.current_thread() is not threading.main_thread():
    yield reached
    return
  before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
  try:
    yield reached
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def is_stray(error: BaseException | None) -> bool:
  """Whether an uncaught exception is a harmless leftover of Orbax.

  When Orbax cannot read or write a file, its other reads and writes outlive
  their event loop and report it to `sys.excepthook` or `sys.unraisablehook`
  from their threads; the error itself is raised.

  >>> is_stray(RuntimeError("Event loop is closed"))
  True
  """
  return type(error) is RuntimeError and str(error) == "Event loop is closed"
