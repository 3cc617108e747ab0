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
import functools
import hashlib
import json
import logging
import math
import re
import runpy
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
from figs_jax.analysis._compare import training_shares
from figs_jax.core.legal import Word, suggestion
from figs_jax.engine import Layers, flops
from figs_jax.train import schema
from figs_jax.train._evaluate import evaluate, speedups
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import (
  FREE,
  ConfigError,
  completed,
  plain,
  recipe_of,
)
from figs_jax.train.experiment import build
from figs_jax.train.loop import Diverged, compiled_step, train
from figs_jax.train.run_rows import layers_of, train_cost
from figs_jax.train.sharding import make_mesh, state_shardings

_log = logging.getLogger("figs_jax")
_ROOT = Path(__file__).parents[2]
# Fields that say which seeds a run holds, or that affect none of its numbers.
_NOT_OF_CELL = (*FREE, "seed", "seeds", "seeds_mode", "checkpoint_every")
_TIMED_STEPS = 5
_BUDGETS = ("steps", "train_flops")


def default_config() -> config_dict.ConfigDict:
  """The configuration of a study without any cell.

  Its fields:

  * `name`: Name of the study, the first column of its rows.
  * `base`: File of a training configuration, with `get_config(recipe)`.
  * `common`: Fields of training that all cells set, as nested dicts.
  * `recipes`: {label: {"name": recipe, option: value}}.
  * `patterns`: {label: rules}. Dense recipes have none.
  * `settings`: {label: fields of training}.
  * `grids`: {name: {"recipes": labels, "patterns": labels, "settings": labels,
    "seeds": number}}; `settings` and `patterns` may be left out.
  * `first_seed`: First seed of every cell.
  * `dense_warmup`: Share of steps in which every recipe trains dense, but those
    that set `dense` themselves; None leaves the recipes' own.
  * `budget`: "steps", or "train_flops": each cell then trains for as many steps
    as the training FLOPs of the baseline allow.
  * `baseline`: Label of the recipe to compare with.
  * `engines`: Specs of engines for modelled speed-ups.
  * `claims`: Claims to judge, see `figs_jax.analysis.judge`.

  >>> default_config().budget
  'steps'
  """
  config = config_dict.ConfigDict(
    {
      "name": "study",
      "base": "configs/digits_vit.py",
      "common": {},
      "recipes": {},
      "patterns": {},
      "settings": {"": {}},
      "grids": {},
      "first_seed": 0,
      "budget": "steps",
      "baseline": "dense",
      "engines": ("figs:16x16:alpha=15",),
      "claims": {},
    }
  )
  config.dense_warmup = config_dict.placeholder(float)
  return config


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of the grid: runs that differ in nothing but the seed.

  Attributes:
    grid: First grid that names the cell.
    recipe: Label of the recipe.
    pattern: Label of the pattern; "" for a dense recipe.
    setting: Label of the setting.
    config: Configuration of its runs, without seeds.
    seeds: Its seeds.
  """

  grid: str
  recipe: str
  pattern: str
  setting: str
  config: config_dict.ConfigDict
  seeds: tuple[int, ...]

  @property
  def name(self) -> str:
    """Label of the cell, unique in its study."""
    setting = f"[{self.setting}]" if self.setting else ""
    return " ".join(filter(None, (self.recipe, self.pattern, setting)))

  @functools.cached_property
  def fingerprint(self) -> str:
    """12 hexadecimal digits that stand for the configuration."""
    return fingerprint(self.config)

  def directory(self, seeds: Sequence[int]) -> str:
    """Name of the directory of a run with these seeds."""
    words = "-".join(re.findall(r"\w+", self.name))
    return f"{words}-{self.fingerprint[:6]}-seeds-{seeds[0]}-{seeds[-1]}"


def fingerprint(config: Mapping[str, Any] | config_dict.ConfigDict) -> str:
  """12 hexadecimal digits of the SHA-256 of a run's configuration.

  Seeds and the fields that affect no number are left out.

  >>> from figs_jax.train import default_config
  >>> config = default_config("figs")
  >>> before = fingerprint(config)
  >>> config.seeds, config.log_every = 8, 10
  >>> fingerprint(config) == before
  True
  >>> config.total_steps = 7
  >>> fingerprint(config) == before
  False
  """
  values = of_cell(config)
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def of_cell(
  config: Mapping[str, Any] | config_dict.ConfigDict,
) -> dict[str, Any]:
  """The fields of a run that its numbers depend on, but for its seeds."""
  if isinstance(config, config_dict.ConfigDict):
    config = plain(config)
  return {
    name: value
    for name, value in schema.flat(config).items()
    if name not in _NOT_OF_CELL and name.split(".")[0] not in _NOT_OF_CELL
  }


def cells(
  config: config_dict.ConfigDict, grids: Iterable[str] | None = None
) -> list[Cell]:
  """The cells of a study, in the order of its grids, each one once.

  A cell that several grids name belongs to the first and has the most seeds
  that any of them asks for.

  Args:
    config: Configuration of the study.
    grids: Names of grids. Defaults to all.

  Raises:
    ConfigError: If a label, field, option or recipe is unknown, a value is
      illegal, or two cells are the same run. The message is one line.

  >>> study = default_config()
  >>> study.recipes = {"dense": {"name": "dense"}, "figs k=4": {
  ...   "name": "figs", "k": 4}}
  >>> study.patterns = {"1:8": "ff: 1:8"}
  >>> study.grids = {"a": {"recipes": ("dense", "figs k=4"),
  ...   "patterns": ("1:8",), "seeds": 2}}
  >>> [(cell.name, cell.seeds) for cell in cells(study)]
  [('dense', (0, 1)), ('figs k=4 1:8', (0, 1))]
  """
  if config.budget not in _BUDGETS:
    raise ConfigError(
      f"budget: expected one of {', '.join(_BUDGETS)}, got {config.budget!r}"
    )
  if not config.grids:
    raise ConfigError("grids: expected at least one, such as {'a': {...}}")
  all_cells: dict[tuple[str, str, str], Cell] = {}
  for name in _names(config.grids if grids is None else grids, config, "grids"):
    for key in _keys(config, name):
      seeds = config.grids[name].get("seeds", 0)
      if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(
          f"grids.{name}.seeds: expected a number of at least 1, got {seeds!r}"
        )
      cell = all_cells.get(key) or Cell(
        name, *key, config=_training_config(config, *key), seeds=()
      )
      count = max(seeds, len(cell.seeds))
      wanted = range(config.first_seed, config.first_seed + count)
      all_cells[key] = dataclasses.replace(cell, seeds=tuple(wanted))
  if config.budget == "train_flops":
    all_cells = _with_equal_flops(config, all_cells)
  seen: dict[str, str] = {}
  for cell in all_cells.values():
    if other := seen.get(cell.fingerprint):
      raise ConfigError(
        f"cells {other!r} and {cell.name!r} are the same run; remove one"
      )
    seen[cell.fingerprint] = cell.name
  return list(all_cells.values())


def _names(
  names: Iterable[str], config: config_dict.ConfigDict, field: str
) -> Iterator[str]:
  """Names of a field's labels, each checked."""
  for name in names:
    if name not in config[field]:
      raise ConfigError(
        f"{field}: expected one of {', '.join(map(repr, config[field]))}, got"
        f" {name!r}{_near(name, config[field])}"
      )
    yield name


def _near(name: str, known: Iterable[str]) -> str:
  return suggestion(Word(tuple(known)), name)


def _keys(
  config: config_dict.ConfigDict, grid: str
) -> Iterator[tuple[str, str, str]]:
  """(recipe, pattern, setting) of each cell of a grid."""
  options = config.grids[grid]
  for unknown in set(options) - {"recipes", "patterns", "settings", "seeds"}:
    raise ConfigError(
      f"grids.{grid}: expected recipes, patterns, settings and seeds, got"
      f" {unknown!r}"
    )
  settings = options.get("settings", ("",))
  for setting in _names(settings, config, "settings"):
    for recipe in _names(options.get("recipes", ()), config, "recipes"):
      if not _is_sparse(config, recipe):
        yield recipe, "", setting
        continue
      patterns = options.get("patterns", ())
      for pattern in _names(patterns, config, "patterns"):
        yield recipe, pattern, setting


def _is_sparse(config: config_dict.ConfigDict, label: str) -> bool:
  name = config.recipes[label].get("name", label)
  return name != "dense"


def _training_config(
  study: config_dict.ConfigDict, recipe: str, pattern: str, setting: str
) -> config_dict.ConfigDict:
  """The configuration of a cell's runs."""
  options = study.recipes[recipe].to_dict()
  name = options.pop("name", recipe)
  config = _base(study.base)(name)
  _set(config, study.common, "common")
  _set(config, study.settings[setting], f"settings.{setting}")
  _set(config.recipe, options, f"recipes.{recipe}")
  is_free = "dense" in config.recipe and "dense" not in options
  if study.dense_warmup is not None and is_free and _is_sparse(study, recipe):
    config.recipe.dense = study.dense_warmup
  if pattern:
    config.pattern = study.patterns[pattern]
  schema.check(config)
  recipe_of(config)
  return config


@functools.cache
def _base(path: str) -> Any:
  """`get_config` of a file, relative to this directory or the repository."""
  for file in (Path(path), _ROOT / path):
    if file.is_file():
      return runpy.run_path(str(file))["get_config"]
  raise ConfigError(f"base: no such file {path!r}")


def _set(config: Any, fields: Mapping[str, Any], where: str) -> None:
  for name, value in fields.items():
    if name not in config:
      raise ConfigError(
        f"{where}: unknown field {name!r}{_near(name, config)}"
      )
    if isinstance(value, Mapping | config_dict.ConfigDict):
      _set(config[name], value, f"{where}.{name}")
      continue
    try:
      config[name] = value
    except TypeError as error:
      raise ConfigError(f"{where}.{name}: {error}") from error


def _with_equal_flops(
  config: config_dict.ConfigDict, all_cells: dict[Any, Cell]
) -> dict[Any, Cell]:
  """Cells whose steps cost as many training FLOPs as the baseline's."""
  (label,) = _names([config.baseline], config, "recipes")
  pattern = next(iter(config.patterns)) if _is_sparse(config, label) else ""
  budgets: dict[str, float] = {}
  result = {}
  for key, cell in all_cells.items():
    if cell.setting not in budgets:
      base = _training_config(config, label, pattern, cell.setting)
      budgets[cell.setting] = _train_flops(base)
    new = copy.deepcopy(cell.config)
    for _ in range(8):  # the phases move with the steps
      steps = new.total_steps
      flops = _train_flops(new)
      new.total_steps = int(steps * budgets[cell.setting] / flops)
      if new.total_steps == steps:
        break
    result[key] = dataclasses.replace(cell, config=new)
  return result


def _train_flops(config: config_dict.ConfigDict) -> float:
  model, recipe = _abstract(config)
  run = train_cost(model, recipe, "ws", config.batch_size)
  return float(run.total("flops"))


def _abstract(config: config_dict.ConfigDict) -> tuple[nnx.Module, Any]:
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(config.seed))
  return model, experiment.recipe


def run(
  config: config_dict.ConfigDict,
  workdir: str | Path,
  out: str | Path,
  *,
  grids: Iterable[str] | None = None,
  shard: tuple[int, int] = (1, 1),
) -> Outcome:
  """Runs the cells of a study that have no rows yet.

  Args:
    config: Configuration of the study.
    workdir: Parent of the run directories.
    out: Directory of study.csv, made if it is missing.
    grids: Names of grids. Defaults to all.
    shard: (i, n): every n-th cell from the i-th on, for n machines.

  Returns:
    What was done. After SIGTERM, `finished` is False.

  Raises:
    ConfigError: If the study or the shard is invalid, before anything is
      trained.
  """
  share, shares = shard
  if not 1 <= share <= shares:
    raise ConfigError(
      f"--shard: expected i/n with i from 1 to n, got {share}/{shares}"
    )
  outcome = Outcome()
  all_cells = cells(config, grids)
  store = _study_rows.Store(out, config.name)
  for cell in all_cells[share - 1 :: shares]:
    for seeds in _missing(cell, store.rows()):
      _log.info("== %s, seeds %d to %d", cell.name, seeds[0], seeds[-1])
      try:
        finished = _run_cell(config, cell, seeds, Path(workdir), store)
      except (Diverged, ValueError) as error:
        _log.error("%s failed: %s", cell.name, error)
        store.fail(cell.name, cell.grid, seeds, str(error))
        outcome.failed.append(cell.name)
        continue
      if not finished:
        outcome.finished = False
        return outcome
      outcome.done.append(cell.name)
  return outcome


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
  rows = _study_rows.read(out)
  all_cells = cells(config, grids)
  rate = _seconds_per_flop(all_cells, rows)
  result = []
  for cell in all_cells:
    left = sum(len(seeds) for seeds in _missing(cell, rows))
    result.append((cell, left, left * rate * _step_flops(cell.config)))
  return result


def _step_flops(config: config_dict.ConfigDict) -> float:
  """FLOPs of the model's products in all steps of a run without masks."""
  model, _ = _abstract(config)
  layers = Layers.of(layers_of(model, config.batch_size)).dense()
  return 3.0 * float(flops(layers).sum()) * config.total_steps


def _seconds_per_flop(
  all_cells: Sequence[Cell], rows: Iterable[Mapping[str, str]]
) -> float:
  """Processor time over `_step_flops`."""
  seconds = {r["config"]: float(r["seconds"]) for r in rows if r.get("seconds")}
  known = [
    seconds[cell.fingerprint] / _step_flops(cell.config)
    for cell in all_cells
    if cell.fingerprint in seconds
  ]
  if known:
    return float(np.median(known))
  config = copy.deepcopy(all_cells[0].config)
  config.seed, config.seeds = 0, 0
  experiment, mesh = build(config), make_mesh()
  abstract = experiment.abstract_state
  shardings = state_shardings(abstract, mesh, abstract.bound.leaves, False)
  step = compiled_step(experiment, shardings)
  state = experiment.placed_state(shardings)
  batch = next(experiment.task.train_batches(config.batch_size))
  state, _ = step(state, batch)
  start = time.process_time()
  for _ in range(_TIMED_STEPS):
    state, metrics = step(state, batch)
  jax.block_until_ready((state, metrics))
  seconds_per_step = (time.process_time() - start) / _TIMED_STEPS
  return seconds_per_step * config.total_steps / _step_flops(config)


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


def _missing(
  cell: Cell, rows: Iterable[Mapping[str, str]]
) -> Iterator[tuple[int, ...]]:
  """Runs of consecutive seeds of a cell that have no rows."""
  done = {
    int(row["seed"]) for row in rows if row["config"] == cell.fingerprint
  }
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
) -> bool:
  """Trains and measures seeds of a cell; False after SIGTERM."""
  config = copy.deepcopy(cell.config)
  config.seed, config.seeds = seeds[0], len(seeds)
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
    **_modelled(config, study.engines),
  }
  _add(store, path, shared, of_cell(config))
  return True


def _add(
  store: _study_rows.Store,
  path: Path,
  shared: Mapping[str, Any],
  config: Mapping[str, Any],
) -> None:
  """Measures a finished run and adds its rows."""
  rows, examples = measured(path)
  store.add(shared, config, rows, examples, path.name)


def measured(
  path: str | Path,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """Measured columns of a run, one row per seed, and per-example results.

  Args:
    path: Directory of the run.
  """
  result = evaluate(path, per_example=True)
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
      "loss": float(np.mean(examples["loss"][i], dtype=np.float64)),
    }
    for name, values in result.items():
      if name.endswith("_seeds"):
        row[name.removesuffix("_seeds")] = values[i]
    rows.append(row | shared)
  return rows, examples


def _modelled(
  config: config_dict.ConfigDict, engines: Sequence[str]
) -> dict[str, Any]:
  """Columns that follow from the configuration alone."""
  model, recipe = _abstract(config)
  total = train_cost(model, recipe, "ws", config.batch_size).total("flops")
  rows = layers_of(model, config.batch_size)
  shares = training_shares(config, engines[0]) if engines else {}
  return {
    **shares,
    "train_flops_total": float(total),
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
  store = _study_rows.Store(out, "collected")
  for path in map(Path, paths):
    if (path / "study.csv").is_file():
      store.merge(path)
      continue
    with Checkpointer(path) as checkpoints:
      saved = checkpoints.meta()["config"]
    config = config_dict.ConfigDict(completed(saved))
    name = config.recipe.name
    sparse = recipe_of(config).sparse
    mark = fingerprint(config)
    first, count = config.seed, max(config.seeds, 1)
    done = {
      int(row["seed"]) for row in store.rows() if row["config"] == mark
    }
    if done >= set(range(first, first + count)):
      continue
    shared = {
      "cell": f"{name} {config.pattern} {mark}" if sparse else f"{name} {mark}",
      "recipe": name,
      "pattern": config.pattern if sparse else "",
      "rules": config.pattern if sparse else "",
      "config": mark,
      **_modelled(config, engines),
    }
    _add(store, path, shared, of_cell(config))
