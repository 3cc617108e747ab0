"""Runs beside each other: what differs, and what that changes.

Runs that differ in the seed are one configuration, as in `pareto`. Differences
are paired by seed and judged like those of a study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from figs_jax.analysis._study_claims import p_text
from figs_jax.analysis._study_pairs import Cells, Pairs, order_of, pair_up
from figs_jax.analysis.history import History
from figs_jax.analysis.pareto import by_configuration
from figs_jax.analysis.statistics import holm
from figs_jax.core import optimizer_fields
from figs_jax.models.flops import TrainFlops, train_flops
from figs_jax.train import schema
from figs_jax.train.config import FREE

METRICS = ("loss", "accuracy")
# Fields with a column of their own, and those that change no result.
_NOT_VARYING = {
  "family", "variant", "data.name", "recipe.name", "pattern", "seed", "seeds",
  "seeds_mode", "diagnose_every", "checkpoint_every", "recipe_sha256",
  "model_sha256", "teacher_sha256", *FREE,
}  # fmt: skip


def varying_fields(runs: Sequence[History]) -> dict[str, list[str]]:
  """Fields with two values or more among the runs that have them.

  Model, data set, recipe, pattern and seeds are left out, and so are fields
  without an effect on results. The options of a recipe that no other run has do
  not vary.

  Args:
    runs: Runs from `histories`.

  Returns:
    By dotted name the value of each run as text, "–" where it has none.

  >>> from pathlib import Path
  >>> configs = [{"recipe": {"k": 4}}, {"recipe": {"k": 8}}, {"recipe": {}}]
  >>> runs = [History(Path(), "", {**config, "a": 0}, []) for config in configs]
  >>> varying_fields(runs)
  {'recipe.k': ['4', '8', '–']}
  """
  flat = [optimizer_fields.resolved(schema.flat(r.config)) for r in runs]
  texts = {
    name: [value_text(config, name) for config in flat]
    for name in sorted(set().union(*flat))
    if not _NOT_VARYING & {name, name.split(".")[0]}
  }
  return {
    name: values
    for name, values in texts.items()
    if len(set(values) - {"–"}) > 1
  }


def value_text(config: dict[str, Any], name: str) -> str:
  """A field of a flat configuration; text is quoted, "–" says it is missing."""
  if name not in config:
    return "–"
  return json.dumps(config[name], ensure_ascii=False)


def training_flops(run: History) -> TrainFlops:
  """FLOPs of one seed's training up to the newest checkpoint.

  STEP is taken to switch as late as it can.
  """
  experiment, _, step = run.restored
  batch, total = run.config["batch_size"], run.config["total_steps"]
  return train_flops(
    run.model, experiment.recipe, batch=batch, steps=min(step, total)
  )


class Difference(NamedTuple):
  """A configuration beside the baseline.

  Attributes:
    runs: Runs of the configuration, which differ in their seeds.
    pairs: Differences by metric: loss in nats, accuracy in points.
    p: p values by metric after Holm's correction over all configurations, as
      text; "–" for fewer than two pairs.
  """

  runs: list[History]
  pairs: dict[str, Pairs]
  p: dict[str, str]


def paired_differences(
  runs: Sequence[History],
) -> tuple[list[History], list[Difference], str]:
  """The last evaluations of all configurations minus those of the baseline.

  Args:
    runs: Runs from `histories`, each with an evaluation.

  Returns:
    Runs of the baseline, which is the first dense configuration, or the first
    one if none is dense; the others' differences to it; and their `data.order`.

  Raises:
    ValueError: If the seeds of a configuration do not go together.
  """
  groups = by_configuration(runs)
  base = next((g for g in groups if g[0].recipe == "dense"), groups[0])
  cells: Cells = {
    (group[0].label, "", ""): {
      seed: row for run in group for seed, row in _by_seed(run).items()
    }
    for group in groups
  }
  others = [group for group in groups if group is not base]
  table = [
    {
      metric: pair_up(
        cells, (group[0].label, ""), (base[0].label, ""), metric, ""
      )
      for metric in METRICS
    }
    for group in others
  ]
  texts: list[dict[str, str]] = [{} for _ in others]
  for metric in METRICS:
    intervals = [pairs[metric].interval for pairs in table]
    known = [(n, each.p) for n, each in enumerate(intervals) if each]
    corrected = holm([p for _, p in known])
    for (number, _), p in zip(known, corrected):
      texts[number][metric] = p_text(p).removeprefix("p ").removeprefix("= ")
  order = order_of((row for of in cells.values() for row in of.values()), None)
  return base, list(map(Difference, others, table, texts)), order


def _by_seed(run: History) -> dict[int, dict[str, Any]]:
  """Results of the last evaluation by seed, as rows of a study."""
  first, order = run.config["seed"], run.config["data"]["order"]
  return {
    first + i: {"accuracy": accuracy, "loss": loss, "config.data.order": order}
    for i, (accuracy, loss) in enumerate(zip(run.accuracies, run.losses))
  }
