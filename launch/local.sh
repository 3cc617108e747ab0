#!/usr/bin/env bash
# Trains on this machine: sets up .venv and runs launch/train.py, in one process
# or, to try what a cluster does, in several.
# Usage: bash launch/local.sh [--extra EXTRA] [--python PATH] [--processes N]
#   [--dry_run] [--help] FLAGS OF launch/train.py
#   --extra: Extras for launch/install.sh, such as cuda,tensorboard (default
#     plots).
#   --python: Interpreter that has figs_jax; skips the installation.
#   --processes: Number of processes; each takes one GPU, if there are any.
#   --dry_run: Shows every command without running it.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh

extra=plots python='' processes=1
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage ;;
    --dry_run) dry_run=1 ;;
    --extra=* | --python=* | --processes=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --extra) value "$@"; extra=$2; shift ;;
    --python) value "$@"; python=$2; shift ;;
    --processes) value "$@"; processes=$2; shift ;;
    *) break ;;
  esac
  shift
done
case $processes in
  '' | *[!0-9]* | 0*) 
    fail "--processes: expected 1 or more, got '$processes'" ;;
esac
read_flags "$@"

if [ -z "$python" ]; then
  run bash launch/install.sh "$extra"
  python=.venv/bin/python
elif ! command -v "$python" >/dev/null; then
  fail "--python $python: program not found"
fi
if [ "$processes" = 1 ]; then
  run exec "$python" launch/train.py "${flags[@]}"
  exit
fi

port=PORT
if [ -z "$dry_run" ]; then
  port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')
fi
pids=()
for ((i = 0; i < processes; i++)); do
  command=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
    "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i"
    "JAX_LOCAL_DEVICE_IDS=$i" "$python" launch/train.py --distributed
    "${flags[@]}")
  if [ -n "$dry_run" ]; then
    show "${command[@]}"
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
[ -z "$dry_run" ] || exit 0
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT USR1
worst=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  # A signal ends the waiting, not the process.
  while kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
