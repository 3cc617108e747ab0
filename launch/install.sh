#!/usr/bin/env bash
# Makes .venv and installs figs_jax into it, with one of setup.cfg's extras.
# Usage: bash launch/install.sh [--dry-run] [--help] [EXTRA]
#   EXTRA: plots (the default), cuda, tpu, or another.
#   PYTHON names the interpreter, Python 3.11 or newer (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh
. launch/environment.sh

extra=plots
for word in "$@"; do
  case $word in
    --help) usage ;;
    --dry-run) dry_run=1 ;;
    -*) fail "unknown option $word; see --help" ;;
    *) extra=$word ;;
  esac
done
case $'\n'$(<setup.cfg)$'\n' in
  *$'\n'"$extra ="$'\n'*) ;;
  *) fail "no extra $extra in setup.cfg; give plots, text, test, cuda or tpu" ;;
esac
if [ -n "$dry_run" ]; then
  show "${PYTHON:-python3}" -m venv .venv
  show .venv/bin/python -m pip install -e ".[$extra]"
else
  environment "$extra"
fi
