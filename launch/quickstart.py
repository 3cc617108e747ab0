"""The main job: five recipes on digits, accuracy beside speed-up and cost.

Run it through `bash launch/quickstart.sh`, which installs what it needs.
"""

import runpy
import time
from pathlib import Path

from absl import flags

from figs_jax.train import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "Where runs and the report go."
)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Seeds of each recipe.", 1)
_STEPS = flags.DEFINE_integer("steps", 600, "Training steps of each run.", 10)
_PATTERNS = flags.DEFINE_list(
  "patterns", ["1:16"], "Patterns of the feed-forward kernels."
)
_RECIPES = flags.DEFINE_list(
  "recipes", ["sr_ste", "mdgf_exp", "figs", "step"], "Beside dense."
)
_ENGINE = flags.DEFINE_string("engine", "ws:16x16", "Engine of the speed-up.")


def get_config(recipe: str):
  path = Path(__file__).parents[1] / "configs" / "digits_vit.py"
  config = runpy.run_path(str(path))["get_config"](recipe)
  config.seeds = _SEEDS.value
  config.total_steps = _STEPS.value
  return config


def main() -> None:
  cli.quiet()
  from figs_jax.train import compare

  start = time.monotonic()
  workdir = Path(_WORKDIR.value)
  runs = [("dense", None)] + [
    (recipe, f"ff: {pattern}")
    for pattern in _PATTERNS.value
    for recipe in _RECIPES.value
  ]
  try:
    rows = compare.compare(get_config, runs, workdir, engine_spec=_ENGINE.value)
    compare.plot(rows, workdir / "report.png", "ViT on digits")
  except ValueError as error:
    cli.fail(str(error))
  compare.write_json(rows, workdir / "report.json")
  table = compare.markdown(rows)
  (workdir / "report.md").write_text(
    "# figs_jax quickstart\n\n"
    f"A ViT on scikit-learn's digits, {_STEPS.value} steps,"
    f" {_SEEDS.value} seeds. The speed-up is modelled, over the whole forward"
    " pass of one image on a serial weight-stationary array; so is the time of"
    " training, forward and backward, over all steps.\n\n"
    f"{table}\n![accuracy against speed-up](report.png)\n"
  )
  print(table)
  print(
    f"{workdir / 'report.md'} and report.png written,"
    f" {time.monotonic() - start:.0f} s"
  )


if __name__ == "__main__":
  cli.run(main)
