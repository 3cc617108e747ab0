"""Several recipes on one experiment: accuracy beside what it costs and buys.

Each run is trained (or resumed), restored from its checkpoint, evaluated as
the finished model, and its layers are put through an engine model: for one
forward pass, and for the training run itself.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flax import nnx
from ml_collections import config_dict

from figs_jax.train.cost import train_cost
from figs_jax.train.evaluate import evaluate
from figs_jax.train.experiment import build
from figs_jax.train.loop import train

_log = logging.getLogger("figs_jax")


@dataclasses.dataclass(frozen=True)
class Row:
  """One run of the comparison; accuracies are in [0, 1], one per seed.

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


def compare(
  get_config: Callable[[str], config_dict.ConfigDict],
  runs: Iterable[tuple[str, str | None]],
  workdir: str | Path,
  *,
  engine_spec: str,
) -> list[Row]:
  """Trains and measures every (recipe, pattern), each in its own workdir.

  Args:
    get_config: recipe -> configuration.
    runs: (recipe, pattern); None keeps the configuration's own pattern.
    workdir: runs live in `workdir/RECIPE-PATTERN`.
    engine_spec: an engine of `figs_jax.engine.parse`.

  Returns:
    One row per run; `speedup` is of one image's whole forward pass over the
    dense model on the same engine; so is `train_time`, of all steps, where STEP
    counts as switching as late as it can.
  """
  rows = []
  for recipe, pattern in runs:
    config = get_config(recipe)
    config.pattern = pattern or config.pattern
    where = Path(workdir) / _slug(recipe, pattern)
    _log.info("== %s %s", recipe, pattern or "")
    train(config, where)
    result = evaluate(where, engine_spec=engine_spec)
    result |= training_shares(config, engine_spec)
    row = Row(**{f.name: result[f.name] for f in dataclasses.fields(Row)})
    _log.info("   accuracy %s, speed-up %.2f", _percent(row), row.speedup)
    rows.append(row)
  return rows


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
  error = row.accuracy_se
  spread = "" if error is None else f" ± {100 * error:.2f}"
  return f"{100 * row.accuracy:.2f}{spread}"


def markdown(rows: Sequence[Row]) -> str:
  """The comparison as a table; errors are standard errors over seeds."""
  lines = [
    "| recipe | pattern | accuracy, % (± s.e.) | seeds | exact N:M"
    " | bytes packed (dense) | FLOPs, share of dense | engine | speed-up"
    " | training FLOPs, share | training time, share |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    lines.append(
      f"| {row.recipe} | {row.pattern} | {_percent(row)}"
      f" | {len(row.accuracies)} | {'yes' if row.exact_nm else 'NO'}"
      f" | {row.bytes_packed:,} ({row.bytes_dense:,})"
      f" | {row.flops / row.flops_dense:.3f}"
      f" | {row.engine} | {row.speedup:.2f}×"
      f" | {row.train_flops:.3f} | {row.train_time:.3f} |"
    )
  return "\n".join(lines) + "\n"


def write_json(rows: Sequence[Row], path: str | Path) -> None:
  """The rows as a list of objects."""
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  Path(path).write_text(text + "\n")


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
  """Accuracy against speed-up and against the cost of training, as a PNG.

  Marks that share a place are set side by side so that their error bars can be
  told apart; dotted lines show the true place.

  Raises:
    ValueError: matplotlib is not installed.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError(
      "plotting needs matplotlib: pip install 'figs_jax[plots]'"
    ) from error
  figure = Figure(figsize=(11.5, 4.4), dpi=150, layout="constrained")
  axes = figure.subplots(1, len(_PANELS), sharey=True)
  for ax, (field, label) in zip(axes, _PANELS.items()):
    _panel(ax, rows, field)
    ax.set_xlabel(label)
  for place in {round(row.speedup, 3) for row in rows}:
    patterns = dict.fromkeys(
      row.pattern for row in rows if round(row.speedup, 3) == place
    )
    axes[0].annotate(
      "\n".join(patterns),
      (place, 1.0),
      xycoords=("data", "axes fraction"),
      xytext=(0, 3),
      textcoords="offset points",
      ha="center",
      fontsize=8,
      color="0.4",
    )
  axes[0].set_ylabel("test accuracy, % (mean ± s.e.)")
  figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside right center",
    frameon=False,
    fontsize=9,
  )
  said = f"speed-up and time modelled on {rows[0].engine}, relative to dense"
  figure.suptitle(f"{title}; {said}" if title else said, fontsize=10)
  figure.savefig(path)


_PANELS = {
  "speedup": "speed-up of inference, ×",
  "train_flops": "FLOPs of training, share of dense",
  "train_time": "time of training, share of dense",
}


def _panel(ax, rows: Sequence[Row], field: str) -> None:
  """One mark with its error bar per run."""
  names = list(dict.fromkeys(row.recipe for row in rows))
  places = [round(getattr(row, field), 3) for row in rows]
  span = max(places) - min(places) or 1.0
  for index, row in enumerate(rows):
    peers = [i for i, place in enumerate(places) if place == places[index]]
    shift = (peers.index(index) - (len(peers) - 1) / 2) * 0.045 * span
    error = row.accuracy_se or math.nan
    first = row is next(r for r in rows if r.recipe == row.recipe)
    ax.errorbar(
      places[index] + shift,
      100 * row.accuracy,
      yerr=100 * error,
      fmt="o^sDvP*X"[names.index(row.recipe) % 8],
      color=f"C{names.index(row.recipe)}",
      capsize=3,
      label=row.recipe if first else None,
    )
    ax.axvline(places[index], color="0.85", linestyle=":", zorder=0)
  ax.margins(x=0.12)
  ax.grid(axis="y", color="0.93")
  ax.set_axisbelow(True)
