# shellcheck shell=bash
# Sourced by the launchers: errors, options, and showing or running a command.

dry_run=''

# fail MESSAGE: one line on standard error, exit code 2.
fail() {
  echo "${program:-${0##*/}}: $*" >&2
  exit 2
}

# usage: prints the comment at the top of the script, from the checkout.
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

# show WORDS...: prints a command, quoted for pasting.
show() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# run WORDS...: runs a command, or shows it with --dry_run.
run() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

# read_flags WORDS...: sets `workdir` and `flags` from the flags of
# launch/train.py, and adds --config.mesh.data=-1 unless it is set.
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
    fail "--workdir is missing: set it to the directory of the run"
  # At the end, since the program must read --config before its fields.
  [ -z "$mesh" ] || flags+=("$mesh")
}
