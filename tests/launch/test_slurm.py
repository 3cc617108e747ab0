"""Jobs on a real SLURM: two nodes that are both this machine.

launch/slurm.sbatch, and the array that launch/study.py writes.

The fixture starts munged, slurmctld and two slurmd in a directory of its own
and stops them at the end. Nothing here has GPUs; the tasks are CPU processes.
"""

import contextlib
import csv
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
from flax import traverse_util

from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.log_writer import read_log
from figs_jax.train.workdir import restore
from tests.programs import REPO, call, environment

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
    """What `scontrol show job` says of a job or a task of an array, by name."""
    words = self.call("scontrol", "show", "job", number, "--oneliner").split()
    return dict(word.split("=", 1) for word in words if "=" in word)

  def reaches(self, number, workdir, step):
    """Waits for a step of a job's run, whose path may not be known yet."""

    def there():
      self.going_on(number)
      return last_step(workdir() if callable(workdir) else workdir) >= step

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


def ended(cluster, number):
  return cluster.job(number)["JobState"] in ENDED


def last_step(workdir):
  rows = read_log(workdir)
  return rows[-1]["step"] if rows else 0


def process_of(*flags):
  """The Python process with these flags."""
  for entry in Path("/proc").iterdir():
    with contextlib.suppress(OSError):
      words = (entry / "cmdline").read_bytes().decode().split("\0")
      if set(flags) <= set(words):
        return int(entry.name)
  raise AssertionError(f"no process with {flags}")


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


# Three cells of one seed; the file is written with the fields of FIELDS.
STUDY = """
from figs_jax.analysis import study

def get_config():
  config = study.default_config()
  config.name = "tiny"
  config.base = "configs/digits_vit.py"
  config.common = {common!r}
  names = "dense", "figs", "ste"
  config.recipes = {{name: {{"name": name}} for name in names}}
  config.patterns = {{"1:4": "ff: 1:4"}}
  config.grids = {{
    "a": {{"recipes": names, "patterns": ("1:4",), "seeds": 1}}
  }}
  return config
"""


def test_a_study_as_an_array_gives_the_rows_of_a_serial_one(
  cluster, tmp_path, data_dir
):
  fields = {n: v for n, v in FIELDS.items() if n != "pattern"}
  fields |= {"data.data_dir": data_dir, "optimizer.warmup_steps": 10}
  common = traverse_util.unflatten_dict(fields, sep=".")
  file = tmp_path / "tiny.py"
  file.write_text(STUDY.format(common=common))
  runs = tmp_path / "runs"
  words = [f"--config={file}", f"--workdir={runs}"]
  done = call("launch/study.py", *words, "--format=slurm")
  assert done.returncode == 0, done.stderr
  script = tmp_path / "tiny.sbatch"
  script.write_text(done.stdout)
  logs = f"--output={tmp_path}/%A_%a.log"
  array = cluster.call(
    "sbatch", "--parsable", logs, str(script), PYTHON=sys.executable
  ).strip()

  def run_of(task):
    return next(runs.glob(f"{('dense', 'figs-1-4', 'ste-1-4')[task]}-*"), runs)

  # The last task has the number of the array as SLURM_JOB_ID.
  cluster.reaches(f"{array}_1", lambda: run_of(1), 20)
  cluster.call("scancel", "--batch", "--signal=USR1", f"{array}_1")
  cluster.reaches(f"{array}_2", lambda: run_of(2), 20)
  os.kill(process_of("--shard=3/3", f"--workdir={runs}"), signal.SIGKILL)
  cluster.restarted(f"{array}_1", 1)
  cluster.restarted(f"{array}_2", 1)
  for task, restarts in enumerate("011"):
    number = f"{array}_{task}"
    until("the end", lambda n=number: ended(cluster, n))
    job = cluster.job(number)
    output = (tmp_path / f"{number}.log").read_text()
    assert job["JobState"] == "COMPLETED", output
    assert (job["Restarts"], job["ExitCode"]) == (restarts, "0:0"), output
  gathered = call("launch/study.py", *words, "--gather")
  assert gathered.returncode == 0, gathered.stderr
  assert (runs / "results" / "results.md").exists()

  serial = tmp_path / "serial"
  done = call("launch/study.py", words[0], f"--workdir={serial}")
  assert done.returncode == 0, done.stderr
  tables = [(p / "results" / "study.csv").read_text() for p in (runs, serial)]
  one, other = (
    [row | {"seconds": ""} for row in csv.DictReader(table.splitlines())]
    for table in tables
  )
  assert len(one) == 3 and one == other
  # Submitted once more, its tasks have nothing left to do.
  before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
  array = cluster.call(
    "sbatch", "--parsable", "--array=1", logs, str(script),
    PYTHON=sys.executable,
  ).strip()  # fmt: skip
  until("the end", lambda: ended(cluster, f"{array}_1"))
  assert cluster.job(f"{array}_1")["JobState"] == "COMPLETED"
  assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
