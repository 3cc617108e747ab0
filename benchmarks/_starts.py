"""Starts programs quickly: as forks of a process that has imported their needs.

A fork is a process like any other, but for the two seconds of imports. It is
handed to the benchmark's own process, which waits for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from figs_jax.train.exit_codes import in_shell

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


class Process:
  """A running program.

  Args:
    pid: Its process id, that of a child of this process.
  """

  def __init__(self, pid: int):
    self.pid = pid
    self._code: int | None = None

  def poll(self) -> int | None:
    """The exit code as a shell gives it; None while it runs."""
    if self._code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self._code = in_shell(os.waitstatus_to_exitcode(status))
    return self._code

  def wait(self, seconds: float) -> int:
    """The exit code once it has ended.

    Raises:
      TimeoutError: If it has not after so many seconds.
    """
    end = time.monotonic() + seconds
    while (code := self.poll()) is None:
      if time.monotonic() > end:
        raise TimeoutError(f"process {self.pid} runs after {seconds:.0f} s")
      time.sleep(0.01)
    return code

  def send(self, number: int) -> None:
    """Sends a signal, unless it has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def end(self) -> None:
    """Kills it if it still runs."""
    self.send(signal.SIGKILL)
    self.wait(60)


class Starter:
  """The process that forks.

  Args:
    command: Words of a program that calls `serve`.
    environment: Its variables.
  """

  def __init__(self, command: list[str], environment: Mapping[str, str]):
    # Forks whose parent has ended become children of this process.
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    self._process = subprocess.Popen(
      command,
      env=dict(environment),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def start(self, **request: Any) -> Process:
    """Starts what `serve` returns this request for."""
    assert self._process.stdin and self._process.stdout
    print(json.dumps(request), file=self._process.stdin, flush=True)
    return Process(int(self._process.stdout.readline()))

  def close(self) -> None:
    """Ends the process that forks."""
    self._process.kill()
    self._process.wait()


def serve(use: Callable[..., None]) -> None:
  """Answers requests; returns in a fork of its own for each, after `use` of it.

  Args:
    use: Function of a request, such as its redirections.
  """
  for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
      fork = os.fork()
      if fork:
        os.write(writer, str(fork).encode())
        os._exit(0)
      use(**json.loads(line))
      return
    os.waitpid(child, 0)
    os.close(writer)
    print(os.read(reader, 20).decode(), flush=True)
    os.close(reader)
  sys.exit()
