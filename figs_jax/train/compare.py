"""Several recipes on one experiment: a table and a picture of both numbers.

Each run is trained (or resumed), restored from its checkpoint, evaluated as
the finished model, and its layers are put through an engine model.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ml_collections import config_dict

from figs_jax.train.evaluate import evaluate
from figs_jax.train.loop import train

_log = logging.getLogger("figs_jax")


@dataclasses.dataclass(frozen=True)
class Row:
  """One run of the comparison; accuracies are in [0, 1], one per seed."""

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
    dense model on the same engine.
  """
  rows = []
  for recipe, pattern in runs:
    config = get_config(recipe)
    config.pattern = pattern or config.pattern
    where = Path(workdir) / _slug(recipe, pattern)
    _log.info("== %s %s", recipe, pattern or "")
    train(config, where)
    result = evaluate(where, engine_spec=engine_spec)
    row = Row(**{f.name: result[f.name] for f in dataclasses.fields(Row)})
    _log.info("   accuracy %s, speed-up %.2f", _percent(row), row.speedup)
    rows.append(row)
  return rows


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
    " | bytes packed (dense) | FLOPs, share of dense | engine | speed-up |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    lines.append(
      f"| {row.recipe} | {row.pattern} | {_percent(row)}"
      f" | {len(row.accuracies)} | {'yes' if row.exact_nm else 'NO'}"
      f" | {row.bytes_packed:,} ({row.bytes_dense:,})"
      f" | {row.flops / row.flops_dense:.3f}"
      f" | {row.engine} | {row.speedup:.2f}× |"
    )
  return "\n".join(lines) + "\n"


def write_json(rows: Sequence[Row], path: str | Path) -> None:
  """The rows as a list of objects."""
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  Path(path).write_text(text + "\n")


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
  """Accuracy against modelled speed-up, one mark per run, as a PNG.

  Marks that share a speed-up are set side by side so that their error bars
  can be told apart; dotted lines show the true place.

  Raises:
    ValueError: matplotlib is not installed.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError(
      "plotting needs matplotlib: pip install 'figs_jax[plots]'"
    ) from error
  figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
  ax = figure.subplots()
  names = list(dict.fromkeys(row.recipe for row in rows))
  places = sorted({row.speedup for row in rows})
  span = max(places) - min(places) or 1.0
  for row in rows:
    peers = [r.recipe for r in rows if r.speedup == row.speedup]
    shift = (peers.index(row.recipe) - (len(peers) - 1) / 2) * 0.035 * span
    error = row.accuracy_se or math.nan
    first = row is next(r for r in rows if r.recipe == row.recipe)
    ax.errorbar(
      row.speedup + shift,
      100 * row.accuracy,
      yerr=100 * error,
      fmt="o^sDvP*X"[names.index(row.recipe) % 8],
      color=f"C{names.index(row.recipe)}",
      capsize=3,
      label=row.recipe if first else None,
    )
  for place in places:
    pattern = next(r.pattern for r in rows if r.speedup == place)
    ax.axvline(place, color="0.85", linestyle=":", zorder=0)
    ax.annotate(
      pattern,
      (place, 1.0),
      xycoords=("data", "axes fraction"),
      xytext=(0, 3),
      textcoords="offset points",
      ha="center",
      fontsize=8,
      color="0.4",
    )
  ax.set_xlabel(f"modelled speed-up over dense ({rows[0].engine})")
  ax.set_ylabel("test accuracy, % (mean ± s.e.)")
  ax.grid(axis="y", color="0.93")
  ax.set_axisbelow(True)
  ax.legend(frameon=False, fontsize=8)
  if title:
    ax.set_title(title, fontsize=10, pad=16)
  figure.savefig(path)
