"""Rank correlation of gradient noise with the final test loss, over recipes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import config_dict
from scipy import stats

from figs_jax.analysis.gradient_noise import CLASSES, GradientNoise, by_step
from figs_jax.analysis.history import History
from figs_jax.analysis.statistics import rank_correlation
from figs_jax.train import seeds
from figs_jax.train.config import recipe_of

STATISTICS = {
  "variance_over_batches": "variance over batches",
  "snr": "signal-to-noise ratio",
}


class NoiseAndLoss(NamedTuple):
  """Final test loss against noise, over sparse runs of different recipes.

  Attributes:
    entries: Class of the entries, "kept" or "pruned".
    statistic: Statistic of the noise, a key of `STATISTICS`.
    noise: (mean, standard error) by run, over the seeds of means over layers
      and checkpoints.
    loss: (mean, standard error) by run, over seeds.
    sparse: Labels of the sparse runs, which alone are correlated.
    correlation: Spearman's rank correlation, its lower and its upper end; NaN
      for fewer than four runs.
    p: Two-sided p value, exact for up to eight runs; NaN like the correlation.
  """

  entries: str
  statistic: str
  noise: dict[str, tuple[float, float]]
  loss: dict[str, tuple[float, float]]
  sparse: tuple[str, ...]
  correlation: tuple[float, float, float]
  p: float

  @property
  def sentence(self) -> str:
    """What the correlation shows, and what it does not."""
    what = f"{STATISTICS[self.statistic]}, {self.entries} entries"
    if math.isnan(self.p):
      return f"{what}: {len(self.sparse)} sparse runs, at least 4 are needed"
    r, low, high = self.correlation
    ends = "" if low == high else f" [{low:+.2f}, {high:+.2f}]"
    if self.p < 0.05:
      verdict = f"more of it goes with {'more' if r > 0 else 'less'} loss"
    elif 2 / math.factorial(len(self.sparse)) > 0.05:
      verdict = "not resolved, nor can it be by so few recipes"
    else:
      verdict = "not resolved"
    return (
      f"{what}: rank correlation with test loss {r:+.2f}{ends}, p ="
      f" {self.p:.2g} over {len(self.sparse)} recipes: {verdict}"
    )


def noise_and_loss(
  runs: Sequence[History], rows: Sequence[GradientNoise]
) -> list[NoiseAndLoss]:
  """Relates noise in the decay phase to the final test loss, over recipes.

  The decay phase is here what all sparse runs have in common: the checkpoints
  after every dense phase and before any fine-tuning. A recipe counts once,
  however many seeds it has. Fisher's interval is rough for few recipes, and the
  p values are not corrected for the number of correlations. The variance scales
  with the gradient, which shrinks as the loss does, so that it may follow the
  loss rather than cause it; the signal-to-noise ratio has no scale.

  Args:
    runs: Finished runs from `histories`, the dense control among them or not.
    rows: Their noise, from `noise_rows`.

  Raises:
    ValueError: If a run is not finished, or the runs have no checkpoint of the
      decay phase in common.

  >>> from pathlib import Path
  >>> config = {"total_steps": 10, "recipe": {"name": "dense"}}
  >>> last = {"step": 10, "eval/accuracy": 0.5, "eval/loss": 0.4}
  >>> run = History(Path("a"), "a", config, [last])
  >>> rows = [
  ...   GradientNoise("a", 5, 0, "fc1", entries, 0.0, 1e-6, 0.5)
  ...   for entries in CLASSES
  ... ]
  >>> print(noise_and_loss([run], rows)[0].sentence)
  variance over batches, kept entries: 0 sparse runs, at least 4 are needed
  """
  loss = {run.label: seeds.mean_and_se(run.final_losses) for run in runs}
  steps = _decay_steps(runs, rows)
  sparse = tuple(run.label for run in runs if run.recipe != "dense")
  relations = []
  for statistic in STATISTICS:
    for entries in CLASSES:
      table = by_step(rows, entries, statistic)
      noise = {}
      for name in loss:
        means = np.mean([table[name][step] for step in steps], axis=0)
        noise[name] = seeds.mean_and_se(means.tolist())
      pairs = [(noise[name][0], loss[name][0]) for name in sparse]
      correlation, p = (math.nan,) * 3, math.nan
      if len(pairs) >= 4:
        x, y = np.transpose(pairs)
        correlation, p = rank_correlation(x, y), _permutation_p(x, y)
      relations.append(
        NoiseAndLoss(entries, statistic, noise, loss, sparse, correlation, p)
      )
  return relations


def _decay_steps(
  runs: Sequence[History], rows: Sequence[GradientNoise]
) -> list[int]:
  configs = [run.config for run in runs if run.recipe != "dense"]
  lines = [recipe_of(config_dict.ConfigDict(c)).timeline for c in configs]
  start = max((line.dense_end for line in lines), default=0)
  end = min((line.finetune_start for line in lines), default=math.inf)
  measured = {(row.run, row.entries, row.step) for row in rows}
  steps = [
    step
    for step in sorted({row.step for row in rows})
    if start <= step < end
    and {(run.label, name, step) for run in runs for name in CLASSES}
    <= measured
  ]
  if not steps:
    raise ValueError(
      f"Expected a checkpoint of every run from step {start} to {end}, the"
      " decay phase of all recipes; train with --config.keep=20 and a"
      " --config.checkpoint_every of a twentieth of the steps"
    )
  return steps


def _permutation_p(x: np.ndarray, y: np.ndarray) -> float:
  """Two-sided p value of a rank correlation, over all orders of x.

  More than eight pairs have too many: Student's t.
  """
  if len(x) > 8:
    return float(stats.spearmanr(x, y).pvalue)
  ranks = stats.rankdata(x) - (len(x) + 1) / 2
  products = np.array(list(itertools.permutations(ranks))) @ stats.rankdata(y)
  size = np.abs(products)
  return float(np.mean(size >= size[0] - 1e-9))  # the first order is that of x
