"""Compares five recipes on digits: accuracy, modelled speed-up and cost.

`bash launch/quickstart.sh` installs the requirements and runs it. When it is
stopped, the same command resumes it; finished runs are not repeated.
"""

import runpy
import time
from pathlib import Path

from absl import flags

from figs_jax import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "Directory for the runs and the report."
)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Number of seeds per recipe.", 1)
_STEPS = flags.DEFINE_integer("steps", 600, "Number of steps per run.", 10)
_PATTERNS = flags.DEFINE_list(
  "patterns", ["1:16"], "N:M patterns of the feed-forward kernels."
)
_RECIPES = flags.DEFINE_list(
  "recipes",
  ["sr_ste", "mdgf_exp", "figs", "step"],
  "Recipes to compare with dense.",
)
_ENGINES = flags.DEFINE_string(
  "engines",
  "figs:16x16:alpha=15",
  "Engine of the speed-up over the fastest dense array of as many multipliers,"
  " such as vegeta-s-16-2.",
)


def get_config(recipe: str):
  path = Path(__file__).parents[1] / "configs" / "digits_vit.py"
  config = runpy.run_path(str(path))["get_config"](recipe)
  config.seeds = _SEEDS.value
  config.total_steps = _STEPS.value
  config.optimizer.warmup_steps = _STEPS.value // 20
  return config


def check_flags() -> None:
  """Ends with an error of the flag, before anything is built."""
  from figs_jax import core, engine, recipes

  if not _WORKDIR.value:
    cli.fail("--workdir is empty: set it to a directory")
  if not _PATTERNS.value:
    cli.fail("--patterns is empty: give at least one, such as 1:16")
  for flag, check in (
    (_RECIPES, recipes.options),
    (_PATTERNS, core.NM.parse),
    (_ENGINES, engine.parse),
  ):
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    for value in values:
      try:
        check(value)
      except ValueError as error:
        cli.fail(f"--{flag.name}: {error}")


def main() -> None:
  cli.quiet()
  check_flags()
  from figs_jax import analysis
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.engine.figures import figure_type
  from figs_jax.train.loop import Diverged

  compilation_cache.enable()
  start = time.monotonic()
  workdir = Path(_WORKDIR.value)
  sparse = [name for name in _RECIPES.value if name != "dense"]
  runs = dict.fromkeys(
    [("dense", None)]
    + [(name, f"ff: {n_m}") for n_m in _PATTERNS.value for name in sparse]
  )
  try:
    figure_type()
    rows = analysis.compare(
      get_config, runs, workdir, engine_spec=_ENGINES.value
    )
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  except Diverged as error:
    cli.fail(str(error), code=1)
  if len(rows) < len(runs):
    cli.say("stopped; run the same command to resume")
    return
  analysis.plot_comparison(rows, workdir / "report.png", "ViT on digits")
  analysis.write_json(rows, workdir / "report.json")
  table = analysis.comparison_table(rows)
  (workdir / "report.md").write_text(
    "# figs_jax quickstart\n\n"
    f"A ViT on scikit-learn's digits, {_STEPS.value} steps,"
    f" {_SEEDS.value} seeds. The speed-up is modelled for the forward pass of"
    f" a batch on the engine {_ENGINES.value}, over the fastest dense array"
    f" of as many multipliers and as wide an input port ({rows[-1].baseline})."
    " `ideal` is what such an array would gain if it compressed N:M at no cost."
    " Training time is modelled for the forward and backward passes of all"
    " steps, over the fastest dense array for them.\n\n"
    f"{table}\n![accuracy against speed-up](report.png)\n"
  )
  cli.say(
    table,
    f"{workdir / 'report.md'} and report.png written,"
    f" {time.monotonic() - start:.0f} s",
  )


def recipes() -> str:
  from figs_jax.recipes.listing import catalogue

  return catalogue()


if __name__ == "__main__":
  cli.run(main, more_help=recipes)
