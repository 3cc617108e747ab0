"""What a mistake costs its maker: one line that names the fix.

Wrong commands of all programs and wrong calls from Python are run in this
process, each beside a word that its line must contain: the flag, argument,
value or command that mends it. The table has the line of each. The exit code is
1 if one is accepted, ends in a traceback or in more than a line, or names no
fix.

  python benchmarks/mistakes.py [--only REGEX] [--wrong]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import logging
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mistake_cases import CALLS, PROGRAMS, SETUP

os.environ.setdefault("JAX_PLATFORMS", "cpu")
REPO = Path(__file__).parents[1]


class Outcome(NamedTuple):
  """What one mistake led to.

  Attributes:
    what: The command or call.
    kind: "good", or what is wrong: "traceback", "accepted", "lines", "no fix".
    line: Its last line.
    seconds: Time that it took.
  """

  what: str
  kind: str
  line: str
  seconds: float


def prepared(folder: Path, with_run: bool) -> dict[str, str]:
  """Files and a run to be wrong about: text for each {name} of a command."""
  from figs_jax import models
  from figs_jax.models import pretrained
  from figs_jax.train.config import default_config
  from figs_jax.train.loop import train

  (folder / "empty").mkdir()
  (folder / "table.csv").write_text("a,b\n1,2\n")
  (folder / "junk.safetensors").write_bytes(b"not a file of tensors")
  (folder / "raises.py").write_text("a = 1\n\nb = a.wrong\n")
  config = default_config("ste")
  config.variant, config.pattern = "custom/4", "ff: 1:4"
  config.model.update({"width": 16, "depth": 1, "heads": 1, "mlp_dim": 16})
  config.model.pool = "gap"
  config.total_steps, config.batch_size, config.progress = 2, 8, False
  config.data.data_dir = str(folder / "data")
  config.data.eval_batch_size = 400
  if with_run:
    train(config, folder / "run")
  sizes = {"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "image_size": 8}
  vit = models.create("vit", "custom/4", **sizes)
  pretrained.save(vit, folder / "vit.safetensors")
  names = {
    "weights": "vit.safetensors",
    "csv": "table.csv",
    "junk": "junk.safetensors",
    "folder": "empty",
  }
  names |= {"raises": "raises.py", "run": "run", "new": "new"}
  return {name: str(folder / path) for name, path in names.items()}


def filled(text: str, names: dict[str, str]) -> str:
  for name, path in names.items():
    text = text.replace(f"{{{name}}}", path)
  return text


def of_command(program: str, words: str, fix: str) -> tuple[str, str]:
  """(kind, line) of a command of launch/."""
  from absl import flags

  path = str(REPO / "launch" / f"{program}.py")
  out, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO()
  logging.getLogger("figs_jax").handlers.clear()
  hooks, code = (sys.excepthook, sys.unraisablehook), 0
  argv, sys.argv = sys.argv, [path, *shlex.split(words)]
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
      try:
        runpy.run_path(path, run_name="__main__")
      except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
      except BaseException as error:
        return "traceback", _last(error)
  finally:
    sys.argv = argv
    sys.excepthook, sys.unraisablehook = hooks
    own = [f.name for f in flags.FLAGS.flags_by_module_dict().get(path, [])]
    for name in own + [n for n in flags.FLAGS if n.startswith("config.")]:
      delattr(flags.FLAGS, name)
  out.flush()
  lines = errors.getvalue().splitlines() or ["(nothing)"]
  if code != 2:
    return "accepted", f"exit code {code}: {lines[-1]}"
  if len(lines) > 1 or out.buffer.getvalue():
    return "lines", " | ".join(lines)
  return ("good" if fix in lines[0] else "no fix"), lines[0]


def of_call(code: str, fix: str, scope: dict[str, Any]) -> tuple[str, str]:
  """(kind, line) of a call; the error must be raised by figs_jax."""
  try:
    exec(code, dict(scope))
  except Exception as error:
    line = _last(error)
    frames = traceback.extract_tb(error.__traceback__)
    inside = str(REPO / "figs_jax") in frames[-1].filename
    if not inside or not isinstance(error, (ValueError, TypeError)):
      return "traceback", line
    if "\n" in str(error):
      return "lines", line
    return ("good" if fix in str(error) else "no fix"), line
  return "accepted", "(nothing)"


def _last(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}"[:400]


def _all() -> list[str]:
  """The text of every mistake."""
  commands = [(p, words) for p, cases in PROGRAMS.items() for words, _ in cases]
  return [f"{p} {words}".strip() for p, words in commands] + [
    code for code, _ in CALLS
  ]


def outcomes(only: str = "") -> Iterator[Outcome]:
  """What each mistake led to in whose text the regex `only` is found."""
  os.chdir(REPO)
  folder = Path(tempfile.mkdtemp())
  try:
    chosen = [what for what in _all() if re.search(only, what)]
    names = prepared(folder, any("{run}" in what for what in chosen))
    scope: dict[str, Any] = {}
    exec(SETUP, scope)
    kept = {path.name for path in folder.iterdir()}

    def outcome(what: str, function: Any, *args: Any) -> Outcome:
      start = time.monotonic()
      kind, line = function(*args)
      new = {path.name for path in folder.iterdir()} - kept
      if new and kind == "good":
        kind = f"writes {', '.join(new)}"
      for name in new:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
      line = line.replace(str(folder), "TMP")
      return Outcome(what, kind, line, time.monotonic() - start)

    for program, cases in PROGRAMS.items():
      for words, fix in cases:
        what = f"{program} {words}".strip()
        if re.search(only, what):
          command = filled(words, names)
          yield outcome(what, of_command, program, command, fix)
    for code, fix in CALLS:
      if re.search(only, code):
        yield outcome(code, of_call, filled(code, names), fix, scope)
  finally:
    shutil.rmtree(folder)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default="", help="regex of the mistakes to run")
  parser.add_argument(
    "--wrong", action="store_true", help="print those that went wrong alone"
  )
  options = parser.parse_args()
  start, kinds = time.monotonic(), collections.Counter()
  for what, kind, line, seconds in outcomes(options.only):
    kinds[kind] += 1
    if kind == "good" and options.wrong:
      continue
    print(textwrap.indent(what, "$ " if "\n" not in what else "> "))
    mark = "" if kind == "good" else f"[{kind.upper()}] "
    print(f"    {mark}{line}", flush=True)
    if seconds > 5:
      print(f"    ({seconds:.0f} s)")
  print(
    f"{kinds.total()} mistakes in {time.monotonic() - start:.0f} s:"
    f" {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
  )
  sys.exit(kinds.total() != kinds["good"])


if __name__ == "__main__":
  main()
