"""Accuracy against speed-up: runs as points, and the best of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from figs_jax import engine
from figs_jax.analysis.history import History
from figs_jax.train import seeds
from figs_jax.train.config import differences


@dataclasses.dataclass(frozen=True)
class Point:
  """A configuration on an engine; runs that differ in the seed are one.

  Attributes:
    engine: its spec.
    recipe: by name.
    pattern: of the sparse layers, "dense" without any; the rules if several.
    speedup: of one image's whole forward pass, over the same engine running the
      dense model; with the masks of the first run's first seed.
    accuracies: in [0, 1], one per seed.
    runs: labels of the runs.
  """

  engine: str
  recipe: str
  pattern: str
  speedup: float
  accuracies: tuple[float, ...]
  runs: tuple[str, ...]

  @property
  def accuracy(self) -> float:
    """Mean over the seeds that did not diverge."""
    return seeds.mean_and_se(self.accuracies)[0]

  @property
  def error(self) -> float:
    """Standard error of that mean; NaN of fewer than two seeds."""
    return seeds.mean_and_se(self.accuracies)[1]


def points(runs: Sequence[History], specs: Sequence[str]) -> list[Point]:
  """Every configuration on the first engine, then on the next.

  Raises:
    ValueError: a run without an evaluation or a checkpoint, seeds of one
      configuration that were evaluated at different steps or are there twice,
      or no such engine.
  """
  for spec in specs:
    engine.parse(spec)
  groups: list[list[History]] = []
  for run in runs:
    for group in groups:
      if not _apart(group[0], run):
        group.append(run)
        break
    else:
      groups.append([run])
  for group in groups:
    _check_seeds(group)
  found = [(group, engine.report(group[0].layers, list(specs)))
           for group in groups]  # fmt: skip
  return [
    Point(
      engine=spec,
      recipe=group[0].recipe,
      pattern=_pattern(report.totals[place].pattern, group[0]),
      speedup=report.totals[place].speedup,
      accuracies=tuple(a for run in group for a in run.accuracies()),
      runs=tuple(run.label for run in group),
    )
    for place, spec in enumerate(specs)
    for group, report in found
  ]


def front(found: Sequence[Point]) -> list[Point]:
  """The points of one engine that no other beats in both, by speed-up.

  A point is beaten by one that is at least as fast and as accurate, and better
  in one of the two. Error bars play no part, nor does what diverged.

  >>> a, b, c = (Point("ws", "figs", "1:4", s, (acc,), ())
  ...            for s, acc in [(1.0, 0.9), (2.0, 0.8), (1.5, 0.7)])
  >>> [point.speedup for point in front([c, b, a])]
  [1.0, 2.0]
  """
  best, kept = -math.inf, []
  sound = [point for point in found if not math.isnan(point.accuracy)]
  for point in sorted(sound, key=lambda p: (-p.speedup, -p.accuracy)):
    if point.accuracy > best:
      kept.append(point)
      best = point.accuracy
  return kept[::-1]


def _apart(a: History, b: History) -> bool:
  """Whether they differ in more than the seed."""
  free = {"seed", "seeds", "seeds_mode", "diagnose_every", "checkpoint_every"}
  return any(name not in free for name in differences(a.config, b.config))


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
    if run.evaluated != group[0].evaluated:
      raise ValueError(
        f"{run.path}: evaluated at step {run.evaluated}, but"
        f" {group[0].path} at {group[0].evaluated}, so they make no mean; let"
        " both finish"
      )


def _pattern(found: str, run: History) -> str:
  rules: Any = run.config["pattern"]
  return str(rules) if found == "mixed" else found
