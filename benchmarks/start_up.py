"""Processor time that the README's engine command takes to start and to end.

  python launch/engine.py --model vit:B/16 --batch 8 --pattern "ff: 1:8" ...

beside `import jax` alone, in this checkout and in another revision's worktree,
one after the other in every round, so that a busy machine slows all alike.
Processor time is that of the process, user and system. What counts is the
median over the rounds of (command - import), and of this version's share of the
other's in the same round. Nothing is asserted; the target is a third.

  git worktree add ../before 95af0f9
  python benchmarks/start_up.py --before ../before

A worktree is made in a temporary directory, and removed, if none is given.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence

from worktree import ROOT, checkout

COMMAND = (
  "launch/engine.py", "--model", "vit:B/16", "--batch", "8", "--pattern",
  "ff: 1:8", "--engines",
  "ws:32x16,vegeta-s-16-2,figs,tensorcore:h200,tpu:v5e",
)  # fmt: skip
IMPORT = ("-c", "import jax")


def seconds(root: pathlib.Path, python: str, words: Sequence[str]) -> float:
  """Processor seconds of one run of Python in a checkout.

  Raises:
    SystemExit: If the command fails.
  """
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  more = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
  # A first start, as on a machine that has compiled nothing yet.
  cached = "JAX_COMPILATION_CACHE_DIR"
  variables = {k: v for k, v in os.environ.items() if k != cached} | more
  done = subprocess.run(
    [python, *words],
    cwd=root,
    env=variables,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(f"{root}: {done.stderr.strip().splitlines()[-1]}")
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  user, system = after.ru_utime - before.ru_utime, after.ru_stime
  return user + system - before.ru_stime


def compare(before: pathlib.Path, python: str, rounds: int) -> None:
  """Prints the seconds of each round, and the medians."""
  print(f"{'round':>6} {'import':>7} {'before':>7} {'now':>7} {'share':>6}")
  rows = []
  for turn in range(-1, rounds):
    jax = seconds(ROOT, sys.executable, IMPORT)
    old = seconds(before, python, COMMAND) - jax
    new = seconds(ROOT, sys.executable, COMMAND) - jax
    if turn < 0:
      continue  # the first fills caches of files
    rows.append((jax, old, new, new / old))
    cells = " ".join(f"{x:7.2f}" for x in rows[-1][:3])
    print(f"{turn:6} {cells} {new / old:6.2f}", flush=True)
  jax, old, new, share = map(statistics.median, zip(*rows))
  print(f"median {jax:7.2f} {old:7.2f} {new:7.2f} {share:6.2f}")
  print(
    f"beyond the import: {old / jax:.1f} times it before, {new / jax:.1f} now"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description="Processor time of a start.")
  parser.add_argument("--before", type=pathlib.Path, help="another checkout")
  parser.add_argument("--revision", default="95af0f9", help="without --before")
  parser.add_argument("--python", default=sys.executable, help="of --before")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    before = args.before or stack.enter_context(checkout(args.revision))
    compare(before.resolve(), args.python, args.rounds)


if __name__ == "__main__":
  main()
