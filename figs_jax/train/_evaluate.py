"""Evaluation of a checkpoint: accuracy, exactness, sparsity, bytes, FLOPs.

The model is finished first: at any step, pruned entries are exact zeros at the
target pattern.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from figs_jax import nn
from figs_jax.core.masks import is_nm
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train import seeds, tasks
from figs_jax.train.distributed import global_batch
from figs_jax.train.experiment import Experiment
from figs_jax.train.sharding import batch_sharding, make_mesh, replicated
from figs_jax.train.state import TrainState, evaluation_model, finish
from figs_jax.train.workdir import restore


class Evaluator:
  """Measures finished models over a whole split, with one compilation.

  Args:
    measure: Measure of the task, see `figs_jax.train.metrics`.
    batches: Batches of the split; with several processes, this one's share.
    has_seeds: Whether states have a seed axis; values then are lists.
    mesh: Mesh to split each batch over. Defaults to one device.
  """

  def __init__(
    self,
    measure: tasks.Measure,
    batches: Iterable[dict[str, Any]],
    has_seeds: bool,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self._measure, self._batches = measure, batches
    self._has_seeds = has_seeds
    mesh = mesh or make_mesh()
    self._place = functools.partial(global_batch, batch_sharding(mesh))
    self._finish = {
      ema: jax.jit(self._over_seeds(functools.partial(finish, ema=ema)))
      for ema in (False, True)
    }
    count = self._over_seeds(self._count_of, 0, 0, None)
    self._count = jax.jit(count, out_shardings=replicated(mesh))

  def run(
    self, state: TrainState, *, ema: bool = False
  ) -> Iterator[tuple[str, float | list[float]]]:
    """Yields (name, value); the value is a list if there are seeds."""
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
    return self._measure.count(evaluation_model(state, params, masks), batch)

  def _over_seeds(self, fn, *axes):
    """`fn(state, *rest)`, vmapped over the seed axis if there is one."""
    if not self._has_seeds:
      return fn
    return lambda state, *rest: jax.vmap(
      fn, in_axes=(seeds.axes(state), *axes)
    )(state, *rest)


def evaluator(
  experiment: Experiment, mesh: jax.sharding.Mesh | None = None
) -> Evaluator:
  """The evaluator of an experiment's evaluation split.

  Over a mesh, the batch size is rounded up to a multiple of its devices.
  """
  task, mesh = experiment.task, mesh or make_mesh()
  each = -(-experiment.config.data.eval_batch_size // mesh.size)
  batches = task.eval_batches(
    each * len(mesh.local_devices),
    shard_index=jax.process_index(),
    num_shards=jax.process_count(),
  )
  return Evaluator(task.measure, batches, bool(experiment.seeds), mesh)


def exact_nm(
  params: Any, leaves: Mapping[str, MaskedKernel]
) -> dict[str, bool]:
  """Whether each masked kernel has at most n non-zeros per group of m."""
  flat = flatten(params)
  return {
    path: bool(is_nm(flat[path], leaf.pattern, axis=leaf.axis))
    for path, leaf in leaves.items()
  }


def storage(params: Any, leaves: Mapping[str, MaskedKernel]) -> dict[str, Any]:
  """Sparsity of the masked kernels and of all parameters, and bytes.

  `bytes_packed` counts the kept values of masked kernels with ceil(log2 m)
  index bits each, and all other parameters in full.

  Args:
    params: Parameters of a finished model.
    leaves: Masked leaves by path.
  """
  from figs_jax import engine

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
  batch: int | None = None,
  data_dir: str | None = None,
  download: bool = False,
) -> dict[str, Any]:
  """Evaluates a step of a run; nothing is written.

  Args:
    workdir: Directory of the run.
    step: Step to evaluate. Defaults to the newest good one.
    ema: Whether to evaluate the averaged weights.
    engine_spec: Engine as for `figs_jax.engine.parse`; adds `engine`, and for a
      forward pass the `speedup` over the `baseline`, the fastest dense array of
      that size (`figs_jax.engine.dense_peers`), and the `ideal_speedup` of such
      an array that compresses N:M at no cost, or None.
    batch: Images or sequences of that forward pass. Defaults to the batch of
      the run.
    data_dir: Directory of the data sets, in place of the configured one.
    download: Whether a missing data set may be downloaded, whatever was saved.

  Returns:
    A JSON-serializable dict: accuracy (mean over seeds), accuracy_se,
    accuracies, loss, other metrics of the task (such as bits_per_byte,
    bits_per_byte_se and bits_per_byte_seeds), step, recipe, pattern, exact_nm,
    layers (path -> exact), sparsity, sparsity_all_parameters, parameters,
    bytes_dense, bytes_packed, flops, flops_dense.

  Raises:
    ValueError: If the engine is unknown.
    CheckpointError: If the checkpoint is missing, damaged or foreign.
  """
  # Training needs neither.
  from figs_jax import engine
  from figs_jax.train.run_rows import layers_of

  if engine_spec is not None:
    engine.parse(engine_spec)
  experiment, state, step = restore(
    workdir, step, data_dir=data_dir, download=download
  )
  values = {
    name: np.atleast_1d(value).tolist()
    for name, value in evaluator(experiment).run(state, ema=ema)
  }
  accuracies = values.pop("accuracy")
  mean, error = seeds.mean_and_se(accuracies)
  singles = list(seeds.singles(state))
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
    "loss": _finite(seeds.mean_and_se(values.pop("loss"))[0]),
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
    size = experiment.config.batch_size if batch is None else batch
    result |= speedups(layers_of(model, size), engine_spec)
  return result


def speedups(rows: Any, engine_spec: str) -> dict[str, Any]:
  """`engine`, `speedup`, `baseline` and `ideal_speedup`, as in `evaluate`.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:4"}
  >>> gain = speedups([row], "figs:16x16:overlap=full")
  >>> gain["baseline"]
  'ws:8x32:overlap=full:sparse=false:bw_in=16'
  >>> round(gain["speedup"], 2), round(gain["ideal_speedup"], 2)
  (3.68, 3.54)
  """
  from figs_jax import engine

  report = engine.report(rows, [engine_spec], baseline="dense")
  (total,), (peer,) = report.totals, report.peers
  ideal = None
  if arrays := engine.dense_peers(engine_spec, ideal=True):
    cycles = min(each.cycles for each in engine.report(rows, arrays).totals)
    ideal = total.baseline_cycles / cycles
  return {
    "engine": engine_spec,
    "speedup": total.speedup,
    "baseline": str(peer),
    "ideal_speedup": ideal,
  }


def _others(values: Mapping[str, list[float]]) -> dict[str, Any]:
  """Metrics of the task other than accuracy and loss."""
  result: dict[str, Any] = {}
  for name, each in values.items():
    mean, error = seeds.mean_and_se(each)
    result[name] = _finite(mean)
    result[f"{name}_se"] = _finite(error)
    result[f"{name}_seeds"] = [_finite(value) for value in each]
  return result


def _finite(value: float) -> float | None:
  """The value, or None in place of NaN and infinity, which JSON lacks."""
  return value if math.isfinite(value) else None
