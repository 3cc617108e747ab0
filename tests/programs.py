"""Programs as their users start them: in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]

# Most of the suite's time is compilation, so XLA optimizes little.
QUICKLY_COMPILED = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
  "--xla_cpu_use_fusion_emitters=false",
)
DEVICES = "--xla_force_host_platform_device_count=8"

# A start takes seconds, so many may share one. Prints (exit code, standard
# output, standard error) of each list of words.
_ONE_PROCESS = """
import contextlib, io, json, logging, runpy, sys
from absl import flags
for path, *words in json.loads(sys.argv[1]):
  out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
  sys.argv = [path, *words]
  logging.getLogger("figs_jax").handlers.clear()
  code = 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
      code = end.code or 0
  out.flush()
  print(json.dumps([code, out.buffer.getvalue().decode(), err.getvalue()]))
  own = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[path]]
  fields = [name for name in flags.FLAGS if name.startswith("config.")]
  for name in own + fields:
    delattr(flags.FLAGS, name)
"""


def known_flags():
  """Those of `QUICKLY_COMPILED` that this XLA knows; it ends on any other."""

  def known(flags):
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    more = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    done = subprocess.run(
      start, env={**os.environ, **more}, capture_output=True, check=False
    )
    return done.returncode == 0

  if known(QUICKLY_COMPILED):
    return QUICKLY_COMPILED
  return tuple(flag for flag in QUICKLY_COMPILED if known([flag]))


def environment(**more):
  """This process's variables, for one device of the CPU and this checkout."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(DEVICES, ""),
    "PYTHONPATH": str(REPO),
    **more,
  }


def call(*command, cwd=REPO, timeout=600, **more):
  """A command that has ended, its output as text; `more` goes to the variables.

  The first word may be left to Python: a path that ends in .py, or -c.
  """
  if str(command[0]).endswith(".py") or command[0] == "-c":
    command = (sys.executable, *command)
  return subprocess.run(
    [str(word) for word in command],
    cwd=cwd,
    env=environment(**more),
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


def in_one_process(path, *calls):
  """[code, output, errors] of the program at `path` with each list of words."""
  return all_in_one_process([[path, *words] for words in calls])


def all_in_one_process(calls, before=""):
  """[code, output, errors] of each list, which begins with a program's path.

  Args:
    calls: Lists of words.
    before: Code of Python to run first.
  """
  words = [[str(word) for word in each] for each in calls]
  done = call("-c", before + _ONE_PROCESS, json.dumps(words))
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def assert_one_clear_line(done, *words):
  """A mistake of the user's: exit code 2 and one line with these words.

  Args:
    done: Result of `call`, or one result of `in_one_process`.
    words: Texts that the line must contain.
  """
  if isinstance(done, subprocess.CompletedProcess):
    done = done.returncode, done.stdout, done.stderr
  code, output, errors = done
  assert code == 2, errors
  assert output == ""
  (line,) = errors.splitlines()
  for word in words:
    assert word in line
