"""Jobs of a study for clusters: the script of a SLURM array, a GKE Job.

test_slurm.py runs the script on a real SLURM. The Job is checked against the
schemas of Kubernetes that the package kubernetes-validate carries, and its
command is run by a shell as a pod would.
"""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from figs_jax.analysis import study
from figs_jax.cli import study_jobs
from tests.programs import REPO, assert_one_clear_line, in_one_process

PROGRAM = "launch/study.py"
DIGITS = ("--config", "configs/study_digits.py")
WORDS = (
  "--config=a.py",
  "--config.x='$(HOME)' $$ \"ü😀\"",
  "--workdir=/shared/w",
)
JOB = study_jobs.StudyJob(
  "A study", [["dense", "figs 1:4"], ["a\nb"], ["c"]], WORDS, WORDS
)


@given(st.integers(1, 40), st.data())
def test_shards_are_disjoint_complete_and_even(count, data):
  cells = [f"cell {i}" for i in range(count)]
  shares = data.draw(st.integers(1, count))
  parts = [study.shard_of(cells, (i, shares)) for i in range(1, shares + 1)]
  assert sorted(c for part in parts for c in part) == sorted(cells)
  sizes = [len(part) for part in parts]
  assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """(the script, the manifest) of a study in three tasks, and no error."""
  calls = in_one_process(
    PROGRAM,
    *(
      (*DIGITS, "--format", name, "--tasks=3", "--config.first_seed=3")
      for name in ("slurm", "gke")
    ),
  )
  assert [(code, error) for code, _, error in calls] == [(0, ""), (0, "")]
  return [output for _, output, _ in calls]


def shell(tmp_path, *command, **variables):
  """Words that a program called python gets from a shell's command."""
  program = tmp_path / "python"
  program.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
  program.chmod(0o755)
  done = subprocess.run(
    command,
    env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
    cwd=REPO,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout.split("\0")[:-1], done.stderr


def expanded(word, variables):
  """A word of a pod's command: $$ is $, and $(NAME) a variable if it is set.

  https://kubernetes.io/docs/tasks/inject-data-application/
  """

  def value(match):
    if match[0] == "$$":
      return "$"
    return variables.get(match[1], match[0])

  return re.sub(r"\$\$|\$\(([^)]*)\)", value, word)


def test_both_jobs_run_the_same_cells_once(printed, tmp_path):
  script, manifest = printed
  cells = [cell.name for cell in study.cells(_digits())]
  for text in printed:
    listed = re.findall(r"^#   (\d+)  (.*)$", text, re.MULTILINE)
    assert [index for index, _ in listed] == ["0", "1", "2"]
    names = [name for _, line in listed for name in line.split("; ")]
    assert sorted(names) == sorted(cells)
  (container,) = yaml.safe_load(manifest)["spec"]["template"]["spec"][
    "containers"
  ]
  pods = []
  for index in "012":
    variables = {"JOB_COMPLETION_INDEX": index}
    command = container["command"] + container["args"]
    command = [expanded(word, variables) for word in command]
    code, words, _ = shell(tmp_path, *command, **variables)
    assert code == 0 and f"--shard={int(index) + 1}/3" in words
    pods.append(words)
  (tmp_path / "job").write_text(script)
  for index, pod in enumerate(pods):
    code, words, errors = shell(
      tmp_path, "bash", str(tmp_path / "job"),
      PYTHON="python", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID=str(index),
    )  # fmt: skip
    assert code == 0, errors
    start, *words = words[0].partition("launch/")[1:] + tuple(words[1:])
    words = [start + words[0], *words[1:]]
    other = [w.replace("/shared/runs", "runs") for w in pod]
    assert sorted(words) == sorted(other)


def _digits():
  file = REPO / "configs" / "study_digits.py"
  return runpy.run_path(str(file))["get_config"]()


def test_the_script_passes_shellcheck(printed, tmp_path):
  (tmp_path / "job.sbatch").write_text(printed[0])
  program = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [program, tmp_path / "job.sbatch"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


def test_the_manifest_has_kubernetes_schema():
  manifest = yaml.safe_load(study_jobs.gke(JOB))
  version = kubernetes_validate.latest_version()
  kubernetes_validate.validate(manifest, version, strict=True)
  spec = manifest["spec"]
  wrong = manifest | {"spec": spec | {"backoffLimitPerIndexes": 3}}
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(wrong, version, strict=True)
  # Rules of the API server that no schema has.
  assert spec["completionMode"] == "Indexed"
  assert spec["template"]["spec"]["restartPolicy"] == "Never"
  assert spec["parallelism"] <= spec["completions"] == 3
  names = [c["name"] for c in spec["template"]["spec"]["containers"]]
  for rule in spec["podFailurePolicy"]["rules"]:
    assert len(rule.keys() & {"onExitCodes", "onPodConditions"}) == 1
    if codes := rule.get("onExitCodes"):
      assert codes["containerName"] in names
      assert codes["values"] == sorted({*codes["values"]})
  assert re.fullmatch(
    r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"]
  )


def test_words_come_through_unharmed(tmp_path):
  (container,) = yaml.safe_load(study_jobs.gke(JOB))["spec"]["template"][
    "spec"
  ]["containers"]
  args = [expanded(word, {"HOME": "/root"}) for word in container["args"]]
  assert args == [*WORDS, "--stopped_code=75"]
  (tmp_path / "job").write_text(study_jobs.slurm(JOB))
  code, words, errors = shell(
    tmp_path, "bash", str(tmp_path / "job"),
    PYTHON="python", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2",
  )  # fmt: skip
  assert (code, errors) == (0, "")
  assert words[1:] == [*WORDS, "--shard=3/3", "--stopped_code=75"]


# Plays study.py: on SIGTERM ends with 75; FAIL is the code it ends with.
STUDY = """\
#!/usr/bin/env bash
trap 'exit 75' TERM
[ -z "${FAIL-}" ] || exit "$FAIL"
kill -USR1 "$PPID"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
  ("variables", "code", "requeued"),
  [
    ({}, 0, True),  # USR1 near the time limit
    ({"FAIL": "137"}, 0, True),
    ({"FAIL": "1"}, 1, False),
    ({"FAIL": "2"}, 2, False),
    ({"FAIL": "75", "SLURM_RESTART_COUNT": "20"}, 75, False),
    ({"FAIL": "75", "STATE": "COMPLETING"}, 75, False),  # scancel
  ],
  ids=str,
)
def test_what_a_task_does_at_its_end(variables, code, requeued, tmp_path):
  for name, text in {
    "study": STUDY,
    "squeue": '#!/bin/sh\necho "${STATE-RUNNING}"\n',
    "scontrol": '#!/bin/sh\necho "scontrol $*"\n',
  }.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / "job").write_text(study_jobs.slurm(JOB))
  task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
  done = subprocess.run(
    ["bash", str(tmp_path / "job")],
    env={
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      "PYTHON": "study",
      "SLURM_JOB_ID": "7",
      **task,
      **variables,
    },
    cwd=REPO,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr
  assert ("scontrol requeue 7_2\n" in done.stdout) == requeued


def test_not_a_checkout_or_not_an_array(tmp_path):
  (tmp_path / "job").write_text(study_jobs.slurm(JOB))
  for variables, message in (
    ({"SLURM_SUBMIT_DIR": str(tmp_path)}, "expected a checkout of figs_jax"),
    ({}, "use sbatch instead of bash"),
  ):
    done = shell(tmp_path, "bash", str(tmp_path / "job"), **variables)
    assert done[0] == 2 and done[1] == []
    assert message in done[2] and len(done[2].splitlines()) == 1


def test_mistakes_are_one_line(tmp_path):
  slurm = (*DIGITS, "--format=slurm")
  workdir = ("--workdir", tmp_path / "w")
  wrong = {
    (*slurm, "--tasks=8"): ["--tasks: expected at most 7", "got 8"],
    (*slurm, "--shard=1/2"): ["--shard: not with --format=slurm"],
    (*slurm, "--gather"): ["--gather: not with"],
    (*DIGITS, "--format=gke", "--workdir=runs/a"): [
      "--workdir: expected a directory below /shared",
    ],
    (*DIGITS, "--shard=1/2", "--cells_digest=0", *workdir): [
      "--cells_digest: expected the cells with 0", "submit it",
    ],
  }  # fmt: skip
  for done, expected in zip(in_one_process(PROGRAM, *wrong), wrong.values()):
    assert_one_clear_line(done, *expected)
  assert not (tmp_path / "w").exists()


def test_a_name_that_is_cut_at_a_hyphen_ends_in_a_letter():
  job = study_jobs.StudyJob(f"{'a' * 40} b", [["dense"]], [], [])
  name = yaml.safe_load(study_jobs.gke(job))["metadata"]["name"]
  assert name == f"figs-jax-{'a' * 40}"
