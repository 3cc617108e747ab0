# shellcheck shell=bash
# Sourced by the other scripts: creates .venv and installs figs_jax into it.
# Usage: environment EXTRA, such as `environment test`. Does nothing if .venv
# holds that extra of this setup.cfg already. PYTHON is the interpreter (default
# python3). Uses uv if it is installed.

environment() {
  local extra=$1 python=${PYTHON:-python3} stamp wanted
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "figs_jax needs Python 3.11 or newer; $python is" \
      "$("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  stamp=.venv/figs_jax-$extra
  wanted=$(cat setup.cfg pyproject.toml | cksum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "== .venv is ready ($extra)"
    return 0
  fi
  echo "== installing figs_jax[$extra] into .venv (about a minute, 1 GB)"
  if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
    uv pip install --quiet --python .venv/bin/python -e ".[$extra]"
  else
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -e ".[$extra]"
  fi
  echo "$wanted" >"$stamp"
}

# floors_environment: makes .venv-floors anew, with the lowest version of each
# requirement that setup.cfg and the extra `dev` allow. uv, which pip installs
# there, resolves them; pip has no such option.
floors_environment() {
  local python=${PYTHON:-python3} bin=.venv-floors/bin
  rm -rf .venv-floors
  "$python" -m venv .venv-floors
  echo "== installing the floors of figs_jax[dev] into .venv-floors"
  $bin/python -m pip install --quiet --disable-pip-version-check uv
  $bin/uv pip install --quiet --python $bin/python \
    --resolution lowest-direct -e ".[dev]"
}
