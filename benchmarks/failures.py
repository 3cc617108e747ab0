"""Runs of several hosts that fail: killed, paused, cut off, hung, resized.

Each trial trains a tiny ViT on digits with two or three real processes, each in
a network namespace of its own (or on loopback, without partitions, if this user
may not make any), disturbs one of them at a step, waits until all have ended,
and starts the run again as a launcher would, with as many processes or with
another number. It must end as a run that nothing disturbed: with as many
processes, with the same bits and rows; with another number, with the same
examples at every step and losses within 1e-5. Every trial is a row of a CSV
file; those that are there are not repeated. The exit code is 1 if one lost
anything.

  export JAX_PLATFORMS=cpu PYTHONPATH=.
  python benchmarks/failures.py --rows failures.csv
  python benchmarks/failures.py --rows failures.csv --table
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import dataclasses
import functools
import json
import logging
import os
import re
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import _hosts, _starts
from benchmarks._starts import Process
from figs_jax.data.stream import TrainBatches
from figs_jax.train import exit_codes
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.log_writer import FILE, read_log

REPO = Path(__file__).parents[1]
STEPS, EVERY, BATCH = 24, 8, 24
PACE = 0.15  # seconds that a step takes at least, so that it can be met
HEARTBEAT, WATCHDOG = 10, 45  # seconds
LONG, SHORT = 3 * HEARTBEAT, HEARTBEAT / 3
PATIENCE = 300  # seconds that a start may take
TOLERANCE = 1e-5  # of losses, relative, with another number of processes
FIELDS = {
  "total_steps": STEPS,
  "checkpoint_every": EVERY,
  "log_every": 1,
  "diagnose_every": 0,
  "batch_size": BATCH,
  "model.depth": 1,
  "model.width": 32,
  "model.mlp_dim": 64,
  "optimizer.warmup_steps": 4,
  "pattern": "ff: 1:4",
  "progress": False,
}


@dataclasses.dataclass(frozen=True)
class Trial:
  """One trial.

  Attributes:
    what: What happens to one process, see `KINDS`.
    count: Number of processes.
    victim: Process to which it happens.
    step: Step at which it happens.
    then: Number of processes of the next start. None is `count`.
    fsdp: Number of parts of the kernels, before and after.
  """

  what: str
  count: int
  victim: int
  step: int
  then: int | None = None
  fsdp: tuple[int, int] = (1, 1)

  @property
  def end(self) -> int:
    """Number of processes of the next start."""
    return self.count if self.then is None else self.then

  @property
  def name(self) -> str:
    words = f"{self.what} {self.count}/{self.victim}@{self.step}"
    mesh = "" if self.fsdp == (1, 1) else f" fsdp {self.fsdp[0]}-{self.fsdp[1]}"
    return f"{words} then {self.end}{mesh}"


TRIALS = (
  Trial("killed", 2, 0, 12),
  Trial("paused for long", 2, 0, 12),
  Trial("cut off for long", 2, 1, 19),
  Trial("hung with Python's lock", 2, 1, 12),
  Trial("SIGUSR1", 2, 1, 10),
  Trial("SIGTERM", 2, 0, 13, then=3, fsdp=(2, 3)),
  Trial("killed in a save", 3, 1, 16),
  Trial("cut off for a moment", 2, 1, 12),
  Trial("paused for a moment", 2, 0, 12),
  Trial("SIGTERM", 2, 1, 11, then=1),
  Trial("killed", 3, 1, 13, then=2, fsdp=(3, 1)),
  Trial("hung", 2, 0, 12),
  Trial("killed in a start", 2, 1, 0),
  Trial("SIGTERM", 1, 0, 12, then=2),
  Trial("paused for long", 3, 2, 12),
  Trial("cut off for long", 3, 0, 12),
  Trial("killed", 2, 1, 13),
  Trial("killed in a save", 2, 0, 8),
  Trial("killed in a save", 2, 1, 16),
  Trial("SIGTERM", 2, 1, 13),
  Trial("paused for long", 2, 1, 20),
  Trial("cut off for long", 2, 0, 12),
  Trial("killed", 1, 0, 20, then=3),
  Trial("SIGUSR1", 3, 2, 11, then=2),
  Trial("killed", 3, 0, 12, then=1),
  Trial("cut off for long", 3, 2, 12, then=2),
  Trial("hung", 3, 1, 13),
  Trial("SIGTERM", 3, 1, 18),
  Trial("killed", 3, 2, 12, fsdp=(3, 3)),
  Trial("paused for a moment", 3, 1, 12),
)


class Run:
  """A run in a directory, started with any number of processes.

  Args:
    workdir: Directory of the run. Beside it lie the files of its starts.
    hosts: Where its processes run.
    starter: What starts them.
  """

  def __init__(
    self, workdir: Path, hosts: _hosts.Hosts, starter: _starts.Starter
  ):
    self.workdir, self.hosts, self.starter = workdir, hosts, starter
    self.starts: list[int] = []  # number of processes of each

  def beside(self, kind: str, start: int, host: int) -> Path:
    """A file of one process of a start: "stderr" or "examples"."""
    return self.workdir.with_name(f"{self.workdir.name}.{kind}{start}-{host}")

  def start(
    self, count: int, fsdp: int = 1, watchdog: int = PATIENCE
  ) -> list[Process]:
    """Starts the processes of the run."""
    number = len(self.starts)
    self.starts.append(count)
    fields = FIELDS | {"mesh.data": -1, "mesh.fsdp": fsdp}
    words = [
      *("launch/train.py", "--config=configs/digits_vit.py:figs"),
      *(f"--workdir={self.workdir}", f"--stopped_code={exit_codes.STOPPED}"),
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    variables = {}
    if count > 1:
      words.append("--distributed")
      words.append(f"--heartbeat_seconds={HEARTBEAT}")
      words.append(f"--watchdog_seconds={watchdog}")
      address = f"{self.hosts.address(0)}:{free_port()}"
      variables["JAX_COORDINATOR_ADDRESS"] = address
      variables["JAX_NUM_PROCESSES"] = str(count)
    return [
      self.starter.start(
        words=words,
        variables=variables | {"JAX_PROCESS_ID": str(host)},
        errors=str(self.beside("stderr", number, host)),
        examples=str(self.beside("examples", number, host)),
        host=host,
      )
      for host in range(count)
    ]

  def log(self, host: int = 0) -> str:
    """What a process of the last start has written to standard error."""
    return self.beside("stderr", len(self.starts) - 1, host).read_text()

  def row(self) -> int:
    """The last step with a row."""
    rows = read_log(self.workdir) if (self.workdir / FILE).exists() else []
    return max((row["step"] for row in rows), default=0)

  def saved(self) -> int:
    """The newest step on disk, or 0."""
    with Checkpointer(self.workdir) as checkpoints:
      return max(checkpoints.steps(), default=0)

  def is_saving(self) -> bool:
    """Whether a step is being written."""
    path = self.workdir / "checkpoints"
    return path.exists() and any(
      not entry.name.isdigit() for entry in os.scandir(path)
    )

  def examples(self) -> dict[int, list[int]]:
    """The checksums of the examples of every batch, of its last training."""
    batches: dict[int, list[int]] = {}
    for start, count in enumerate(self.starts):
      here: dict[int, list[int]] = {}
      for host in range(count):
        path = self.beside("examples", start, host)
        for line in path.read_text().splitlines() if path.exists() else ():
          number, sums = json.loads(line)
          here.setdefault(number, []).extend(sums)
      batches |= {number: sorted(sums) for number, sums in here.items()}
    return batches


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def wait_for(reached: Callable[[], bool], processes: list[Process]) -> None:
  """Returns once something is reached.

  Raises:
    RuntimeError: If a process ends before, or nothing happens for long.
  """
  end = time.monotonic() + PATIENCE
  while not reached():
    if time.monotonic() > end or any(p.poll() is not None for p in processes):
      codes = [p.poll() for p in processes]
      raise RuntimeError(f"ended too early, with exit codes {codes}")
    time.sleep(0.002)


def killed(run: Run, processes: list[Process], trial: Trial) -> None:
  processes[trial.victim].end()


def killed_in_a_save(run: Run, processes: list[Process], trial: Trial) -> None:
  wait_for(run.is_saving, processes)
  processes[trial.victim].end()


def sent(number: int) -> Callable[..., None]:
  def send(run: Run, processes: list[Process], trial: Trial) -> None:
    processes[trial.victim].send(number)

  return send


def paused(seconds: float) -> Callable[..., None]:
  def pause(run: Run, processes: list[Process], trial: Trial) -> None:
    processes[trial.victim].send(signal.SIGSTOP)
    time.sleep(seconds)
    processes[trial.victim].send(signal.SIGCONT)

  return pause


def cut_off(seconds: float) -> Callable[..., None]:
  def cut(run: Run, processes: list[Process], trial: Trial) -> None:
    run.hosts.connect(trial.victim, False)
    time.sleep(seconds)
    run.hosts.connect(trial.victim, True)

  return cut


# What the main thread of a process does at a signal, in order to hang.
HANGS = {
  signal.SIGUSR2: lambda *_: time.sleep(PATIENCE),
  # A function of C that is called with Python's lock and keeps it.
  signal.SIGWINCH: lambda *_: ctypes.PyDLL(None).sleep(PATIENCE),
}

# By the name of what happens: how, and whether the run goes on.
KINDS: dict[str, tuple[Callable[..., None], bool]] = {
  "killed": (killed, False),
  "killed in a save": (killed_in_a_save, False),
  "killed in a start": (killed, False),
  "SIGTERM": (sent(signal.SIGTERM), False),
  "SIGUSR1": (sent(signal.SIGUSR1), False),
  "paused for long": (paused(LONG), False),
  "paused for a moment": (paused(SHORT), True),
  "cut off for long": (cut_off(LONG), False),
  "cut off for a moment": (cut_off(SHORT), True),
  "hung": (sent(signal.SIGUSR2), False),
  "hung with Python's lock": (sent(signal.SIGWINCH), False),
}
SIGNALS = ("SIGTERM", "SIGUSR1")
# Columns of the file of rows.
COLUMNS = (
  "trial", "what", "processes", "victim", "step", "then", "network", "codes",
  "ended_after_s", "saved", "resumed_from", "end", "lost",
)  # fmt: skip


def ended(processes: list[Process]) -> list[int]:
  """The exit codes of all processes."""
  end = time.monotonic() + PATIENCE
  try:
    return [p.wait(max(end - time.monotonic(), 0)) for p in processes]
  finally:
    for process in processes:
      process.end()


def whole(make: Callable[[str], Run], count: int, fsdp: int) -> Run:
  """A run that nothing disturbs; trained once for each mesh."""
  run = make(f"whole-{count}-{fsdp}")
  if run.workdir.exists() and run.saved() == STEPS:
    run.starts.append(count)
    return run
  shutil.rmtree(run.workdir, ignore_errors=True)
  if any(codes := ended(run.start(count, fsdp))):
    raise RuntimeError(f"{run.workdir.name}: exit codes {codes}: {run.log()}")
  return run


def try_once(trial: Trial, make: Callable[[str], Run]) -> dict[str, Any]:
  """Row of a trial."""
  peer = whole(make, trial.end, trial.fsdp[1])
  run, lost = make("disturbed"), []
  for path in run.workdir.parent.glob("disturbed*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  disturb, goes_on = KINDS[trial.what]
  hangs = "hung" in trial.what
  watchdog = WATCHDOG if hangs else PATIENCE
  processes = run.start(trial.count, trial.fsdp[0], watchdog)
  try:
    # It takes seconds from the lock to the first step.
    lock = run.workdir / "trainer.lock"
    wait_for(lambda: lock.exists() and run.row() >= trial.step, processes)
    begun, whole_before = time.monotonic(), run.saved()
    disturb(run, processes, trial)
    codes = ended(processes)
  finally:
    for process in processes:
      process.end()
  seconds = time.monotonic() - begun
  reached, saved, resumed = run.row(), run.saved(), None
  if goes_on and any(codes):
    lost.append(f"exit codes {codes}, expected 0")
  if not goes_on:
    if wrong := [code for code in codes if not exit_codes.restarts(code)]:
      lost.append(f"exit codes {wrong}, on which no launcher restarts")
    # What was whole before, or what was being written then.
    good = {whole_before, reached - reached % EVERY}
    if trial.what in SIGNALS:
      good = {reached}
      if set(codes) != {exit_codes.STOPPED}:
        lost.append(f"exit codes {codes}, expected {exit_codes.STOPPED}")
    if saved not in good:
      lost.append(f"step {saved} is saved, of {reached}, expected {good}")
    if hangs:
      # The other may end first, upon which JAX aborts this one.
      stacks = run.log(trial.victim).count("most recent call first")
      if not stacks or codes[trial.victim] < exit_codes.ABORTED:
        lost.append(f"{stacks} stacks, exit code {codes[trial.victim]}")
    if any(again := ended(run.start(trial.end, trial.fsdp[1]))):
      lost.append(f"exit codes {again} of the next start: {run.log()[-500:]}")
    line = re.search(r"resuming from step (\d+)", run.log())
    resumed = int(line[1]) if line else 0
    if resumed != saved:
      lost.append(f"resumed from step {resumed}, not {saved}")
  end, different = compared(run, peer, trial.count == trial.end)
  return {
    "trial": trial.name,
    "what": trial.what,
    "processes": trial.count,
    "victim": trial.victim,
    "step": trial.step,
    "then": trial.end,
    "network": run.hosts.name,
    "codes": " ".join(map(str, codes)),
    "ended_after_s": round(seconds),
    "saved": saved,
    "resumed_from": "" if resumed is None else resumed,
    "end": end,
    "lost": "; ".join([*lost, *different]) or "nothing",
  }


def compared(run: Run, peer: Run, same_mesh: bool) -> tuple[str, list[str]]:
  """Words for the end of a run, and what differs from that of another."""
  different = []
  if run.examples() != peer.examples():
    different.append("other examples")
  rows, wanted = rows_of(run), rows_of(peer)
  if [row["step"] for row in rows] != [row["step"] for row in wanted]:
    different.append("other steps in the rows")
    return "", different
  one, other = state_of(run), state_of(peer)
  if same_mesh:
    unequal = [k for k in other if not np.array_equal(one[k], other[k])]
    if rows != wanted or unequal:
      different.append(f"other rows, or leaves: {unequal[:3]}")
    return "bit-equal", different
  gaps = [
    abs(row[name] / want[name] - 1)
    for row, want in zip(rows, wanted)
    for name in row.keys() & {"loss", "eval/loss"}
  ]
  if max(gaps) > TOLERANCE:
    different.append("other losses")
  return f"losses within {max(gaps):.0e}", different


def state_of(run: Run) -> dict[str, np.ndarray]:
  """The arrays of the last step by name, each verified by its checksum."""
  with Checkpointer(run.workdir) as checkpoints:
    shapes = {
      name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
      for name, leaf in checkpoints.meta(STEPS)["leaves"].items()
    }
    state, _, _ = checkpoints.restore(shapes, STEPS)
  return {name: np.asarray(leaf) for name, leaf in state.items()}


def rows_of(run: Run) -> list[dict[str, Any]]:
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in read_log(run.workdir)
  ]


def enter(
  hosts: _hosts.Hosts,
  *,
  variables: dict[str, str],
  errors: str,
  examples: str,
  host: int,
  words: list[str],
) -> None:
  """Makes this fork a program of a host: slowed, noting its examples."""
  for path, number in ((os.devnull, 0), (os.devnull, 1), (errors, 2)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
  os.environ.update(variables)
  hosts.enter(host)
  for number, hang in HANGS.items():
    signal.signal(number, hang)
  take = TrainBatches.__next__

  def noted(self: TrainBatches) -> dict[str, np.ndarray]:
    time.sleep(PACE)
    first = self.get_state()["next_example"]
    batch = take(self)
    sums = [zlib.crc32(x.tobytes()) for x in batch["image"]]
    with open(examples, "a", encoding="utf-8") as file:
      print(json.dumps([first // BATCH, sums]), file=file)
    return batch

  TrainBatches.__next__ = noted
  sys.argv = words


def read_rows(path: Path) -> list[dict[str, str]]:
  if not path.exists():
    return []
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
  """The rows in Markdown.

  Args:
    rows: Rows of the file.
  """
  lines = [
    "| processes | what happened to which, at step | exit codes, after |"
    " saved | next start | end | lost |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    goes_on = row["resumed_from"] == ""
    start = "–" if goes_on else row["then"]
    lines.append(
      f"| {row['processes']} | {row['what']}: {row['victim']}, {row['step']}"
      f" | {row['codes']}, {row['ended_after_s']} s | {row['saved']} | {start}"
      f" | {row['end']} | {row['lost']} |"
    )
  return "\n".join(lines)


def variables(folder: Path) -> dict[str, str]:
  """Variables of every process."""
  kept = {k: v for k, v in os.environ.items() if not k.endswith("_proxy")}
  return kept | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(REPO),
    # A start that finds its programs compiled takes a third of the time.
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


def run_trials(
  trials: Sequence[Trial], path: Path, folder: Path, hosts: _hosts.Hosts
) -> None:
  """Appends a row for each trial."""
  me = [sys.executable, __file__, "--forks", hosts.prefix]
  starter = _starts.Starter(me, variables(folder))

  def make(name: str) -> Run:
    return Run(folder / name, hosts, starter)

  try:
    for trial in trials:
      if trial.what.startswith("cut off") and not hosts.prefix:
        print(f"{trial.name}: needs namespaces", file=sys.stderr)
        continue
      row = try_once(trial, make)
      new = not path.exists()
      with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
          writer.writeheader()
        writer.writerow(row)
      print(*row.values(), sep=" | ", flush=True)
  finally:
    starter.close()


def main() -> None:
  if sys.argv[1:2] == ["--forks"]:
    _starts.serve(functools.partial(enter, _hosts.named(sys.argv[2])))
    runpy.run_path(sys.argv[0], run_name="__main__")
    return
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--rows", type=Path, required=True, help="CSV file of the rows"
  )
  parser.add_argument("--only", default="", help="trials whose name begins so")
  parser.add_argument(
    "--most", type=int, default=len(TRIALS), help="trials of this call at most"
  )
  parser.add_argument(
    "--workdir", type=Path, help="folder of the runs (default: a temporary one)"
  )
  parser.add_argument(
    "--table", action="store_true", help="print the rows in Markdown"
  )
  options = parser.parse_args()
  if options.table:
    print(table(read_rows(options.rows)))
    return
  logging.getLogger("figs_jax").setLevel(logging.ERROR)
  folder = options.workdir or Path(tempfile.mkdtemp(prefix="failures-"))
  folder.mkdir(exist_ok=True)
  there = {row["trial"] for row in read_rows(options.rows)}
  trials = [
    trial
    for trial in TRIALS
    if trial.name.startswith(options.only) and trial.name not in there
  ]
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  try:
    with _hosts.hosts(3) as hosts:
      run_trials(trials[: options.most], options.rows, folder.resolve(), hosts)
  finally:
    if not options.workdir:
      shutil.rmtree(folder)
  sys.exit(any(row["lost"] != "nothing" for row in read_rows(options.rows)))


if __name__ == "__main__":
  main()
