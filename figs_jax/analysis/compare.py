"""Several recipes on one experiment: accuracy beside what it costs and buys.

Each run is trained (or resumed), restored from its checkpoint, evaluated as
the finished model, and its layers are put through an engine model: for one
forward pass, and for the training run itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import config_dict

from figs_jax.analysis import plot_style, scatter
from figs_jax.engine.layout import times
from figs_jax.engine.plots import empty_figure
from figs_jax.train._evaluate import evaluate
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import completed, differences
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.run_rows import train_cost

_log = logging.getLogger("figs_jax")


@dataclasses.dataclass(frozen=True)
class Row:
  """One run of the comparison; accuracies are in [0, 1], one per seed.

  `bits_per_byte` is of span corruption only, where accuracy is per token,
  `glue_score` in [0, 1] of GLUE and `bleu` in [0, 100] of translations;
  `train_flops` and `train_time` are shares of the same run without masks.
  """

  recipe: str
  pattern: str
  step: int
  accuracy: float
  accuracy_se: float | None
  accuracies: list[float]
  exact_nm: bool
  sparsity: float
  bytes_dense: int
  bytes_packed: int
  flops: float
  flops_dense: float
  engine: str
  speedup: float
  train_flops: float
  train_time: float
  bits_per_byte: float | None = None
  bits_per_byte_se: float | None = None
  glue_score: float | None = None
  glue_score_se: float | None = None
  bleu: float | None = None
  bleu_se: float | None = None


# What only some tasks measure: its column, its unit, and how it is written.
_SOME = {
  "bits_per_byte": ("bits per byte (± s.e.)", 1.0, ".3f"),
  "glue_score": ("GLUE score, % (± s.e.)", 100.0, ".2f"),
  "bleu": ("BLEU (± s.e.)", 1.0, ".2f"),
}


def compare(
  get_config: Callable[[str], config_dict.ConfigDict],
  runs: Iterable[tuple[str, str | None]],
  workdir: str | Path,
  *,
  engine_spec: str,
) -> list[Row]:
  """Trains and measures every (recipe, pattern), each in its own workdir.

  All of them are checked before the first is trained.

  Args:
    get_config: recipe -> configuration.
    runs: (recipe, pattern); None keeps the configuration's own pattern.
    workdir: runs live in `workdir/RECIPE-PATTERN`.
    engine_spec: an engine of `figs_jax.engine.parse`.

  Returns:
    One row per run; `speedup` is of one image's whole forward pass over the
    dense model on the same engine; so is `train_time`, of all steps, where STEP
    counts as switching as late as it can. After SIGTERM only the runs that were
    finished by then.

  Raises:
    ValueError: a recipe, pattern, engine or directory that cannot be used, a
      directory with another run in it, or a run that is named twice. Nothing
      was trained or written then.
    Diverged: as `figs_jax.train.loop.train`.
  """
  plans: dict[Path, tuple[config_dict.ConfigDict, dict[str, Any]]] = {}
  for recipe, pattern in runs:
    config = copy.deepcopy(get_config(recipe))
    config.pattern = pattern or config.pattern
    where = Path(workdir) / _slug(recipe, pattern)
    if where in plans:
      raise ValueError(f"runs: {where.name} is there twice; name each run once")
    plans[where] = config, training_shares(config, engine_spec)
    _check_resumable(where, config)
  for where in plans:
    _make(where)
  rows = []
  for where, (config, shares) in plans.items():
    _log.info("== %s", where.name)
    if not train(config, where)["finished"]:
      return rows
    result = shares | evaluate(where, engine_spec=engine_spec)
    names = [field.name for field in dataclasses.fields(Row)]
    row = Row(**{name: result[name] for name in names if name in result})
    _log.info("   accuracy %s, speed-up %s", _percent(row), times(row.speedup))
    rows.append(row)
  return rows


def _check_resumable(where: Path, config: config_dict.ConfigDict) -> None:
  """A run that is there already must be of the same configuration."""
  with Checkpointer(where) as checkpoints:
    if not checkpoints.steps():
      return
    saved = completed(checkpoints.meta()["config"])
  now = json.loads(json.dumps(config.to_dict()))
  free = set(config.allow_change)
  changed = [
    name
    for name in differences(saved, now)
    if not free & {name, name.split(".")[0]}
  ]
  if changed:
    raise ValueError(
      f"{where}: holds a run with another {', '.join(changed)}; use another"
      " workdir, or remove this one"
    )


def _make(where: Path) -> None:
  try:
    where.mkdir(parents=True, exist_ok=True)
    writable = os.access(where, os.W_OK)
  except OSError as error:
    raise ValueError(
      f"{where}: {error.strerror}; use another workdir"
    ) from error
  if not writable:
    raise ValueError(f"{where}: cannot be written; use another workdir")


def training_shares(
  config: config_dict.ConfigDict, engine_spec: str
) -> dict[str, float]:
  """`train_flops` and `train_time` of a configuration's run, without running.

  >>> from figs_jax.train import default_config
  >>> config = default_config("figs")
  >>> config.update({"variant": "custom/4", "pattern": "ff: 1:4"})
  >>> config.model.update({"width": 32, "depth": 1, "heads": 2})
  >>> found = training_shares(config, "ws:16x16")
  >>> {name: round(share, 2) for name, share in found.items()}
  {'train_flops': 0.85, 'train_time': 0.94}
  """
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(config.seed))
  run = train_cost(model, experiment.recipe, engine_spec, config.batch_size)
  return {"train_flops": run.share("flops"), "train_time": run.share("cycles")}


def _slug(recipe: str, pattern: str | None) -> str:
  words = re.findall(r"\w+", f"{recipe} {pattern or ''}")
  return "-".join(words)


def _percent(row: Row) -> str:
  return _cell(row, "accuracy", 100.0, ".2f")


def _cell(row: Row, field: str, scale: float, form: str) -> str:
  """mean ± error of a field, in units of 1 / scale."""
  value, error = getattr(row, field), getattr(row, f"{field}_se")
  if value is None:
    return "–"
  spread = "" if error is None else f" ± {scale * error:{form}}"
  return f"{scale * value:{form}}{spread}"


def markdown(rows: Sequence[Row]) -> str:
  """The comparison as a table; errors are standard errors over seeds."""
  columns: dict[str, Callable[[Row], str]] = {
    "recipe": lambda row: row.recipe,
    "pattern": lambda row: row.pattern,
    "accuracy, % (± s.e.)": _percent,
  }
  for field, (column, scale, form) in _SOME.items():
    if any(getattr(row, field) is not None for row in rows):
      columns[column] = functools.partial(
        _cell, field=field, scale=scale, form=form
      )
  columns |= {
    "seeds": lambda row: str(len(row.accuracies)),
    "exact N:M": lambda row: "yes" if row.exact_nm else "NO",
    "bytes packed (dense)": lambda row: (
      f"{row.bytes_packed:,} ({row.bytes_dense:,})"
    ),
    "FLOPs, share of dense": lambda row: f"{row.flops / row.flops_dense:.3f}",
    "engine": lambda row: row.engine,
    "speed-up": lambda row: times(row.speedup),
    "training FLOPs, share": lambda row: f"{row.train_flops:.3f}",
    "training time, share": lambda row: f"{row.train_time:.3f}",
  }
  lines = [list(columns), ["---"] * len(columns)]
  lines += [[cell(row) for cell in columns.values()] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_json(rows: Sequence[Row], path: str | Path) -> None:
  """The rows as a list of objects."""
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  Path(path).write_text(text + "\n")


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
  """Accuracy against speed-up and against the cost of training, as a PNG.

  A recipe has a colour and a mark; each mark has its pattern beside it and
  stands at its true place, which a dotted line shows of a dense run.

  Raises:
    ValueError: matplotlib is not installed.
  """
  recipes = list(dict.fromkeys(row.recipe for row in rows))
  figure = empty_figure(10.2, 4.2)
  axes = list(figure.subplots(1, len(_PANELS), sharey=True))
  marks = [
    [
      scatter.Mark(
        x=getattr(row, field),
        y=100 * row.accuracy,
        error=math.nan if row.accuracy_se is None else 100 * row.accuracy_se,
        label=row.recipe,
        name=row.pattern,
        place=recipes.index(row.recipe),
      )
      for row in rows
    ]
    for field in _PANELS
  ]
  scatter.draw(axes, marks)
  for ax, label in zip(axes, _PANELS.values()):
    ax.set_xlabel(label)
    plot_style.finish(ax, steps=False)
  axes[0].set_ylabel("test accuracy, % (mean ± s.e.)")
  plot_style.legend(figure, axes)
  said = f"speed-up and time modelled on {rows[0].engine}, relative to dense"
  plot_style.title(figure, f"{title}; {said}" if title else said)
  scatter.write_names(figure, axes, marks)
  Path(path).write_bytes(plot_style.image(figure, "png"))


_PANELS = {
  "speedup": "modelled speed-up of inference, ×",
  "train_flops": "FLOPs of training, share of dense",
  "train_time": "time of training, share of dense",
}
