"""The cells of a study: its configuration, expanded and checked."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import config_dict

from figs_jax.analysis._study_claims import check_claims
from figs_jax.core import optimizer_fields
from figs_jax.core.legal import Word, suggestion
from figs_jax.core.pattern import NM
from figs_jax.engine import report
from figs_jax.engine.training import TrainingPhase
from figs_jax.models.flops import train_flops
from figs_jax.train import schema
from figs_jax.train._evaluate import check_dtype_of
from figs_jax.train.config import (
  FREE,
  ConfigError,
  plain,
  recipe_of,
  with_defaults,
)
from figs_jax.train.experiment import build
from figs_jax.train.optimizer import check_together
from figs_jax.train.run_rows import layers_of, train_cost
from figs_jax.train.workdir import initial_config

_ROOT = Path(__file__).parents[2]
# Fields that say which seeds a run holds, or that affect none of its numbers.
_NOT_OF_CELL = (*FREE, "seed", "seeds", "seeds_mode", "checkpoint_every")
# Fields newer than rows of studies, with the value that every run had before:
# there they are left out, so that fingerprints stay.
_LATER = {
  "activations": "",
  "data.pack": False,
  "data.shuffle_buffer": 10_000,
  "data.stream": False,
  "distill.temperature": 2.0,
  "distill.weight": 0.5,
  "init_interpolation": "linear",
  "mask_storage": "bool",
  "model.distillation": "none",
  "model.layer_scale": 0.0,
  "model.registers": 0,
  "model.relu2": False,
  "model.remat_policy": "block",
  "model.swiglu": False,
  "param_dtype": "float32",
  "recalibrate_batch_norm": 50,
  "teacher_sha256": "",
  "train_only": "",
}
_BUDGETS = ("steps", "train_flops")


def default_config() -> config_dict.ConfigDict:
  """The configuration of a study without any cell.

  Its fields:

  * `name`: Name of the study, the first column of its rows.
  * `base`: File of a training configuration, with `get_config(recipe)`.
  * `common`: Fields of training that all cells set, as nested dicts.
  * `recipes`: {label: {"name": recipe, option: value, "config": fields,
    "points": patterns}}, where `config` may set fields of training, as in
    `common`, and `points`, such as "1:8,2:8", are patterns to cut a trained
    model to: each gets rows of its own, with the point as label of the pattern
    and, unless the recipe trains it, the setting "cut from LABEL".
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
  * `dtypes`: Dtypes of the computation in which accuracy and loss are measured
    as well, such as ("bfloat16", "int8").
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
      "dtypes": (),
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
  >>> config.recalibrate_batch_norm = 7
  >>> fingerprint(config) == before
  False
  """
  return digits_of(of_cell(config))


def digits_of(values: Mapping[str, Any]) -> str:
  """The fingerprint of the fields of a cell."""
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def points_of(study: config_dict.ConfigDict, cell: Cell) -> list[NM]:
  """The patterns to measure a cell at, beside its own.

  Raises:
    ValueError: If a point does not fit the pattern of the cell.
  """
  recipe = recipe_of(cell.config)
  text = study.recipes[cell.recipe].get("points", "")
  points = recipe.points.patterns if recipe.points else ()
  if text:
    points = tuple(NM.parse(part) for part in text.split(","))
  return [nm for nm in points if (nm,) != recipe.targets]


def setting_of(cell: Cell) -> str:
  """The setting of a cell's rows at other patterns than its own."""
  if recipe_of(cell.config).points is not None:
    return cell.setting
  return " ".join(filter(None, (cell.setting, f"cut from {cell.pattern}")))


def of_cell(
  config: Mapping[str, Any] | config_dict.ConfigDict,
) -> dict[str, Any]:
  """The fields of a run that its numbers depend on, but for its seeds."""
  if isinstance(config, config_dict.ConfigDict):
    config = plain(with_defaults(config))
  values = optimizer_fields.resolved(schema.flat(config))
  if (warmup := values.get("optimizer.warmup_steps")) is not None:
    values["optimizer.warmup_steps"] = schema.warmup_steps(
      warmup, values["total_steps"]
    )
  # Before training, a teacher is known by its place alone.
  named = values.get("teacher") and not values.get("teacher_sha256")
  kept = ("teacher", "distill.seed") if named else ()
  # Runs of images had a loss from the first.
  of_texts = "data.objective" in values
  later = _LATER | ({"loss": "softmax"} if of_texts else {})
  return {
    name: value
    for name, value in values.items()
    if name in kept
    or name not in _NOT_OF_CELL
    and name.split(".")[0] not in _NOT_OF_CELL
    and not (name in later and value == later[name])
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
  check_claims(
    config.claims.to_dict(),
    list(config.recipes),
    list(config.patterns),
    list(config.settings),
  )
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
    for dtype in config.dtypes:
      try:
        check_dtype_of(cell.config, dtype)
      except ValueError as error:
        raise ConfigError(f"dtypes, cell {cell.name!r}: {error}") from error
    seen[cell.fingerprint] = cell.name
  return list(all_cells.values())


def shard_of(cells: Sequence[Any], shard: tuple[int, int]) -> Sequence[Any]:
  """The cells of one of n shards, which are disjoint and together all cells.

  They depend on neither the rows that are there nor on what other shards have
  done, so that a task may be started again at any time.

  Args:
    cells: Cells of the study.
    shard: (i, n), with i from 1 to n: every n-th cell from the i-th on.

  Raises:
    ConfigError: If i is not from 1 to n.

  >>> [shard_of("abcde", (i, 3)) for i in (1, 2, 3)]
  ['ad', 'be', 'c']
  """
  share, shares = shard
  if not 1 <= share <= shares:
    raise ConfigError(
      f"--shard: expected i/n with i from 1 to n, got {share}/{shares}"
    )
  return cells[share - 1 :: shares]


def digest_of(cells: Iterable[Cell]) -> str:
  """12 hexadecimal digits that stand for cells, their seeds and their order.

  Args:
    cells: Cells of a study.

  >>> from figs_jax.train import default_config
  >>> config = default_config("ste")
  >>> some = [Cell("", "ste", "2:4", "", config, (i,)) for i in (0, 1)]
  >>> digest_of(some) == digest_of(some[::-1])
  False
  """
  return digits_of({"cells": [(c.fingerprint, c.seeds) for c in cells]})


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
  fields = options.pop("config", {})
  options.pop("points", None)  # see `points_of`
  config = _base(study.base)(name)
  _set(config, study.common, "common")
  _set(config, fields, f"recipes.{recipe}.config")
  _set(config, study.settings[setting], f"settings.{setting}")
  _set(config.recipe, options, f"recipes.{recipe}")
  is_free = "dense" in config.recipe and "dense" not in options
  if study.dense_warmup is not None and is_free and _is_sparse(study, recipe):
    config.recipe.dense = study.dense_warmup
  if pattern:
    config.pattern = study.patterns[pattern]
  schema.check(config)
  check_together(config.optimizer, recipe_of(config))
  return config


@functools.cache
def _base(path: str) -> Any:
  """`get_config` of a file, relative to this directory or the repository."""
  for file in (Path(path), _ROOT / path):
    if file.is_file():
      return runpy.run_path(str(file))["get_config"]
  raise ConfigError(f"base: no such file {path!r}")


def _set(config: Any, fields: Any, where: str) -> None:
  for name, value in fields.items():
    if name not in config:
      raise ConfigError(f"{where}: unknown field {name!r}{_near(name, config)}")
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
      budgets[cell.setting] = run_flops(base, *abstract(base))
    new = copy.deepcopy(cell.config)
    model, recipe = abstract(new)
    for _ in range(8):  # the phases move with the steps
      steps = new.total_steps
      flops = run_flops(new, model, recipe)
      new.total_steps = int(steps * budgets[cell.setting] / flops)
      recipe = recipe_of(new)
      if new.total_steps == steps:
        break
    result[key] = dataclasses.replace(cell, config=new)
  return result


def run_flops(
  config: config_dict.ConfigDict, model: nnx.Module, recipe: Any
) -> float:
  """Training FLOPs of a run, whose model and recipe are from `abstract`."""
  return float(train_flops(model, recipe, batch=config.batch_size).total)


def abstract(config: config_dict.ConfigDict) -> tuple[nnx.Module, Any]:
  """The model of a run, without arrays, and its recipe."""
  if Path(config.init_from).exists():  # a plan may precede the dense run
    config = initial_config(config)
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(config.seed))
  return model, experiment.recipe


def training_shares(
  model: nnx.Module, recipe: Any, batch: int, engine_spec: str
) -> dict[str, float]:
  """`train_flops` and `train_time` of a run, without training.

  FLOPs are a share of the same run without masks, time is one of that run on
  the fastest dense array for it. STEP is taken to switch as late as it can.

  >>> from figs_jax.train import default_config
  >>> config = default_config("figs")
  >>> config.update({"variant": "custom/4", "pattern": "ff: 1:4"})
  >>> config.model.update({"width": 32, "depth": 1, "heads": 2})
  >>> shares = training_shares(*abstract(config), 128, "ws:16x16")
  >>> {name: round(share, 2) for name, share in shares.items()}
  {'train_flops': 0.85, 'train_time': 0.94}
  """
  run = train_cost(model, recipe, engine_spec, batch)
  step = TrainingPhase(1, layers_of(model, batch)).products()
  dense = report(step.dense(), [engine_spec], baseline="dense").totals[0]
  time = run.share("cycles") / dense.speedup
  return {"train_flops": run.share("flops"), "train_time": time}
