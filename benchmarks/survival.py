"""What a run survives: kills, stops, a full disk, and damaged checkpoints.

Small runs with the figs recipe, in child processes on the CPU, are disturbed at
random times of a start, a step or a save, again and again. Each must end with
the bits and rows of a run that nothing touched. Last, one bit of a random file
of a finished run's newest checkpoint is flipped: restoring must give that step
or the one before, as they were. The exit code is 1 if anything differs.

  python benchmarks/survival.py --kills 100 --pairs 5 --stops 8 --full 7
"""

from __future__ import annotations

import argparse
import collections
import itertools
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from figs_jax.train.checkpoint import (
  Checkpointer,
  CheckpointError,
  named_leaves,
)
from figs_jax.train.experiment import Experiment
from figs_jax.train.log_writer import FILE, read_log
from figs_jax.train.workdir import restore

REPO = Path(__file__).parents[1]
EVERY = 5  # steps between checkpoints
ADVANCE = 10  # most steps of a start before it is disturbed
PATIENCE = 600  # seconds that a child may take


class Run:
  """A run in a folder of its own, by one or two processes.

  Args:
    workdir: Directory of the run.
    steps: Number of its steps.
    count: Number of processes.
  """

  def __init__(self, workdir: Path, steps: int, count: int = 1):
    self.workdir, self.steps, self.count = workdir, steps, count
    self.checkpoints = workdir / "checkpoints"

  def start(self) -> list[subprocess.Popen]:
    """Starts the processes of the run, whose stderr goes to files."""
    fields = {
      "total_steps": self.steps,
      "checkpoint_every": EVERY,
      "log_every": 1,
      "batch_size": 16,
      "model.depth": 1,
      "model.width": 32,
      "model.mlp_dim": 64,
      "model.dropout": 0.1,
      "optimizer.warmup_steps": 4,
      "pattern": "ff: 1:4",
      "progress": False,
      "mesh.data": -1,
    }
    command = [
      sys.executable,
      "launch/train.py",
      "--config=configs/digits_vit.py:figs",
      f"--workdir={self.workdir}",
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      # A start that finds its programs compiled takes a third of the time.
      "JAX_COMPILATION_CACHE_DIR": str(self.workdir.parent / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if self.count > 1:
      command.append("--distributed")
      environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
      environment["JAX_NUM_PROCESSES"] = str(self.count)
    processes = []
    for index in range(self.count):
      with open(self.errors(index), "wb") as errors:
        processes.append(
          subprocess.Popen(
            command,
            cwd=REPO,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
          )
        )
    return processes

  def errors(self, index: int = 0) -> Path:
    return self.workdir.with_name(f"{self.workdir.name}-stderr{index}")

  def finish(self) -> None:
    codes = [process.wait(PATIENCE) for process in self.start()]
    if any(codes):
      raise RuntimeError(f"exit codes {codes}: {self.errors().read_text()}")

  def last_row(self) -> int:
    """The last step with a row."""
    path = self.workdir / FILE
    lines = path.read_bytes().count(b"\n") if path.exists() else 0
    return lines - lines // (EVERY + 1)  # without the rows of evaluations

  def saved(self) -> int:
    """The newest step on disk, or 0."""
    with Checkpointer(self.workdir) as checkpoints:
      return max(checkpoints.steps(), default=0)

  def parts(self) -> set[tuple[str, int]]:
    """Directories of steps that are being written, or were when killed."""
    if not self.checkpoints.exists():
      return set()
    with os.scandir(self.checkpoints) as entries:
      return {(e.name, e.inode()) for e in entries if not e.name.isdigit()}

  def lock(self) -> bytes:
    path = self.workdir / "trainer.lock"
    return path.read_bytes() if path.exists() else b""

  def resumed_from(self) -> int:
    """The step from which the last start went on, or 0."""
    line = re.search(r"resuming from step (\d+)", self.errors().read_text())
    return int(line[1]) if line else 0


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def wait_for(
  reached: Callable[[], bool], processes: list[subprocess.Popen]
) -> None:
  """Returns once something is reached, or one of the processes has ended."""
  end = time.monotonic() + PATIENCE
  while not reached() and all(p.poll() is None for p in processes):
    if time.monotonic() > end:
      raise TimeoutError(f"nothing happened for {PATIENCE} s")
    time.sleep(0.002)


def until(run: Run, aim: str, draw: random.Random) -> list[subprocess.Popen]:
  """Starts a run and returns in its start, in a step, or in a save."""
  lock, parts = run.lock(), run.parts()
  target = run.last_row() + draw.randint(1, ADVANCE)
  processes = run.start()
  if aim == "start":
    wait_for(lambda: run.lock() != lock, processes)
    # It looks at the lock again after 1 s, then restores and compiles.
    time.sleep(3 * draw.random())
    return processes
  wait_for(lambda: run.last_row() >= target, processes)
  if aim == "save":
    wait_for(lambda: bool(run.parts() - parts), processes)
  time.sleep(draw.random() / 50)
  return processes


def rows(workdir: Path) -> list[dict[str, Any]]:
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in read_log(workdir)
  ]


def leaves(state: Any) -> dict[str, np.ndarray]:
  return {k: np.asarray(v) for k, v in named_leaves(state).items()}


def equal(one: dict, other: dict) -> bool:
  return one.keys() == other.keys() and all(
    np.array_equal(one[name], other[name]) for name in one
  )


def report(run: Run, what: str, wrong: list[str]) -> bool:
  """Finishes a run, compares it with an untouched one and prints a line."""
  whole = Run(run.workdir.with_name("whole"), run.steps, run.count)
  for each in (run, whole):
    each.finish()
  one, other = (leaves(restore(r.workdir)[1]) for r in (run, whole))
  same_state = equal(one, other)
  same_rows = rows(run.workdir) == rows(whole.workdir)
  print(
    f"{what} in {run.steps} steps; weights and state"
    f" {'equal' if same_state else 'DIFFERENT'}, rows"
    f" {'equal' if same_rows else 'DIFFERENT'}",
    *wrong,
    sep="\n  ",
    flush=True,
  )
  return same_state and same_rows and not wrong


def kills(folder: Path, count: int, draw: random.Random) -> bool:
  """SIGKILL in a start, a step, or a save: the next start goes on."""
  run = Run(folder / "killed", 8 * count + 20)
  aims: collections.Counter[str] = collections.Counter()
  left, wrong = 0, []  # starts that left a part of a step
  for _, aim in zip(range(count), itertools.cycle(["start", "step", "save"])):
    before, parts = run.saved(), run.parts()
    (process,) = until(run, aim, draw)
    process.kill()
    if process.wait() == -signal.SIGKILL:
      aims[aim] += 1
      left += bool(run.parts() - parts)
    resumed = run.resumed_from()
    if resumed not in (before, 0):
      wrong.append(f"resumed from step {resumed}, not {before}")
  counts = ", ".join(f"{n} in a {aim}" for aim, n in aims.items())
  return report(
    run,
    f"SIGKILL: {aims.total()} times ({counts}; {left} left a part of a step)",
    wrong,
  )


def pairs(folder: Path, count: int, draw: random.Random) -> bool:
  """SIGKILL of one process of two: the other exits with 134."""
  run = Run(folder / "pair", 12 * count + 20, count=2)
  wrong, left, waits = [], 0, []
  for i, aim in zip(range(count), itertools.cycle(["save", "step"])):
    before, parts = run.saved(), run.parts()
    processes = until(run, aim, draw)
    victim = draw.randrange(2)
    processes[victim].kill()
    processes[victim].wait()
    left += bool(run.parts() - parts)
    killed_at = time.monotonic()
    code = processes[1 - victim].wait(PATIENCE)
    waits.append(time.monotonic() - killed_at)
    # A process that aborts has 134 in a shell.
    code = 128 - code if code < 0 else code
    if code != 128 + signal.SIGABRT:
      wrong.append(f"{i}: process {1 - victim} exited with {code}, not 134")
    if (resumed := run.resumed_from()) != before:
      wrong.append(f"{i}: resumed from step {resumed}, not {before}")
  return report(
    run,
    f"SIGKILL of one process of two: {count} times ({left} left a part of a"
    f" step); the other exits within {max(waits):.0f} s",
    wrong,
  )


def stops(folder: Path, count: int, draw: random.Random) -> bool:
  """SIGTERM: exit code 0, and the step at which it came is saved."""
  run = Run(folder / "stopped", 20 * count + 40)
  wrong = []
  for i in range(count):
    before = run.saved()
    (process,) = until(run, draw.choice(["start", "step", "save"]), draw)
    process.terminate()
    if code := process.wait(PATIENCE):
      wrong.append(f"{i}: exit code {code}, not 0")
    if run.saved() != run.last_row() or run.saved() == run.steps:
      wrong.append(f"{i}: step {run.saved()} saved, of {run.last_row()}")
    if (resumed := run.resumed_from()) != before:
      wrong.append(f"{i}: resumed from step {resumed}, not {before}")
  return report(run, f"SIGTERM: {count} times", wrong)


def full(folder: Path, count: int, draw: random.Random) -> bool:
  """A disk that refuses: one line with the last good step, exit code 1."""
  run = Run(folder / "full", 12 * count + 20)
  wrong = []
  for i in range(count):
    before = run.saved()
    (process,) = until(run, "step", draw)
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    # Bytes of a file; its stderr is one.
    limit = draw.randrange(2048, 30000)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    if (code := process.wait(PATIENCE)) != 1:
      wrong.append(f"{i}: exit code {code}, not 1")
    lines = run.errors().read_text().splitlines()
    good = f"the last good checkpoint is step {run.saved()} in"
    if run.saved() == 0:
      good = "no checkpoint was saved yet"
    if len(lines) != 2 or good not in lines[1]:
      wrong.append(f"{i}: {good!r} is not in the one line of {lines}")
    if (resumed := run.resumed_from()) != before:
      wrong.append(f"{i}: resumed from step {resumed}, not {before}")
  return report(run, f"a disk that refuses: {count} times", wrong)


def read(
  checkpoints: Checkpointer, experiment: Experiment, step: int | None = None
) -> tuple[int, dict, dict]:
  """(step, state, data position)."""
  state, data, step = checkpoints.restore(experiment.abstract_state, step)
  return step, leaves(state), data


def flips(folder: Path, count: int, draw: random.Random) -> bool:
  """One flipped bit: no other values than those that were saved."""
  run = Run(folder / "flipped", 20)
  run.finish()
  experiment, _, newest = restore(run.workdir)
  with Checkpointer(run.workdir) as checkpoints:
    config = checkpoints.meta()["config"]
    wanted = {
      step: read(checkpoints, experiment, step)[1:]
      for step in checkpoints.steps()
    }
  where = run.checkpoints / str(newest)
  paths = sorted(p for p in where.rglob("*") if p.is_file())
  outcomes: collections.Counter[str] = collections.Counter()
  # Small files as often as large ones.
  for path in itertools.islice(itertools.cycle(paths), count):
    content = path.read_bytes()
    bit, damaged = draw.randrange(8 * len(content)), bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(damaged))
    try:
      with Checkpointer(run.workdir) as checkpoints:
        same = checkpoints.meta()["config"] == config
        step, state, data = read(checkpoints, experiment)
      same = same and equal(state, wanted[step][0]) and data == wanted[step][1]
      outcome = "that step" if step == newest else "an older step"
      outcomes[outcome if same else "WRONG VALUES"] += 1
    except CheckpointError:
      outcomes["REFUSED"] += 1
    path.write_bytes(content)
  counts = ", ".join(f"{name} {n}" for name, n in outcomes.items())
  print(f"one flipped bit: {count} times in {len(paths)} files; {counts}")
  return not outcomes["WRONG VALUES"] and not outcomes["REFUSED"]


# A function of (folder, times, draw) for each kind, and its default times.
KINDS = {kills: 100, pairs: 5, stops: 8, full: 7, flips: 100}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for kind, times in KINDS.items():
    parser.add_argument(
      f"--{kind.__name__}",
      type=int,
      default=times,
      metavar="TIMES",
      help=f"{kind.__doc__} (default: {times}; 0 to skip)",
    )
  parser.add_argument("--seed", type=int, default=0, help="seed of the times")
  options = parser.parse_args()
  # Orbax leaves reads under way when one fails, and logs each of them.
  for name in ("figs_jax", "absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda _: None
  survived = True
  for kind in KINDS:
    if count := getattr(options, kind.__name__):
      folder, draw = Path(tempfile.mkdtemp()), random.Random(options.seed)
      start = time.monotonic()
      try:
        survived &= kind(folder, count, draw)
      finally:
        shutil.rmtree(folder)
      print(f"  {time.monotonic() - start:.0f} s", flush=True)
  sys.exit(not survived)


if __name__ == "__main__":
  main()
