"""Noise of gradients at kept and at pruned entries, over the checkpoints.

arXiv 2402.04744 holds noise in the gradients responsible for what high N:M
sparsity costs. Here that noise is measured: at the weights of every checkpoint,
gradients of the next training batches are taken under the recipe's own masks,
leak and gradient mode, before the optimizer sees them. Nothing is written to
the workdir, but the training data are read.

While a recipe keeps every entry, and in a dense run throughout (the control),
kept and pruned are what the largest |w| at the target pattern would be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.analysis.history import Band, History
from figs_jax.core.diagnostics import gradient_variance, sampled_snr
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.masks import nm_mask
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.core.types import Array, Bool, Float
from figs_jax.train import seeds
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.experiment import Experiment
from figs_jax.train.state import TrainState, gradients

CLASSES = ("kept", "pruned")
_FEWEST = 4  # batches; the mean ratio of fewer samples is infinite


class GradientNoise(NamedTuple):
  """Noise at the entries of one class in one layer, at one checkpoint.

  Attributes:
    run: Label of the run.
    step: Step of the checkpoint.
    seed: Index of the seed.
    layer: Path of the kernel.
    entries: Class of the entries, "kept" or "pruned".
    variance_over_entries: Variance of the entries of one gradient, averaged
      over batches; `diagnose_every` records that of a single batch.
    variance_over_batches: Variance of an entry over batches, averaged over
      entries.
    snr: Mean² / variance of an entry over batches, averaged over entries.
  """

  run: str
  step: int
  seed: int
  layer: str
  entries: str
  variance_over_entries: float
  variance_over_batches: float
  snr: float


def noise_statistics(
  grads: Float[Array, "batches ..."], mask: Bool[Array, "*shape"]
) -> dict[str, tuple[Array, Array, Array]]:
  """Statistics of gradients at the same weights, by class of entries.

  The variance over batches is unbiased. The ratio r of `sampled_snr` is not:
  for B Gaussian samples E[r] = (1 + B snr) / (B - 3), the mean of a squared
  noncentral t variable, so that snr = ((B - 3) r - 1) / B. It is exact for
  Gaussian noise only, and may be negative. An entry whose gradient is always 0
  counts as 0.

  Args:
    grads: Gradients, one per batch.
    mask: True at kept entries.

  Returns:
    `variance_over_entries`, `variance_over_batches` and `snr`, as in
    `GradientNoise`, of "kept" and of "pruned"; NaN for an empty class.

  Raises:
    ValueError: If there are fewer than four batches.

  >>> rng = np.random.default_rng(0)
  >>> grads = jnp.asarray(rng.normal(2.0, 2.0, (16, 9000)), jnp.float32)
  >>> table = noise_statistics(grads, jnp.ones(9000, bool))
  >>> [round(float(value), 1) for value in table["kept"]]  # 2², 2², 2² / 2²
  [4.0, 4.0, 1.0]
  """
  _check_batches(count := grads.shape[0])
  grads = grads.astype(jnp.float32)
  over_entries = jax.vmap(gradient_variance, in_axes=(0, None))(grads, mask)
  over_batches = grads.var(axis=0, ddof=1)
  moving = jnp.any(grads != 0, axis=0).astype(jnp.float32)
  table = {}
  for name, where, variances, ratio in zip(
    CLASSES, (mask, ~mask), over_entries, sampled_snr(grads, mask)
  ):
    snr = ((count - 3) * ratio - jnp.mean(moving, where=where)) / count
    variance = jnp.mean(over_batches, where=where)
    table[name] = variances.mean(), variance, snr
  return table


def _check_batches(count: int) -> None:
  if count < _FEWEST:
    raise ValueError(f"Expected at least {_FEWEST} batches, got {count}")


def noise_rows(
  runs: Sequence[History], batches: int = 16
) -> list[GradientNoise]:
  """Measures the noise at every checkpoint of some runs.

  The batches of a checkpoint are those that training would take next, with the
  augmentation and dropout of those steps, so that runs of one seed are compared
  on the same examples. A class without entries has no row.

  Args:
    runs: Runs from `histories`. Sparse ones must have the same pattern; dense
      ones take it from them, or from their own configuration.
    batches: Number of batches per checkpoint, at least 4.

  Raises:
    ValueError: If patterns differ, there are too few batches, a run has a
      teacher, or a checkpoint or the data cannot be read.
  """
  rules = dict.fromkeys(
    r.config["pattern"] for r in runs if r.recipe != "dense"
  )
  if len(rules) > 1:
    raise ValueError(
      "Expected sparse runs of one pattern, got"
      f" {', '.join(map(repr, rules))}; compare the recipes of one pattern"
    )
  _check_batches(batches)
  if taught := [run.label for run in runs if run.config.get("teacher_sha256")]:
    raise ValueError(
      f"{taught[0]}: expected a run without a teacher, whose loss is not saved"
      " with the run, got a distilled one; leave it out"
    )
  pattern = next(iter(rules), None)
  return [row for run in runs for row in _of_run(run, pattern, batches)]


def _of_run(
  run: History, pattern: str | None, batches: int
) -> Iterator[GradientNoise]:
  experiment, _, _ = run.restored
  leaves = _leaves(experiment, pattern or run.config["pattern"])
  size = experiment.config.batch_size
  gradient, measure = jax.jit(partial(gradients)), jax.jit(noise_statistics)
  stream = experiment.task.train_batches(size)
  with Checkpointer(run.path) as checkpoints, contextlib.closing(stream):
    for step in checkpoints.steps():
      states, _, _ = checkpoints.restore(experiment.abstract_state, step)
      stream.set_state({"next_example": step * size})
      drawn = [next(stream) for _ in range(batches)]
      for seed, state in enumerate(seeds.singles(states)):
        samples: dict[str, list[Array]] = {path: [] for path in leaves}
        for ahead, batch in enumerate(drawn):
          own = batch
          if experiment.batch_axis == 0:
            own = {name: field[seed] for name, field in batch.items()}
          key = jax.random.fold_in(jax.random.key(state.seed), step + ahead)
          grads = flatten(gradient(state, own, key))
          for path, taken in samples.items():
            taken.append(grads[path])
        for path, mask in _classes(state, leaves).items():
          table = measure(jnp.stack(samples.pop(path)), mask)
          for name, where in zip(CLASSES, (mask, ~mask)):
            if where.any():
              values = map(float, table[name])
              yield GradientNoise(run.label, step, seed, path, name, *values)


def _leaves(experiment: Experiment, rules: str) -> dict[str, MaskedKernel]:
  """The masked kernels; of a dense run those that the rules would mask."""
  if experiment.recipe.sparse:
    return experiment.abstract_state.bound.leaves
  model = nnx.eval_shape(partial(experiment.model, experiment.config.seed))
  return nn.masked_leaves(nn.sparsify(model, rules))


def _classes(
  state: TrainState, leaves: dict[str, MaskedKernel]
) -> dict[str, Array]:
  """True at kept entries, by path."""
  params = flatten(state.params)
  masks = flatten(unpack_masks(state.masks, state.params))
  kept = {}
  for path, leaf in leaves.items():
    mask = masks.get(path)
    if mask is None or bool(mask.all()):
      mask = nm_mask(jnp.abs(params[path]), leaf.pattern, leaf.axis)
    kept[path] = mask
  return kept


def noise_bands(
  rows: Sequence[GradientNoise], entries: str, statistic: str
) -> dict[str, Band]:
  """Mean ± standard error over seeds of means over layers, by run.

  Args:
    rows: Rows from `noise_rows`.
    entries: Class of the entries, "kept" or "pruned".
    statistic: Name of a field of the rows, such as "snr".

  Returns:
    Bands over the steps of the checkpoints. That of one seed has no width.

  >>> rows = [
  ...   GradientNoise("a", 10, seed, "fc1", "kept", 0.0, 0.0, snr)
  ...   for seed, snr in enumerate((1.0, 2.0, 3.0))
  ... ]
  >>> band = noise_bands(rows, "kept", "snr")["a"]
  >>> band.steps.tolist(), band.mean.tolist(), band.high.round(2).tolist()
  ([10], [2.0], [2.58])
  """
  bands = {}
  for run, steps in by_step(rows, entries, statistic).items():
    pairs = [seeds.mean_and_se(steps[step]) for step in sorted(steps)]
    mean, error = np.transpose(pairs)
    error = np.where(np.isnan(error), 0, error)
    bands[run] = Band(np.array(sorted(steps)), mean, mean - error, mean + error)
  return bands


def by_step(
  rows: Sequence[GradientNoise], entries: str, statistic: str
) -> dict[str, dict[int, list[float]]]:
  """Means over the layers by run and step, one per seed."""
  layers: dict[tuple[str, int, int], list[float]] = {}
  for row in rows:
    if row.entries == entries:
      place = row.run, row.step, row.seed
      layers.setdefault(place, []).append(getattr(row, statistic))
  table: dict[str, dict[int, list[float]]] = {}
  for (run, step, _), values in layers.items():
    mean = sum(values) / len(values)
    table.setdefault(run, {}).setdefault(step, []).append(mean)
  return table
