"""What a run survives: SIGKILL at any time, and flipped bits in a checkpoint.

A small figs run is killed `--kills` times, each time some steps after it began
or resumed, and must end with the bits and rows of a run that nothing touched.
Then one bit of a random file of its newest checkpoint is flipped, `--flips`
times: restoring must give that step or the one before, as they were.

  python benchmarks/survival.py --kills 100 --flips 100
"""

from __future__ import annotations

import argparse
import collections
import itertools
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
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
STEPS_PER_KILL = 40
EVERY = 5  # steps between checkpoints


def command(workdir: Path, steps: int) -> list[str]:
  fields = {
    "total_steps": steps,
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
  }
  return [
    sys.executable,
    "launch/train.py",
    "--config=configs/digits_vit.py:figs",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


def last_step(workdir: Path) -> int:
  path = workdir / FILE
  lines = path.read_bytes().count(b"\n") if path.exists() else 0
  return lines - lines // (EVERY + 1)  # without the rows of evaluations


def killed(workdir: Path, steps: int, draw: random.Random) -> bool:
  """Starts the run and kills it; False if it ended before."""
  process = subprocess.Popen(
    command(workdir, steps),
    cwd=REPO,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  target = last_step(workdir) + draw.randint(1, STEPS_PER_KILL // 2)
  while process.poll() is None and last_step(workdir) < target:
    time.sleep(0.005)
  time.sleep(draw.random() / 50)  # in a step, in a save, or between them
  process.kill()
  return process.wait() < 0


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


def kills(folder: Path, count: int, draw: random.Random) -> None:
  steps = STEPS_PER_KILL * max(count, 1)
  whole, broken = folder / "whole", folder / "broken"
  done = sum(killed(broken, steps, draw) for _ in range(count))
  for workdir in (whole, broken):
    subprocess.run(
      command(workdir, steps), cwd=REPO, check=True, capture_output=True
    )
  one, other = (leaves(restore(workdir)[1]) for workdir in (whole, broken))
  print(
    f"SIGKILL: {done} times in {steps} steps; weights and state"
    f" {'equal' if equal(one, other) else 'DIFFERENT'}, rows"
    f" {'equal' if rows(whole) == rows(broken) else 'DIFFERENT'}"
  )


def read(
  checkpoints: Checkpointer, experiment: Experiment, step: int | None = None
) -> tuple[int, dict, dict]:
  """(step, state, data position)."""
  state, data, step = checkpoints.restore(experiment.abstract_state, step)
  return step, leaves(state), data


def flips(folder: Path, count: int, draw: random.Random) -> None:
  workdir = folder / "whole"
  experiment, _, newest = restore(workdir)
  with Checkpointer(workdir) as checkpoints:
    config = checkpoints.meta()["config"]
    wanted = {
      step: read(checkpoints, experiment, step)[1:]
      for step in checkpoints.steps()
    }
  where = checkpoints.path / str(newest)
  paths = sorted(p for p in where.rglob("*") if p.is_file())
  outcomes: collections.Counter[str] = collections.Counter()
  # Small files as often as large ones.
  for path in itertools.islice(itertools.cycle(paths), count):
    content = path.read_bytes()
    bit, damaged = draw.randrange(8 * len(content)), bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(damaged))
    try:
      with Checkpointer(workdir) as checkpoints:
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--flips", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  # Orbax leaves reads under way when one fails, and logs each of them.
  for name in ("figs_jax", "absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda _: None
  folder, draw = Path(tempfile.mkdtemp()), random.Random(options.seed)
  start = time.monotonic()
  try:
    kills(folder, options.kills, draw)
    flips(folder, options.flips, draw)
  finally:
    shutil.rmtree(folder)
  print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
  main()
