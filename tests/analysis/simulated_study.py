"""Rows of a study as text, as in study.csv, drawn from known effects."""

import json
import math
import zlib

import numpy as np

DENSITIES = {"1:4": 1 / 4, "1:8": 1 / 8, "1:16": 1 / 16, "1:32": 1 / 32}
ENGINES = ("figs:16x16:alpha=15", "vegeta:16x16")


def simulate(
  recipes,
  patterns=("1:8", "1:32"),
  *,
  seeds=8,
  of_seed=0.3,
  noise=0.15,
  cost=2.0,
  accuracy=83.8,
  setting="",
  rules="ff: {}",
  rng=0,
  columns=None,
):
  """Rows of cells whose true accuracies are known.

  The accuracy of a cell in points is `accuracy` - `cost` * log2(1 / density) +
  the recipe's gain, plus a term that all cells share by seed and a term of its
  own. The loss is .452 + .03 per missing point, with noise of its own.

  Args:
    recipes: {label: gain in points}; "dense" has no pattern and no cost.
    patterns: Labels, `n:m` after the last space.
    seeds: Number of seeds.
    of_seed: Deviation over seeds that all cells share, in points.
    noise: Deviation of each run, in points.
    cost: Points lost per halving of the density.
    accuracy: Accuracy of a dense run, in points.
    setting: Setting of all rows.
    rules: Rules with a place for the pattern.
    rng: Seed or generator.
    columns: Other columns, the same for all rows.
  """
  rng = np.random.default_rng(rng)
  shared = of_seed * rng.normal(size=seeds)
  rows = []
  for recipe, gain in recipes.items():
    for pattern in [""] if recipe == "dense" else patterns:
      nm = pattern.split()[-1] if pattern else ""
      density = DENSITIES[nm] if nm else 1.0
      lost = cost * math.log2(1 / density) - gain if pattern else 0.0
      draws = noise * rng.normal(size=(2, seeds))
      for seed in range(seeds):
        points = accuracy - lost + shared[seed] + draws[0, seed]
        loss = 0.452 + 0.03 * (lost - shared[seed] + draws[1, seed])
        name = " ".join(
          filter(None, (recipe, pattern, setting and f"[{setting}]"))
        )
        row = {
          "study": "simulated", "grid": "a", "cell": name, "recipe": recipe,
          "pattern": pattern, "rules": rules.format(nm) if nm else "",
          "setting": setting, "seed": str(seed), "accuracy": points / 100,
          "loss": loss, "config": f"{zlib.crc32(name.encode()):012x}",
          "version": "0.2.0", "examples": "", "step": 2000, "density": density,
          "sparsity": 1 - density, "train_flops": 0.4 + 0.6 * density,
          "config.data.order": "own",
          **{
            f"speedup:{engine}": 1.0 + (1 - density) * (1.2 - place / 2)
            for place, engine in enumerate(ENGINES)
          },
          **(columns or {}),
        }  # fmt: skip
        rows.append(
          {
            k: v if isinstance(v, str) else json.dumps(v)
            for k, v in row.items()
          }
        )
  return rows


def add_examples(rows, out, *, examples=400, rng=0):
  """Writes per-example results, and sets the rows to their means."""
  rng = np.random.default_rng(rng)
  hardness = rng.normal(size=examples)
  cells = {}
  for row in rows:
    cells.setdefault(row["cell"], []).append(row)
  (out / "examples").mkdir(exist_ok=True)
  for number, group in enumerate(cells.values()):
    file = f"examples/{number}.npz"
    correct, loss = [], []
    for row in group:
      margin = hardness + 0.3 * rng.normal(size=examples)
      count = round(float(row["accuracy"]) * examples)
      correct.append(margin.argsort().argsort() < count)
      loss.append(
        (float(row["loss"]) + 0.1 * (margin - margin.mean())).astype(np.float16)
      )
      row["accuracy"] = json.dumps(float(correct[-1].mean()))
      row["loss"] = json.dumps(float(loss[-1].astype(float).mean()))
      row["examples"] = file
    np.savez(
      out / file,
      seed=[int(row["seed"]) for row in group],
      correct=np.packbits(correct, axis=1),
      examples=examples,
      loss=np.stack(loss),
    )
