"""Runs a study, a grid of recipes, patterns, settings and seeds, and judges it.

  python launch/study.py --config configs/study_digits.py --dry_run
  python launch/study.py --config configs/study_digits.py --workdir runs/digits
    --out results/digits
  python launch/study.py --collect runs/a runs/b --out results/mine

What is done is not repeated; SIGTERM saves and ends. OUT gets study.csv (a row
per cell and seed), per-example results, tables, claims and pictures.

On a cluster, where each task runs some of the cells:

  python launch/study.py --config FILE --workdir W --format slurm >study.sbatch
  sbatch study.sbatch
  python launch/study.py --config FILE --workdir W --gather
"""

import sys

from absl import flags
from ml_collections import config_flags

from figs_jax import cli
from figs_jax.cli import study_jobs

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
  "Share of the cells to run, as in 2/4 for the second of four machines. Its"
  " rows are written to OUT/shards/2-of-4.",
)
_GATHER = flags.DEFINE_bool(
  "gather",
  False,
  "Whether to merge the rows of shards into OUT/study.csv and write the page,"
  " instead of running cells.",
)
_FORMAT = flags.DEFINE_enum(
  "format",
  "text",
  ["text", "slurm", "gke"],
  "slurm prints a script for sbatch that runs the study as a job array, gke an"
  " indexed Job for kubectl; text runs it here.",
)
_TASKS = flags.DEFINE_integer(
  "tasks",
  None,
  "Number of tasks of the job that --format prints. Defaults to one per cell.",
  lower_bound=1,
)
_DIGEST = flags.DEFINE_string(
  "cells_digest",
  None,
  "Digest of the cells that a job was written for; a study with other cells is"
  " refused.",
)
_STOPPED_CODE = flags.DEFINE_integer(
  "stopped_code",
  0,
  "Exit code after SIGTERM, or if another process trains one of the cells; a"
  " launcher can tell a stopped study from a finished one if it is not 0.",
  lower_bound=0,
  upper_bound=255,
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
  from figs_jax.train.checkpoint import CheckpointError, SaveError
  from figs_jax.train.config import ConfigError
  from figs_jax.train.workdir_lock import LockLostError

  shard = _shard(_SHARD.value)
  if not (_DRY_RUN.value or _FORMAT.value != "text" or shard[1] > 1):
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
    _run(study, shard)
  except (ConfigError, DataError, CheckpointError) as error:
    cli.fail(str(error))
  except (SaveError, LockLostError) as error:
    cli.fail(str(error), code=1)


def _run(study, shard: tuple[int, int]) -> None:
  config = cli.config_of(_CONFIG, "configs/study_digits.py")
  if missing := set(study.default_config()) - set(config):
    cli.fail(
      "--config: expected the configuration of a study, got one without"
      f" {', '.join(sorted(missing))}; a single run is for launch/train.py"
    )
  root = f"{study_jobs.MOUNT}/" if _FORMAT.value == "gke" else ""
  workdir = _WORKDIR.value or f"{root}runs/{config.name}"
  out = _OUT.value or f"{workdir}/results"
  if _FORMAT.value != "text":
    cli.say(_job(study, config, workdir).rstrip("\n"))
    return
  if _DRY_RUN.value:
    _list(study.plan(config, out, grids=_GRID.value))
    return
  if _GATHER.value:
    missing = study.gather(config, out, grids=_GRID.value)
    _report(study, config, out)
    if missing:
      cells = (f"{name}, seeds {seeds}" for name, seeds in missing.items())
      cli.fail(f"{len(missing)} cells lack rows: {'; '.join(cells)}", code=1)
    return
  if _DIGEST.value:
    digest = study.digest_of(study.cells(config, _GRID.value))
    if digest != _DIGEST.value:
      cli.fail(
        f"--cells_digest: expected the cells with {_DIGEST.value}, got those"
        f" with {digest}: the study has changed since the job was written;"
        " write and submit it again"
      )
  outcome = study.run(config, workdir, out, grids=_GRID.value, shard=shard)
  if shard[1] == 1:
    _report(study, config, out)
  if outcome.failed:
    cli.fail(
      f"{len(outcome.failed)} cells failed: {', '.join(outcome.failed)};"
      f" failed.csv below {out} has the reasons",
      code=1,
    )
  if not outcome.finished:
    cli.say("stopped; run the same command to resume")
    sys.exit(_STOPPED_CODE.value)
  if shard[1] > 1:
    cli.say(
      f"shard {_SHARD.value} is done; when all are, --gather merges their rows"
    )


def _job(study, config, workdir: str) -> str:
  """The job of --format."""
  for flag in (_SHARD, _GATHER, _DRY_RUN, _DIGEST):
    if flag.present:
      cli.fail(f"--{flag.name}: not with --format={_FORMAT.value}; remove one")
  if _FORMAT.value == "gke":
    for flag, path in ((_WORKDIR, workdir), (_OUT, _OUT.value)):
      if path and not path.startswith(f"{study_jobs.MOUNT}/"):
        cli.fail(
          f"--{flag.name}: expected a directory below {study_jobs.MOUNT}, where"
          f" the job mounts its volume, got {path!r}"
        )
  cells = study.cells(config, _GRID.value)
  tasks = _TASKS.value or len(cells)
  if tasks > len(cells):
    cli.fail(
      f"--tasks: expected at most {len(cells)}, one per cell, got {tasks}"
    )
  words = _words(sys.argv[1:], ("format", "tasks"))
  if not _WORKDIR.value:
    words.append(f"--workdir={workdir}")
  job = study_jobs.StudyJob(
    name=config.name,
    tasks=[
      [cell.name for cell in study.shard_of(cells, (task, tasks))]
      for task in range(1, tasks + 1)
    ],
    words=[*words, f"--cells_digest={study.digest_of(cells)}"],
    gather=_words(words, ("stopped_code",)),
  )
  write = study_jobs.slurm if _FORMAT.value == "slurm" else study_jobs.gke
  return write(job)


def _words(argv: list[str], without: tuple[str, ...]) -> list[str]:
  """A command line without some flags, which take a value each."""
  words, rest = [], iter(argv)
  for word in rest:
    name, equals, _ = word.lstrip("-").partition("=")
    if word.startswith("-") and name in without:
      if not equals:
        next(rest, None)
      continue
    words.append(word)
  return words


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
