"""launch/slurm.sbatch on a real SLURM: two nodes that are both this machine.

The fixture starts munged, slurmctld and two slurmd in a directory of its own
and stops them at the end. Nothing here has GPUs; the tasks are CPU processes.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.log_writer import read_log
from figs_jax.train.workdir import restore
from tests.programs import REPO, environment

CONF = Path(__file__).parent / "slurm_loopback.conf"
STEPS = 300
FIELDS = {
  "total_steps": STEPS,
  "checkpoint_every": 20,
  "log_every": 5,
  "diagnose_every": 0,
  "batch_size": 16,
  "model.depth": 1,
  "model.width": 32,
  "model.mlp_dim": 64,
  "pattern": "ff: 1:4",
  "progress": False,
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
# Debian puts the daemons where only root's PATH leads.
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_MISSING = [
  name
  for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
  if shutil.which(name, path=PATH) is None
]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.standard_promotion,
  pytest.mark.skipif(
    bool(_MISSING),
    reason=f"SLURM is not installed ({', '.join(_MISSING)}): apt-get install"
    " slurm-wlm munge",
  ),
]


def free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in sockets]


def until(what, condition, timeout=300):
  """Waits for a condition; returns what it gives."""
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    result = condition()
    if result:
      return result
    time.sleep(0.05)
  raise AssertionError(f"{what}: not within {timeout} s")


class Cluster:
  """A SLURM of its own, below one directory."""

  def __init__(self, directory):
    self.directory = directory
    self.environment = environment(
      PATH=PATH, SLURM_CONF=str(directory / "slurm.conf")
    )

  def call(self, *command, **environment):
    done = subprocess.run(
      command,
      cwd=REPO,
      env=self.environment | environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout

  def submit(self, workdir, *flags, python=sys.executable, options=()):
    """The number of a job that trains in `workdir`."""
    (port,) = free_ports(1)
    out = self.call(
      "sbatch",
      "--parsable",
      "--nodes=2",
      "--ntasks-per-node=1",
      "--gpus-per-node=0",
      f"--output={workdir}.log",
      *options,
      "launch/slurm.sbatch",
      f"--python={python}",
      "--config=configs/digits_vit.py:figs",
      f"--workdir={workdir}",
      *flags,
      # The nodes' names are known to this SLURM only.
      JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
    )
    return out.strip()

  def job(self, number):
    """What `scontrol show job` says, by name."""
    words = self.call("scontrol", "show", "job", number, "--oneliner").split()
    return dict(word.split("=", 1) for word in words if "=" in word)

  def reaches(self, number, workdir, step):
    """Waits for a step of a job's run."""

    def there():
      self.going_on(number)
      return last_step(workdir) >= step

    until(f"step {step}", there)

  def going_on(self, number):
    """What `job` gives, of a job that has not ended."""
    job = self.job(number)
    output = job["JobState"] in ENDED and Path(job["StdOut"]).read_text()
    assert not output, output
    return job

  def restarted(self, number, count):
    """Waits for a job's next start, without SLURM's two minutes before it."""

    def is_in(state):
      job = self.going_on(number)
      return job["JobState"] == state and job["Restarts"] == str(count)

    until(f"end {count} of job {number}", lambda: is_in("PENDING"))
    # In the second of its end SLURM would call the new start a forged one.
    self.call("scontrol", "update", f"JobId={number}", "StartTime=now+3")
    until(f"start {count + 1} of job {number}", lambda: is_in("RUNNING"))


@contextlib.contextmanager
def daemon(cluster, ready, *command):
  """A program in the foreground, stopped at the end whatever happens."""
  log = cluster.directory / f"{command[0]}.out"
  with open(log, "a") as out:
    process = subprocess.Popen(
      command, env=cluster.environment, stdout=out, stderr=out
    )
  try:
    until(
      f"{command[0]}: {log.read_text()}",
      lambda: process.poll() is not None or ready(),
      timeout=60,
    )
    assert process.poll() is None, f"{command[0]}: {log.read_text()}"
    yield
  finally:
    process.terminate()
    try:
      process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


@pytest.fixture(scope="module")
def cluster():
  # Short, for the socket's sake; and munged wants no writable parents.
  directory = Path(tempfile.mkdtemp(prefix="slurm-"))
  cluster = Cluster(directory)
  try:
    text = CONF.read_text()
    names = {"HOST": socket.gethostname().split(".")[0], "DIR": directory}
    names["USER"] = getpass.getuser()
    names |= {f"PORT{i}": port for i, port in enumerate(free_ports(4))}
    for name, value in names.items():
      text = text.replace(f"@{name}@", str(value))
    (directory / "slurm.conf").write_text(text)
    (directory / "munge.key").write_bytes(os.urandom(1024))
    (directory / "munge.key").chmod(0o600)
    directory.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
      (directory / name).mkdir()
    key = [
      f"--{option}={directory}/munge.{end}"
      for option, end in [
        ("key-file", "key"),
        ("socket", "sock"),
        ("pid-file", "pid"),
        ("log-file", "log"),
        ("seed-file", "seed"),
      ]
    ]
    socket_there = (directory / "munge.sock").exists

    def both_idle():
      with contextlib.suppress(AssertionError):
        out = cluster.call("sinfo", "--noheader", "--format=%D %t")
        return out.split() == ["2", "idle"]

    def answers():
      with contextlib.suppress(AssertionError):
        return "UP" in cluster.call("scontrol", "ping")

    with (
      daemon(cluster, socket_there, "munged", "--foreground", *key),
      daemon(cluster, answers, "slurmctld", "-D"),
      daemon(cluster, lambda: True, "slurmd", "-D", "-N", "n1"),
      daemon(cluster, both_idle, "slurmd", "-D", "-N", "n2"),
    ):
      try:
        yield cluster
      finally:
        cluster.call("scancel", "--full", f"--user={getpass.getuser()}")
        until(
          "the end of all jobs",
          lambda: not cluster.call("squeue", "--noheader").strip(),
          timeout=90,
        )
  finally:
    shutil.rmtree(directory, ignore_errors=True)


def last_step(workdir):
  rows = read_log(workdir)
  return rows[-1]["step"] if rows else 0


def tasks_of(workdir):
  """Process id by SLURM_PROCID of the tasks that train in `workdir`."""
  ids = {}
  for entry in Path("/proc").iterdir():
    with contextlib.suppress(OSError):
      words = (entry / "cmdline").read_bytes().decode().split("\0")
      variables = (entry / "environ").read_bytes().decode().split("\0")
      rank = [v for v in variables if v.startswith("SLURM_PROCID=")]
      if f"--workdir={workdir}" in words and rank and "srun" not in words[0]:
        ids[int(rank[0].split("=")[1])] = int(entry.name)
  return ids


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in read_log(workdir)
  ]


# Plays the program: notes its processors and, after SIGTERM, that it has saved.
PROGRAM = """\
#!/usr/bin/env bash
trap 'exit 75' TERM
echo "$SRUN_CPUS_PER_TASK" >"{}.cpus.$SLURM_PROCID"
while :; do sleep 0.1; done
"""


def test_a_job_is_requeued_after_sigterm_but_not_after_scancel(
  cluster, tmp_path
):
  program, run = tmp_path / "program", tmp_path / "run"
  program.write_text(PROGRAM.format(run))
  program.chmod(0o755)
  number = cluster.submit(run, python=program, options=["--cpus-per-task=2"])

  def started():
    cluster.going_on(number)
    files = sorted(tmp_path.glob("run.cpus.*"))
    return [path.read_text() for path in files] == ["2\n", "2\n"]

  until("the start", started)
  # What a preemption with a grace time begins with.
  cluster.call("scancel", "--batch", "--signal=TERM", number)
  for path in tmp_path.glob("run.cpus.*"):
    path.unlink()
  cluster.restarted(number, 1)
  until("the second start", started)
  cluster.call("scancel", number)
  until("the end", lambda: cluster.job(number)["JobState"] in ENDED)
  output = Path(f"{run}.log")
  until("its word", lambda: "not requeued" in output.read_text(), timeout=60)
  job = cluster.job(number)
  assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "1"), job


def test_a_job_that_is_stopped_and_killed_ends_like_another(
  cluster, tmp_path, data_dir
):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  fields = FIELDS | {"data.data_dir": data_dir}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  numbers = [cluster.submit(path, *flags) for path in (whole, broken)]
  number = numbers[1]
  # What SLURM sends near the time limit: all tasks save the same step.
  cluster.reaches(number, broken, 20)
  cluster.call("scancel", "--batch", "--signal=USR1", number)
  cluster.restarted(number, 1)
  saved = restore(broken)[2]
  assert 20 <= saved < STEPS
  # One task dies without a word.
  cluster.reaches(number, broken, saved + 45)
  os.kill(tasks_of(broken)[1], signal.SIGKILL)
  cluster.restarted(number, 2)

  for number, restarts in zip(numbers, ("0", "2")):
    until("the end", lambda n=number: cluster.job(n)["JobState"] in ENDED)
    job = cluster.job(number)
    output = Path(job["StdOut"]).read_text()
    assert job["JobState"] == "COMPLETED", output
    assert (job["Restarts"], job["ExitCode"]) == (restarts, "0:0"), output
  assert "== start 3 on n[1-2]" in output
  assert f"stopped by a signal: saved step {saved}" in output
  assert f"resuming from step {saved} " in output
  assert (
    output.count("stopped by a signal: saved step") == 1
  )  # by the first task alone

  (_, one, step), (_, other, other_step) = restore(whole), restore(broken)
  assert step == other_step == STEPS
  one, other = named_leaves(one), named_leaves(other)
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[name], err_msg=name)
  assert rows(whole) == rows(broken)
