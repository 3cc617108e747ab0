"""Two processes are one run: real ones, joined over gloo on this machine."""

import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from figs_jax.train import distributed
from figs_jax.train.config import ConfigError
from figs_jax.train.leaves import named_leaves
from figs_jax.train.log_writer import read
from figs_jax.train.restore import restore
from figs_jax.train.sharding import make_mesh
from tests.programs import call

STEPS = 24
FIELDS = {
  "total_steps": STEPS,
  "checkpoint_every": 12,
  "log_every": 1,
  "diagnose_every": 4,
  "batch_size": 16,
  "accumulate": 2,
  "model.depth": 1,
  "model.width": 32,
  "model.mlp_dim": 64,
  "pattern": "ff: 1:4",
  "optimizer.warmup_steps": 4,
  "progress": False,
}


def run(workdir, data_dir, count, recipe="figs", **fields):
  fields = FIELDS | {"data.data_dir": data_dir} | fields
  done = call(
    "bash",
    "launch/local.sh",
    f"--python={sys.executable}",
    f"--processes={count}",
    f"--config=configs/digits_vit.py:{recipe}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope="module")
def dense(tmp_path_factory, data_dir):
  """A run whose weights the others start from."""
  workdir = tmp_path_factory.mktemp("dense")
  run(
    workdir,
    data_dir,
    1,
    "dense",
    total_steps=1,
    **{"optimizer.warmup_steps": 0},
  )
  return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory, data_dir, dense):
  """(workdir, what it printed) of a run by two processes."""
  workdir = tmp_path_factory.mktemp("two")
  return workdir, run(workdir, data_dir, 2, init_from=dense)


def assert_same(workdir, other, atol=1e-5):
  rows = read(workdir), read(other)
  assert len(rows[0]) == len(rows[1]) == STEPS + 2  # and two evaluations
  for row, wanted in zip(*rows):
    assert row.keys() == wanted.keys()
    for name in row:
      if not name.startswith("time/"):
        assert row[name] == pytest.approx(wanted[name], abs=atol, rel=atol)
  (_, one, step), (_, another, _) = restore(workdir), restore(other)
  assert step == STEPS
  one, another = named_leaves(one), named_leaves(another)
  assert one.keys() == another.keys()
  for name, leaf in one.items():
    if name.startswith("masks"):
      np.testing.assert_array_equal(leaf, another[name], err_msg=name)
    elif name.startswith("params"):
      np.testing.assert_allclose(leaf, another[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_processes_do_what_one_does(tmp_path, data_dir, two, dense):
  workdir, done = two
  run(tmp_path, data_dir, 1, init_from=dense)
  assert_same(workdir, tmp_path)
  # One of them speaks for both.
  assert done.stdout.count("finished") == 1


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_processes_resume_on_another_mesh(tmp_path, data_dir, two, dense):
  """Kernels over both processes, from the step before a damaged one."""
  workdir = tmp_path / "copy"
  shutil.copytree(two[0], workdir)
  state = workdir / "checkpoints" / str(STEPS) / "state"
  for part in (p for p in state.rglob("*") if p.is_file()):
    part.write_bytes(part.read_bytes()[:10])
  changed = {"mesh.data": 1, "mesh.fsdp": 2, "keep": 3, "init_from": dense}
  done = run(workdir, data_dir, 2, **changed)
  assert done.stderr.count("trying the step before it") == 1, done.stderr
  assert done.stderr.count(f"step {STEPS} is set aside") == 1
  assert "resuming from step 12" in done.stderr
  assert_same(workdir, two[0])


def test_a_process_alone_is_told_how_to_join(tmp_path):
  done = call(
    sys.executable,
    "launch/train.py",
    "--config=configs/digits_vit.py",
    f"--workdir={tmp_path}",
    "--distributed",
    JAX_NUM_PROCESSES="two",
    JAX_PROCESS_ID="0",
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "JAX_NUM_PROCESSES='two'" in line and "JAX_COORDINATOR" in line


def test_every_device_of_every_process_is_used(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="leaves 7 of the 8 devices of 2"):
    make_mesh(1, 1)
  assert make_mesh(-1, 1).size == 8


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, "_LOOKS", 2)
  monkeypatch.setattr(distributed.time, "sleep", lambda _: None)
  distributed.check_shared(tmp_path)
  with pytest.raises(
    ConfigError, match="process 0 does not .* all hosts share"
  ):
    distributed.check_shared(tmp_path / "config.json")


def test_a_file_that_comes_late_is_waited_for(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  # As if the file system had shown it only after the first look.
  monkeypatch.setattr(distributed.time, "sleep", lambda _: path.touch())
  distributed.check_shared(path)


def test_processes_that_are_refused_by_one_are_refused_by_all(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(distributed, "_LOOKS", 1)
  monkeypatch.setattr(
    distributed.multihost_utils,
    "process_allgather",
    lambda seen: np.array([seen, False, seen, False]),
  )
  with pytest.raises(ConfigError, match="process 1, 3 does not see"):
    distributed.check_shared(tmp_path)


ALONE = """
import runpy, sys, jax

def initialize(**_):
  raise RuntimeError("address a:1")

jax.distributed.initialize = initialize
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_peers_that_are_not_there_are_worth_a_new_start(tmp_path):
  words = [
    "launch/train.py",
    "--config=configs/digits_vit.py",
    f"--workdir={tmp_path}",
    "--distributed",
    "--stopped_code=75",
  ]
  done = call(sys.executable, "-c", ALONE, *words)
  assert done.returncode == 75
  (line,) = done.stderr.splitlines()
  assert "do not find each other (address a:1); start all" in line


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (RuntimeError("Event loop is closed"), None),
    (KeyError("ours"), 1),
    (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: ours"), 1),
    (jax.errors.JaxRuntimeError("INTERNAL: connection closed"), 134),
  ],
  ids=str,
)
def test_what_nobody_catches_ends_the_process_unless_it_is_stray(
  monkeypatch, error, code
):
  ended, shown = [], []
  monkeypatch.setattr(distributed.os, "_exit", ended.append)
  monkeypatch.setattr(sys, "excepthook", lambda *_: shown.append(1))
  distributed._leave_on_error()
  sys.excepthook(type(error), error, None)
  assert ended == ([] if code is None else [code]) and shown == [1]


def test_sigterm_is_asked_for_at_a_step():
  before = signal.getsignal(signal.SIGTERM)
  with distributed.preemption() as stop:
    assert not stop(1)
    signal.raise_signal(signal.SIGTERM)
    assert stop(2)
  assert signal.getsignal(signal.SIGTERM) == before
