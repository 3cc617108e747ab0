"""Compares recipes on Fashion-MNIST: test loss, accuracy, modelled speed-up.

`bash launch/quickstart.sh` installs the requirements and runs it. All recipes
train at the first of --patterns, those of --sweep at all of them. The accuracy
of one dense run comes first. When it is stopped, the same command resumes it;
finished runs are not repeated.

Fashion-MNIST is taken from the directory of prepared data sets, from Debian's
package dataset-fashion-mnist or from --source. Without any of them the digits
that figs_jax carries take its place.
"""

import copy
import logging
import textwrap
import time
from pathlib import Path
from typing import Any

from absl import flags

from figs_jax import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "Directory for the runs and the report."
)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Number of seeds per recipe.", 1)
_STEPS = flags.DEFINE_integer(
  "steps",
  None,
  "Number of steps per run. Defaults to 1500, on digits to 600.",
  10,
)
_PATTERNS = flags.DEFINE_list(
  "patterns",
  ["1:8", "1:4", "1:16", "1:32"],
  "N:M patterns of the feed-forward and attention kernels.",
)
_RECIPES = flags.DEFINE_list(
  "recipes",
  ["sr_ste", "mdgf_exp", "figs", "step"],
  "Recipes to compare with dense at the first pattern.",
)
_SWEEP = flags.DEFINE_list(
  "sweep",
  None,
  "Those of --recipes that run at every pattern. Defaults to figs, or else to"
  " the first.",
)
_ENGINES = flags.DEFINE_string(
  "engines",
  "figs:16x8:alpha=15",
  "Engine of the speed-up over the fastest dense array of as many multipliers,"
  " such as vegeta-s-16-2.",
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Directory of Fashion-MNIST's four idx files."
)

_RULES = "ff: {0}, q: {0}, k: {0}, v: {0}, o: {0}"
# The regime of configs/study_fashion_vit.py: the model needs its weights.
_FASHION = {
  "variant": "custom/14",
  "model": {"width": 128, "mlp_dim": 128, "depth": 1, "heads": 4},
  "optimizer": {"learning_rate": 1e-3},
}
_SMALLEST = 0.005  # nats
_log = logging.getLogger("figs_jax")
_DTYPES: dict[Any, str] = {1: "int8", 2: "bfloat16"}  # by bytes per value


def check_flags() -> None:
  """Ends with an error of the flag, before anything is built."""
  from figs_jax import core, engine, recipes

  if not _WORKDIR.value:
    cli.fail("--workdir is empty: set it to a directory")
  for flag, example in ((_PATTERNS, "1:16"), (_RECIPES, "figs")):
    if not flag.value:
      cli.fail(f"--{flag.name} is empty: give at least one, such as {example}")
  for flag, values, check in (
    (_RECIPES, _RECIPES.value, recipes.options),
    (_SWEEP, _SWEEP.value or [], recipes.options),
    (_PATTERNS, _PATTERNS.value, core.NM.parse),
    (_ENGINES, [_ENGINES.value], engine.parse),
  ):
    for value in values:
      try:
        check(value)
      except ValueError as error:
        cli.fail(f"--{flag.name}: {error}")
  if set(_RECIPES.value) == {"dense"}:
    cli.fail("--recipes: expected one to compare with dense, such as figs")
  for name in _SWEEP.value or ():
    if name not in _RECIPES.value:
      cli.fail(
        f"--sweep: expected recipes of --recipes ({', '.join(_RECIPES.value)}),"
        f" got {name!r}"
      )
  try:
    Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    cli.fail(f"--workdir {_WORKDIR.value}: {error.strerror}; use another")


def has_fashion() -> bool:
  """Whether Fashion-MNIST can be had without the network; prepares it."""
  from figs_jax import data
  from figs_jax.data import idx, sources

  name, root = "fashion_mnist", sources.root_of(None)
  files = _SOURCE.value or idx.directory_of(name)
  if not sources.is_prepared(name, root):
    if files and Path(files).is_dir():
      _log.info("preparing Fashion-MNIST of %s in %s", files, root)
  elif _SOURCE.value:
    _log.info("--source is not read: %s holds Fashion-MNIST", root)
  known = data.describe(name, source=_SOURCE.value)
  if not known.splits:
    cli.say(
      "Fashion-MNIST is not on this machine, so digits take its place, which"
      " cannot rank recipes: install Debian's dataset-fashion-mnist, or give"
      " --source DIR with its idx files"
    )
  return bool(known.splits)


def study_of(fashion: bool):
  """The study of the flags."""
  from figs_jax import engine
  from figs_jax.analysis import study

  steps = _STEPS.value or (1500 if fashion else 600)
  config = study.default_config()
  config.name = "quickstart"
  config.base = f"configs/{'fashion' if fashion else 'digits'}_vit.py"
  config.common = {"total_steps": steps, "checkpoint_every": steps}
  config.common.update(_FASHION if fashion else {"optimizer": {}})
  config.common.optimizer.warmup_steps = steps // 20
  config.dense_warmup = 0.0125
  config.engines = (_ENGINES.value,)
  itemsize = engine.parse(_ENGINES.value).itemsize
  config.dtypes = (_DTYPES.get(itemsize, "float32"),)
  sparse = [name for name in dict.fromkeys(_RECIPES.value) if name != "dense"]
  config.recipes = {name: {"name": name} for name in ("dense", *sparse)}
  config.patterns = {n_m: _RULES.format(n_m) for n_m in _PATTERNS.value}
  first, reference = _PATTERNS.value[0], sparse[0]
  swept = _SWEEP.value or ["figs" if "figs" in sparse else reference]
  config.grids = {
    "compared": {
      "recipes": ("dense", *sparse),
      "patterns": (first,),
      "seeds": _SEEDS.value,
    },
    "swept": {
      "recipes": tuple(swept),
      "patterns": tuple(config.patterns),
      "seeds": _SEEDS.value,
    },
  }
  # With few seeds most of these stay open; the report says how many seeds would
  # resolve them.
  config.claims = {
    f"{name} over {reference}": {
      "better": name,
      "worse": reference,
      "metric": "loss",
      "patterns": (first,),
      "smallest": _SMALLEST,
    }
    for name in sparse[1:]
  }
  return config


def first_of(config):
  """The study of one dense run, whose rows the whole study takes over."""
  first = copy.deepcopy(config)
  del first.grids.swept
  first.grids.compared.recipes = ("dense",)
  first.grids.compared.seeds = 1
  return first


def say_first_accuracy(config, out: Path, seconds: float) -> None:
  """The test accuracy of the first dense seed."""
  from figs_jax.analysis import study

  (dense,) = study.cells(config)
  for row in study.rows(out):
    if (row["config"], row["seed"]) == (dense.fingerprint, "0"):
      cli.say(
        f"dense, seed 0: test accuracy {float(row['accuracy']):.2%}, after"
        f" {seconds:.0f} s"
      )


def rows_of(cells, modelled, out: Path) -> list[dict[str, str]]:
  """Rows of these cells and seeds, with speed-ups on this engine alone."""
  from figs_jax.analysis import study

  by_run = {(row["config"], int(row["seed"])): row for row in study.rows(out)}
  rows = []
  for cell in cells:
    for seed in cell.seeds:
      if row := by_run.get((cell.fingerprint, seed)):
        kept = {k: v for k, v in row.items() if not k.startswith("speedup:")}
        rows.append(kept | modelled[cell.fingerprint])
  return rows


def introduction(config, cells, fashion: bool) -> str:
  images = "Fashion-MNIST" if fashion else "the digits of UCI"
  return (
    f"A ViT on {images}: {cells[0].config.total_steps} steps, {_SEEDS.value}"
    " seeds. A pattern is that of all feed-forward and attention kernels. The"
    " speed-up is modelled for the forward pass of a batch of"
    f" {cells[0].config.batch_size} on {_ENGINES.value}, over the fastest dense"
    " array of as many multipliers and as wide an input port. The accuracies of"
    f" the picture are those in {config.dtypes[0]}, the dtype of"
    " that engine. `results.md` has all cells and more pictures, `study.csv` a"
    " row per run."
  )


def main() -> None:
  cli.quiet()
  check_flags()
  from figs_jax import analysis
  from figs_jax.analysis import study
  from figs_jax.analysis._study_pairs import pandas_module
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.engine.figures import figure_type

  start = time.monotonic()
  workdir = Path(_WORKDIR.value)
  compilation_cache.enable()
  try:
    pandas_module()
    figure_type()
    fashion = has_fashion()
    config = study_of(fashion)
    cells = study.cells(config)
    # Every cell is checked before the first is trained.
    modelled = {
      cell.fingerprint: {
        key: str(value)
        for key, value in study.modelled(cell.config, config.engines).items()
      }
      for cell in cells
    }
    first = first_of(config)
    outcome = study.run(first, workdir, workdir, columns=modelled)
    say_first_accuracy(first, workdir, time.monotonic() - start)
    if outcome.finished:
      outcome = study.run(config, workdir, workdir, columns=modelled)
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  if not outcome.finished:
    cli.say("stopped; run the same command to resume")
    return
  rows = analysis.study_frame(rows_of(cells, modelled, workdir))
  claims = analysis.write_results(rows, config.to_dict(), workdir)
  table = analysis.write_summary(
    rows,
    config.to_dict(),
    workdir,
    introduction=introduction(config, cells, fashion),
    claims=claims,
  )
  cli.say(
    table,
    claims,
    f"{workdir / 'report.md'} and report.png written,"
    f" {time.monotonic() - start:.0f} s,"
    f" {time.process_time():.0f} s of processor time",
  )
  if outcome.failed:
    cli.fail(
      f"{len(outcome.failed)} cells failed: {', '.join(outcome.failed)};"
      f" {workdir / 'failed.csv'} has the reasons",
      code=1,
    )


def recipes() -> str:
  """The names that --recipes takes."""
  from figs_jax import recipes

  return textwrap.fill(
    f"recipes: {', '.join(recipes.names())}; launch/train.py --help describes"
    " them",
    80,
    subsequent_indent="  ",
  )


if __name__ == "__main__":
  cli.run(main, more_help=recipes)
