"""launch/environment.sh with stand-ins for Python, pip and uv: no network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
# Logs its arguments; answers what the script asks, in the manner of pip.
PYTHON = """\
#!/usr/bin/env bash
echo "$*" >>"$LOG"
case "$1 ${2-}" in
  '--version '*) echo 'Python 3.12.1' ;;
  '-m venv') mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  '-m pip')
    [ "$3" = install ] || exit 0
    [ -z "${PIP_FAILS-}" ] || { echo 'ERROR: no network' >&2; exit 1; }
    echo 'Obtaining file:///figs_jax'
    echo 'Collecting jax>=0.10 (from figs_jax==0.2.0)'
    echo '  Downloading jaxlib-0.10.2-cp312-manylinux.whl (85.4 MB)'
    echo '  Using cached numpy-2.4.6-cp312-manylinux.whl (16.9 MB)'
    echo '  Downloading absl_py-2.5.1-py3-none-any.whl (137 kB)'
    echo '  Downloading pillow-13.0.0-cp312-manylinux.whl (7.1 MB)'
    echo 'Installing collected packages: absl-py, numpy, jaxlib'
    ;;
esac
"""
UV = """\
#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
[ "$1" != venv ] || { mkdir -p .venv/bin && cp "$(command -v python3)" \\
  .venv/bin/python; }
[ "$1" != pip ] || printf '%s\\n' 'Using Python 3.12.1 environment at: .venv' \\
  'Resolved 3 packages in 1s' 'Downloading jaxlib (81.4MiB)' \\
  ' Downloaded jaxlib' 'Prepared 3 packages in 2s' ' + numpy==2.4.6' >&2
"""
# What pyenv prints for a version that is installed, but not selected.
SHIM = """\
#!/usr/bin/env bash
printf '%s\\n' "pyenv: ${0##*/}: command not found" '' \\
  'The command exists in these Python versions:' '  3.12.1' >&2
exit 127
"""


def write_program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
  """A checkout of the scripts alone, and programs in front of PATH."""
  root = tmp_path / "checkout"
  shutil.copytree(REPO / "launch", root / "launch")
  for name in ("setup.cfg", "pyproject.toml"):
    shutil.copy(REPO / name, root)
  write_program(tmp_path / "bin" / "python3", PYTHON)
  return root


def call(checkout, extra, **variables):
  """A finished `environment EXTRA`, and what its stand-ins were called with."""
  log = checkout.parent / "log"
  log.write_text("")
  bin = checkout.parent / "bin"
  done = subprocess.run(
    ["bash", "launch/install.sh", extra],
    cwd=checkout,
    env={
      **os.environ,
      "PATH": f"{bin}:/usr/bin:/bin",
      "LOG": str(log),
      **variables,
    },
    capture_output=True,
    text=True,
    check=False,
  )
  return done, log.read_text().splitlines()


def test_pip_is_shown_in_stages_with_sizes(checkout):
  done, calls = call(checkout, "study")
  assert (done.returncode, done.stderr) == (0, "")
  first, second, *stages, last = done.stdout.splitlines()
  assert first == "== making .venv with Python 3.12.1"
  assert second.startswith("== installing figs_jax[study] with pip: ")
  assert stages == [
    "   choosing versions",
    "   jaxlib (85.4 MB)",
    "   numpy (16.9 MB)",
    "   unpacking 3 packages",
  ]
  assert last.startswith("== .venv is ready (study): ")
  (install,) = [words for words in calls if "pip install" in words]
  assert install.endswith("-e .[study]") and "--no-compile" in install


def test_one_environment_serves_all_scripts(checkout):
  call(checkout, "study")
  done, calls = call(checkout, "study")
  assert done.stdout == "== .venv is ready (study)\n" and not calls
  # The tests add what is missing; what they hold is not installed again.
  done, calls = call(checkout, "dev")
  assert "making" not in done.stdout
  assert [c for c in calls if "venv .venv" in c or "install" in c][0].endswith(
    "-e .[dev]"
  )
  for extra in ("docs", "plots"):
    assert not call(checkout, extra)[1]
  for extra in ("cuda", "plots,cuda"):
    assert call(checkout, extra)[1]
  assert [p.name for p in checkout.glob(".venv*")] == [".venv"]


def test_uv_is_used_if_there_is_one(checkout):
  write_program(checkout.parent / "bin" / "uv", UV)
  done, calls = call(checkout, "study")
  assert done.returncode == 0, done.stderr
  assert [line.strip() for line in done.stderr.splitlines()] == [
    "Resolved 3 packages in 1s",
    "Downloading jaxlib (81.4MiB)",
    "Prepared 3 packages in 2s",
  ]
  assert "with uv: " in done.stdout and not any("-m pip" in c for c in calls)
  # uv leaves pip out; without uv, pip is added.
  (checkout.parent / "bin" / "uv").unlink()
  python = checkout / ".venv" / "bin" / "python"
  python.write_text(
    PYTHON.replace(
      "'-m pip')",
      '\'-m pip\')\n    [ "$3" != --version ] || [ -e "$0.pip" ] || exit 1',
      1,
    ).replace("esac", "  '-m ensurepip') touch \"$0.pip\" ;;\nesac", 1)
  )
  done, calls = call(checkout, "text")
  assert done.returncode == 0, done.stderr
  assert "-m ensurepip" in calls


def test_a_failed_installation_is_no_environment(checkout):
  done, _ = call(checkout, "study", PIP_FAILS="1")
  assert done.returncode == 1
  error, last = done.stderr.splitlines()
  assert error == "ERROR: no network"
  assert last.startswith(
    "install.sh: the installation failed; the same command"
  )
  assert call(checkout, "study")[0].returncode == 0


def test_a_python_that_cannot_be_used_is_one_line(checkout, tmp_path):
  programs = tmp_path / "bin"
  write_program(programs / "python3.12", SHIM)
  write_program(
    programs / "python3.10",
    PYTHON.replace("case", '[ "$1" != -c ] || [ -z "$2" ] || exit 1\ncase', 1),
  )
  write_program(
    programs / "python3.13",
    PYTHON.replace("case", '[[ "$*" != *ensurepip* ]] || exit 1\ncase', 1),
  )
  selected = tmp_path / "pyenv/versions/3.12.1/bin/python3.12"
  write_program(selected, PYTHON)
  none = str(tmp_path / "none")
  for python, root, words in (
    ("python3.12", str(tmp_path / "pyenv"), [
      "python3.12 does not run (pyenv: python3.12: command not found)",
      f"set PYTHON={selected}"]),
    ("python3.12", none, ["does not run", "set PYTHON=/path/to/python3.11"]),
    ("no/python", none, ["no/python does not run", "No such file"]),
    ("python3.10", none, ["needs Python 3.11", "set PYTHON=/path"]),
    ("python3.13", none, ["no module venv", "apt-get install python3-venv"]),
  ):  # fmt: skip
    done, _ = call(checkout, "study", PYTHON=python, PYENV_ROOT=root)
    assert (done.returncode, done.stdout) == (2, ""), python
    (line,) = done.stderr.splitlines()
    for word in words:
      assert word in line
  assert not (checkout / ".venv").exists()


def test_help_of_the_quickstart_installs_nothing(checkout):
  done = subprocess.run(
    ["bash", "launch/quickstart.sh", "--help"],
    cwd=checkout, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0 and "--seeds N" in done.stdout
  assert not (checkout / ".venv").exists()
