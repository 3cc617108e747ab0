"""Accuracy against speed-up: runs as points, and their Pareto front."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from figs_jax import engine
from figs_jax.analysis.history import History
from figs_jax.train import seeds
from figs_jax.train._evaluate import speedups
from figs_jax.train.config import differences


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
  """A configuration on an engine; runs that differ in the seed are one point.

  Attributes:
    engine: Spec of the engine.
    recipe: Name of the recipe.
    pattern: Pattern of the sparse layers: "dense" if there are none, the rules
      if there are several.
    speedup: Speed-up of a batch's forward pass over the fastest dense array of
      that size, with the masks of the first run's first seed; see
      `figs_jax.train.evaluate`.
    accuracies: Accuracies in [0, 1], one per seed.
    runs: Labels of the runs.
    ideal: Speed-up of such an array that compresses N:M at no cost, or None.
  """

  engine: str
  recipe: str
  pattern: str
  speedup: float
  accuracies: tuple[float, ...]
  runs: tuple[str, ...]
  ideal: float | None = None

  @property
  def accuracy(self) -> float:
    """Mean over the seeds that did not diverge."""
    return seeds.mean_and_se(self.accuracies)[0]

  @property
  def error(self) -> float:
    """Standard error of the mean, NaN for fewer than two seeds."""
    return seeds.mean_and_se(self.accuracies)[1]


def pareto_points(
  runs: Sequence[History], specs: Sequence[str]
) -> list[ParetoPoint]:
  """Every configuration on the first engine, then on the next.

  Args:
    runs: Runs from `histories`, each with an evaluation and a checkpoint.
    specs: Specs for `figs_jax.engine.parse`.

  Raises:
    ValueError: If a run has no evaluation or checkpoint, the seeds of a
      configuration were evaluated at different steps, a seed occurs twice, or
      an engine is unknown.
  """
  for spec in specs:
    engine.parse(spec)
  groups = by_configuration(runs)
  patterns = [
    _pattern(engine.report(group[0].batch_layers, specs[:1]), group[0])
    for group in groups
  ]
  points = []
  for spec in specs:
    for group, pattern in zip(groups, patterns):
      gain = speedups(group[0].batch_layers, spec)
      points.append(
        ParetoPoint(
          engine=spec,
          recipe=group[0].recipe,
          pattern=pattern,
          speedup=gain["speedup"],
          accuracies=tuple(a for run in group for a in run.accuracies),
          runs=tuple(run.label for run in group),
          ideal=gain["ideal_speedup"],
        )
      )
  return points


def by_configuration(runs: Sequence[History]) -> list[list[History]]:
  """Runs that differ in the seed together, in the order of their first.

  Raises:
    ValueError: If a seed of a configuration occurs twice, or its seeds were
      evaluated at different steps.
  """
  groups: list[list[History]] = []
  for run in runs:
    for group in groups:
      if _differ_in_seed_only(group[0], run):
        group.append(run)
        break
    else:
      groups.append([run])
  for group in groups:
    _check_seeds(group)
  return groups


def pareto_front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
  """The points of one engine that no other dominates, by speed-up.

  A point is dominated by one that is at least as fast and as accurate, and
  better in one of the two. Errors and diverged runs play no part.

  Args:
    points: Points of one engine, in any order.

  >>> a, b, c = (ParetoPoint("ws", "figs", "1:4", speedup, (accuracy,), ())
  ...            for speedup, accuracy in [(1.0, 0.9), (2.0, 0.8), (1.5, 0.7)])
  >>> [point.speedup for point in pareto_front([c, b, a])]
  [1.0, 2.0]
  """
  best, front = -math.inf, []
  finite = [point for point in points if not math.isnan(point.accuracy)]
  for point in sorted(finite, key=lambda p: (-p.speedup, -p.accuracy)):
    if point.accuracy > best:
      front.append(point)
      best = point.accuracy
  return front[::-1]


def _differ_in_seed_only(a: History, b: History) -> bool:
  free = {"seed", "seeds", "seeds_mode", "diagnose_every", "checkpoint_every"}
  return free.issuperset(differences(a.config, b.config))


def _check_seeds(group: Sequence[History]) -> None:
  taken: dict[int, str] = {}
  for run in group:
    first = run.config["seed"]
    for seed in range(first, first + max(run.config["seeds"], 1)):
      if seed in taken:
        raise ValueError(
          f"{run.path}: seed {seed} of this configuration is in {taken[seed]}"
          " too; leave one of them out"
        )
      taken[seed] = str(run.path)
    step, other = (each.last_evaluation["step"] for each in (run, group[0]))
    if step != other:
      raise ValueError(
        f"{run.path}: evaluated at step {step}, but {group[0].path} at {other};"
        " a mean needs equal steps, so let both finish"
      )


def _pattern(report: engine.Report, run: History) -> str:
  pattern = report.totals[0].pattern
  return str(run.config["pattern"]) if pattern == "mixed" else pattern
