#!/usr/bin/env bash
# Builds the documentation into build/docs/index.html; a warning is an error.
# Usage: [OWNER=name] bash launch/docs.sh [sphinx arguments]
#   OWNER: Whose repository the pages link to.
#   -D nb_execution_mode=off: Notebooks without outputs, which saves minutes; a
#     notebook is run once for each state of figs_jax.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
environment docs
export JAX_PLATFORMS=cpu
.venv/bin/python -m sphinx -W --keep-going -q -b html \
  -d build/doctrees -D nb_execution_mode=cache "$@" docs build/docs
echo "== build/docs/index.html"
