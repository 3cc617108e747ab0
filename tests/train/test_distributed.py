"""Two processes are one run: real ones, joined over gloo on this machine."""

import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest

from figs_jax.cli import flags
from figs_jax.train import distributed
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.config import ConfigError
from figs_jax.train.log_writer import read_log
from figs_jax.train.sharding import make_mesh
from figs_jax.train.workdir import restore
from tests.programs import assert_one_clear_line, call, in_one_process

STEPS = 24
FIELDS = {
  "total_steps": STEPS,
  "checkpoint_every": 12,
  "log_every": 1,
  "diagnose_every": 4,
  "batch_size": 16,
  "grad_accum_steps": 2,
  "model.depth": 1,
  "model.width": 32,
  "model.mlp_dim": 64,
  "pattern": "ff: 1:4",
  "optimizer.warmup_steps": 4,
  "progress": False,
}


# Kernels lie over both processes, also those of the run to start from.
OVER_BOTH = {"mesh.data": 1, "mesh.fsdp": 2}


def arguments(workdir, data_dir, recipe="figs", **fields):
  fields = FIELDS | {"data.data_dir": data_dir} | fields
  return [
    f"--config=configs/digits_vit.py:{recipe}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


def run_two(workdir, data_dir, **fields):
  done = call(
    "bash",
    "launch/local.sh",
    f"--python={sys.executable}",
    "--processes=2",
    *arguments(workdir, data_dir, **fields),
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope="module")
def dense_and_one(tmp_path_factory, data_dir):
  """A run whose weights the others start from, and a run by one process."""
  dense, one = (tmp_path_factory.mktemp(name) for name in ("dense", "one"))
  short = {"total_steps": 1, "optimizer.warmup_steps": 0}
  for code, _, errors in in_one_process(
    "launch/train.py",
    arguments(dense, data_dir, "dense", **short),
    [*arguments(one, data_dir, init_from=dense), "--config.mesh.data=-1"],
  ):
    assert code == 0, errors
  return dense, one


@pytest.fixture(scope="module")
def two(tmp_path_factory, data_dir, dense_and_one):
  """(workdir, finished process) of a run by two processes."""
  workdir = tmp_path_factory.mktemp("two")
  fields = {"init_from": dense_and_one[0], **OVER_BOTH}
  return workdir, run_two(workdir, data_dir, **fields)


def assert_same(workdir, other, atol=1e-5):
  rows = read_log(workdir), read_log(other)
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
    elif name.startswith("params") and not name.endswith("k.bias"):
      # The gradient of a key's bias is 0 but for rounding, which Adam scales.
      np.testing.assert_allclose(leaf, another[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_processes_do_what_one_does(two, dense_and_one):
  workdir, done = two
  assert_same(workdir, dense_and_one[1])
  # The first process prints the result for both.
  assert done.stdout.count("finished") == 1


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_processes_resume_on_another_mesh(
  tmp_path, data_dir, two, dense_and_one
):
  """Whole kernels in each, from the step before a damaged one."""
  workdir = tmp_path / "copy"
  shutil.copytree(two[0], workdir)
  state = workdir / "checkpoints" / str(STEPS) / "state"
  for part in (p for p in state.rglob("*") if p.is_file()):
    part.write_bytes(part.read_bytes()[:10])
  changed = {"mesh.data": -1, "mesh.fsdp": 1, "keep": 3}
  done = run_two(workdir, data_dir, init_from=dense_and_one[0], **changed)
  assert done.stderr.count("; taking step 12") == 1, done.stderr
  assert done.stderr.count(f"step {STEPS} is damaged; moved to") == 1
  assert "resuming from step 12" in done.stderr
  assert_same(workdir, two[0])


def test_a_process_alone_learns_how_to_join(tmp_path):
  done = call(
    sys.executable,
    "launch/train.py",
    "--config=configs/digits_vit.py",
    f"--workdir={tmp_path}",
    "--distributed",
    JAX_NUM_PROCESSES="two",
    JAX_PROCESS_ID="0",
  )
  assert_one_clear_line(done, "JAX_NUM_PROCESSES='two'", "JAX_COORDINATOR")


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
  assert "cannot find each other (address a:1); start all" in line


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (RuntimeError("Event loop is closed"), None),
    (KeyError("ours"), 1),
    (TimeoutError("Timeout waiting at barrier 'checkpoint'."), 134),
    (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: ours"), 1),
    (jax.errors.JaxRuntimeError("INTERNAL: connection closed"), 134),
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"), 134),
    (ValueError("unknown field"), 1),
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


def test_programs_do_not_show_what_orbax_leaves_behind(monkeypatch):
  """A thread's error reaches one hook or the other, by how C++ reports it."""
  shown = []
  monkeypatch.setattr(sys, "excepthook", lambda *args: shown.append(args[1]))
  monkeypatch.setattr(
    sys, "unraisablehook", lambda args: shown.append(args.exc_value)
  )
  flags._hide_strays()
  errors = RuntimeError("Event loop is closed"), RuntimeError("ours"), None
  for error in errors:
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
  for error in errors[:2]:
    sys.excepthook(type(error), error, None)
  assert shown == [errors[1], None, errors[1]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_asked_for_at_a_step(number):
  before = signal.getsignal(number)
  with distributed.preemption() as stop:
    assert not stop(1)
    signal.raise_signal(number)
    assert stop(2)
  assert signal.getsignal(number) == before
