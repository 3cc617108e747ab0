"""Jobs that run the cells of a study on a cluster: a SLURM array, a GKE Job.

Both are written from the same `StudyJob`. Task i of n runs the cells of shard
i + 1 of n and writes rows of its own, so that tasks share a directory and no
lock. The jobs restart a task that was stopped, preempted or killed; it goes on
from its newest checkpoint, and cells with rows are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence

from figs_jax.train.exit_codes import STOPPED

RESTARTS = 20  # of a task
MOUNT = "/shared"  # of the volume in the pods of a GKE Job

_SLURM = """\
#!/usr/bin/env bash
# The study @NAME@ as a SLURM array. Its tasks and their cells:
@CELLS@
# Submit it from a checkout of figs_jax on a file system that all nodes share,
# after `bash launch/install.sh cuda,study` there. Options of sbatch come before
# those below, and PYTHON is the interpreter (default .venv/bin/python):
#   sbatch --time=8:00:00 --partition=a100 --gpus=1 THIS_FILE
#   sbatch --array=1,4 THIS_FILE runs tasks 1 and 4 alone, --array=0-@LAST@%4
#   four at a time.
# A task is requeued, and goes on from its newest checkpoint, when it is
# preempted, meets its time limit or is killed, but not when it is cancelled.
# When all have ended, merge their rows and write the page:
#   @GATHER@
#SBATCH --job-name=@JOB@
#SBATCH --array=0-@LAST@
#SBATCH --ntasks=1
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
readonly stopped=@STOPPED@ restarts=@RESTARTS@
cd "${SLURM_SUBMIT_DIR:-.}"
if [ ! -f launch/study.py ]; then
  echo "study @JOB@: expected a checkout of figs_jax, got $PWD" >&2
  exit 2
fi
if [ -z "${SLURM_ARRAY_TASK_ID-}" ]; then
  echo "study @JOB@: not a SLURM array: use sbatch instead of bash" >&2
  exit 2
fi
# Not SLURM_JOB_ID: that of one task is the number of the whole array.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
echo "== task $task, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $(hostname)"
"${PYTHON:-.venv/bin/python}" launch/study.py @WORDS@ \\
  "--shard=$((SLURM_ARRAY_TASK_ID + 1))/@TASKS@" --stopped_code="$stopped" &
study=$!
# Near the time limit and on preemption, the study saves and ends.
signalled=''
trap 'signalled=1; kill -TERM "$study" 2>/dev/null || true' USR1 TERM
code=0
wait "$study" || code=$?
while [ -n "$signalled" ]; do # the trap may have ended the waiting only
  signalled='' code=0
  wait "$study" || code=$?
done
# 1 and 2 are errors that would recur: a cell failed, or the study is invalid.
# So are 126 and 127: the program cannot be started. From 128 on are signals.
if [ "$code" -ne "$stopped" ] && [ "$code" -lt 128 ]; then
  exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
  echo "study @JOB@: ended with $code after $restarts restarts" >&2
  exit "$code"
fi
# A task that SLURM ends itself, as after scancel, is not running any more.
state=$(squeue --noheader --format=%T "--jobs=$task") || true
if [ "$state" != RUNNING ]; then
  echo "== ended with $code; SLURM state ${state:-unknown}: not requeued"
  exit "$code"
fi
echo "== ended with $code, not finished: requeued"
scontrol requeue "$task"
"""

_GKE = """\
# The study @NAME@ as an indexed Job of Kubernetes 1.33 or newer (1.29 to 1.32
# have its backoffLimitPerIndex as a beta). Its indexes and their cells:
@CELLS@
# Fill in the places in <...>, then
#   kubectl apply --dry-run=server -f THIS_FILE
#   kubectl apply -f THIS_FILE
# An index is started again, and goes on from its newest checkpoint, when its
# pod is evicted, preempted or killed. When the Job has ended, merge the rows
# and write the page, where the volume is mounted at @MOUNT@:
#   @GATHER@
# To run failed indexes again, delete the Job and apply it once more: indexes
# whose cells have rows end at once.
apiVersion: batch/v1
kind: Job
metadata:
  name: @JOB@
spec:
  completionMode: Indexed
  completions: @TASKS@
  parallelism: @TASKS@ # at once; fewer if the cluster is small
  backoffLimitPerIndex: @RESTARTS@
  podFailurePolicy:
    rules:
      # Preemption and eviction do not count as failures.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      # 1 and 2 are errors that would recur: a cell failed, or the study is
      # invalid. The other indexes go on.
      - action: FailIndex
        onExitCodes:
          containerName: study
          operator: In
          values: [1, 2, 126, 127]
  template:
    # A bucket as the volume needs this, and a service account that may use it:
    # metadata:
    #   annotations:
    #     gke-gcsfuse/volumes: "true"
    spec:
      # serviceAccountName: <SERVICE_ACCOUNT>
      restartPolicy: Never
      # A spot node is gone 30 seconds after it says so; a longer save is lost,
      # the checkpoint before is not.
      terminationGracePeriodSeconds: 120
      containers:
        - name: study
          # launch/Dockerfile with EXTRA=cuda,study and the study's files
          image: <REGION>-docker.pkg.dev/<PROJECT>/figs/figs_jax:study
          # The shell adds 1 to the index. $$ is how Kubernetes writes $.
          command:
            - sh
            - -c
            - @COMMAND@
            - study
          args:
@ARGS@
          resources:
            requests:
              cpu: 4
              memory: 8Gi
            # limits:
            #   nvidia.com/gpu: 1
          volumeMounts:
            - name: shared
              mountPath: @MOUNT@
      volumes:
        # ReadWriteMany, for the runs and rows of all indexes: Filestore, or a
        # bucket by Cloud Storage FUSE (its volume with mountOptions
        # implicit-dirs and rename-dir-limit=100000: checkpoints are renamed
        # when whole). No two indexes write to one file.
        - name: shared
          persistentVolumeClaim:
            claimName: <CLAIM>
"""


@dataclasses.dataclass(frozen=True)
class StudyJob:
  """A study, split into tasks.

  Attributes:
    name: Name of the study.
    tasks: Names of the cells of each task.
    words: Flags of launch/study.py for all tasks.
    gather: Flags of launch/study.py that merge the rows and write the page.
  """

  name: str
  tasks: Sequence[Sequence[str]]
  words: Sequence[str]
  gather: Sequence[str]


def slurm(job: StudyJob) -> str:
  """The script of a SLURM array, for sbatch.

  >>> job = StudyJob("mine", [["dense"], ["figs 1:4"]], ["--workdir=w"], [])
  >>> script = slurm(job)
  >>> "#SBATCH --array=0-1" in script
  True
  >>> "launch/study.py --workdir=w" in script
  True
  """
  return _filled(_SLURM, job, {"WORDS": shlex.join(job.words)})


def gke(job: StudyJob) -> str:
  """The manifest of an indexed Kubernetes Job, for kubectl.

  >>> import yaml
  >>> job = StudyJob("My study", [["dense"], ["figs 1:4"]], ["--workdir=w"], [])
  >>> manifest = yaml.safe_load(gke(job))
  >>> manifest["metadata"]["name"], manifest["spec"]["completions"]
  ('figs-jax-my-study', 2)
  """
  shard = f"--shard=$((JOB_COMPLETION_INDEX + 1))/{len(job.tasks)}"
  command = f'exec python launch/study.py "$@" "{shard}"'
  words = [*job.words, f"--stopped_code={STOPPED}"]
  args = "\n".join(f"            - {_yaml(word)}" for word in words)
  return _filled(_GKE, job, {"COMMAND": _yaml(command), "ARGS": args})


def _filled(text: str, job: StudyJob, values: dict[str, str]) -> str:
  """A template with its @NAMES@ replaced, in one pass."""
  width = len(str(len(job.tasks) - 1))
  cells = [
    f"#   {index:{width}}  {_line('; '.join(names))}"
    for index, names in enumerate(job.tasks)
  ]
  values = values | {
    "NAME": _line(job.name),
    "JOB": _job_name(job.name),
    "CELLS": "\n".join(cells),
    "TASKS": str(len(job.tasks)),
    "LAST": str(len(job.tasks) - 1),
    "GATHER": _line(
      shlex.join(["python", "launch/study.py", *job.gather, "--gather"])
    ),
    "STOPPED": str(STOPPED),
    "RESTARTS": str(RESTARTS),
    "MOUNT": MOUNT,
  }
  return re.sub(
    rf"@({'|'.join(values)})@", lambda match: values[match[1]], text
  )


def _line(text: str) -> str:
  """Text without line breaks, which would end a comment."""
  return " ".join(text.split())


def _job_name(name: str) -> str:
  """A name that SLURM and Kubernetes take, short enough for an index.

  >>> _job_name("Fashion_ViT, 5 seeds!")
  'figs-jax-fashion-vit-5-seeds'
  """
  words = ["figs-jax", *re.findall(r"[a-z0-9]+", name.lower())]
  return "-".join(words)[:50].rstrip("-")


def _yaml(word: str) -> str:
  """A word of a command of Kubernetes, quoted, with its variables escaped.

  >>> print(_yaml('--config.name="$HOME"'))
  "--config.name=\\"$$HOME\\""
  """
  return json.dumps(word.replace("$", "$$"), ensure_ascii=False)
