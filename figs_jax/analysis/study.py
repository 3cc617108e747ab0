"""Studies: a grid of recipes, patterns, settings and seeds, run and collected.

A study is a configuration, see `default_config`. Each cell of its grid is a run
directory like any other, with its seeds in one compiled program. The results of
a cell are stored beside its checkpoints and as rows of OUT/study.csv. A cell
with rows there is done, so that a study goes on where it was, in another clone
as well.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import config_dict

from figs_jax import nn
from figs_jax.analysis import _study_rows
from figs_jax.analysis._study_cells import (
  Cell,
  abstract,
  cells,
  default_config,
  digest_of,
  digits_of,
  fingerprint,
  of_cell,
  points_of,
  run_flops,
  setting_of,
  shard_of,
  training_shares,
)
from figs_jax.core.pattern import NM
from figs_jax.models.flops import train_flops
from figs_jax.train._evaluate import in_dtypes, speedups
from figs_jax.train.compilation import compiled_step
from figs_jax.train.config import ConfigError, recipe_of
from figs_jax.train.experiment import build
from figs_jax.train.loop import Diverged, train
from figs_jax.train.run_rows import layers_of
from figs_jax.train.seeds import mean_and_se
from figs_jax.train.sharding import make_mesh
from figs_jax.train.teacher import read, taught
from figs_jax.train.workdir import saved_config
from figs_jax.train.workdir_lock import LockedError

__all__ = [
  "Cell",
  "Outcome",
  "cells",
  "collect",
  "default_config",
  "digest_of",
  "fingerprint",
  "gather",
  "modelled",
  "plan",
  "report",
  "rows",
  "run",
  "shard_of",
]

_log = logging.getLogger("figs_jax")
_TIMED_STEPS = 5


def run(
  config: config_dict.ConfigDict,
  workdir: str | Path,
  out: str | Path,
  *,
  grids: Iterable[str] | None = None,
  shard: tuple[int, int] = (1, 1),
  columns: Mapping[str, Mapping[str, Any]] | None = None,
) -> Outcome:
  """Runs the cells of a study that have no rows yet.

  Args:
    config: Configuration of the study.
    workdir: Parent of the run directories.
    out: Directory of study.csv, made if it is missing.
    grids: Names of grids. Defaults to all.
    shard: (i, n): every n-th cell from the i-th on, for n machines. The rows
      are written to OUT/shards/i-of-n; `gather` merges them.
    columns: What `modelled` returns of some cells, by fingerprint, so that it
      is not called for them again.

  Returns:
    What was done. After SIGTERM, or if another process trains a cell,
    `finished` is False.

  Raises:
    ConfigError: If the study or the shard is invalid, before anything is
      trained.
  """
  own = shard_of(cells(config, grids), shard)
  outcome = Outcome()
  store = _study_rows.Store(out, config.name, shard)
  for number, cell in enumerate(own, 1):
    known = (columns or {}).get(cell.fingerprint)
    for seeds in _missing(cell, store.rows()):
      _log.info(
        "== %s, %s (%d of %d)", cell.name, _seeds(seeds), number, len(own)
      )
      try:
        finished = _run_cell(config, cell, seeds, Path(workdir), store, known)
      except LockedError as error:  # its own process adds the rows
        _log.warning("%s: %s", cell.name, error)
        outcome.finished = False
        continue
      except (Diverged, ValueError) as error:
        _log.error("%s failed: %s", cell.name, error)
        store.fail(cell.name, cell.grid, seeds, str(error))
        outcome.failed.append(cell.name)
        continue
      if not finished:
        outcome.finished = False
        return outcome
      outcome.done.append(cell.name)
      _log.info("%s", _accuracy(cell, store.rows()))
  return outcome


def _seeds(seeds: Sequence[int]) -> str:
  """
  >>> _seeds([3]), _seeds([0, 1, 2])
  ('seed 3', 'seeds 0 to 2')
  """
  if len(seeds) == 1:
    return f"seed {seeds[0]}"
  return f"seeds {seeds[0]} to {seeds[-1]}"


def _accuracy(cell: Cell, rows: Iterable[Mapping[str, str]]) -> str:
  """The accuracy of a cell's seeds so far, as a line."""
  values = [
    float(row["accuracy"])
    for row in rows
    if row["config"] == cell.fingerprint and row["accuracy"]
  ]
  mean, error = mean_and_se(values)
  spread = "" if math.isnan(error) else f" ± {error:.4f} (s.e.)"
  n = len(values)
  return f"{cell.name}: accuracy {mean:.4f}{spread}, {n} seed{'s' * (n > 1)}"


def rows(out: str | Path) -> list[dict[str, str]]:
  """The rows of OUT/study.csv and of its shards, as text.

  Args:
    out: Directory of the study.

  Returns:
    A dict by column for each seed of a cell; [] before the first run.

  Raises:
    ConfigError: If a file is not a study's.

  >>> rows("no study")
  []
  """
  return _study_rows.read(out)


def gather(
  config: config_dict.ConfigDict,
  out: str | Path,
  *,
  grids: Iterable[str] | None = None,
) -> dict[str, list[int]]:
  """Merges the shards of a study into OUT/study.csv.

  Args:
    config: Configuration of the study.
    out: Directory of the study.
    grids: Names of grids. Defaults to all.

  Returns:
    Name of each cell with seeds that have no rows -> these seeds.

  Raises:
    ConfigError: If the study is invalid, or a file is not a study's.
  """
  _study_rows.Store(out, config.name).gather()
  done = rows(out)
  missing = {
    cell.name: [seed for part in _missing(cell, done) for seed in part]
    for cell in cells(config, grids)
  }
  return {name: seeds for name, seeds in missing.items() if seeds}


def report(config: config_dict.ConfigDict, out: str | Path) -> str:
  """Writes OUT/results.md and its pictures from the rows that are there.

  Args:
    config: Configuration of the study.
    out: Directory of study.csv.

  Returns:
    What can and cannot be claimed, a line per test.

  Raises:
    ValueError: If a claim is invalid, or pandas or matplotlib is missing.
  """
  from figs_jax.analysis._study_page import write_results
  from figs_jax.analysis._study_pairs import study_frame

  return write_results(study_frame(rows(out)), config.to_dict(), out)


def plan(
  config: config_dict.ConfigDict,
  out: str | Path,
  *,
  grids: Iterable[str] | None = None,
) -> list[tuple[Cell, int, float]]:
  """What is left of a study, without training it.

  Args:
    config: Configuration of the study.
    out: Directory of study.csv.
    grids: Names of grids. Defaults to all.

  Returns:
    (cell, number of its seeds without rows, estimated seconds of processor
    time for them), for all cells. Times are those of the study's rows, or else
    of a few steps of the first cell, in proportion to training FLOPs.
  """
  done = rows(out)
  # What a run costs without masks: masks save no time where it is trained.
  costs = [
    (
      cell,
      train_flops(*abstract(cell.config), batch=cell.config.batch_size).dense,
    )
    for cell in cells(config, grids)
  ]
  rate = _seconds_per_flop(costs, done)
  result = []
  for cell, of_seed in costs:
    left = sum(len(seeds) for seeds in _missing(cell, done))
    result.append((cell, left, left * rate * of_seed))
  return result


def _seconds_per_flop(
  costs: Sequence[tuple[Cell, int]], rows: Iterable[Mapping[str, str]]
) -> float:
  """Processor time over FLOPs, by the rows or by steps of the first cell."""
  seconds = {r["config"]: float(r["seconds"]) for r in rows if r.get("seconds")}
  known = [
    seconds[cell.fingerprint] / of_seed
    for cell, of_seed in costs
    if cell.fingerprint in seconds
  ]
  if known:
    return float(np.median(known))
  first, of_first = costs[0]
  config = copy.deepcopy(first.config)
  config.seed, config.seeds = 0, 0
  experiment, mesh = taught(build(config), read(config)), make_mesh()
  shardings = experiment.shardings(mesh)
  step = compiled_step(experiment, shardings)
  state: Any = experiment.placed_state(shardings)
  batch = next(experiment.task.train_batches(config.batch_size))
  state, metrics = step(state, batch)
  start = time.process_time()
  for _ in range(_TIMED_STEPS):
    state, metrics = step(state, batch)
  jax.block_until_ready((state, metrics))
  seconds_per_step = (time.process_time() - start) / _TIMED_STEPS
  return seconds_per_step * config.total_steps / of_first


@dataclasses.dataclass
class Outcome:
  """What `run` did.

  Attributes:
    done: Names of the cells that were run.
    failed: Names of those that raised or diverged.
    finished: Whether all were tried.
  """

  done: list[str] = dataclasses.field(default_factory=list)
  failed: list[str] = dataclasses.field(default_factory=list)
  finished: bool = True


def _done(rows: Iterable[Mapping[str, str]], mark: str) -> set[int]:
  """Seeds of a fingerprint that have rows."""
  return {int(row["seed"]) for row in rows if row["config"] == mark}


def _missing(
  cell: Cell, rows: Iterable[Mapping[str, str]]
) -> Iterator[tuple[int, ...]]:
  """Runs of consecutive seeds of a cell that have no rows."""
  done = _done(rows, cell.fingerprint)
  part: list[int] = []
  for seed in cell.seeds:
    if seed in done:
      if part:
        yield tuple(part)
      part = []
    else:
      part.append(seed)
  if part:
    yield tuple(part)


def _run_cell(
  study: config_dict.ConfigDict,
  cell: Cell,
  seeds: Sequence[int],
  workdir: Path,
  store: _study_rows.Store,
  columns: Mapping[str, Any] | None,
) -> bool:
  """Trains and measures seeds of a cell; False after SIGTERM."""
  config = copy.deepcopy(cell.config)
  config.seed, config.seeds = seeds[0], len(seeds)
  if config.mesh.seed > 1:  # there may be fewer left than in the whole cell
    config.mesh.seed = math.gcd(config.mesh.seed, len(seeds))
  path = workdir / cell.directory(seeds)
  fresh = not path.exists()
  start = time.process_time()
  if not train(config, path)["finished"]:
    return False
  # A resumed run has spent time that is not known here.
  seconds = (time.process_time() - start) / len(seeds) if fresh else math.nan
  shared = {
    "grid": cell.grid,
    "cell": cell.name,
    "recipe": cell.recipe,
    "pattern": cell.pattern,
    "rules": config.pattern if cell.pattern else "",
    "setting": cell.setting,
    "config": cell.fingerprint,
    "seconds": round(seconds, 1),
    **(modelled(config, study.engines) if columns is None else columns),
  }
  for point in points_of(study, cell):
    own, fields = _at_point(study, cell, point)
    _add(store, path, shared | own, fields, study.dtypes, point)
  # Last, since a cell with these rows is done.
  _add(store, path, shared, of_cell(config), study.dtypes)
  return True


def _at_point(
  study: config_dict.ConfigDict, cell: Cell, point: NM
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Columns and fields of a run's rows at another pattern than its own."""
  model, _ = abstract(cell.config)
  rows = [
    row | {"pattern": row["pattern"] and point}
    for row in layers_of(model, cell.config.batch_size)
  ]
  fields = of_cell(cell.config) | {"point": str(point)}
  return {
    "cell": f"{cell.name} at {point}",
    "pattern": str(point),
    "rules": f"{point} of {cell.config.pattern}",
    "setting": setting_of(cell),
    "config": digits_of(fields),
    **{
      f"speedup:{engine}": speedups(rows, engine)["speedup"]
      for engine in study.engines
    },
  }, fields


def _add(
  store: _study_rows.Store,
  path: Path,
  shared: Mapping[str, Any],
  config: Mapping[str, Any],
  dtypes: Sequence[str] = (),
  point: NM | None = None,
) -> None:
  """Measures a finished run and adds its rows."""
  rows, examples = measured(path, dtypes, point)
  suffix = "" if point is None else f"-at-{point.n}-{point.m}"
  store.add(shared, config, rows, examples, path.name + suffix)


def measured(
  path: str | Path,
  dtypes: Sequence[str] = (),
  point: NM | None = None,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """Measured columns of a run, one row per seed, and per-example results.

  Args:
    path: Directory of the run.
    dtypes: Dtypes to measure accuracy and loss in as well, see
      `figs_jax.train.evaluate`.
    point: Pattern to cut all masked kernels to, in place of the target.
  """
  result, others = in_dtypes(path, dtypes, point)
  examples = result.pop("examples")
  shared = {
    "step": result["step"],
    "exact_nm": result["exact_nm"],
    "sparsity": result["sparsity"],
    "sparsity_all_parameters": result["sparsity_all_parameters"],
    "density": 1 - result["sparsity"],
    "parameters": result["parameters"],
    "bytes_dense": result["bytes_dense"],
    "bytes_packed": result["bytes_packed"],
    "flops": result["flops"],
    "flops_dense": result["flops_dense"],
  }
  rows = []
  for i, seed in enumerate(examples["seed"].tolist()):
    row = {
      "seed": seed,
      "accuracy": result["accuracies"][i],
      "loss": _mean(examples["loss"][i], examples["weight"]),
    }
    for name, values in result.items():
      if name.endswith("_seeds"):
        row[name.removesuffix("_seeds")] = values[i]
    rows.append(row | shared)
  for dtype, other in others.items():
    for i, row in enumerate(rows):
      row[f"loss_{dtype}"] = _mean(other["loss"][i], other["weight"])
      row[f"accuracy_{dtype}"] = _mean(other["accuracy"][i], other["weight"])
  return rows, examples


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
  """Mean of an example's values in double precision."""
  return float(np.average(values.astype(np.float64), weights=weights))


def modelled(
  config: config_dict.ConfigDict, engines: Sequence[str]
) -> dict[str, Any]:
  """Columns of a cell that follow from its configuration alone.

  Args:
    config: Configuration of a run, such as `Cell.config`.
    engines: Specs of engines: the first one models the training, each one the
      column `speedup:ENGINE`.

  Raises:
    ValueError: If the pattern does not fit the model, or an engine is unknown.
  """
  model, recipe = abstract(config)
  batch = config.batch_size
  rows = layers_of(model, batch)
  shares: dict[str, float] = {}
  if engines:
    shares = training_shares(model, recipe, batch, engines[0])
  return {
    **shares,
    "train_flops_total": run_flops(config, model, recipe),
    "stages": _stages(model, recipe),
    **{
      f"speedup:{engine}": speedups(rows, engine)["speedup"]
      for engine in engines
    },
  }


def _stages(model: nnx.Module, recipe: Any) -> str:
  """First pattern of each kernel's stages, with the number of kernels.

  A structure schedule leaves out the stages whose groups do not divide a
  kernel, so that kernels of one model may begin at different ones.
  """
  firsts: dict[str, int] = {}
  for kernel in recipe.bind(nn.masked_leaves(model)).kernels:
    first = str(kernel.stages[0]) if kernel.stages else "dense"
    firsts[first] = firsts.get(first, 0) + 1
  return ", ".join(f"{first} × {count}" for first, count in firsts.items())


def collect(
  paths: Iterable[str | Path], out: str | Path, *, engines: Sequence[str] = ()
) -> None:
  """Adds runs, or the rows of other studies, to OUT/study.csv.

  A run of `launch/train.py` gets the name of its recipe and its rules as labels
  and is evaluated; runs with the same labels differ in the columns of fields.

  Args:
    paths: Directories of runs, or directories that hold a study.csv.
    out: Directory of study.csv, made if it is missing.
    engines: Specs of engines for modelled speed-ups of runs.

  Raises:
    ConfigError: If a directory is neither.
    CheckpointError: If a run has no good checkpoint.
  """
  directories = [Path(path) for path in paths]
  for path in directories:
    if not ((path / "checkpoints").is_dir() or _study_rows.has_rows(path)):
      raise ConfigError(
        f"--collect {path}: expected a run, or a directory with study.csv, got"
        " neither"
      )
  store = _study_rows.Store(out, "collected")
  for path in directories:
    if _study_rows.has_rows(path):
      store.merge(path)
      continue
    config = config_dict.ConfigDict(saved_config(path))
    name = config.recipe.name
    sparse = recipe_of(config).sparse
    mark = fingerprint(config)
    first, count = config.seed, max(config.seeds, 1)
    if _done(store.rows(), mark) >= set(range(first, first + count)):
      continue
    shared = {
      "cell": f"{name} {config.pattern} {mark}" if sparse else f"{name} {mark}",
      "recipe": name,
      "pattern": config.pattern if sparse else "",
      "rules": config.pattern if sparse else "",
      "config": mark,
      **modelled(config, engines),
    }
    _add(store, path, shared, of_cell(config))
