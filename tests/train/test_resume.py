"""A run that is killed and resumed ends as if nothing had happened.

A process takes seconds to start, so the runs that nothing interrupts share one,
and so do the resumptions.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from figs_jax.train._evaluate import evaluate
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.log_writer import read_log
from figs_jax.train.workdir import restore
from tests.programs import (
  REPO,
  assert_one_clear_line,
  environment,
  in_one_process,
)

pytestmark = [pytest.mark.slow, pytest.mark.standard_promotion]
STEPS = 80
OVERRIDES = {
  "total_steps": STEPS,
  "checkpoint_every": 8,
  "log_every": 1,
  "diagnose_every": 4,
  "batch_size": 16,
  "model.depth": 1,
  "model.width": 32,
  "model.mlp_dim": 64,
  "model.dropout": 0.1,
  "pattern": "ff: 1:4",
  "optimizer.warmup_steps": 4,
  "progress": False,
  "keep": 2,
}
# Steps at which the runs of each recipe are stopped, and how. figs: 13 is in
# its first stage, 37 in its third; step: 55 is after the switch, which comes at
# step 41 at the latest; mdgf_exp: 30 is in its decay. SIGTERM comes to a new
# run: a log that holds its step already would have it sent before the program
# can catch it.
STOPS = {
  "figs": [(13, signal.SIGKILL), (37, signal.SIGKILL)],
  "step": [(21, signal.SIGTERM), (55, signal.SIGKILL)],
  "mdgf_exp": [(30, signal.SIGKILL)],
}


def arguments(recipe, workdir, data_dir, **overrides):
  fields = OVERRIDES | {"data.data_dir": data_dir} | overrides
  return [
    f"--config=configs/digits_vit.py:{recipe}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


def start(recipe, workdir, data_dir):
  return subprocess.Popen(
    [
      sys.executable,
      "launch/train.py",
      *arguments(recipe, workdir, data_dir),
    ],
    cwd=REPO,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def send_at_step(process, workdir, step, what):
  """Waits until the log holds a row of `step`, then sends the signal."""
  path = Path(workdir) / "metrics.jsonl"
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    if process.poll() is not None:
      raise AssertionError(f"ended early: {process.communicate()[0]}")
    lines = path.read_text().splitlines() if path.exists() else []
    if any(f'"step": {step},' in line for line in lines):
      process.send_signal(what)
      return process.communicate(timeout=300)[0]
    time.sleep(0.002)
  process.kill()
  raise AssertionError(f"step {step} never came")


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in read_log(workdir)
  ]


def assert_same_end(a, b):
  (_, one, step), (_, other, other_step) = restore(a), restore(b)
  assert step == other_step == STEPS
  one, other = named_leaves(one), named_leaves(other)
  assert one.keys() == other.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[name], err_msg=name)
  assert rows(a) == rows(b)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
  """(directory of whole runs, of broken ones, SIGTERM's output, its step)."""
  whole, broken = (tmp_path_factory.mktemp(x) for x in ("whole", "broken"))
  for recipe, stops in STOPS.items():
    for step, how in stops:
      process = start(recipe, broken / recipe, data_dir)
      printed = send_at_step(process, broken / recipe, step, how)
      if how == signal.SIGTERM:
        assert process.returncode == 0, printed
        output, saved = printed, restore(broken / recipe)[2]
      else:
        assert process.returncode == -how
  done = in_one_process(
    "launch/train.py",
    *(
      arguments(recipe, parent / recipe, data_dir)
      for parent in (whole, broken)
      for recipe in STOPS
    ),
  )
  for code, _, errors in done:
    assert code == 0, errors
  return whole, broken, output, saved


@pytest.mark.parametrize("recipe", STOPS)
def test_killed_and_resumed_is_bit_equal(runs, recipe):
  whole, broken, *_ = runs
  assert_same_end(whole / recipe, broken / recipe)
  if recipe == "step":
    _, state, _ = restore(broken / recipe)
    assert bool(state.recipe.switched(state.opt_state))


def test_sigterm_saves_exits_zero_and_resumes(runs):
  """That the run which goes on from there ends as it should is above."""
  _, _, output, saved = runs
  (step,) = [k for k, how in STOPS["step"] if how == signal.SIGTERM]
  assert f"stopped by a signal: saved step {saved}" in output
  assert step <= saved < STEPS


def test_nan_stops_and_names_step_and_checkpoint(tmp_path, data_dir):
  rate = {"optimizer.learning_rate": 1000, "optimizer.weight_decay": 1000}
  often, never = in_one_process(
    "launch/train.py",
    *(
      arguments(
        "ste", tmp_path / str(every), data_dir, checkpoint_every=every, **rate
      )
      for every in (1, 1000)
    ),
  )
  for code, _, errors in (often, never):
    assert code == 1, errors
  last = never[2].strip().splitlines()[-1]
  assert "the loss is not finite at step" in last
  assert "no checkpoint was saved yet" in last
  last = often[2].strip().splitlines()[-1]
  match = re.search(
    r"loss is not finite at step (\d+); the last good checkpoint is step (\d+)",
    last,
  )
  assert match, last
  bad, good = map(int, match.groups())
  assert good == bad - 1
  assert np.isfinite(evaluate(tmp_path / "1", step=good)["loss"])


def test_resuming_under_another_configuration_is_refused(tmp_path, data_dir):
  allowed = {"allow_change": "('total_steps',)"}
  first, again, refused, changed = in_one_process(
    "launch/train.py",
    *(
      arguments("ste", tmp_path, data_dir, total_steps=steps, **more)
      for steps, more in ((8, {}), (8, {}), (16, {}), (16, allowed))
    ),
  )
  assert first[0] == 0, first[2]
  assert again[0] == 0 and f"all 8 steps of {tmp_path}" in again[2]
  assert_one_clear_line(refused, "another total_steps", "allow_change")
  assert changed[0] == 0 and "resuming from step 8" in changed[2]
  assert restore(tmp_path)[2] == 16
  # The refused call has written nothing.
  steps = [row["step"] for row in rows(tmp_path) if "loss" in row]
  assert steps == list(range(1, 17))
