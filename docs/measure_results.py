"""Measures the tables of docs/results.md: recipes on one experiment.

  python docs/measure_results.py --config configs/stdlib_t5.py --seeds 3 \\
    --recipes dense,sr_ste,figs,mdgf_exp,step --workdir runs/results/stdlib_t5

A run that was stopped resumes, and a finished run is not repeated.
"""

import os
import runpy
from pathlib import Path

from absl import flags

from figs_jax import cli

_CONFIG = flags.DEFINE_string("config", None, "File with get_config(recipe).")
_RECIPES = flags.DEFINE_list(
  "recipes",
  ["dense", "sr_ste", "figs", "mdgf_exp", "step"],
  "Names of the recipes.",
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of each recipe.", 1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the runs.")
_ENGINES = flags.DEFINE_string(
  "engines", "figs:16x16:alpha=15", "Spec of the engine."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the data.")


def main() -> None:
  cli.quiet()
  for flag in (_CONFIG, _WORKDIR):
    if not flag.value:
      cli.fail(f"--{flag.name} is missing")
  if not os.path.isfile(str(_CONFIG.value)):
    cli.fail(f"--config {_CONFIG.value}: no such file")
  from figs_jax import analysis
  from figs_jax.data import DataError
  from figs_jax.train.loop import Diverged

  get_config = runpy.run_path(str(_CONFIG.value))["get_config"]

  def with_seeds(recipe: str):
    config = get_config(recipe)
    config.seeds = _SEEDS.value
    config.data.data_dir = _DATA_DIR.value
    return config

  workdir = Path(str(_WORKDIR.value))
  runs = [(recipe, None) for recipe in _RECIPES.value]
  try:
    rows = analysis.compare(
      with_seeds, runs, workdir, engine_spec=_ENGINES.value
    )
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  except Diverged as error:
    cli.fail(str(error), code=1)
  if len(rows) < len(runs):
    print("Stopped; repeat the command to resume")
    return
  analysis.write_json(rows, workdir / "results.json")
  print(analysis.comparison_table(rows))


if __name__ == "__main__":
  cli.run(main)
