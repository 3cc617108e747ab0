"""Time and size of a first start, from a clean clone to the first accuracy.

  python benchmarks/first_install.py --base e5b473a

runs `bash launch/quickstart.sh` in clean clones of this checkout's HEAD and of
the base, with a fresh HOME, one after the other, in an order that alternates
over the rounds. Every round downloads all packages again (pip without a cache),
unless `--cache DIR` gives both sides one directory, which is warm from the
second start on. Times are wall clock and processor time of all processes since
the start: until the packages are installed, until the first accuracy (printed,
or in study.csv, where versions that print none before the end have it first),
and with `--until end` until the report is written. Sizes are those of .venv,
the sum of its files in 10^6 bytes, after the installation and at the first
accuracy, when Python has compiled what it has imported.

Needs git, the network or a warm cache, Linux, and 3 GB of disk for a while. No
test runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from worktree import ROOT

_TICK = os.sysconf("SC_CLK_TCK")
_ACCURACY = re.compile(r"accuracy\D*\d")
_OWN = re.compile(
  r"HOME|PYTHON\w+|VIRTUAL_ENV|TFDS_DATA_DIR|(XDG|JAX|XLA|PIP_CACHE|UV)_.*"
)


@dataclasses.dataclass(frozen=True)
class Mark:
  """A moment of a start: seconds since its beginning, and bytes of .venv."""

  wall: float
  processor: float
  size: int


def processor_seconds(session: int) -> float:
  """Processor time of a session's processes and of those that have ended."""
  ticks = 0
  for path in Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      fields = path.read_text().rpartition(")")[2].split()
      if int(fields[3]) == session:
        ticks += sum(map(int, fields[11:15]))  # own and waited-for children's
  return ticks / _TICK


def size_of(folder: Path) -> int:
  """Sum of the sizes of a folder's files; links are not followed."""
  return sum(
    (Path(place) / name).lstat().st_size
    for place, _, names in os.walk(folder)
    for name in names
  )


def start(
  revision: str, cache: str | None, until: str, words: Sequence[str]
) -> dict[str, Mark]:
  """Starts the quickstart of a revision in a clean clone.

  Raises:
    SystemExit: If it ends without an accuracy.
  """
  with tempfile.TemporaryDirectory() as folder:
    clone, home = Path(folder, "clone"), Path(folder, "home")
    home.mkdir()
    git = ["git", "-c", "advice.detachedHead=false"]
    subprocess.run([*git, "clone", "-q", str(ROOT), str(clone)], check=True)
    subprocess.run([*git, "checkout", "-q", revision], cwd=clone, check=True)
    kept = {k: v for k, v in os.environ.items() if not _OWN.fullmatch(k)}
    own = {"HOME": str(home), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
    if cache is None:
      own |= {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
    else:
      own |= {"PIP_CACHE_DIR": f"{cache}/pip", "UV_CACHE_DIR": f"{cache}/uv"}
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    process = subprocess.Popen(
      ["bash", "launch/quickstart.sh", *words],
      cwd=clone,
      env=kept | own,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    marks: dict[str, Mark] = {}
    lines: list[str] = []
    printed = threading.Event()

    def read() -> None:
      assert process.stdout is not None
      for line in process.stdout:
        lines.append(line.rstrip())
        print(f"  {time.monotonic() - begin:6.0f} s  {lines[-1][:100]}")
        if _ACCURACY.search(line):
          printed.set()

    def mark(name: str) -> None:
      wall = time.monotonic() - begin  # before the size, which takes a while
      processor = processor_seconds(process.pid)
      marks[name] = Mark(wall, processor, size_of(clone / ".venv"))

    reader = threading.Thread(target=read)
    reader.start()
    rows = clone / "runs" / "quickstart" / "study.csv"
    while process.poll() is None:
      if "installed" not in marks and any(clone.glob(".venv/figs_jax-*")):
        mark("installed")
      if "accuracy" not in marks and (printed.is_set() or rows.exists()):
        mark("accuracy")
        if until == "accuracy":
          os.killpg(process.pid, signal.SIGKILL)
      time.sleep(0.1)
    used = time.monotonic() - begin
    reader.join()
    if "accuracy" not in marks:
      raise SystemExit(f"{revision}: {lines[-1] if lines else 'no output'}")
    if until == "end":
      now = resource.getrusage(resource.RUSAGE_CHILDREN)
      processor = now.ru_utime + now.ru_stime - ended.ru_utime - ended.ru_stime
      marks["end"] = Mark(used, processor, size_of(clone / ".venv"))
    return marks


def table(
  measured: dict[str, list[dict[str, Mark]]], sides: Sequence[str]
) -> str:
  """Medians over the rounds, and of the ratios of the rounds."""
  new, base = (measured[side] for side in sides)
  lines = [
    f"| until | measure | {sides[0]} | {sides[1]} | ratio |",
    "|---|---|---:|---:|---:|",
  ]
  for name in new[0]:
    for field, unit in (("wall", 1), ("processor", 1), ("size", 10**6)):
      pairs = [
        [getattr(marks[name], field) / unit for marks in pair]
        for pair in zip(new, base, strict=True)
      ]
      mine, other = (statistics.median(side) for side in zip(*pairs))
      ratio = statistics.median(a / b for a, b in pairs)
      label = f"{field}, {'MB' if field == 'size' else 's'}"
      lines.append(
        f"| {name} | {label} | {mine:.0f} | {other:.0f} | {ratio:.2f} |"
      )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--base", required=True, help="revision to compare with")
  parser.add_argument("--rounds", type=int, default=1, help="starts per side")
  parser.add_argument(
    "--until", choices=("accuracy", "end"), default="accuracy"
  )
  parser.add_argument("--cache", help="directory of a cache for both sides")
  given, words = parser.parse_known_args()
  sides = ("HEAD", given.base)
  tool = "uv" if shutil.which("uv") else "pip"
  print(f"{tool}, {'no cache' if given.cache is None else given.cache}")
  measured: dict[str, list[dict[str, Mark]]] = {side: [] for side in sides}
  for i in range(given.rounds):
    for side in sides[:: 1 if i % 2 else -1]:
      print(f"{side}, round {i + 1}", flush=True)
      measured[side].append(start(side, given.cache, given.until, words))
  print(table(measured, sides))


if __name__ == "__main__":
  main()
