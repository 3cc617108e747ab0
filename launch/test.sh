#!/usr/bin/env bash
# Every check of the project: format, lint, types, then all tests.
# Usage: bash launch/test.sh [--floors] [pytest arguments]
#   --floors: Tests of core, optim, recipes and the training state, and imports of
#     all modules, with the lowest versions that setup.cfg allows, in .venv-floors.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
export JAX_PLATFORMS=cpu

if [ "${1-}" = --floors ]; then
  shift
  floors_environment
  bin=.venv-floors/bin
  echo "== floors"
  $bin/python tests/floors.py
  echo "== pytest"
  exec $bin/python -m pytest -n 2 --dist worksteal \
    {tests,figs_jax}/{core,optim,recipes} \
    tests/train/test_state.py figs_jax/train/state.py "$@"
fi

environment dev
bin=.venv/bin
echo "== ruff"
$bin/ruff format --check .
$bin/ruff check .
echo "== codespell"
$bin/codespell
echo "== pyrefly"
$bin/pyrefly check
echo "== pytest"
exec $bin/python -m pytest -n 2 --dist worksteal "$@"
