"""Exit codes of launch/train.py, and on which of them a launcher restarts.

launch/slurm.sbatch, launch/gke_jobset.yaml and docs/failures.md say the same.
"""

from __future__ import annotations

import signal

FINISHED = 0
ERROR = 1  # diverged, a full disk, or a bug
USER_ERROR = 2  # explained in one line
STOPPED = 75  # saved after a signal, or not joined; EX_TEMPFAIL
ABORTED = 128 + signal.SIGABRT  # a peer is gone, or may be
HUNG = 128 + signal.SIGALRM  # ended by `figs_jax.train.watchdog`


def in_shell(code: int) -> int:
  """The code of a process as a shell gives it.

  Args:
    code: Return code of `subprocess`, negative after a signal.

  >>> in_shell(-signal.SIGKILL), in_shell(STOPPED)
  (137, 75)
  """
  return code if code >= 0 else 128 - code


def restarts(code: int) -> bool:
  """Whether a launcher starts a run again that ended with this code.

  Errors of the program would recur, as would 126 and 127, a shell's codes of a
  program that it cannot start. `STOPPED` and the codes of signals say that the
  run goes on from its newest checkpoint.

  Args:
    code: Exit code as a shell gives it.

  >>> [restarts(code) for code in (FINISHED, USER_ERROR, STOPPED, HUNG)]
  [False, False, True, True]
  """
  return code == STOPPED or code >= 128
