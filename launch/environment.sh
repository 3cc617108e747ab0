# shellcheck shell=bash
# Sourced by the other scripts: makes .venv and installs figs_jax into it.
# Usage: environment EXTRA,..., such as `environment test`. Adds to an existing
# .venv what it lacks, and does nothing if that is nothing. PYTHON is the
# interpreter of a new .venv (default python3). Uses uv if it is installed: it
# takes an eighth of pip's processor time.
. launch/commands.sh

environment() {
  local extra=$1 each wanted start=$SECONDS
  wanted=$(cat setup.cfg pyproject.toml | cksum)
  for each in "$extra" dev; do # the extra dev holds most others
    case $each,$extra, in dev*,cuda,* | dev*,tpu,* | dev*,oracles,*) continue ;; esac
    if [ -x .venv/bin/python ] && [ -f ".venv/figs_jax-$each" ] &&
      [ "$(<".venv/figs_jax-$each")" = "$wanted" ]; then
      echo "== .venv is ready ($extra)"
      return 0
    fi
  done
  local python=${PYTHON:-python3} size=''
  case $extra in
    plots | study) size=': 280 MB to download, 1 GB on disk' ;;
    dev | test) size=': 400 MB to download, 1.5 GB on disk' ;;
  esac
  if [ ! -x .venv/bin/python ]; then
    check_python "$python"
    echo "== making .venv with $("$python" --version)"
  fi
  if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
    [ -x .venv/bin/python ] ||
      uv venv --quiet --allow-existing --python "$python" .venv
    echo "== installing figs_jax[$extra] with uv$size"
    uv pip install --no-progress --python .venv/bin/python -e ".[$extra]" 2>&1 |
      steps_of_uv >&2 || not_installed
  else
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # uv makes environments without pip.
    .venv/bin/python -m pip --version >/dev/null 2>&1 ||
      .venv/bin/python -m ensurepip >/dev/null
    echo "== installing figs_jax[$extra] with pip$size"
    # Python compiles what it imports; compiling all modules would take more
    # than half of the processor time, and 200 MB.
    .venv/bin/python -m pip install --no-compile --progress-bar off \
      --disable-pip-version-check -e ".[$extra]" | steps_of_pip ||
      not_installed
  fi
  echo "$wanted" >".venv/figs_jax-$extra"
  size=$(du -sm .venv)
  echo "== .venv is ready ($extra): ${size%%[!0-9]*} MB, $((SECONDS - start)) s"
}

# check_python PYTHON: fails in one line unless it can make an environment.
check_python() {
  local python=$1 message candidate fix='set PYTHON=/path/to/python3.11 or newer'
  if ! message=$("$python" -c '' 2>&1); then
    # A shim of pyenv is there for versions that are not selected, too.
    for candidate in "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/*/bin/"$python"; do
      [ ! -x "$candidate" ] || fix="set PYTHON=$candidate"
    done
    fail "$python does not run (${message%%$'\n'*}); $fix"
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "figs_jax needs Python 3.11 or newer, $python is" \
      "$("$python" --version 2>&1); $fix"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no module venv; install it, as in" \
      "'apt-get install python3-venv'"
}

# steps_of_pip: a line for each large file and for each step, of pip's output.
steps_of_pip() {
  local line size name
  while IFS= read -r line; do
    case $line in
      Obtaining*) echo '   choosing versions' ;;
      *Downloading*.whl*MB\) | *'Using cached'*.whl*MB\))
        size=${line##*\(} name=${line%%-*}
        [ "${size%%[!0-9]*}" -lt 10 ] || echo "   ${name##* } (${size%\)})"
        ;;
      'Installing collected packages: '*)
        line=${line//[!,]/}
        echo "   unpacking $((${#line} + 1)) packages"
        ;;
    esac
  done
}

# steps_of_uv: the output of uv without a line for each package.
steps_of_uv() {
  local line
  while IFS= read -r line; do
    case $line in
      ' '[-+~]' '* | 'Using Python'* | Audited*) ;;
      *Downloaded\ * | *Building\ * | *Built\ *) ;;
      *) echo "   $line" ;;
    esac
  done
}

not_installed() {
  echo "${0##*/}: the installation failed; the same command continues it" >&2
  exit 1
}

# floors_environment: makes .venv-floors anew, with the lowest version of each
# requirement that setup.cfg and the extra `dev` allow. uv, which pip installs
# there, resolves them; pip has no such option.
floors_environment() {
  local python=${PYTHON:-python3} bin=.venv-floors/bin
  check_python "$python"
  rm -rf .venv-floors
  "$python" -m venv .venv-floors
  echo "== installing the floors of figs_jax[dev] into .venv-floors"
  $bin/python -m pip install --quiet --disable-pip-version-check uv
  $bin/uv pip install --quiet --python $bin/python \
    --resolution lowest-direct -e ".[dev]"
}
