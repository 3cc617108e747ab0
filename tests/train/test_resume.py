"""A run that is killed and resumed ends as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from figs_jax.train._evaluate import evaluate, restore
from figs_jax.train.leaves import named_leaves
from figs_jax.train.log_writer import read
from tests.programs import REPO, environment

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


def start(recipe, workdir, data_dir, **overrides):
  fields = OVERRIDES | {"data.data_dir": data_dir} | overrides
  command = [
    sys.executable,
    "launch/train.py",
    f"--config=configs/digits_vit.py:{recipe}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]
  return subprocess.Popen(
    command,
    cwd=REPO,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


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
    for row in read(workdir)
  ]


def assert_same_end(a, b):
  (_, one, step), (_, other, other_step) = restore(a), restore(b)
  assert step == other_step == STEPS
  one, other = named_leaves(one), named_leaves(other)
  assert one.keys() == other.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[name], err_msg=name)
  assert rows(a) == rows(b)


# figs: 13 is in its first stage, 37 in its third; step: 55 is after the
# switch, which comes at step 41 at the latest; mdgf_exp: 30 is in its decay.
@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  ("recipe", "kills"),
  [("figs", [13, 37]), ("step", [55]), ("mdgf_exp", [30])],
)
def test_killed_and_resumed_is_bit_equal(tmp_path, data_dir, recipe, kills):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  finish(start(recipe, whole, data_dir))
  for kill in kills:
    process = start(recipe, broken, data_dir)
    send_at_step(process, broken, kill, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
  finish(start(recipe, broken, data_dir))
  assert_same_end(whole, broken)
  if recipe == "step":
    _, state, _ = restore(broken)
    assert bool(state.recipe.switched(state.opt_state))


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_sigterm_saves_exits_zero_and_resumes(tmp_path, data_dir):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  finish(start("sr_ste", whole, data_dir))
  process = start("sr_ste", broken, data_dir)
  output = send_at_step(process, broken, 21, signal.SIGTERM)
  assert process.returncode == 0, output
  assert "SIGTERM: saved step" in output
  saved = restore(broken)[2]
  assert 21 <= saved < STEPS
  finish(start("sr_ste", broken, data_dir))
  assert_same_end(whole, broken)


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("every", [1, 1000])
def test_nan_stops_and_names_step_and_checkpoint(tmp_path, data_dir, every):
  process = start(
    "ste",
    tmp_path,
    data_dir,
    **{"optimizer.learning_rate": 1e38, "optimizer.warmup_steps": 20},
    checkpoint_every=every,
  )
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 1, output
  last = output.strip().splitlines()[-1]
  if every > STEPS:
    assert "the loss is not finite at step" in last
    assert "there is no checkpoint yet" in last
    return
  # The first step's rate is 0, so only what it leaves can be evaluated.
  assert "loss is not finite at step 2; the last good" in last
  assert "last good checkpoint is step 1 in" in last
  assert np.isfinite(evaluate(tmp_path, step=1)["loss"])


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_resuming_under_another_configuration_is_refused(tmp_path, data_dir):
  finish(start("ste", tmp_path, data_dir, total_steps=8))
  before = json.dumps(rows(tmp_path))
  again = finish(start("ste", tmp_path, data_dir, total_steps=8))
  assert f"all 8 steps are done in {tmp_path}" in again
  config = (tmp_path / "config.json").read_text()
  process = start("ste", tmp_path, data_dir, total_steps=16)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 2, output
  assert "another total_steps" in output.strip().splitlines()[-1]
  assert json.dumps(rows(tmp_path)) == before
  assert (tmp_path / "config.json").read_text() == config
  finish(
    start(
      "ste",
      tmp_path,
      data_dir,
      total_steps=16,
      allow_change="('total_steps',)",
    )
  )
  assert restore(tmp_path)[2] == 16
