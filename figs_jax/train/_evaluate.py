"""What a checkpoint is worth: accuracy, exactness, sparsity, bytes, FLOPs.

Everything here sees the finished model: pruned entries are exact zeros at the
target pattern, whatever step the checkpoint is of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from figs_jax import engine, nn
from figs_jax.core.masks import is_nm
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train import seeds as study
from figs_jax.train import tasks
from figs_jax.train.distributed import global_batch
from figs_jax.train.experiment import Experiment
from figs_jax.train.restore import restore
from figs_jax.train.run_rows import layers_of
from figs_jax.train.sharding import batch_sharding, replicated
from figs_jax.train.state import TrainState, finish, finished_model


class Evaluator:
  """A measure of the finished model over a whole split.

  One compilation serves a run; a state with a seed axis gives one value per
  seed.
  """

  def __init__(
    self,
    measure: tasks.Measure,
    batches: Iterable[dict[str, Any]],
    seeds: bool,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Of `batches`, each split over a mesh if there is one.

    With several processes, `batches` are this one's share of every batch.
    """
    self._measure, self._batches, self._seeds = measure, batches, seeds
    self._place: Callable[[Any], Any] = lambda batch: batch
    sums = None
    if mesh is not None:
      self._place = functools.partial(global_batch, batch_sharding(mesh))
      sums = replicated(mesh)
    self._finish = {
      ema: jax.jit(self._over_seeds(functools.partial(finish, ema=ema)))
      for ema in (False, True)
    }
    count = self._over_seeds(self._count_of, 0, 0, None)
    self._count = jax.jit(count, out_shardings=sums)

  def run(
    self, state: TrainState, *, ema: bool = False
  ) -> Iterator[tuple[str, float | list[float]]]:
    """Yields (name, value), a list of values if there are seeds."""
    params, masks = self._finish[ema](state)
    total: Any = None
    for batch in self._batches:
      counts = self._count(state, params, masks, self._place(batch))
      # In double precision: float32 cannot count beyond 2**24.
      counts = self._measure.tally(jax.device_get(counts))
      counts = jax.tree.map(lambda x: np.asarray(x, np.float64), counts)
      total = counts if total is None else jax.tree.map(np.add, total, counts)
    for name, value in self._measure.values(total):
      yield name, value.tolist()

  def _count_of(self, state: TrainState, params: Any, masks: Any, batch: Any):
    return self._measure.count(finished_model(state, params, masks), batch)

  def _over_seeds(self, fn, *axes):
    """`fn(state, *rest)`, vmapped over the seeds if there are several."""
    if not self._seeds:
      return fn
    return lambda state, *rest: jax.vmap(
      fn, in_axes=(study.axes(state), *axes)
    )(state, *rest)


def evaluator(
  experiment: Experiment, mesh: jax.sharding.Mesh | None = None
) -> Evaluator:
  """The evaluator of a configuration's test split, over a mesh if given.

  A batch is rounded up to a multiple of the mesh's devices.
  """
  task, seeds = experiment.task, bool(experiment.seeds)
  if mesh is None:
    return Evaluator(task.measure, task.eval_batches(), seeds)
  each = -(-experiment.config.data.eval_batch_size // mesh.size)
  batches = task.eval_batches(
    each * len(mesh.local_devices),
    shard_index=jax.process_index(),
    num_shards=jax.process_count(),
  )
  return Evaluator(task.measure, batches, seeds, mesh)


def exact_nm(
  params: Any, leaves: Mapping[str, MaskedKernel]
) -> dict[str, bool]:
  """Per masked kernel: at most n non-zeros in every group of m."""
  flat = flatten(params)
  return {
    path: bool(is_nm(flat[path], leaf.pattern, axis=leaf.axis))
    for path, leaf in leaves.items()
  }


def storage(params: Any, leaves: Mapping[str, MaskedKernel]) -> dict[str, Any]:
  """Sparsity (over masked kernels and over all) and bytes of a finished model.

  `bytes_packed` counts kept values plus ceil(log2 m) index bits each for
  masked kernels, and all other parameters whole.
  """
  dense = packed = total = zeros = masked = 0
  for path, leaf in flatten(params).items():
    size, itemsize = math.prod(leaf.shape), leaf.dtype.itemsize
    total += size
    dense += size * itemsize
    if path in leaves:
      masked += size
      zeros += int(np.sum(np.asarray(leaf) == 0))
      pattern = leaves[path].pattern
      packed += engine.packed_bytes(size, pattern, itemsize)
    else:
      packed += size * itemsize
  return {
    "sparsity": zeros / masked if masked else 0.0,
    "sparsity_all_parameters": zeros / total,
    "parameters": total,
    "bytes_dense": dense,
    "bytes_packed": packed,
  }


def evaluate(
  workdir: str | Path,
  *,
  step: int | None = None,
  ema: bool = False,
  engine_spec: str | None = None,
  data_dir: str | None = None,
) -> dict[str, Any]:
  """Restores a step of a run, finishes it, and measures it.

  Args:
    workdir: of the run; nothing in it is written.
    step: None takes the newest good one.
    ema: measures the averaged weights.
    engine_spec: an engine of `figs_jax.engine.parse`; adds `engine` and
      `speedup`, of one image's whole forward pass over the dense model.
    data_dir: where the data is now, if not where training found it.

  Returns:
    A JSON-able object: accuracy (mean over seeds), accuracy_se, accuracies,
    loss, what else the task measures (bits_per_byte, bits_per_byte_se,
    bits_per_byte_seeds; likewise glue_score and bleu), step, recipe, pattern,
    exact_nm, layers (path -> exact), sparsity, sparsity_all_parameters,
    parameters, bytes_dense, bytes_packed, flops, flops_dense.

  Raises:
    ValueError: no such engine.
    CheckpointError: no such checkpoint, or a damaged or foreign one.
  """
  if engine_spec is not None:
    engine.parse(engine_spec)
  experiment, state, step = restore(workdir, step, data_dir=data_dir)
  values = {
    name: np.atleast_1d(value).tolist()
    for name, value in evaluator(experiment).run(state, ema=ema)
  }
  accuracies = values.pop("accuracy")
  mean, error = study.mean_and_se(accuracies)
  singles = [state]
  if experiment.seeds:
    singles = [study.take(state, i) for i in range(len(experiment.seeds))]
  model = singles[0].finished(ema=ema)
  leaves = nn.masked_leaves(model)
  weights = [finish(single, ema=ema)[0] for single in singles]
  checks = [exact_nm(params, leaves) for params in weights]
  exact = {path: all(check[path] for check in checks) for path in leaves}
  rows = layers_of(model, batch=1)
  layers = engine.Layers.of(rows)
  result = {
    "step": step,
    "accuracy": _finite(mean),
    "accuracy_se": _finite(error),
    "accuracies": [_finite(value) for value in accuracies],
    "loss": _finite(study.mean_and_se(values.pop("loss"))[0]),
    **_others(values),
    "recipe": experiment.recipe.name,
    "pattern": experiment.config.pattern if leaves else "dense",
    "exact_nm": all(exact.values()),
    "layers": exact,
    **storage(weights[0], leaves),
    "flops": float(engine.flops(layers).sum()),
    "flops_dense": float(engine.flops(layers.dense()).sum()),
  }
  if engine_spec is not None:
    report = engine.report(rows, engines=[engine_spec])
    result |= {"engine": engine_spec, "speedup": report.totals[0].speedup}
  return result


def _others(values: Mapping[str, list[float]]) -> dict[str, Any]:
  """What a task measures beside accuracy and loss."""
  result: dict[str, Any] = {}
  for name, each in values.items():
    mean, error = study.mean_and_se(each)
    result[name] = _finite(mean)
    result[f"{name}_se"] = _finite(error)
    result[f"{name}_seeds"] = [_finite(value) for value in each]
  return result


def _finite(value: float) -> float | None:
  """JSON has no NaN: None says that there is no such number."""
  return value if math.isfinite(value) else None
