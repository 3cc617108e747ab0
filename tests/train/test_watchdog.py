"""A process that gives no sign ends, with the stacks of its threads."""

import signal
import subprocess
import sys

import pytest

from figs_jax.train import watchdog

# Without figs_jax, whose import takes seconds.
PROGRAM = """
import ctypes, importlib.util, sys, threading, time
spec = importlib.util.spec_from_file_location("watchdog", sys.argv[1])
watchdog = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watchdog)
watchdog.start(0.5)
for _ in range(10):
  time.sleep(0.1)
  watchdog.alive()

def waits_for_data():
  time.sleep(60)

threading.Thread(target=waits_for_data, daemon=True).start()
{}
"""
HANGS = {
  "without Python's lock": "time.sleep(60)",
  "with Python's lock": "ctypes.PyDLL(None).sleep(60)",
  "ended": "watchdog.start(0); time.sleep(1)",
}


@pytest.fixture(scope="module")
def done():
  """(exit code, standard error) of each kind, which run side by side."""
  programs = {
    name: subprocess.Popen(
      [sys.executable, "-c", PROGRAM.format(line), watchdog.__file__],
      stderr=subprocess.PIPE,
      text=True,
    )
    for name, line in HANGS.items()
  }
  return {
    name: (program.communicate()[1], program.returncode)
    for name, program in programs.items()
  }


@pytest.mark.parametrize(
  "name", ["without Python's lock", "with Python's lock"]
)
def test_a_process_that_hangs_ends_with_the_stacks_of_its_threads(done, name):
  errors, code = done[name]
  assert code == -signal.SIGALRM
  assert errors.startswith("Timeout (0:00:00.500000)!")
  assert errors.count("most recent call first") == 2
  assert "in waits_for_data" in errors


def test_signs_and_the_end_of_the_watch_keep_it_alive(done):
  assert done["ended"] == ("", 0)
