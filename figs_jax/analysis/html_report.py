"""A report of one or several runs as one self-contained HTML file.

The file has no scripts and loads nothing: plots are embedded as SVG. All names
and configurations are escaped.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from html import escape
from typing import Any

from figs_jax import engine, nn
from figs_jax.analysis import plot_style, plots
from figs_jax.analysis._run_comparison import (
  METRICS,
  paired_differences,
  training_flops,
  value_text,
  varying_fields,
)
from figs_jax.analysis._study_rows import differing
from figs_jax.analysis._study_tables import difference_text, mean_text
from figs_jax.analysis.history import History, mask_evolution
from figs_jax.analysis.pareto import ParetoPoint, pareto_points
from figs_jax.engine.figures import figure_type
from figs_jax.engine.plots import roofline
from figs_jax.engine.reports.text import times
from figs_jax.models.own_model import PYTHON
from figs_jax.train import schema, seeds
from figs_jax.train._evaluate import exact_nm, storage
from figs_jax.train.state import finish

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem;
  border-top: 1px solid #ddd; padding-top: 1rem; } h3 { font-size: 1.05rem; }
table { border-collapse: collapse; margin: .6rem 0; display: block;
  overflow-x: auto; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
details { border-bottom: 1px solid #ddd; }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
img { max-width: 100%; height: auto; } .note { color: #555; }
.bad { color: #b00020; font-weight: 600; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; }
"""

_ENGINE_COLUMNS = (
  "engine", "pattern", "modelled speed-up", "time", "utilisation", "energy, nJ",
  "memory traffic, bytes",
)  # fmt: skip


def report_html(runs: Sequence[History], engines: Sequence[str]) -> str:
  """The report: a comparison if there are several runs, then each run.

  Where a run lacks the data of a plot, the report says how to get them.

  Args:
    runs: Runs from `histories`.
    engines: Specs for `figs_jax.engine.parse`.

  Raises:
    ValueError: If a run has no checkpoint or evaluation, an engine is unknown,
      or matplotlib is not installed.
  """
  order = [run.label for run in runs]
  if len(runs) == 1:
    title = f"Run {order[0]}"
    parts = [_section(runs[0], engines, order, 2)]
  else:
    title = f"Runs {', '.join(order)}"
    parts = [_comparison(runs, engines)]
    for run in runs:
      parts += [
        f"<details><summary>{escape(run.label)}</summary>",
        _section(run, engines, order, 3),
        "</details>",
      ]
  parts.insert(0, f"<h1>{escape(title)}</h1>")
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    + "\n".join(parts)
    + "\n</body>\n</html>\n"
  )


def _comparison(runs: Sequence[History], engines: Sequence[str]) -> str:
  points = pareto_points(runs, engines)
  order = [run.label for run in runs]
  labels = ", ".join(order)
  return "\n".join(
    [
      _runs_table(runs),
      "<h2>Comparison</h2>",
      _configurations_table(runs, points),
      _differences_section(runs),
      _plot(
        f"accuracy against speed-up of {labels}",
        lambda: plots.plot_pareto(points, order),
      ),
      _plot(f"training of {labels}", lambda: plots.plot_training(runs, order)),
      "<details><summary>All fields that differ</summary>",
      _table(("field", *order), differing_fields(runs)),
      "</details>",
      "<h2>Runs</h2>",
    ]
  )


def _runs_table(runs: Sequence[History]) -> str:
  """Each run: the facts that not all share, fields, results, FLOPs."""
  fields = varying_fields(runs)
  facts = [_facts(run) for run in runs]
  shared = [
    name
    for name in ("model", "data set")
    if len({fact[name] for fact in facts}) == 1
  ]
  named = [name for name in facts[0] if name not in shared]
  columns = (
    "run", *named, *fields, "step", "test accuracy, %", "test loss, nats",
    "training FLOPs", "of dense",
  )  # fmt: skip
  rows = []
  for number, (run, fact) in enumerate(zip(runs, facts)):
    flops = training_flops(run)
    rows.append(
      (
        run.label, *(fact[name] for name in named),
        *(values[number] for values in fields.values()),
        f"{run.last_evaluation['step']:,}", percent(run.accuracies),
        mean_text(run.losses, "loss"), flops_text(flops.total),
        f"{flops.share:.3f}",
      )
    )  # fmt: skip
  results = set(range(len(columns) - 5, len(columns)))
  line = ", ".join(f"{name} {facts[0][name]}" for name in shared)
  return (
    (f"<p>All runs: {escape(line)}.</p>\n" if line else "")
    + _table(columns, rows, numbers=results)
    + '\n<p class="note">Mean ± standard error over seeds. Training FLOPs are'
    " those of one seed up to its newest checkpoint, beside the same steps"
    " without masks; STEP is taken to switch as late as it can.</p>"
  )


def _configurations_table(
  runs: Sequence[History], points: Sequence[ParetoPoint]
) -> str:
  """Each configuration with its speed-up on every engine."""
  fields = varying_fields(runs)
  number_of = {run.label: number for number, run in enumerate(runs)}
  engines = list(dict.fromkeys(point.engine for point in points))
  columns = (
    "recipe", "pattern", *fields, "seeds", "test accuracy, %",
    *(f"speed-up on {engine}" for engine in engines), "runs",
  )  # fmt: skip
  rows = []
  for point in points:
    if point.engine != engines[0]:
      continue
    first = number_of[point.runs[0]]
    gains = [times(p.speedup) for p in points if p.runs == point.runs]
    rows.append(
      (
        point.recipe, point.pattern,
        *(values[first] for values in fields.values()),
        len(point.accuracies), percent(point.accuracies), *gains,
        ", ".join(point.runs),
      )
    )  # fmt: skip
  start = 2 + len(fields)
  numbers = set(range(start, start + 2 + len(engines)))
  return (
    _table(columns, rows, numbers=numbers)
    + '\n<p class="note">Speed-ups are modelled: over the fastest dense array'
    " of as many multipliers and as wide an input port.</p>"
  )


def _differences_section(runs: Sequence[History]) -> str:
  """Differences of all configurations to the baseline, paired by seed."""
  base, differences, order = paired_differences(runs)
  if not differences:
    return ""
  fields = varying_fields(runs)
  number_of = {run.label: number for number, run in enumerate(runs)}
  columns = (
    "recipe", "pattern", *fields, "pairs", "Δ loss, nats [95 %]", "p",
    "Δ accuracy, points [95 %]", "p", "runs",
  )  # fmt: skip
  rows = [
    (
      each.runs[0].recipe, _facts(each.runs[0])["pattern"],
      *(values[number_of[each.runs[0].label]] for values in fields.values()),
      len(each.pairs["loss"].seeds),
      *(
        text
        for metric in METRICS
        for text in (
          difference_text(each.pairs[metric]), each.p.get(metric, "–")
        )
      ),
      ", ".join(run.label for run in each.runs),
    )
    for each in differences
  ]  # fmt: skip
  start = 2 + len(fields)
  names = ", ".join(run.label for run in base)
  note = (
    f"Differences to {names}, seed by seed: a seed gives both runs the same"
    " initial weights. Intervals are Student's over seeds, and p is corrected"
    f" by Holm's method over the rows. data.order = {order}"
    + (", so the order of the data is left out of them." if order == "shared"
       else ".")
  )  # fmt: skip
  if not any(each.p for each in differences):
    note += (
      " An interval needs two seeds that both have; train with"
      " --config.seeds=4."
    )
  return (
    "<h3>Paired differences</h3>\n"
    + _table(columns, rows, numbers=set(range(start, start + 5)))
    + f'\n<p class="note">{escape(note)}</p>'
  )


def flops_text(count: int) -> str:
  """A number of FLOPs with three digits and a unit.

  >>> flops_text(41_250_000_000_000), flops_text(999)
  ('41.2 T', '999')
  """
  value, units = float(count), iter("kMGTPEZ")
  unit = ""
  while value >= 999.5:
    value, unit = value / 1000, f" {next(units)}"
  return f"{value:.3g}{unit}"


def differing_fields(runs: Sequence[History]) -> list[tuple[Any, ...]]:
  """Each field of the configuration in which runs differ, and its values.

  A value that is text is quoted; "–" stands for a field that a run lacks.

  Args:
    runs: Runs from `histories`.

  >>> from pathlib import Path
  >>> configs = {"a": {"recipe": {"k": 4}}, "b": {"recipe": {"beta": 0.1}}}
  >>> runs = [History(Path(), label, {**config, "seed": 0}, [])
  ...         for label, config in configs.items()]
  >>> differing_fields(runs)
  [('recipe.beta', '–', '0.1'), ('recipe.k', '4', '–')]
  """
  flat = [schema.flat(run.config) for run in runs]
  return [
    (name, *(value_text(each, name) for each in flat))
    for name in differing(flat)
  ]


def _facts(run: History) -> dict[str, str]:
  """Model, data set, recipe, pattern and seeds of a run."""
  config = run.config
  first, count = config["seed"], max(config["seeds"], 1)
  listed = f"{first} to {first + count - 1}"
  return {
    "model": f"{config['family']} {config['variant']}",
    "data set": config["data"]["name"],
    "recipe": run.recipe,
    "pattern": "dense" if run.recipe == "dense" else str(config["pattern"]),
    "seeds": f"{count} ({listed})" if count > 1 else str(first),
  }


def _section(
  run: History, engines: Sequence[str], order: Sequence[str], level: int
) -> str:
  """One run, under headings of a level; `order` gives the colours."""

  def heading(title: str) -> str:
    return f"<h{level}>{title}</h{level}>"

  _, _, step = run.restored
  label, leaves = run.label, nn.masked_leaves(run.model)
  weights = [finish(state)[0] for state in run.states]
  report = engine.report(run.batch_layers, list(engines), baseline="dense")
  parts = [
    _table(("field", "value"), _facts(run).items()),
    f'<p class="note">Step {step:,} of'
    f" {run.config['total_steps']:,}. All numbers are those of the finished"
    " model: pruned entries are exact zeros.</p>",
    heading("Results"),
    _table(
      ("measure", "value"),
      _results(run, storage(weights[0], leaves), report),
      numbers={1},
    ),
    heading("Curves"),
    _plot(f"training of {label}", lambda: plots.plot_training([run], order)),
  ]
  if leaves:
    parts += [
      _plot(f"mask changes of {label}", lambda: plots.plot_mask_changes([run])),
      '<p class="note">Mask changes are those of single measured steps. What'
      " changes between them, such as a refresh of RigL's or SET's masks, is"
      " seen only in the plot of the masks.</p>",
      _plot(
        f"gradient variance of {label}",
        lambda: plots.plot_gradient_variance([run]),
      ),
      heading("Masks"),
      _plot(
        f"masks of {label}",
        lambda: plots.plot_masks(mask_evolution(run), label),
      ),
      heading("Exactness of each layer"),
      _exactness(exactness(weights, leaves)),
    ]
  parts += [
    heading("Engines"),
    _table(_ENGINE_COLUMNS, _engines(report), numbers=set(range(2, 7))),
    f'<p class="note">{escape(report.caption)} A pass is of'
    f" {run.config['batch_size']} images or sequences.</p>",
    _plot(f"rooflines of {label}", lambda: roofline(report, label)),
    heading("Reproduce"),
    f"<pre>{escape(command(run))}</pre>",
    '<p class="note">The workdir holds the file; its content is below.</p>',
    _table(("trained with", "version"), run.versions.items()),
    "<details><summary>Configuration</summary>",
    f"<pre>{escape(json.dumps(run.config, indent=2, sort_keys=True))}</pre>",
    "</details>",
  ]
  return "\n".join(parts)


def command(run: History) -> str:
  """The shell command that trains the run again."""
  model_file = run.config["model_file"]
  if model_file.startswith(f"{PYTHON}:"):  # of a notebook, which has no file
    model_file = ""
  values = {
    "config": f"launch/again.py:{run.path / 'config.json'}",
    "recipe_file": run.config["recipe_file"],
    "model_file": model_file,
    "workdir": f"{run.path}-again",
  }
  flags = [f"--{k} {shlex.quote(v)}" for k, v in values.items() if v]
  return "python launch/train.py " + " \\\n  ".join(flags)


def percent(values: Sequence[float]) -> str:
  """Mean ± standard error of shares, in %.

  >>> percent([0.9, 0.92]), percent([0.9])
  ('91.00 ± 1.00', '90.00')
  """
  mean, error = seeds.mean_and_se(values)
  spread = "" if math.isnan(error) else f" ± {100 * error:.2f}"
  return f"{100 * mean:.2f}{spread}"


def exactness(weights: Sequence[Any], leaves: Any) -> list[tuple[str, ...]]:
  """Shape and pattern of masked kernels, and whether all seeds are exactly N:M.

  Args:
    weights: Finished parameters, one tree per seed.
    leaves: Masked kernels by path.
  """
  checks = [exact_nm(params, leaves) for params in weights]
  return [
    (
      path,
      " × ".join(map(str, leaf.shape)),
      str(leaf.pattern),
      "yes" if all(check[path] for check in checks) else "NO",
    )
    for path, leaf in leaves.items()
  ]


def _exactness(rows: Sequence[tuple[str, ...]]) -> str:
  """The table, folded under how many kernels are exactly N:M."""
  good = sum(row[-1] == "yes" for row in rows)
  attribute = "" if good == len(rows) else ' class="bad"'
  return "\n".join(
    [
      f"<details><summary{attribute}>{good} of {len(rows)} kernels are exactly"
      " N:M in all seeds</summary>",
      _table(("kernel", "shape", "pattern", "exactly N:M"), rows),
      "</details>",
    ]
  )


def _results(
  run: History, stored: dict[str, Any], report: Any
) -> list[tuple[str, str]]:
  accuracies = run.accuracies
  layers = engine.Layers.of(run.layers)
  flops = float(engine.flops(layers).sum())
  dense = float(engine.flops(layers.dense()).sum())
  training = training_flops(run)
  rows = [
    ("evaluated at step", f"{run.last_evaluation['step']:,}"),
    ("test accuracy, %", percent(accuracies)),
  ]
  if len(accuracies) > 1:
    each = ", ".join(f"{100 * value:.2f}" for value in accuracies)
    rows.append((f"each of {len(accuracies)} seeds, %", each))
  rows += [
    *_other_measures(run),
    ("zeros in masked kernels, %", f"{100 * stored['sparsity']:.2f}"),
    (
      "zeros in all parameters, %",
      f"{100 * stored['sparsity_all_parameters']:.2f}",
    ),
    ("parameters", f"{stored['parameters']:,}"),
    ("bytes, packed", f"{stored['bytes_packed']:,}"),
    ("bytes, dense", f"{stored['bytes_dense']:,}"),
    ("FLOPs of a forward pass of one image or sequence", f"{flops:,.0f}"),
    ("the same, share of dense", f"{flops / dense:.3f}"),
    ("training FLOPs of a seed", flops_text(training.total)),
    ("the same, share of dense", f"{training.share:.3f}"),
    *(
      (f"modelled speed-up on {total.engine}", times(total.speedup))
      for total in report.totals
    ),
  ]
  return rows


def _other_measures(run: History) -> list[tuple[str, str]]:
  """The measures of the last evaluation but accuracy, mean ± standard error."""
  row = run.last_evaluation
  rows = []
  for name, value in row.items():
    prefix, _, measure = name.partition("/")
    is_mean = "/" not in measure and not measure.endswith("_se")
    if prefix == "eval" and is_mean and measure != "accuracy":
      error = row.get(f"{name}_se", math.nan)
      spread = "" if math.isnan(error) else f" ± {error:.4g}"
      rows.append((f"test {measure}".replace("_", " "), f"{value:.4g}{spread}"))
  return rows


def _engines(report: Any) -> list[tuple[str, ...]]:
  return [
    (
      total.engine, total.pattern, times(total.speedup),
      f"{total.cycles:,} {total.unit}", f"{total.utilisation:.3f}",
      "n/a" if total.energy_pj is None else f"{total.energy_pj / 1000:,.1f}",
      f"{total.dram_bytes:,}",
    )
    for total in report.totals
  ]  # fmt: skip


def _table(
  columns: Sequence[str],
  rows: Iterable[Sequence[Any]],
  numbers: Collection[int] = (),
) -> str:
  """A table; `numbers` has the indices of its numeric columns."""

  def line(tag: str, cells: Iterable[Any]) -> str:
    out = []
    for column, cell in enumerate(cells):
      classes = ["number"] if column in numbers else []
      classes += ["bad"] if cell == "NO" else []
      attribute = f' class="{" ".join(classes)}"' if classes else ""
      out.append(f"<{tag}{attribute}>{escape(str(cell))}</{tag}>")
    return f"<tr>{''.join(out)}</tr>"

  lines = [line("th", columns), *(line("td", row) for row in rows)]
  return "<table>\n" + "\n".join(lines) + "\n</table>"


def _plot(name: str, draw: Callable[[], Any]) -> str:
  """A figure, or the reason why there is none."""
  figure_type()  # raises if matplotlib is not installed
  try:
    figure = draw()
  except ValueError as error:
    return f'<p class="note">No plot of {escape(f"{name}: {error}")}</p>'
  data = base64.b64encode(plot_style.image_bytes(figure, "svg")).decode()
  return (
    f'<p><img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}"></p>'
  )
