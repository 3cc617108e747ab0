#!/usr/bin/env bash
# Creates .venv and installs figs_jax into it with extras of setup.cfg.
# Usage: bash launch/install.sh [--dry_run] [--help] [EXTRA,...]
#   EXTRA: plots (the default), study, text, tensorboard, wandb, stablehlo, cuda,
#     tpu, test, docs or dev.
#   --dry_run: Shows every command without running it.
# PYTHON in the environment is the interpreter, 3.11 or newer (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh
. launch/environment.sh

extra=plots
for word in "$@"; do
  case $word in
    --help) usage ;;
    --dry_run) dry_run=1 ;;
    -*) fail "unknown option $word; see --help" ;;
    *) extra=$word ;;
  esac
done
for each in ${extra//,/ }; do
  case $'\n'$(<setup.cfg)$'\n' in
    *$'\n'"$each ="$'\n'*) ;;
    *) fail "expected extras of setup.cfg, as in plots,tensorboard; got $each" ;;
  esac
done
if [ -n "$dry_run" ]; then
  show "${PYTHON:-python3}" -m venv .venv
  show .venv/bin/python -m pip install --no-compile -e ".[$extra]"
else
  environment "$extra"
fi
