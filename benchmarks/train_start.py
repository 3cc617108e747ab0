"""Start of training: processor time of `train()` up to its first step.

Counts what follows `import jax`, without compiling the step, in new processes:
this version and a worktree of another revision in turn, on the digits config.
Prints the medians of both and the median of the paired ratios.

  python benchmarks/train_start.py --revision 95af0f9 --pairs 5
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from worktree import ROOT, checkout

_MEASURED = """
import sys, time
import jax
before = time.process_time()
sys.path.insert(0, sys.argv[1])
import runpy
config = runpy.run_path("configs/digits_vit.py")["get_config"]("figs")
config.progress = False
from figs_jax.train import loop

class Started(Exception):
  pass

def started(*args):
  raise Started

loop.compiled_step = lambda *args, **options: started
try:
  loop.train(config, sys.argv[2])
except Started:
  print("seconds", time.process_time() - before)
"""


def seconds(root: Path, python: str) -> float:
  """Processor seconds of one start in a new process."""
  with tempfile.TemporaryDirectory() as workdir:
    done = subprocess.run(
      [python, "-c", _MEASURED, str(root), workdir],
      cwd=root,
      capture_output=True,
      text=True,
      check=False,
    )
  if done.returncode:
    raise RuntimeError(done.stderr)
  return float(done.stdout.split("seconds ")[1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--revision", default="95af0f9", help="Git revision.")
  parser.add_argument("--pairs", type=int, default=5, help="Measured pairs.")
  parser.add_argument(
    "--python", default=sys.executable, help="Interpreter for both versions."
  )
  args = parser.parse_args()
  with checkout(args.revision) as other:
    for root in (ROOT, other):  # the first start prepares data and bytecode
      seconds(root, args.python)
    pairs = [
      (seconds(ROOT, args.python), seconds(other, args.python))
      for _ in range(args.pairs)
    ]
  here, there = map(statistics.median, zip(*pairs))
  ratio = statistics.median(new / old for new, old in pairs)
  print(f"this version  {here:6.2f} s")
  print(f"{args.revision:13} {there:6.2f} s")
  print(f"ratio         {ratio:6.2f}")


if __name__ == "__main__":
  main()
