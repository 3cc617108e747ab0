"""Evaluation of a checkpoint: accuracy, exactness, sparsity, bytes, FLOPs.

`evaluate` returns numbers of a whole split, `examples` those of each example.

The model is finished first: at any step, pruned entries are exact zeros at the
target pattern.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from figs_jax import nn
from figs_jax.core.legal import DTYPES, Either, Legal, Word, suggestion
from figs_jax.core.masks import is_nm, non_zero
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.nn.int8_kernels import round_kernels_to_int8
from figs_jax.train import metrics, schema, seeds, tasks, watchdog
from figs_jax.train.distributed import global_batch, whole
from figs_jax.train.experiment import Experiment
from figs_jax.train.sharding import (
  batch_parts,
  batch_sharding,
  make_mesh,
  process_share,
  replicated,
)
from figs_jax.train.state import (
  TrainState,
  averaged_statistics,
  check_point,
  evaluation_model,
  finish,
  point_index,
)
from figs_jax.train.workdir import restore, saved_config

_INT8 = "int8"


class Evaluator:
  """Measures finished models over a whole split, with one compilation.

  Args:
    measure: Measure of the task, see `figs_jax.train.metrics`.
    batches: Batches of the split; with several processes, this one's share.
    has_seeds: Whether states have a seed axis; values then are lists.
    mesh: Mesh to split each batch over. Defaults to one device.
    int8: Whether kernels are rounded to int8, see `figs_jax.nn.int8_kernels`.

  Attributes:
    headline: Name of the value that stands for the others.
  """

  def __init__(
    self,
    measure: tasks.Measure,
    batches: Iterable[dict[str, Any]],
    has_seeds: bool,
    mesh: jax.sharding.Mesh | None = None,
    int8: bool = False,
  ):
    self._measure, self._batches = measure, batches
    self.headline = measure.headline
    self._has_seeds, self._int8 = has_seeds, int8
    self._mesh = mesh = mesh or make_mesh()
    self._place = functools.partial(global_batch, batch_sharding(mesh))
    self._finish = {
      ema: jax.jit(self._over_seeds(functools.partial(_finished, ema), None))
      for ema in (False, True)
    }
    count = self._over_seeds(self._count_of, 0, 0, None, None)
    self._count = jax.jit(count, out_shardings=replicated(mesh))

  def run(
    self, state: TrainState, *, ema: bool = False, point: NM | None = None
  ) -> Iterator[tuple[str, float | list[float]]]:
    """Yields (name, value); the value is a list if there are seeds."""
    yield from self.measured(state, ema=ema, point=point)[0].items()

  def measured(
    self, state: TrainState, *, ema: bool = False, point: NM | None = None
  ) -> tuple[dict[str, float | list[float]], list[dict[str, np.ndarray]]]:
    """The values of `run` by name, and `metrics.kept` of each batch.

    Args:
      state: State of the run.
      ema: Whether to take the averaged weights.
      point: Pattern to cut all masked kernels to, in place of the target.
    """
    n = None if point is None else jnp.int32(point.n)
    params, masks = self._finish[ema](state, n)
    index = jnp.int32(point_index(state, point))
    if ema:
      state = averaged_statistics(state)
    total: Any = None
    each = []
    for batch in self._batches:
      watchdog.alive()
      counts, kept = jax.device_get(
        self._count(state, params, masks, index, self._place(batch))
      )
      # In double precision: float32 cannot count beyond 2**24.
      counts = self._measure.tally(counts)
      counts = jax.tree.map(lambda x: np.asarray(x, np.float64), counts)
      if total is not None:
        counts = metrics.merged(self._measure, total, counts)
      total = counts
      each.append(kept)
    values = self._measure.values(total)
    return {name: value.tolist() for name, value in values}, each

  def _count_of(
    self, state: TrainState, params: Any, masks: Any, point: Any, batch: Any
  ):
    model = evaluation_model(state, params, masks, point)
    if self._int8:
      round_kernels_to_int8(model)
    each = self._measure.each(model, batch)
    return self._measure.count(each), metrics.kept(each)

  def _over_seeds(self, fn, *axes):
    """`fn(state, *rest)`, of every seed if there is a seed axis."""
    if not self._has_seeds:
      return fn
    return lambda state, *rest: seeds.over_seeds(
      fn, (seeds.axes(state), *axes), mesh=self._mesh
    )(state, *rest)


def _finished(ema: bool, state: TrainState, n: Any) -> tuple[Any, Any]:
  return finish(state, ema=ema, n=n)


def evaluator(
  experiment: Experiment,
  mesh: jax.sharding.Mesh | None = None,
  *,
  int8: bool = False,
) -> Evaluator:
  """The evaluator of an experiment's evaluation split.

  Over a mesh, the batch size is rounded up to a multiple of its parts.

  Args:
    experiment: Experiment that names the split.
    mesh, int8: Same as for `Evaluator`.
  """
  task, mesh = experiment.task, mesh or make_mesh()
  parts, share = batch_parts(mesh), process_share(mesh)
  each = -(-experiment.config.data.eval_batch_size // parts)
  batches = task.eval_batches(
    each * parts // share.count,
    shard_index=share.index,
    num_shards=share.count,
  )
  return Evaluator(
    task.measure, batches, bool(experiment.seeds), mesh, int8=int8
  )


def exact_nm(
  params: Any, leaves: Mapping[str, MaskedKernel]
) -> dict[str, bool]:
  """Whether each masked kernel has at most n non-zeros per group of m.

  >>> leaves = {"fc": MaskedKernel((4, 1), NM(1, 4))}
  >>> exact_nm({"fc": jnp.array([[0.0], [2.0], [0.0], [3.0]])}, leaves)
  {'fc': False}
  """
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
      kept = whole(jnp.sum(non_zero(leaf), axis=-1, dtype=jnp.int32))
      zeros += size - int(kept.sum(dtype=np.int64))
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
  dtype: str | None = None,
  engine_spec: str | None = None,
  batch: int | None = None,
  per_example: bool = False,
  points: str | None = None,
  data_dir: str | None = None,
  download: bool = False,
  data: Any = None,
  model: type | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
  """Evaluates a step of a run; nothing is written.

  Args:
    workdir: Directory of the run.
    step: Step to evaluate. Defaults to the newest good one.
    ema: Whether to evaluate the averaged weights.
    dtype: Dtype of the computation in place of the run's `model.dtype`, with
      the same parameters and masks; or "int8", which rounds the kernels of all
      dense layers to 8 bits as `figs_jax.nn.int8_kernels` says and computes in
      `model.dtype`. It changes accuracy and loss alone, not bytes or speed-up.
    engine_spec: Engine as for `figs_jax.engine.parse`; adds `engine`, and for a
      forward pass the `speedup` over the `baseline`, the fastest dense array of
      that size (`figs_jax.engine.dense_peers`), and the `ideal_speedup` of such
      an array that compresses N:M at no cost, or None.
    batch: Images or sequences of that forward pass. Defaults to the batch of
      the run.
    per_example: Whether to add the result of `examples` as `examples`, from the
      same pass over the split.
    points: Patterns to cut all masked kernels to by |w|, such as "1:8,2:8", and
      to evaluate. Defaults to the points of the recipe `nested`.
    data_dir: Directory of the data sets, in place of the configured one.
    download: Whether a missing data set may be downloaded, whatever was saved.
    data: Data of a program, if the run trained on them.
    model: Model class of one's own, if the run trained one; may be left out if
      `figs_jax.models.register` has it.
    mesh: Mesh to split state and batches over. With several processes, each
      one calls `figs_jax.train.distributed.initialize` and then this function
      with the same arguments, reads its share of the split, and gets the same
      result. Defaults to one device.

  Returns:
    A dict that JSON can hold, unless `per_example`: accuracy (mean over seeds),
    accuracy_se, accuracies, loss, other metrics of the task (such as
    bits_per_byte, bits_per_byte_se and bits_per_byte_seeds), step, dtype,
    recipe, pattern, exact_nm, layers (path -> exact), sparsity,
    sparsity_all_parameters, parameters, bytes_dense, bytes_packed, flops,
    flops_dense, and config (the run's fields by dotted name). With points also
    `points`, a dict by pattern, "1:8" for example, of accuracy, accuracy_se,
    accuracies, loss, other metrics of the task, exact_nm, sparsity,
    bytes_packed and flops.

  Raises:
    ValueError: If the engine or the dtype is unknown, or a point does not fit
      (see `figs_jax.train.state.check_point`), or if `per_example` is asked for
      with several processes.
    CheckpointError: If the checkpoint is missing, damaged or foreign.
  """
  from figs_jax import engine  # training does not need it

  if engine_spec is not None:
    engine.parse(engine_spec)
  check_dtype(dtype)  # before anything is read
  if per_example and jax.process_count() > 1:
    raise ValueError(
      "per_example: expected one process, which reads the examples in their"
      f" order, got {jax.process_count()}"
    )
  run = restore(
    workdir,
    step,
    data_dir=data_dir,
    download=download,
    data=data,
    model=model,
    mesh=mesh,
  )
  patterns = _points_of(run[1], points)
  measured = _measured(*run, ema, dtype, mesh=mesh)
  result = _report(measured, ema, dtype, engine_spec, batch)
  if patterns:
    result["points"] = _at_points(measured, ema, dtype, patterns, mesh)
  result["config"] = schema.flat(saved_config(workdir, measured.step))
  if per_example:
    result["examples"] = measured.examples()
  return result


def in_dtypes(
  workdir: str | Path, dtypes: Iterable[str], point: NM | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
  """A run, restored once and measured in its own and in other dtypes.

  Args:
    workdir: Directory of the run.
    dtypes: Other dtypes, as in `evaluate`.
    point: Pattern to cut all masked kernels to, in place of the target.

  Returns:
    The result of `evaluate` with `per_example`, but without `config`, and by
    dtype that of `examples`.

  Raises:
    ValueError: If a dtype is unknown.
    CheckpointError: If the checkpoint is missing, damaged or foreign.
  """
  dtypes = tuple(dtypes)
  for dtype in dtypes:
    check_dtype(dtype)
  run = restore(workdir)
  if point is not None:
    point = check_point(run[1], point)
  measured = _measured(*run, False, None, point)
  result = _report(measured, False, None, None, None)
  result["examples"] = measured.examples()
  others = {
    dtype: _measured(*run, False, dtype, point).examples() for dtype in dtypes
  }
  return result, others


def _report(
  measured: _Measured,
  ema: bool,
  dtype: str | None,
  engine_spec: str | None,
  batch: int | None,
) -> dict[str, Any]:
  """The result of `evaluate` without `config` and `examples`."""
  from figs_jax import engine
  from figs_jax.train.run_rows import layers_of

  experiment, state = measured.experiment, measured.state
  singles, point = list(seeds.singles(state)), measured.point
  net = singles[0].finished(ema=ema, point=point)
  leaves = nn.masked_leaves(net)
  n = point.n if point else None
  weights = [finish(single, ema=ema, n=n)[0] for single in singles]
  checks = [exact_nm(params, leaves) for params in weights]
  exact = {path: all(check[path] for check in checks) for path in leaves}
  layers = engine.Layers.of(layers_of(net, batch=1))
  result = {
    "step": measured.step,
    "dtype": dtype or experiment.dtype,
    **_summary(measured.values),
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
    result |= speedups(layers_of(net, size), engine_spec)
  return result


def _summary(by_name: Mapping[str, float | list[float]]) -> dict[str, Any]:
  """Means over seeds, standard errors and the values of each seed."""
  values = {
    name: np.atleast_1d(value).tolist() for name, value in by_name.items()
  }
  accuracies = values.pop("accuracy")
  mean, error = seeds.mean_and_se(accuracies)
  return {
    "accuracy": _finite(mean),
    "accuracy_se": _finite(error),
    "accuracies": [_finite(value) for value in accuracies],
    "loss": _finite(seeds.mean_and_se(values.pop("loss"))[0]),
    **_others(values),
  }


def _points_of(state: TrainState, text: str | None) -> list[NM]:
  """The patterns of a list, or those of the recipe, checked."""
  own = state.recipe.points
  if text is None:
    return list(own.patterns) if own else []
  return [check_point(state, part.strip()) for part in text.split(",")]


# What `evaluate` says of each point.
_OF_RUN = (
  "step", "dtype", "recipe", "pattern", "layers", "sparsity_all_parameters",
  "parameters", "bytes_dense", "flops_dense",
)  # fmt: skip


def _at_points(
  measured: _Measured,
  ema: bool,
  dtype: str | None,
  patterns: list[NM],
  mesh: jax.sharding.Mesh | None,
) -> dict[str, Any]:
  """`points` of `evaluate`."""
  result = {}
  for nm in patterns:
    at_point = _measured(*measured[:3], ema, dtype, nm, mesh)
    report = _report(at_point, ema, dtype, None, None)
    result[str(nm)] = {k: v for k, v in report.items() if k not in _OF_RUN}
  return result


def examples(
  workdir: str | Path,
  *,
  step: int | None = None,
  ema: bool = False,
  dtype: str | None = None,
  data_dir: str | None = None,
  download: bool = False,
  data: Any = None,
  model: type | None = None,
) -> dict[str, np.ndarray]:
  """What a step of a run gets right, example by example; nothing is written.

  The examples are those of the evaluation split in its order. Left out are
  padding and images whose label is to be ignored (-100). So two runs on one
  split can be compared in pairs.

  With these weights, the mean of `loss` is the loss of `evaluate`, and the mean
  of `accuracy` its accuracy. The exception is text from text (GLUE and
  translation), where the accuracy of a task is the plain mean.

  Args:
    workdir, step, ema, dtype, data_dir, download, data, model: Same as for
      `evaluate`.

  Returns:
    Arrays by name, of S seeds (1 for a run without a seed axis) and n examples:

    * `seed`: the seeds, int [S];
    * `correct`: whether the label, or the whole target text, is right, Boolean
      [S, n];
    * `accuracy`: share of right target tokens for span corruption, else
      `correct`, float32 [S, n]; NaN where the loss is not finite;
    * `loss`: mean loss of the target tokens, or the loss of the image, in nats,
      float32 [S, n];
    * `weight`: number of target tokens, or 1, float32 [n].

  Raises:
    ValueError: If the dtype is unknown.
    CheckpointError: If the checkpoint is missing, damaged or foreign.
  """
  check_dtype(dtype)
  run = restore(
    workdir, step, data_dir=data_dir, download=download, data=data, model=model
  )
  return _measured(*run, ema, dtype).examples()


class _Measured(NamedTuple):
  """A restored run with its measured values, see `Evaluator.measured`."""

  experiment: Experiment
  state: TrainState
  step: int
  values: dict[str, float | list[float]]
  batches: list[dict[str, np.ndarray]]
  point: NM | None = None

  def examples(self) -> dict[str, np.ndarray]:
    """The result of `figs_jax.train.examples`."""
    one = self.experiment.config.seed
    arrays = {
      name: np.concatenate(
        [np.atleast_2d(batch[name]) for batch in self.batches], axis=1
      )
      for name in self.batches[0]
    }
    numbers = np.asarray(self.experiment.seeds or [one])
    return {"seed": numbers, **metrics.per_example(arrays)}


def _measured(
  experiment: Experiment,
  state: TrainState,
  step: int,
  ema: bool,
  dtype: str | None,
  point: NM | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> _Measured:
  """Measures what `restore` returned; a dtype must have been checked."""
  if dtype is not None and dtype != _INT8:
    state = _computed_in(experiment, state, dtype)
  split = evaluator(experiment, mesh, int8=dtype == _INT8)
  result = split.measured(state, ema=ema, point=point)
  return _Measured(experiment, state, step, *result, point)


def _computed_in(
  experiment: Experiment, state: TrainState, dtype: str
) -> TrainState:
  """The state with a model that computes in this dtype."""
  config = experiment.config.copy_and_resolve_references()
  check_dtype_of(config, dtype)
  if dtype == config.model.dtype:
    return state
  config.model.dtype = dtype
  other = dataclasses.replace(experiment, config=config)
  return dataclasses.replace(state, graphdef=other.abstract_state.graphdef)


def check_dtype(dtype: str | None, legal: Legal = DTYPES) -> None:
  """Raises unless the dtype is None, int8 or one of a field's values."""
  if dtype is None or dtype == _INT8 or dtype in legal:
    return
  assert isinstance(legal, Word)
  meant = {word: to for word, to in legal.meant.items() if word != _INT8}
  choices = Word((*legal.choices, _INT8), meant)
  raise ValueError(
    f"dtype: expected {choices}, got {dtype!r}{suggestion(choices, dtype)}"
  )


def check_dtype_of(config: config_dict.ConfigDict, dtype: str) -> None:
  """Raises unless a run of this configuration can be measured in the dtype."""
  if dtype == _INT8:
    return
  legal = schema.legal_values(config.family, config.recipe.name)
  if "model.dtype" not in legal:
    raise ValueError(
      f"dtype: expected {_INT8!r} or none, since {config.family}.__init__ takes"
      f" no dtype, got {dtype!r}; give it an option dtype"
    )
  of_field = legal["model.dtype"]  # one's own class may leave it unset
  check_dtype(dtype, DTYPES if isinstance(of_field, Either) else of_field)


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
