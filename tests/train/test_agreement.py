"""A checkpoint that one of two real processes cannot read is not restored."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from figs_jax.train import distributed
from figs_jax.train.config import ConfigError
from tests.programs import REPO, environment

# For each fault, saves steps 1 and 2 of an array over both processes, and then
# restores them where the second process finds its part of step 2 unreadable
# ("read") or changed ("crc").
PROCESS = """
import sys, jax, logging
import jax.numpy as jnp
from jax.experimental.multihost_utils import process_allgather
from pathlib import Path
from figs_jax.train import checkpoint, distributed

distributed.initialize()
if distributed.is_first():
  logging.basicConfig(level=logging.WARNING)
mesh = jax.make_mesh((2,), ("data",))
over = jax.NamedSharding(mesh, jax.P("data"))
state = {"kernel": jax.device_put(jnp.arange(8.0), over)}
orbax = checkpoint._orbax

def run(workdir, fault):
  with checkpoint.Checkpointer(workdir) as checkpoints:
    checkpoints.save(1, state, {"at": 1}, {})
    checkpoints.save(2, jax.tree.map(lambda x: x + 1, state), {"at": 2}, {})

  def read(where, **items):
    if where.name != "2" or "state" not in items:
      return orbax(where, **items)
    if fault == "read":
      raise OSError("truncated")
    restored = orbax(where, **items)
    if fault == "crc":
      kernel = restored["state"]["kernel"]
      local = [-x.data for x in kernel.addressable_shards]
      restored["state"]["kernel"] = jax.make_array_from_single_device_arrays(
        (8,), over, local
      )
    return restored

  checkpoint._orbax = orbax if distributed.is_first() else read
  with checkpoint.Checkpointer(workdir) as checkpoints:
    restored, data, step = checkpoints.restore(state)
  kernel = process_allgather(restored["kernel"], tiled=True).tolist()
  print("restored", fault, step, data["at"], kernel)

for fault in sys.argv[2:]:
  run(Path(sys.argv[1]) / fault, fault)
distributed.barrier("end")
"""
# Fault -> (step that is restored, end of the warning).
FAULTS = {
  "none": (2, ""),
  "read": (1, "process 1: {}: damaged or truncated (OSError: truncated)"),
  "crc": (1, "{}: kernel is damaged; its crc32 differs from the saved one"),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Directory, and (standard output, standard error) of each process."""
  parent = tmp_path_factory.mktemp("both")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, parent, *FAULTS],
      cwd=REPO,
      env=environment(
        JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    ended = [process.communicate(timeout=300) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [p.returncode for p in started] == [0, 0], ended
  return parent, ended


@pytest.mark.parametrize("fault", FAULTS)
def test_processes_agree_on_the_step_they_restore(both, fault):
  parent, ((first, log), (second, _)) = both
  step, words = FAULTS[fault]
  kernel = np.arange(8.0) + step - 1
  for output in (first, second):  # to which gloo adds lines
    assert f"restored {fault} {step} {step} {kernel.tolist()}\n" in output
  where = parent / fault / "checkpoints" / "2"
  warnings = [line for line in log.splitlines() if str(where) in line]
  assert len(warnings) == bool(words)
  for line in warnings:
    assert line.endswith(f"{words.format(where)}; taking step 1")


def test_another_list_of_steps_is_waited_for_and_then_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(distributed, "_LOOKS", 3)
  monkeypatch.setattr(distributed.time, "sleep", lambda _: None)
  looks = []

  def other(mine):
    looks.append(mine)
    return np.array([mine, mine, mine if len(looks) == late else mine + 1])

  monkeypatch.setattr(distributed.multihost_utils, "process_allgather", other)
  late = 2
  distributed.check_same(tmp_path, lambda: [1, 2])
  assert len(looks) == 2
  late = 9
  with pytest.raises(ConfigError, match="process 2 lists other steps"):
    distributed.check_same(tmp_path, lambda: [1, 2])
  assert len(looks) == 5
