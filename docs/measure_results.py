"""Measures the tables of docs/results.md: recipes on one experiment.

  python docs/measure_results.py --config configs/stdlib_t5.py --seeds 3 \\
    --recipes dense,sr_ste,figs,mdgf_exp,step --workdir runs/results/stdlib_t5

A run that was stopped resumes, and a finished run is not repeated. All seeds
read one stream of data, as in the published tables.
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
  from figs_jax.analysis import study
  from figs_jax.data import DataError
  from figs_jax.train.config import ConfigError

  config = study.default_config()
  config.name = Path(str(_CONFIG.value)).stem
  config.base = str(_CONFIG.value)
  config.common = {"data": {"data_dir": _DATA_DIR.value, "order": "shared"}}
  config.recipes = {name: {"name": name} for name in _RECIPES.value}
  config.baseline = _RECIPES.value[0]
  pattern = runpy.run_path(config.base)["get_config"]("figs").pattern
  config.patterns = {pattern: pattern}
  config.grids = {
    "all": {
      "recipes": tuple(_RECIPES.value),
      "patterns": (pattern,),
      "seeds": _SEEDS.value,
    }
  }
  config.engines = (_ENGINES.value,)
  workdir = str(_WORKDIR.value)
  try:
    outcome = study.run(config, workdir, workdir)
    if not outcome.finished:
      cli.say("stopped; run the same command to resume")
      return
    claims = study.report(config, workdir)
  except (ConfigError, DataError, ValueError) as error:
    cli.fail(str(error))
  cli.say(claims, f"{workdir}/results.md has the tables")
  if outcome.failed:
    cli.fail(f"cells failed: {', '.join(outcome.failed)}", code=1)


if __name__ == "__main__":
  cli.run(main)
