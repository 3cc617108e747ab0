"""Runs on packed and streamed texts, and with worker processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from figs_jax import data
from figs_jax.data import opened, text_batches
from figs_jax.data.python_data import PythonData
from figs_jax.train import log_writer, loop
from figs_jax.train.config import default_config
from tests.data.batches import assert_equal, take
from tests.programs import REPO, environment

SMALL = {
  "t5": {"head_dim": 8, "mlp_dim": 32},
  "gpt2": {"mlp_dim": 32},
  "llama": {"mlp_dim": 32, "kv_heads": 1},
  "bert": {"mlp_dim": 32},
}


def shards(root, files=4, each=12):
  """JSON lines in files as c4 has them, of texts of several lengths."""
  root.mkdir()
  rng = np.random.default_rng(0)
  for i in range(files):
    rows = [{"text": "to be " * rng.integers(1, 9)} for _ in range(each)]
    path = root / f"train-{i:05}-of-{files:05}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "validation.jsonl").write_text('{"text": "or not to be"}\n' * 4)
  return f"text:{root}"


def tiny(family, name, root):
  config = default_config("figs", family)
  config.variant = "custom"
  config.model.update({"width": 16, "depth": 1, "heads": 2, **SMALL[family]})
  config.pattern = "ff: 1:4"
  config.total_steps, config.checkpoint_every, config.log_every = 4, 2, 1
  config.batch_size, config.diagnose_every, config.progress = 4, 0, False
  config.optimizer.warmup_steps = 0.0
  config.data.update({
    "name": name, "data_dir": str(root), "input_length": 48, "pack": True,
    "stream": True, "shuffle_buffer": 8, "eval_split": "validation",
    "eval_batch_size": 4,
  })  # fmt: skip
  return config


class Interruption:
  def write(self, step, scalars):
    if step == 3:
      raise InterruptedError("enough")

  def close(self):
    pass


@pytest.mark.standard_promotion
@pytest.mark.parametrize("family", SMALL)
def test_packed_streams_train_and_resume_exactly(tmp_path, family):
  config = tiny(family, shards(tmp_path / "c4"), tmp_path)
  loop.train(config, tmp_path / "whole")
  with pytest.raises(InterruptedError, match="enough"):
    loop.train(config, tmp_path / "parts", writers=[Interruption()])
  loop.train(config, tmp_path / "parts")
  rows = [
    [
      {k: v for k, v in row.items() if not k.startswith("time/")}
      for row in log_writer.read_log(tmp_path / name)
    ]
    for name in ("whole", "parts")
  ]
  assert rows[0] == rows[1] and rows[0][0]["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "own", "text", "packed", "stream",
                                  "packed stream"])  # fmt: skip
def test_worker_processes_change_nothing(tmp_path, digits_dir, kind):
  """Neither batches nor positions, from any of them on."""
  if kind == "images":

    def make(**options):
      return data.train_batches(
        "digits", "train", 8, seed=3, augment="standard",
        data_dir=digits_dir, **options,
      )  # fmt: skip
  else:
    if "stream" in kind:
      texts = data.find_texts(
        shards(tmp_path / "c4"), input_length=48, data_dir=str(tmp_path),
        options=opened.Options(stream=True),
      )  # fmt: skip
    else:
      rows = [{"text": f"{i}" * (i % 7 + 1), "target": "b"} for i in range(40)]
      texts = data.find_texts(
        PythonData((rows, rows[:2])), input_length=16, target_length=4
      )
    pack = "packed" in kind
    seed = 3 if pack else [3, 4]

    def make(**options):
      return text_batches.train_batches(
        texts, "train", 8, seed=seed, pack=pack, shuffle_buffer=8, **options
      )

  inline, workers = make(), make(workers=2)
  wanted = take(inline, 5)
  state = inline.get_state()
  wanted += take(inline, 3)
  assert_equal(take(workers, 2), wanted[:2])
  if kind == "images":  # as a scheduler does to all processes of a run
    for child in multiprocessing.active_children():
      os.kill(child.pid, signal.SIGTERM)
  assert_equal(take(workers, 3), wanted[2:5])
  assert workers.get_state() == state
  workers.set_state(state)
  assert_equal(take(workers, 3), wanted[5:])
  workers.close()
  inline.close()


# Reads with two workers, says who they are, and goes on until it ends.
READER = """
import multiprocessing, sys
from figs_jax import data
if __name__ == "__main__":
  batches = data.train_batches(
    "digits", "train", 8, seed=0, data_dir=sys.argv[1], workers=2
  )
  next(batches), next(batches)  # one of each worker
  children = [child.pid for child in multiprocessing.active_children()]
  print(*children, flush=True)
  if sys.argv[2] == "error":
    raise RuntimeError("an error of the program")
  for _ in batches:
    pass
"""


def is_running(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.slow
@pytest.mark.parametrize("end", ["error", signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_run(tmp_path, digits_dir, end):
  program = tmp_path / "reader.py"
  program.write_text(READER)
  process = subprocess.Popen(
    [sys.executable, str(program), digits_dir, getattr(end, "name", end)],
    cwd=REPO, env=environment(), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  workers = [int(pid) for pid in process.stdout.readline().split()]
  if end != "error":
    process.send_signal(end)
  _, errors = process.communicate(timeout=60)
  assert len(workers) >= 2 and process.returncode != 0
  if end == "error":
    assert "RuntimeError: an error of the program" in errors
  deadline = time.monotonic() + 30
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.2)
  left = [pid for pid in workers if is_running(pid)]
  for pid in left:
    os.kill(pid, signal.SIGKILL)
  assert not left
