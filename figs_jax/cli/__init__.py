"""Code that the programs in launch/ share: flags, workloads and export."""

from figs_jax.cli.flags import (
  check_output,
  config_of,
  define_model_file,
  define_user_file,
  emit,
  fail,
  quiet,
  run,
  run_model_files,
  run_own_files,
  run_user_file,
  say,
  write_output,
)

__all__ = [
  "check_output",
  "config_of",
  "define_model_file",
  "define_user_file",
  "emit",
  "fail",
  "quiet",
  "run",
  "run_model_files",
  "run_own_files",
  "run_user_file",
  "say",
  "write_output",
]
