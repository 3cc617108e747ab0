# shellcheck shell=bash
# Sourced by the launchers: how they fail, read their options, and show or run
# a command.

dry_run=''

# fail MESSAGE: one line on standard error, exit code 2.
fail() {
  echo "${program:-${0##*/}}: $*" >&2
  exit 2
}

# usage: the comment at the top of the script; all have changed to the checkout.
usage() {
  local line
  while IFS= read -r line; do
    case $line in
      '#!'*) continue ;;
      '# '*) echo "${line#\# }" ;;
      *) exit 0 ;;
    esac
  done <"launch/${program:-${0##*/}}"
}

# value OPTION WORDS...: fails unless the option is followed by a word.
value() {
  [ $# -ge 2 ] || fail "$1 needs a value; see --help"
}

# show WORDS...: a command, quoted so that it can be pasted.
show() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# run WORDS...: runs a command, or shows it under --dry-run.
run() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

# read_flags WORDS...: from the flags of launch/train.py sets `workdir` and
# `flags`, which are the same over all devices, unless they say otherwise.
read_flags() {
  workdir=''
  flags=("$@")
  local mesh='--config.mesh.data=-1'
  while [ $# -gt 0 ]; do
    case $1 in
      --workdir=?*) workdir=${1#*=} ;;
      --workdir) workdir=${2-} ;;
      --config.mesh.data | --config.mesh.data=*) mesh='' ;;
    esac
    shift
  done
  [ -n "$workdir" ] ||
    fail "--workdir is missing: name the directory of the run"
  # After --config, which the program must have read before its fields.
  [ -z "$mesh" ] || flags+=("$mesh")
}
