#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on all workers of a pod slice: creates the slice
# unless it exists, installs this commit on every worker, trains, and copies the
# run to this machine. Run it again to resume.
# Usage: bash launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE
#   [--version RUNTIME] [--project PROJECT] [--spot] [--setup COMMAND]
#   [--out DIR] [--delete] [--dry_run] [--help] FLAGS OF launch/train.py
#   --type: Type of the slice, such as v5litepod-16 (four hosts).
#   --version: Runtime version (default: Google's recommendation for the type).
#   --setup: Command that every worker runs first, such as mounting a shared
#     directory; several hosts need --workdir there.
#   --out: Directory to copy the run to (default runs).
#   --delete: Deletes the slice at the end, even after an error, unless it holds
#     a run that could not be copied.
#   --dry_run: Shows every command without running it.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/commands.sh

name='' zone='' type='' version='' setup='' out=runs
where=() create=() delete=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage ;;
    --dry_run) dry_run=1 ;;
    --delete) delete=1 ;;
    --spot) create+=(--spot) ;;
    --name=* | --zone=* | --type=* | --version=* | --project=* | --setup=* | \
      --out=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --name) value "$@"; name=$2; shift ;;
    --zone) value "$@"; zone=$2; shift ;;
    --type) value "$@"; type=$2; shift ;;
    --version) value "$@"; version=$2; shift ;;
    --project) value "$@"; where+=("--project=$2"); shift ;;
    --setup) value "$@"; setup=$2; shift ;;
    --out) value "$@"; out=$2; shift ;;
    *) break ;;
  esac
  shift
done
[ -n "$name" ] || fail "--name is missing: set it to the name of the slice"
[ -n "$zone" ] || fail "--zone is missing: set it to a zone, such as us-west4-a"
[ -n "$type" ] || fail "--type is missing: set it to one, such as v5litepod-16"
if [ -z "$version" ]; then
  # https://cloud.google.com/tpu/docs/runtimes
  case $type in
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    *) version='tpu-ubuntu2204-base' ;;
  esac
fi
read_flags "$@"
if [ -z "$dry_run" ]; then # a dry run needs neither
  command -v git >/dev/null || fail "git is missing; it packs this commit"
  command -v gcloud >/dev/null ||
    fail "gcloud is missing; see https://cloud.google.com/sdk/docs/install"
fi
where+=("--zone=$zone")
tpu=(gcloud compute tpus tpu-vm)

# on_all WORDS...: runs a command in figs_jax on every worker. A shell there
# parses it again, so it is quoted once more.
on_all() {
  local line
  printf -v line '%q ' "$@"
  run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all \
    "--command=cd figs_jax && ${line% }"
}

look=("${tpu[@]}" describe "$name" "${where[@]}" "--format=value(state)")

# exists: whether the slice exists and is ready; any other state is an error.
exists() {
  local state
  state=$("${look[@]}") || return 1 # gcloud printed the reason
  case $state in
    READY) return 0 ;;
    *) fail "$name is $state; wait, or delete it: ${tpu[*]} delete $name" \
      "--zone=$zone" ;;
  esac
}

if [ -n "$dry_run" ]; then
  show "${look[@]}"
fi
if [ -n "$dry_run" ] || ! exists; then
  run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" \
    "--version=$version" ${create[@]+"${create[@]}"}
fi
# shellcheck disable=SC2317,SC2329 # called by the trap
end() {
  local code=$?
  run rm -f "$packed"
  if [ -n "$delete" ]; then
    run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  fi
  exit "$code"
}
packed=figs_jax-$name.tgz
trap end EXIT

if [ -z "$dry_run" ] && [ -n "$(git status --porcelain)" ]; then
  echo "tpu_vm.sh: uncommitted changes are not sent" >&2
fi
run git archive --format=tar.gz "--output=$packed" HEAD
run "${tpu[@]}" scp "$packed" "$name:figs_jax.tgz" "${where[@]}" --worker=all
run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all \
  "--command=mkdir -p figs_jax && tar -xzf figs_jax.tgz -C figs_jax"
# The Python of the images may be too old; uv installs a newer one.
# shellcheck disable=SC2016 # expanded on the workers
on_all bash -ec 'python3 -m pip install --user --quiet uv
PATH=$HOME/.local/bin:$PATH
uv python install --quiet 3.12
PYTHON=$(uv python find 3.12) bash launch/install.sh tpu'
if [ -n "$setup" ]; then
  on_all bash -ec "$setup"
fi
code=0
on_all .venv/bin/python launch/train.py --distributed "${flags[@]}" ||
  code=$?

case $workdir in
  /*) source=$workdir ;;
  *) source=figs_jax/$workdir ;;
esac
run mkdir -p "$out"
if ! run "${tpu[@]}" scp --recurse "$name:$source" "$out" "${where[@]}" \
  --worker=0; then
  [ "$code" != 0 ] || code=1
  # A run that was refused has left no directory.
  printf -v absent '%q ' test ! -e "$source"
  if ! "${tpu[@]}" ssh "$name" "${where[@]}" --worker=0 \
    "--command=${absent% }"; then
    delete=''
    echo "tpu_vm.sh: $source could not be copied; $name is kept" >&2
  fi
fi
exit "$code"
