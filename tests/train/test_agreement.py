"""What one of two real processes cannot read, neither restores."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from figs_jax.train import distributed
from figs_jax.train.config import ConfigError
from tests.programs import REPO, environment

# Steps 1 and 2 of an array over both processes, where the second process
# finds its part of step 2 unreadable (`read`) or changed (`crc`).
PROCESS = """
import sys, jax, logging
import jax.numpy as jnp
from figs_jax.train import checkpoint, processes

workdir, fault = sys.argv[1:]
processes.join()
if processes.is_first():
  logging.basicConfig(level=logging.WARNING)
mesh = jax.make_mesh((2,), ("data",))
over = jax.NamedSharding(mesh, jax.P("data"))
state = {"kernel": jax.device_put(jnp.arange(8.0), over)}
with checkpoint.Checkpointer(workdir) as checkpoints:
  checkpoints.save(1, state, {"at": 1}, {})
  checkpoints.save(2, jax.tree.map(lambda x: x + 1, state), {"at": 2}, {})

orbax = checkpoint._orbax

def read(where, **items):
  if where.name == "2" and "state" in items:
    if fault == "read":
      raise OSError("no more of it")
    state = orbax(where, **items)
    if fault == "crc":
      local = [-x.data for x in state["state"]["kernel"].addressable_shards]
      state["state"]["kernel"] = jax.make_array_from_single_device_arrays(
        (8,), over, local
      )
    return state
  return orbax(where, **items)

if not processes.is_first():
  checkpoint._orbax = read
with checkpoint.Checkpointer(workdir) as checkpoints:
  restored, data, step = checkpoints.restore(state)
print(step, data["at"], processes.whole(restored["kernel"]).tolist())
processes.barrier("end")
"""


def both(workdir, fault):
  """Each process's (standard output, standard error)."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, workdir, fault],
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
  return ended


@pytest.mark.parametrize(
  ("fault", "step", "words"),
  [
    ("none", 2, ""),
    ("read", 1, "process 1: {}: damaged or truncated (OSError: no more of it)"),
    ("crc", 1, "{}: kernel is damaged, its crc32 differs from the saved one"),
  ],
)
def test_processes_agree_on_the_step_they_restore(tmp_path, fault, step, words):
  (first, log), (second, _) = both(tmp_path, fault)
  kernel = np.arange(8.0) + step - 1
  ends = [out.splitlines()[-1] for out in (first, second)]  # gloo talks too
  assert ends == [f"{step} {step} {kernel.tolist()}"] * 2
  where = tmp_path / "checkpoints" / "2"
  said = [line for line in log.splitlines() if "trying the step" in line]
  assert len(said) == bool(words)
  for line in said:
    assert line.endswith(f"{words.format(where)}; trying the step before it")


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
  with pytest.raises(ConfigError, match="process 2 finds other steps"):
    distributed.check_same(tmp_path, lambda: [1, 2])
  assert len(looks) == 5
