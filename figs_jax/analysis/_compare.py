"""Recipes compared on one experiment: accuracy, inference and training cost.

Each run is trained or resumed, restored from its checkpoint and evaluated as
the finished model. An engine model gives the cost of its forward pass and of
the training run itself.
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

from figs_jax.analysis import plot_style
from figs_jax.engine import report
from figs_jax.engine.reports.text import times
from figs_jax.engine.training import TrainingPhase
from figs_jax.train._evaluate import evaluate
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import changes
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.run_rows import layers_of, train_cost

_log = logging.getLogger("figs_jax")


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
  """One run of a comparison; `X_se` is the standard error of X over seeds.

  Accuracies are in [0, 1], per token for span corruption; `glue_score` is in
  [0, 1] and `bleu` in [0, 100]. Speed-up is that of a batch's forward pass
  over `baseline`, the fastest dense array of that size, and `ideal_speedup`
  that of such an array that compresses N:M at no cost. `train_flops` is a share
  of the same run without masks, `train_time` of that run on the fastest dense
  array for it.
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
  baseline: str = ""
  ideal_speedup: float | None = None
  bits_per_byte: float | None = None
  bits_per_byte_se: float | None = None
  glue_score: float | None = None
  glue_score_se: float | None = None
  bleu: float | None = None
  bleu_se: float | None = None


# Measures of some tasks only: column, factor and format.
_OF_SOME_TASKS = {
  "bits_per_byte": ("bits per byte (± s.e.)", 1.0, ".3f"),
  "glue_score": ("GLUE score, % (± s.e.)", 100.0, ".2f"),
  "bleu": ("BLEU (± s.e.)", 1.0, ".2f"),
}
# Panels of the plot: x and its label.
_PANELS = {
  "speedup": "modelled speed-up of inference, ×",
  "train_flops": "FLOPs of training, share of dense",
  "train_time": "time of training, share of dense",
}


def compare(
  get_config: Callable[[str], config_dict.ConfigDict],
  runs: Iterable[tuple[str, str | None]],
  workdir: str | Path,
  *,
  engine_spec: str,
) -> list[ComparisonRow]:
  """Trains and measures every (recipe, pattern), each in its own workdir.

  All of them are checked before the first is trained. The training time of STEP
  assumes that it switches as late as it can.

  Args:
    get_config: Function of a recipe's name that returns the configuration.
    runs: Pairs of recipe and pattern. None is the configuration's own pattern.
    workdir: Parent directory; each run is in `workdir/RECIPE-PATTERN`.
    engine_spec: Spec for `figs_jax.engine.parse`.

  Returns:
    One row per run. After SIGTERM, the rows of the runs that were finished.

  Raises:
    ValueError: If a recipe, pattern, engine or directory is invalid, a
      directory holds another run, or a run is given twice. In these cases
      nothing is trained or written.
    Diverged: If a run diverges.
  """
  plans: dict[Path, tuple[config_dict.ConfigDict, dict[str, Any]]] = {}
  for recipe, pattern in runs:
    config = copy.deepcopy(get_config(recipe))
    config.pattern = pattern or config.pattern
    words = re.findall(r"\w+", f"{recipe} {pattern or ''}")
    path = Path(workdir) / "-".join(words)
    if path in plans:
      raise ValueError(f"runs: {path.name} is given twice; name each run once")
    plans[path] = config, training_shares(config, engine_spec)
    _check_resumable(path, config)
  for path in plans:
    _make_directory(path)
  names = [field.name for field in dataclasses.fields(ComparisonRow)]
  rows = []
  for path, (config, shares) in plans.items():
    _log.info("== %s", path.name)
    if not train(config, path)["finished"]:
      return rows
    result = shares | evaluate(path, engine_spec=engine_spec)
    row = ComparisonRow(**{n: result[n] for n in names if n in result})
    _log.info("   accuracy %s, speed-up %s", _percent(row), times(row.speedup))
    rows.append(row)
  return rows


def _check_resumable(path: Path, config: config_dict.ConfigDict) -> None:
  """Refuses a directory that holds a run of another configuration."""
  with Checkpointer(path) as checkpoints:
    if not checkpoints.steps():
      return
    _, refused = changes(checkpoints.meta()["config"], config)
  if refused:
    raise ValueError(
      f"{path}: holds a run with another {', '.join(refused)}; use another"
      " workdir, or remove this one"
    )


def _make_directory(path: Path) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
    writable = os.access(path, os.W_OK)
  except OSError as error:
    raise ValueError(
      f"{path}: {error.strerror}; use another workdir"
    ) from error
  if not writable:
    raise ValueError(f"{path}: cannot be written; use another workdir")


def training_shares(
  config: config_dict.ConfigDict, engine_spec: str
) -> dict[str, float]:
  """`train_flops` and `train_time` of a configuration, without training.

  >>> from figs_jax.train import default_config
  >>> config = default_config("figs")
  >>> config.update({"variant": "custom/4", "pattern": "ff: 1:4"})
  >>> config.model.update({"width": 32, "depth": 1, "heads": 2})
  >>> shares = training_shares(config, "ws:16x16")
  >>> {name: round(share, 2) for name, share in shares.items()}
  {'train_flops': 0.85, 'train_time': 0.94}
  """
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(config.seed))
  run = train_cost(model, experiment.recipe, engine_spec, config.batch_size)
  step = TrainingPhase(1, layers_of(model, config.batch_size)).products()
  dense = report(step.dense(), [engine_spec], baseline="dense").totals[0]
  time = run.share("cycles") / dense.speedup
  return {"train_flops": run.share("flops"), "train_time": time}


def _percent(row: ComparisonRow) -> str:
  return _cell(row, "accuracy", 100.0, ".2f")


def _cell(row: ComparisonRow, field: str, factor: float, form: str) -> str:
  """A field's mean ± standard error, times a factor."""
  value, error = getattr(row, field), getattr(row, f"{field}_se")
  if value is None:
    return "–"
  spread = "" if error is None else f" ± {factor * error:{form}}"
  return f"{factor * value:{form}}{spread}"


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
  """The comparison as a Markdown table; errors are over seeds.

  Args:
    rows: Rows from `compare`, in the order of the table.

  >>> figs = ComparisonRow(
  ...   recipe="figs", pattern="ff: 1:4", step=100, accuracy=0.92,
  ...   accuracy_se=0.01, accuracies=[0.91, 0.93], exact_nm=True, sparsity=0.5,
  ...   bytes_dense=4000, bytes_packed=2400, flops=5e5, flops_dense=1e6,
  ...   engine="ws", speedup=1.6, train_flops=0.8, train_time=0.9,
  ... )
  >>> print(comparison_table([figs]))
  | recipe | pattern | accuracy, % (± s.e.) | seeds | exact N:M | ...
  | --- | --- | --- | --- | --- | ...
  | figs | ff: 1:4 | 92.00 ± 1.00 | 2 | yes | 2,400 (4,000) | 0.500 | ws | ...
  """
  columns: dict[str, Callable[[ComparisonRow], str]] = {
    "recipe": lambda row: row.recipe,
    "pattern": lambda row: row.pattern,
    "accuracy, % (± s.e.)": _percent,
  }
  for field, (column, factor, form) in _OF_SOME_TASKS.items():
    if any(getattr(row, field) is not None for row in rows):
      columns[column] = functools.partial(
        _cell, field=field, factor=factor, form=form
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
    "ideal": lambda row: times(row.ideal_speedup) if row.ideal_speedup else "–",
    "training FLOPs, share": lambda row: f"{row.train_flops:.3f}",
    "training time, share": lambda row: f"{row.train_time:.3f}",
  }
  lines = [list(columns), ["---"] * len(columns)]
  lines += [[cell(row) for cell in columns.values()] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_json(rows: Sequence[ComparisonRow], path: str | Path) -> None:
  """Writes the rows as a list of objects.

  Args:
    rows: Rows from `compare`.
    path: Path of the JSON file; an existing file is replaced.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "rows.json")
  ...   write_json([], path)
  ...   path.read_text()
  '[]\\n'
  """
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  Path(path).write_text(text + "\n")


def plot_comparison(
  rows: Sequence[ComparisonRow], path: str | Path, title: str = ""
) -> None:
  """Writes a PNG: accuracy against speed-up and against the cost of training.

  Each recipe has a colour and a marker, and each marker its pattern beside it.
  A dotted line shows the position of a dense run, a dashed one the speed-up of
  a pattern on a dense array that compresses it at no cost.

  Args:
    rows: Rows from `compare`, at least one.
    path: Path of the PNG file; an existing file is replaced.
    title: Start of the title, which ends with the name of the engine.

  Raises:
    ValueError: If matplotlib is not installed.

  >>> import tempfile
  >>> figs = ComparisonRow(
  ...   recipe="figs", pattern="ff: 1:4", step=100, accuracy=0.92,
  ...   accuracy_se=0.01, accuracies=[0.91, 0.93], exact_nm=True, sparsity=0.5,
  ...   bytes_dense=4000, bytes_packed=2400, flops=5e5, flops_dense=1e6,
  ...   engine="ws", speedup=1.6, train_flops=0.8, train_time=0.9,
  ... )
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = Path(folder, "digits.png")
  ...   plot_comparison([figs], path, title="digits")
  ...   path.read_bytes()[1:4]
  b'PNG'
  """
  recipes = list(dict.fromkeys(row.recipe for row in rows))
  panels = {
    label: [
      plot_style.Mark(
        x=getattr(row, field),
        y=100 * row.accuracy,
        error=math.nan if row.accuracy_se is None else 100 * row.accuracy_se,
        label=row.recipe,
        text=row.pattern,
        index=recipes.index(row.recipe),
      )
      for row in rows
    ]
    for field, label in _PANELS.items()
  }
  engine = (
    f"speed-up and time modelled on {rows[0].engine}, over the fastest dense"
    " array of that size"
  )
  title = f"{title}; {engine}" if title else engine
  ideal = {
    row.pattern: row.ideal_speedup
    for row in rows
    if row.ideal_speedup and row.pattern != "dense"
  }
  bounds = {_PANELS["speedup"]: ideal}
  figure = plot_style.scatter(panels, 10.2, title, bounds=bounds)
  Path(path).write_bytes(plot_style.image_bytes(figure, "png"))
