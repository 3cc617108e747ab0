"""Ends a process that hangs, after a dump of the stacks of all its threads.

A host that hangs, as in a read from a file system that is gone, still sends
heartbeats, so that its peers wait for it without end. The timers here are those
of the operating system and of `faulthandler`: they do not need Python's lock,
which a thread that hangs may hold.
"""

from __future__ import annotations

import faulthandler
import signal
import time

_EVERY = 1.0  # seconds between two resets of the timers, which cost 50 us
_DUMP = 2.0  # seconds for the dump, before the process ends

_seconds = 0.0  # 0 is off
_reset_at = 0.0


def start(seconds: float) -> None:
  """Ends this process unless it calls `alive` at least every `seconds`.

  A loop of one's own calls `start(600)` before its first step, `alive()` at
  every step, and `start(0)` after the last one. The first step is compiled, and
  has to take less time than that.

  The stacks of all threads go to standard error, after the line "Timeout
  (H:MM:SS)!". The process then dies of SIGALRM: 142 in a shell
  (`figs_jax.train.exit_codes.HUNG`). Time in which the process is suspended
  counts.

  A process has one watch; another call replaces it. Only the main thread may
  start it.

  Args:
    seconds: Longest time without a sign. 0 stops the watch.

  Raises:
    ValueError: If another thread starts it.
  """
  global _seconds
  _seconds = seconds
  if seconds:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _reset()
    return
  signal.setitimer(signal.ITIMER_REAL, 0)
  faulthandler.cancel_dump_traceback_later()


def alive() -> None:
  """A sign of progress: a step, a batch of an evaluation, a checkpoint.

  It does nothing without `start`, and at most resets two timers once a second,
  so that a loop may call it as often as it likes.
  """
  if _seconds and time.monotonic() - _reset_at > min(_EVERY, _seconds / 4):
    _reset()


def _reset() -> None:
  global _reset_at
  _reset_at = time.monotonic()
  faulthandler.dump_traceback_later(_seconds, file=2)
  signal.setitimer(signal.ITIMER_REAL, _seconds + _DUMP)
