"""Runs a study, a grid of recipes, patterns, settings and seeds, and judges it.

  python launch/study.py --config configs/study_digits.py --dry_run
  python launch/study.py --config configs/study_digits.py --workdir runs/digits
    --out results/digits
  python launch/study.py --collect runs/a runs/b --out results/mine

What is done is not repeated; SIGTERM saves and exits with 0. OUT gets study.csv
(a row per cell and seed), per-example results, tables, claims and pictures.
"""

from absl import flags
from ml_collections import config_flags

from figs_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "File with get_config(), such as configs/study_digits.py."
  " --config.FIELD=VALUE sets a field.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Parent of the run directories. Defaults to runs/NAME."
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Directory of study.csv, tables and pictures. Defaults to WORKDIR/results.",
)
_GRID = flags.DEFINE_list("grid", None, "Grids to run. Defaults to all.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Whether to list the cells with their times, and end."
)
_SHARD = flags.DEFINE_string(
  "shard",
  "1/1",
  "Share of the cells to run, as in 2/4 for the second of four machines. In a"
  " SLURM array: --shard=$((SLURM_ARRAY_TASK_ID+1))/$SLURM_ARRAY_TASK_COUNT.",
)
_COLLECT = flags.DEFINE_multi_string(
  "collect",
  [],
  "Directories of runs, or of other studies' results, to add to OUT instead of"
  " running cells: --collect runs/*.",
)
_BASELINE = flags.DEFINE_string(
  "baseline", "dense", "Recipe to compare collected runs with."
)
_ENGINES = flags.DEFINE_list(
  "engines", ["figs:16x16:alpha=15"], "Engines of collected runs."
)
cli.define_model_file()  # run before the configuration is read


def main(words: list[str]) -> None:
  cli.quiet()
  if words and not _COLLECT.value:
    cli.fail(f"Unexpected argument {words[0]!r}; list runs after --collect")
  from figs_jax.analysis import study
  from figs_jax.analysis._study_pairs import pandas_module
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.engine.figures import figure_type
  from figs_jax.train.checkpoint import CheckpointError
  from figs_jax.train.config import ConfigError

  if not _DRY_RUN.value:
    try:
      pandas_module()
      figure_type()  # the report needs both: say so before anything is trained
    except ValueError as error:
      cli.fail(str(error))
  compilation_cache.enable()
  try:
    if _COLLECT.value:
      if not _OUT.value:
        cli.fail("--out is missing: name the directory of the collected rows")
      paths = [*_COLLECT.value, *words]
      study.collect(paths, _OUT.value, engines=_ENGINES.value)
      config = study.default_config()
      config.name, config.baseline = "collected", _BASELINE.value
      _report(study, config, _OUT.value)
      return
    _run(study)
  except (ConfigError, DataError, CheckpointError) as error:
    cli.fail(str(error))


def _run(study) -> None:
  config = cli.config_of(_CONFIG, "configs/study_digits.py")
  if missing := set(study.default_config()) - set(config):
    cli.fail(
      "--config: expected the configuration of a study, got one without"
      f" {', '.join(sorted(missing))}; a single run is for launch/train.py"
    )
  workdir = _WORKDIR.value or f"runs/{config.name}"
  out = _OUT.value or f"{workdir}/results"
  if _DRY_RUN.value:
    _list(study.plan(config, out, grids=_GRID.value))
    return
  outcome = study.run(
    config, workdir, out, grids=_GRID.value, shard=_shard(_SHARD.value)
  )
  _report(study, config, out)
  if not outcome.finished:
    cli.say("stopped; run the same command to resume")
  elif outcome.failed:
    cli.fail(
      f"{len(outcome.failed)} cells failed: {', '.join(outcome.failed)};"
      f" {out}/failed.csv has the reasons",
      code=1,
    )


def _list(plan) -> None:
  total = sum(seconds for _, _, seconds in plan)
  width = max(len(cell.name) for cell, _, _ in plan)
  cli.say(
    *(
      f"{cell.name:{width}}  {left} of {len(cell.seeds)} seeds left, "
      f"{seconds:7,.0f} s"
      for cell, left, seconds in plan
    ),
    f"{len(plan)} cells, {total / 3600:.1f} h of processor time left",
  )


def _shard(text: str) -> tuple[int, int]:
  index, _, count = text.partition("/")
  if not (index.isdigit() and count.isdigit()):
    cli.fail(f"--shard: expected i/n such as 2/4, got {text!r}")
  return int(index), int(count)


def _report(study, config, out: str) -> None:
  """Writes results.md and prints the verdicts of the rows that are there."""
  rows = study.rows(out)
  if not rows:
    cli.say(f"{out}/study.csv: no rows yet")
    return
  try:
    lines = study.report(config, out)
  except ValueError as error:
    cli.fail(str(error))
  cli.say(lines, f"{out}/study.csv: {len(rows)} rows; results.md beside it")


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)  # --collect A B C --out D
  cli.run(main, words=True)
