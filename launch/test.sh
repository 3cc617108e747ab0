#!/usr/bin/env bash
# Every check of the project: format, lint, types, then all tests.
# Usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
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
export JAX_PLATFORMS=cpu
exec $bin/python -m pytest -n 2 --dist worksteal "$@"
