"""Processor time of `cost`, this version beside an earlier one.

Both versions run in turn, each in a process of its own with the same Python;
the earlier one is checked out as a git worktree in a temporary folder. A ratio
is the median over the pairs of earlier / this, so that above 1 this version is
faster. Three tables, in Markdown:

1. `cost` of random layers by kind of engine and number of rows. The first call
   is the first with this number of rows in its process, as in a program that
   asks once; a later one repeats it.
2. A sweep that looks for the fewest cycles: its first run and a later one, in
   M points per second of processor time.
3. The Pareto front of a million designs by launch/engine.py, in seconds of
   processor time over those of a start without a sweep.

  python benchmarks/engine_call.py --base 95af0f9 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from worktree import ROOT, checkout

ENGINES = {
  "ws": "ws:32x32",
  "vegeta": "vegeta-s-16-2",
  "figs": "figs",
  "tensorcore": "tensorcore:h200",
  "tpu": "tpu:v5e",
  "csr": "csr:h200",
}
ROWS = (10, 11, 12, 50, 2000, 10**6)
SWEEP = "figs:overlap=full"
AXES = {
  "pattern": ["1:2", "2:4", "1:4", "1:8"],
  "rows": list(range(16, 272, 16)),
  "cols": list(range(16, 272, 16)),
}


PROGRAM = "launch/engine.py --model vit:B/16 --pattern ff:1:2 --engines figs"
DESIGNS = "rows=8,16,...,800; cols=1,2,...,1000; alpha=1,3,...,19"


def work() -> None:
  """Answers requests, one JSON value a line, with seconds of processor time."""
  print(json.dumps(str(pathlib.Path(_figs_jax().__file__).parents[1])))
  calls: dict[str, Callable[[], Any]] = {}
  for line in sys.stdin:
    name, argument, count = json.loads(line)
    key = f"{name} {argument}"
    if key not in calls:
      calls[key] = {"cost": _cost, "sweep": _sweep}[name](*argument)
    start = time.process_time()
    for _ in range(count):
      calls[key]()
    print(json.dumps((time.process_time() - start) / count), flush=True)


def _figs_jax() -> Any:
  import figs_jax.engine

  return figs_jax


def _cost(spec: str, rows: int) -> Callable[[], Any]:
  import numpy as np

  from figs_jax.engine import Layers, cost, parse

  rng = np.random.default_rng(rows)
  M, N, K = rng.integers(64, 4096, (3, rows))
  m, ones = 2 ** rng.integers(1, 4, rows), np.ones(rows, np.int64)
  layers = Layers(("",) * rows, M, N, K, ones, m, ones)
  engine = parse(spec)
  return lambda: cost(layers, engine)


def _sweep(spec: str, side: int) -> Callable[[], Any]:
  from figs_jax.engine import sweep

  sizes = {
    "M": range(64, 64 + 8 * side, 8),
    "N": range(128, 128 + 8 * side, 8),
    "K": range(96, 96 + 8 * side, 8),
  }
  designs = sweep(spec, sizes | AXES)
  return lambda: designs.smallest("cycles")


class Version:
  """A checkout and the process that runs it."""

  def __init__(self, root: pathlib.Path):
    self._process = subprocess.Popen(
      [sys.executable, __file__, "--work"],
      cwd=root,
      env=os.environ | {"PYTHONPATH": str(root)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    where = pathlib.Path(json.loads(self._read()))
    if where != root.resolve():
      raise SystemExit(f"Expected figs_jax of {root}, got that of {where}.")

  def seconds(self, name: str, *argument: Any, count: int = 1) -> float:
    """Processor time of a call, the mean of `count` successive ones."""
    stdin: Any = self._process.stdin
    print(json.dumps((name, argument, count)), file=stdin, flush=True)
    return json.loads(self._read())

  def stop(self) -> None:
    self._process.communicate()

  def _read(self) -> str:
    stdout: Any = self._process.stdout
    line = stdout.readline()
    if not line:
      raise SystemExit("A worker stopped; its error is above.")
    return line


@contextlib.contextmanager
def versions(base: pathlib.Path) -> Iterator[list[Version]]:
  """The earlier version and this one, in fresh processes."""
  both = [Version(base), Version(ROOT)]
  try:
    yield both
  finally:
    for version in both:
      version.stop()


def paired(
  both: list[Version], turn: int, *call: Any, count: int = 1
) -> list[float]:
  """Seconds of the earlier and of this version, which goes first in turns."""
  order = both if turn % 2 else both[::-1]
  times = {id(v): v.seconds(*call, count=count) for v in order}
  return [times[id(version)] for version in both]


def ratio(pairs: list[list[float]]) -> float:
  return statistics.median(before / now for before, now in pairs)


def medians(pairs: list[list[float]]) -> list[float]:
  return [statistics.median(column) for column in zip(*pairs)]


def print_costs(args: argparse.Namespace, base: pathlib.Path) -> None:
  first: dict[Any, list[list[float]]] = {}
  later: dict[Any, list[list[float]]] = {}
  for turn in range(args.rounds):
    with versions(base) as both:
      for name, spec in ENGINES.items():
        for rows in ROWS:
          call, key = ("cost", spec, rows), (name, rows)
          first.setdefault(key, []).append(paired(both, turn, *call))
          count = 1 if rows > 10**5 else 20
          for again in range(args.repeats):
            pair = paired(both, turn + again, *call, count=count)
            later.setdefault(key, []).append(pair)
  print("Processor time of `cost`, ms; a ratio is before / now.\n")
  print(
    "| engine | rows | first: before | now | ratio | later: before | now |",
    end="",
  )
  print(" ratio |\n|---|--:|--:|--:|--:|--:|--:|--:|")
  for name, rows in first:
    cells = [name, f"{rows:,}"]
    for pairs in (first[name, rows], later[name, rows]):
      cells += [f"{1e3 * x:.2f}" for x in medians(pairs)]
      cells += [f"**{ratio(pairs):.3g}**"]
    print(f"| {' | '.join(cells)} |")


def print_sweep(args: argparse.Namespace, base: pathlib.Path) -> None:
  designs = len(AXES["pattern"]) * len(AXES["rows"]) * len(AXES["cols"])
  side = max(round((args.points / designs) ** (1 / 3)), 1)
  points = side**3 * designs
  first, later = [], []
  for turn in range(args.rounds):
    with versions(base) as both:
      call = "sweep", SWEEP, side
      first.append(paired(both, turn, *call))
      later += [paired(both, turn + i, *call) for i in range(args.repeats)]
  print(f"\nFewest cycles of {points:,} designs of {SWEEP}, M points/s.\n")
  print("| run | before | now | ratio |\n|---|--:|--:|--:|")
  for name, pairs in (("first", first), ("later", later)):
    rates = [f"{points / seconds / 1e6:.1f}" for seconds in medians(pairs)]
    print(f"| {name} | {' | '.join(rates)} | **{ratio(pairs):.3g}** |")


def processor_seconds(root: pathlib.Path, *words: str) -> float:
  """Processor time of a program of a checkout, its children included."""
  variables = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  before = os.times()
  done = subprocess.run(
    [sys.executable, *words], cwd=root, env=variables, capture_output=True
  )
  after = os.times()
  if done.returncode:  # an earlier version may lack a flag
    print(done.stderr.decode().strip(), file=sys.stderr)
    return math.nan
  return (
    after.children_user + after.children_system
    - before.children_user - before.children_system
  )  # fmt: skip


def print_front(args: argparse.Namespace, base: pathlib.Path) -> None:
  aims = {"cycles,rows*cols": (base, ROOT), "time_ns,area_mm2": (ROOT,)}
  print("\nPareto front of 10^6 designs, s of processor time.\n")
  print("| version | front | start | with the sweep | sweep | M points/s |")
  print("|---|---|--:|--:|--:|--:|")
  for aim, roots in aims.items():
    for root in roots:
      words = PROGRAM.split()
      start, whole = (
        statistics.median(
          processor_seconds(root, *words, *more) for _ in range(args.rounds)
        )
        for more in ((), ("--sweep", DESIGNS, "--pareto", aim))
      )
      name = "now" if root == ROOT else "before"
      times = start, whole, whole - start, 1 / (whole - start)
      cells = " | ".join(f"{x:.2f}" for x in times)
      print(f"| {name} | {aim} | {cells} |", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description="Processor time of cost().")
  parser.add_argument("--base", default="95af0f9", help="earlier revision")
  parser.add_argument("--rounds", type=int, default=3, help="fresh processes")
  parser.add_argument("--repeats", type=int, default=5, help="later calls each")
  parser.add_argument("--points", type=float, default=2e7, help="of the sweep")
  parser.add_argument("--front", action="store_true", help="table 3 alone")
  parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.work:
    return work()
  with checkout(args.base) as base:
    if not args.front:
      print_costs(args, base)
      print_sweep(args, base)
    print_front(args, base)


if __name__ == "__main__":
  main()
