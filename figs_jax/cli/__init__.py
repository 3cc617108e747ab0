"""What the programs in launch/ share: flags, workloads, export of a run."""

from figs_jax.cli.flags import (
  check_output,
  config_of,
  define_user_file,
  emit,
  fail,
  quiet,
  run,
  run_user_file,
  save,
  say,
)

__all__ = [
  "check_output",
  "config_of",
  "define_user_file",
  "emit",
  "fail",
  "quiet",
  "run",
  "run_user_file",
  "save",
  "say",
]
