"""A run goes on with another number of processes: the same examples, once each.

The trials of benchmarks/failures.py do this with two and three processes that
are killed, paused, cut off or hung.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from figs_jax.data import eval_batches, train_batches
from figs_jax.train import distributed, exit_codes
from figs_jax.train.log_writer import read_log
from tests.programs import REPO, environment, in_one_process
from tests.train.test_distributed import arguments

STEPS = 48
FIELDS = {"total_steps": STEPS, "optimizer.learning_rate": 1e-4}


def of_shards(make, count, size):
  """Batches over all shards, from those of each."""
  shards = [
    make(size // count, shard_index=i, num_shards=count) for i in range(count)
  ]
  for parts in zip(*shards):
    yield {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def sorted_images(batch):
  images = batch["image"].reshape(len(batch["image"]), -1)
  return images[np.lexsort(images.T)]


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_holds_the_same_examples_for_any_number(data_dir, count):
  def make(size, **shard):
    batches = train_batches(
      "digits",
      "train",
      size,
      seed=3,
      augment="none",
      data_dir=data_dir,
      **shard,
    )
    batches.set_state({"next_example": 1416})  # into the next epoch of 1437
    return batches

  both = zip(of_shards(make, count, 24), of_shards(make, 1, 24))
  for _, (batch, whole) in zip(range(3), both):
    np.testing.assert_array_equal(sorted_images(batch), sorted_images(whole))


@pytest.mark.parametrize("size", [24, 354])  # 360 examples: 15, or 6 left over
@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_counts_every_example_once(data_dir, count, size):
  def make(size, **shard):
    return eval_batches("digits", "test", size, data_dir=data_dir, **shard)

  def valid(count):
    images = [
      batch["image"][batch["valid"]] for batch in of_shards(make, count, size)
    ]
    return sorted_images({"image": np.concatenate(images)})

  whole = valid(1)
  assert len(whole) == make(size).num_examples
  np.testing.assert_array_equal(valid(count), whole)


def two(tmp_path, program, *words):
  """Two processes of one program, whose outputs go to files."""
  address = f"127.0.0.1:{free_port()}"
  processes = []
  for index in range(2):
    with (
      open(tmp_path / f"out{index}", "w") as out,
      open(tmp_path / f"errors{index}", "w") as errors,
    ):
      processes.append(
        subprocess.Popen(
          [sys.executable, program, "--distributed", *words],
          cwd=REPO,
          env=environment(
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
          ),
          stdout=out,
          stderr=errors,
        )
      )
  return processes


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def ended(processes):
  try:
    return [process.wait(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()


@pytest.mark.standard_promotion
def test_two_processes_that_one_signal_stops_go_on_as_one(tmp_path, data_dir):
  whole, run = tmp_path / "whole", tmp_path / "run"
  words = arguments(run, data_dir, **FIELDS)
  stop = f"--stopped_code={exit_codes.STOPPED}"
  processes = two(
    tmp_path, "launch/train.py", *words, "--config.mesh.data=-1", stop
  )
  first = tmp_path / "errors0"
  deadline = time.monotonic() + 300
  while "training for" not in first.read_text():
    assert time.monotonic() < deadline, first.read_text()
    assert processes[0].poll() is None, first.read_text()
    time.sleep(0.05)
  # What SLURM sends before the time limit, to one of them.
  processes[1].send_signal(signal.SIGUSR1)
  assert ended(processes) == [exit_codes.STOPPED] * 2, first.read_text()
  saved = read_log(run)[-1]["step"]
  assert f"stopped by a signal: saved step {saved}\n" in first.read_text()
  assert 1 <= saved < STEPS

  done = in_one_process(
    "launch/train.py", words, arguments(whole, data_dir, **FIELDS)
  )
  for code, _, errors in done:
    assert code == 0, errors
  assert f"resuming from step {saved} of" in done[0][2]
  assert "devices 1 (was 2)" in done[0][2]
  rows, wanted = read_log(run), read_log(whole)
  assert [row["step"] for row in rows] == [row["step"] for row in wanted]
  for row, want in zip(rows, wanted):
    for name in row.keys() & {"loss", "eval/loss", "eval/accuracy"}:
      assert row[name] == pytest.approx(want[name], rel=1e-5), row["step"]

  # Its evaluation, split over two processes, is that of one.
  more = (f"--workdir={run}", "--format=json")
  both = two(tmp_path, "launch/evaluate.py", *more, "--mesh.fsdp=2")
  assert ended(both) == [0, 0], first.read_text()
  # Gloo writes a line of its own.
  result, *other = [
    json.loads(line)
    for i in range(2)
    for line in (tmp_path / f"out{i}").read_text().splitlines()
    if line.startswith("{")
  ]
  assert other == []
  ((code, out, errors),) = in_one_process("launch/evaluate.py", list(more))
  assert code == 0, errors
  alone = json.loads(out)
  assert result.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-6)
  assert result == alone


def test_usr1_to_one_of_several_is_passed_on_as_the_signal_that_stops_all(
  monkeypatch,
):
  """JAX tells the others of SIGTERM alone."""
  monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
  seen = []
  before = [
    signal.signal(signal.SIGTERM, lambda *_: seen.append(1)),
    signal.getsignal(signal.SIGUSR1),
  ]
  try:
    with distributed.preemption():
      os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == [1]
    assert signal.getsignal(signal.SIGUSR1) == before[1]
  finally:
    signal.signal(signal.SIGTERM, before[0])
