#!/usr/bin/env bash
# Builds the documentation into build/docs/index.html; a warning is an error.
# Usage: bash launch/docs.sh [sphinx arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
environment docs
export JAX_PLATFORMS=cpu
.venv/bin/python -m sphinx -W --keep-going -q -b html \
  -d build/doctrees "$@" docs build/docs
echo "== build/docs/index.html"
