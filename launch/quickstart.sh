#!/usr/bin/env bash
# Makes .venv with what the quickstart needs, trains five recipes on
# Fashion-MNIST (minutes on two cores; the accuracy of one dense run comes first),
# and writes runs/quickstart/report.md with a picture.
# Usage: bash launch/quickstart.sh [--workdir DIR] [--seeds N] [--steps N]
#   [--recipes NAME,...] [--patterns N:M,...] [--sweep NAME,...]
#   [--engines SPEC] [--source DIR] [--help]
# PYTHON in the environment is the interpreter, 3.11 or newer (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
for word in "$@"; do
  case $word in -h | -help | --help) usage ;; esac
done
environment study
exec .venv/bin/python launch/quickstart.py "$@"
