#!/usr/bin/env bash
# Sets up .venv, trains five recipes on Fashion-MNIST (minutes on two cores), and
# writes runs/quickstart/report.md with a picture.
# Usage: bash launch/quickstart.sh [--workdir DIR] [--seeds N] [--steps N]
#   [--recipes NAME,...] [--patterns N:M,...] [--sweep NAME,...]
#   [--engines SPEC] [--source DIR] [--help]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
environment study
exec .venv/bin/python launch/quickstart.py "$@"
