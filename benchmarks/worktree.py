"""Another revision of this repository, for benchmarks that compare with it."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[pathlib.Path]:
  """A worktree of a revision in a temporary folder, removed at the end."""
  git = ["git", "-C", str(ROOT), "worktree"]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder) / "worktree"
    add = [*git, "add", "--detach", str(root), revision]
    done = subprocess.run(add, capture_output=True, text=True)
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
      raise SystemExit(f"revision {revision}: {reason}")
    try:
      yield root
    finally:
      subprocess.run([*git, "remove", "--force", str(root)], check=True)


def run_base(program: str, revision: str) -> None:
  """Runs a program again, with its arguments but `--base`, on a revision."""
  given = argparse.ArgumentParser(allow_abbrev=False)
  given.add_argument("--base")
  _, words = given.parse_known_args()
  with checkout(revision) as root:
    print(f"\n{revision}", flush=True)
    subprocess.run(
      [sys.executable, program, *words],
      env=os.environ | {"PYTHONPATH": str(root)},
      check=True,
    )
