"""Launchers start again after the codes that the program gives such an end.

The scripts run with stand-ins for the programs of a cluster; of GKE's file, the
rules of the Job are applied as Kubernetes documents them.
"""

import os
import re
import signal
import subprocess

import pytest
import yaml

from benchmarks import failures
from figs_jax.train import exit_codes
from tests.programs import REPO

CODES = {
  exit_codes.FINISHED: False,
  exit_codes.ERROR: False,
  exit_codes.USER_ERROR: False,
  126: False,  # not executable
  127: False,  # not there
  exit_codes.STOPPED: True,
  exit_codes.ABORTED: True,
  exit_codes.HUNG: True,
  128 + signal.SIGKILL: True,
}


def read(name):
  return (REPO / name).read_text()


def test_codes_are_those_of_the_shell():
  assert (exit_codes.ABORTED, exit_codes.HUNG) == (134, 142)
  assert {code: exit_codes.restarts(code) for code in CODES} == CODES


@pytest.fixture
def cluster(tmp_path):
  """Stand-ins of SLURM's programs, which note what they are called with."""
  for name, line in {
    "srun": "exit $CODE",
    "squeue": "echo RUNNING",
    "scontrol": 'echo "$@" >"$CALLS"',
  }.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
    (tmp_path / name).chmod(0o755)
  return tmp_path


@pytest.mark.parametrize("code", CODES)
def test_slurm_requeues_after_the_same_codes(cluster, code):
  calls = cluster / "calls"
  done = subprocess.run(
    [
      *("bash", "launch/slurm.sbatch", "--python=true"),
      *("--config=a.py", "--workdir=b"),
    ],
    cwd=REPO,
    env=os.environ
    | {"PATH": f"{cluster}:{os.environ['PATH']}", "CODE": str(code)}
    | {"CALLS": str(calls), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert calls.exists() == CODES[code], done
  if CODES[code]:
    assert calls.read_text() == "requeue 7\n"
  else:
    assert done.returncode == code


def test_gke_fails_the_set_after_the_other_codes():
  jobset = yaml.safe_load(read("launch/gke_jobset.yaml"))["spec"]
  (rule,) = jobset["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert jobset["failurePolicy"]["maxRestarts"] > 0
  job = jobset["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  (of_pod,) = job["podFailurePolicy"]["rules"]
  assert of_pod["action"] == "FailJob"
  exits = of_pod["onExitCodes"]
  assert (exits["containerName"], exits["operator"]) == ("train", "In")
  # One failed pod fails its Job, unless Kubernetes restarts it by itself.
  assert job["backoffLimit"] == 0
  assert job["template"]["spec"]["restartPolicy"] == "Never"
  for code, again in CODES.items():
    assert (code == 0 or code in exits["values"]) != again
  assert f"--stopped_code={exit_codes.STOPPED}" in container["args"]


def test_every_launcher_passes_the_code_of_a_stopped_run():
  stopped = re.search(
    r"^readonly stopped=(\d+)", read("launch/slurm.sbatch"), re.M
  )
  assert int(stopped[1]) == exit_codes.STOPPED
  # XPK restarts after 42 and 127 to 255 by itself.
  launching = read("docs/launching.md")
  assert f"--restart-on-exit-codes={exit_codes.STOPPED} " in launching
  assert f"--stopped_code={exit_codes.STOPPED}" in launching


def test_the_table_of_codes_says_the_same():
  rows = re.findall(
    r"^\| (\d+)( and more)? \| .* \| (yes|no) \|$",
    read("docs/failures.md"),
    re.M,
  )
  assert [int(code) for code, *_ in rows] == sorted(
    [*CODES.keys() - {128 + signal.SIGKILL}, 128]
  )
  for code, _, again in rows:
    assert (again == "yes") == exit_codes.restarts(int(code))


def test_the_table_of_trials_is_made_of_its_rows():
  rows = failures.read_rows(REPO / "docs/results/failures/trials.csv")
  assert failures.table(rows) in read("docs/failures.md")
  assert {row["lost"] for row in rows} == {"nothing"}
  assert {row["trial"] for row in rows} == {t.name for t in failures.TRIALS}
