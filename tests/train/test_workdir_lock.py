"""One trainer per workdir, on one machine and on several."""

import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from figs_jax.train import distributed, loop, workdir_lock
from figs_jax.train.config import ConfigError
from figs_jax.train.workdir_lock import (
  LockedError,
  LockLostError,
  WorkdirLock,
)
from tests.programs import REPO, environment

HOLDER = """
import sys, time
from figs_jax.train.workdir_lock import WorkdirLock
assert WorkdirLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(300)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(workdir_lock, "_SETTLE", 0)


def test_a_live_holder_is_named_and_a_killed_one_replaced(tmp_path, caplog):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, tmp_path],
    cwd=REPO,
    env=environment(),
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert holder.stdout.readline() == "held\n"
    named = rf"process {holder.pid} on \S+ \(since 20\S+ \S+\) is training here"
    with pytest.raises(LockedError, match=named):
      WorkdirLock(tmp_path).acquire()
  finally:
    holder.kill()
    holder.communicate()
  lock = WorkdirLock(tmp_path)
  assert lock.acquire()
  assert f"took over from process {holder.pid} on" in caplog.text
  lock.check()
  lock.release()
  assert list(tmp_path.iterdir()) == []


def of_another_host(path):
  content = {"host": "far", "pid": 7, "since": "today", "kernel": "b pid:[1]"}
  path.write_text(json.dumps(content | {"token": "theirs"}))


@pytest.mark.parametrize("clock", [1, 2**62], ids=["behind", "ahead"])
def test_another_host_is_dead_if_it_gives_no_sign(
  tmp_path, monkeypatch, caplog, clock
):
  caplog.set_level(logging.INFO, "figs_jax")
  path = tmp_path / workdir_lock.FILE
  of_another_host(path)
  os.utime(path, ns=(clock, clock))  # of a host or server far off in time
  now = [100.0]
  monkeypatch.setattr(workdir_lock.time, "monotonic", lambda: now[0])
  lock = WorkdirLock(tmp_path)
  for elapsed in (0, 30, 59):
    now[0] = 100.0 + elapsed
    assert not lock.acquire()
  assert caplog.text.count("process 7 on far (since today) was training") == 1
  now[0] = 160.0
  assert lock.acquire()
  assert "took over from process 7 on far" in caplog.text
  lock.release()


@pytest.mark.parametrize("clock", [1, 2**62], ids=["behind", "ahead"])
def test_a_heartbeat_of_another_host_is_noticed(tmp_path, clock):
  path = tmp_path / workdir_lock.FILE
  of_another_host(path)
  lock = WorkdirLock(tmp_path)
  assert not lock.acquire()
  os.utime(path, ns=(clock, clock))
  with pytest.raises(LockedError, match="process 7 on far"):
    lock.acquire()
  lock.release()
  assert json.loads(path.read_text())["token"] == "theirs"


def test_several_processes_wait_for_an_earlier_start_that_ends(
  tmp_path, monkeypatch, caplog
):
  """On a host that the launcher has lost, it beats until it notices."""
  path, now = tmp_path / workdir_lock.FILE, [100.0]
  monkeypatch.setattr(workdir_lock.time, "monotonic", lambda: now[0])
  of_another_host(path)
  lock = WorkdirLock(tmp_path)
  attempt = workdir_lock._patient(lock.acquire, 240.0)
  for beat in range(10):
    os.utime(path, ns=(beat, beat))
    assert not attempt()
    now[0] += 5
  assert caplog.text.count("waiting up to 240 s for its end") == 1
  for _ in range(11):  # the last beat was seen 5 s ago
    assert not attempt()
    now[0] += 5
  assert attempt()
  lock.release()
  # A run that goes on keeps its directory.
  of_another_host(path)
  attempt = workdir_lock._patient(WorkdirLock(tmp_path).acquire, 240.0)
  for beat in range(48):
    os.utime(path, ns=(beat, beat))
    assert not attempt()
    now[0] += 5
  os.utime(path, ns=(99, 99))
  with pytest.raises(LockedError, match="process 7 on far"):
    attempt()


def test_the_holder_gives_signs(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lock, "_BEAT", 0.01)
  lock = WorkdirLock(tmp_path)
  assert lock.acquire()
  os.utime(lock.path, ns=(1, 1))
  for _ in range(500):
    if lock.path.stat().st_mtime_ns != 1:
      break
    workdir_lock.time.sleep(0.01)
  assert lock.path.stat().st_mtime_ns != 1
  lock.release()


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b"{"])
def test_a_damaged_lock_is_one_without_a_sign(tmp_path, damage, monkeypatch):
  path = tmp_path / workdir_lock.FILE
  path.write_bytes(damage)
  lock = WorkdirLock(tmp_path)
  assert not lock.acquire()
  monkeypatch.setattr(workdir_lock, "_STALE", 0)
  assert lock.acquire()
  lock.release()


def test_of_two_that_take_over_one_has_it(tmp_path, monkeypatch):
  path = tmp_path / workdir_lock.FILE
  of_another_host(path)
  monkeypatch.setattr(workdir_lock, "_STALE", 0)
  monkeypatch.setattr(
    workdir_lock.time, "sleep", lambda _: of_another_host(path)
  )
  lock = WorkdirLock(tmp_path)
  with pytest.raises(LockedError, match="process 7 on far"):
    lock.acquire()
  lock.release()
  assert path.exists()


def test_a_trainer_that_was_replaced_stops(tmp_path):
  lock = WorkdirLock(tmp_path)
  assert lock.acquire()
  of_another_host(lock.path)
  with pytest.raises(LockLostError, match="process 7 on far.* has taken over"):
    lock.check()
  lock.release()
  assert lock.path.exists()


def test_the_second_trainer_changes_nothing(tmp_path, tiny_config):
  with workdir_lock.held(tmp_path):
    with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
      loop.train(tiny_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [workdir_lock.FILE]


def test_a_run_whose_directory_was_deleted_stops(tmp_path):
  with workdir_lock.held(tmp_path / "run") as lock:
    lock.check()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(LockLostError, match="was deleted or moved"):
      lock.check()
  assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_goes_with_the_lock(tmp_path):
  with workdir_lock.held(tmp_path / "a" / "b"):
    assert (tmp_path / "a" / "b").is_dir()
  assert list(tmp_path.iterdir()) == []


def test_all_processes_learn_that_the_first_was_refused(tmp_path, monkeypatch):
  of_first = np.zeros(distributed._LINE, np.uint8)
  of_first[:4] = np.frombuffer(b"held", np.uint8)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(
    distributed.multihost_utils,
    "process_allgather",
    lambda mine: np.stack([of_first, mine]),
  )
  with pytest.raises(ConfigError, match="process 0: held"):
    with workdir_lock.held(tmp_path):
      raise AssertionError
  assert list(tmp_path.iterdir()) == []
