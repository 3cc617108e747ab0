"""Serves one nested N:M model under deadlines, beside a model for each pattern.

  python launch/serve.py --workdir RUN --engines figs:32x32:dram_bw=16
    --buffer 256KiB --arrivals poisson:200 --slo "latency<=5ms" --out serving/
  python launch/serve.py --model vit:Ti/16 --pattern "ff: 1:8"
    --accuracies 1:8=.86,2:8=.87,4:8=.88,8:8=.885 --arrivals poisson:400
    --slo "latency<=5ms,accuracy>=.87" --policy queue,accuracy,sushi:every=64
  python launch/serve.py --layers layers.csv --accuracies accuracies.json
    --trace queries.csv --order edf --out serving/

Everything is modelled: the latency of a query is that of its products on the
engine, and queries are simulated. All policies and models see the same
arrivals. Standard output holds the tables; --out gets them as CSV and JSON, and
pictures.
"""

import io
import json
import logging
import math
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from absl import flags

# The closed forms are small: no accelerator is taken for them unasked.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of a run, best of the recipe nested."
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model by name, as in vit:Ti/16; needs --accuracies."
)
_LAYERS = flags.DEFINE_string(
  "layers",
  None,
  "CSV file of the layers of one query, as for launch/engine.py; needs"
  " --accuracies.",
)
_PATTERN = flags.DEFINE_string(
  "pattern",
  None,
  'Rules that say which layers of --model or --layers are sparse, as in "ff:'
  ' 1:8"; all weights by default. Their n:m are those of --accuracies.',
)
_ACCURACIES = flags.DEFINE_string(
  "accuracies",
  None,
  "Accuracy of the nested model at each n:m, the sparsest first, as in"
  " 1:8=.86,2:8=.87,8:8=.89, or a JSON file of launch/evaluate.py. Defaults to"
  " those of --workdir on its test split.",
)
_FIXED_ACCURACIES = flags.DEFINE_string(
  "fixed_accuracies",
  None,
  "Accuracies of a model of its own for each n:m; those of the nested model by"
  " default.",
)
_ENGINES = flags.DEFINE_string(
  "engines",
  "figs:32x32:dram_bw=16",
  "Specs, separated by commas; launch/engine.py --help explains them.",
)
_ENGINE_FILE = cli.define_user_file("engine")
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_BATCH = flags.DEFINE_integer(
  "batch", 1, "Images or sequences of a query.", lower_bound=1
)
_BUFFER = flags.DEFINE_string(
  "buffer",
  "0",
  "Persistent buffer for weights on chip, as in 256KiB, 2MB or 4096 bytes.",
)
_SAVE = flags.DEFINE_enum(
  "save",
  "bytes",
  ["bytes", "latency"],
  "What the cached part of the model is chosen to save.",
)
_DTYPE = flags.DEFINE_string(
  "dtype", None, "Data type of the operands, as for launch/engine.py."
)
_ARRIVALS = flags.DEFINE_string(
  "arrivals", None, "poisson:RATE, queries per second; 200 by default."
)
_TRACE = flags.DEFINE_string(
  "trace",
  None,
  "CSV file of queries with the column arrival, in seconds, and optionally"
  " latency (s) and accuracy.",
)
_QUERIES = flags.DEFINE_integer(
  "queries", 10_000, "Queries of each seed of --arrivals.", lower_bound=1
)
_SEEDS = flags.DEFINE_integer(
  "seeds", 5, "Number of seeds of --arrivals.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "First seed.", lower_bound=0)
_LOADS = flags.DEFINE_string(
  "loads",
  "0.25,0.5,1,2,4",
  "Factors by which queries arrive faster, for the tables and pictures over"
  " load.",
)
_SLO = flags.DEFINE_string(
  "slo",
  "latency<=5ms",
  "What queries ask for: latency<=TIME, accuracy>=SHARE, or both with a comma.",
)
_POLICY = flags.DEFINE_string(
  "policy",
  "queue,latency,accuracy,sushi",
  "Policies of the nested model, separated by commas; explained below.",
)
_ORDER = flags.DEFINE_enum(
  "order",
  "fifo",
  ["fifo", "edf"],
  "Order of the queue: of arrival, or the earliest deadline first.",
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "csv", "json", "md"], "What is printed."
)
_OUT = flags.DEFINE_string("out", None, "Directory for tables and pictures.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files of --out.")

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_CAPTION = (
  "Modelled, not measured: products alone, one engine, {} queries of {} seed{},"
  " order {}; ± is half a 95 % interval of the mean over seeds. accuracy is of"
  " all answers; timely_accuracy counts late ones as wrong."
)
_SHOWN = (
  "missed", "accuracy", "timely_accuracy", "mean_ms", "p99_ms", "dram_mb",
  "energy_uj", "changes",
)  # fmt: skip


def main() -> None:
  cli.quiet()
  _check_flags()
  cli.run_user_file(_ENGINE_FILE)
  cli.run_user_file(_RECIPE_FILE)
  cli.run_model_files(_MODEL_FILE)
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.engine import parse
  from figs_jax.engine.serving.comparison import compare
  from figs_jax.engine.serving.policies import Policy
  from figs_jax.engine.serving.schedulers import earliest_deadline
  from figs_jax.engine.serving.service_tables import contenders

  compilation_cache.enable()
  try:
    engines = [parse(spec) for spec in _ENGINES.value.split(",")]
    policies = [Policy.parse(text) for text in _POLICY.value.split(",")]
    buffer = _bytes(_BUFFER.value)
    loads = _loads(_LOADS.value)
    streams = _streams()
    accuracies = _read_accuracies(_ACCURACIES)
    fixed = _read_accuracies(_FIXED_ACCURACIES)
    files = _files(engines)
    layers = _layers()
    accuracies = accuracies or _evaluated()
    order = earliest_deadline if _ORDER.value == "edf" else None
    results = {}
    for engine in engines:
      entries = contenders(
        layers,
        engine,
        accuracies,
        policies,
        buffer,
        _SAVE.value,
        fixed,
        dtype=_DTYPE.value,
      )
      results[str(engine)] = compare(entries, streams, loads, order)
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  caption = _CAPTION.format(
    f"{len(streams[0]):,}",
    len(streams),
    "s" * (len(streams) > 1),
    _ORDER.value,
  )
  cli.emit(f"{_text(results, caption, _FORMAT.value)}\n".encode())
  if _FORMAT.value == "csv":
    logging.getLogger("figs_jax").info(caption)
  if files:
    _write(files, results, caption, engines, layers, accuracies)


def _check_flags() -> None:
  given = [x for x in (_WORKDIR, _MODEL, _LAYERS) if x.value is not None]
  if len(given) != 1:
    got = " and ".join(f"--{x.name}" for x in given) or "none of them"
    cli.fail(f"give one of --workdir, --model and --layers, not {got}")
  for flag in (*given, _PATTERN, _TRACE, _OUT, _ACCURACIES, _FIXED_ACCURACIES):
    if flag.value is not None and not flag.value.strip():
      cli.fail(f"--{flag.name} is empty; give it a value or leave it out")
  if _ACCURACIES.value is None and not _WORKDIR.value:
    cli.fail(
      f"--{given[0].name} has no accuracies; give --accuracies, as in"
      " 1:8=.86,2:8=.87,8:8=.89"
    )
  if _PATTERN.value is not None and _WORKDIR.value:
    cli.fail("--pattern is of --model or --layers; a run has its own rules")
  if _BATCH.value != 1 and _LAYERS.value:
    cli.fail("the batch is part of M in a table: --batch is of --model")
  if _TRACE.value and _ARRIVALS.value:
    cli.fail("give one of --arrivals and --trace")


def _bytes(text: str) -> int:
  match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
  unit = match and _SIZES.get(match[2].lower())
  if not match or unit is None:
    raise ValueError(
      f"--buffer {text!r}: expected bytes, as in 256KiB, 2MB or 4096"
    )
  size = Fraction(match[1]) * unit
  if size >= 2**53:
    raise ValueError(f"--buffer {text!r}: expected less than 2^53 bytes")
  return math.floor(size)


def _loads(text: str) -> list[float]:
  try:
    loads = [float(part) for part in text.split(",")]
  except ValueError:
    loads = []
  if not loads or not all(0 < load < math.inf for load in loads):
    raise ValueError(
      f"--loads {text!r}: expected positive factors, as in 0.5,1,2"
    )
  return sorted({*loads})


def _streams() -> list[Any]:
  """The queries of each seed, or of the trace."""
  from figs_jax.engine.serving.queries import Promise, poisson, read_trace

  promise = Promise.parse(_SLO.value)
  if _TRACE.value:
    return [read_trace(_TRACE.value, promise)]
  text = _ARRIVALS.value or "poisson:200"
  kind, _, rate = text.partition(":")
  try:
    per_second = float(rate)
  except ValueError:
    per_second = math.nan
  if kind != "poisson" or not 0 < per_second < math.inf:
    raise ValueError(
      f"--arrivals {text!r}: expected poisson:RATE with queries per second, as"
      " in poisson:200; --trace reads a file"
    )
  seeds = range(_SEED.value, _SEED.value + _SEEDS.value)
  return [poisson(per_second, _QUERIES.value, promise, seed) for seed in seeds]


def _read_accuracies(flag: Any) -> dict[str, float] | None:
  """Pattern -> accuracy of a flag, a list of pairs or a JSON file."""
  if flag.value is None:
    return None
  pairs = [part.partition("=")[::2] for part in flag.value.split(",")]
  if flag.value.endswith(".json"):
    where = f"--{flag.name} {flag.value}"
    try:
      held = json.loads(Path(flag.value).read_text())
    except OSError as error:
      raise ValueError(f"{where}: {error.strerror}") from error
    except ValueError as error:
      raise ValueError(f"{where}: expected JSON ({error})") from error
    if isinstance(held, dict):
      held = held.get("points", held)
    if not isinstance(held, dict) or not held:
      raise ValueError(f"{where}: expected n:m -> accuracy, got {held!r:.60}")
    pairs = [
      (name, x.get("accuracy") if isinstance(x, dict) else x)
      for name, x in held.items()
    ]
  accuracies = {}
  for name, text in pairs:
    try:
      value = float(str(text))
    except ValueError:
      value = math.nan
    name = name.strip()
    if not 0 <= value <= 1 or name in accuracies:
      raise ValueError(
        f"--{flag.name}: expected each n:m once with an accuracy from 0 to 1,"
        f" as in 1:8=.86,2:8=.87, got {name}={text}"
      )
    accuracies[name] = value
  return accuracies


def _layers() -> Any:
  """The products of a query."""
  from figs_jax.cli import workloads

  if _LAYERS.value:
    tables = workloads.from_file(_LAYERS.value, _PATTERN.value)
  elif _MODEL.value:
    tables = workloads.from_model(_MODEL.value, [_BATCH.value], _PATTERN.value)
  else:
    tables = workloads.from_run(str(_WORKDIR.value), [_BATCH.value])
  (table,) = tables.values()
  return table


def _evaluated() -> dict[str, float]:
  """Accuracies of the points of --workdir on its test split."""
  from figs_jax.train import evaluate

  points = evaluate(str(_WORKDIR.value)).get("points")
  if not points:
    raise ValueError(
      f"--workdir {_WORKDIR.value}: expected a run of the recipe nested, which"
      " has an accuracy at each n:m; give --accuracies"
    )
  return {name: float(x["accuracy"]) for name, x in points.items()}


def _files(engines: list[Any]) -> dict[str, Path]:
  """Name -> path of all that is written, checked before the work."""
  if _OUT.value is None:
    return {}
  out = Path(_OUT.value)
  names = ["serving.csv", "serving.json"]
  kinds = ("latency_cdf", "served_accuracy", "misses", "frontier", "buffer")
  for i, _ in enumerate(engines):
    suffix = f"-{i + 1}" if len(engines) > 1 else ""
    names += [f"{kind}{suffix}.png" for kind in kinds]
  from figs_jax.engine.figures import figure_type

  figure_type()  # fails early without matplotlib
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    cli.fail(f"--out {out}: {error.strerror}; name another directory")
  paths = {name: out / name for name in names}
  for path in paths.values():
    cli.check_output(str(path), overwrite=_OVERWRITE.value)
  return paths


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
  return [
    {"engine": engine} | row
    for engine, comparison in results.items()
    for row in comparison.rows()
  ]


def _text(results: dict[str, Any], caption: str, fmt: str) -> str:
  from figs_jax.engine.reports.text import csv_text, markdown, text_table

  rows = _rows(results)
  if fmt == "csv":
    return csv_text(list(rows[0]), [list(row.values()) for row in rows])
  if fmt == "json":
    # JSON has no NaN: a single seed has no interval.
    plain = [{k: None if x != x else x for k, x in row.items()} for row in rows]
    return json.dumps({"caption": caption, "rows": plain}, indent=1)
  draw = markdown if fmt == "md" else text_table
  parts = [caption]
  for engine, comparison in results.items():
    base = comparison.base
    body = [
      [name, *(_interval(comparison, x, i, base) for x in _SHOWN)]
      for i, name in enumerate(comparison.names)
    ]
    rate = f"{comparison.rates[base]:.4g} queries per second"
    parts += [f"{engine}, {rate}", draw(["", *_SHOWN], body)]
    header = [f"{rate:.4g}/s" for rate in comparison.rates]
    body = [
      [
        name,
        *(_interval(comparison, "missed", i, j) for j in range(len(header))),
      ]
      for i, name in enumerate(comparison.names)
    ]
    parts += [f"{engine}, missed by load", draw(["", *header], body)]
  return "\n\n".join(parts)


def _interval(comparison: Any, metric: str, i: int, j: int) -> str:
  mean = comparison.mean(metric)[i, j]
  half = comparison.half_width(metric)[i, j]
  if metric == "changes":
    return f"{mean:.0f}"
  digits = 4 if mean < 10 else 2 if mean < 1000 else 0
  spread = "" if half != half else f" ±{half:.{digits}f}"
  return f"{mean:.{digits}f}{spread}"


def _write(files, results, caption, engines, layers, accuracies) -> None:
  from figs_jax.engine.serving import plots
  from figs_jax.engine.serving.subgraph import nested_model

  contents = {
    f"serving.{fmt}": f"{_text(results, caption, fmt)}\n".encode()
    for fmt in ("csv", "json")
  }
  for i, (engine, comparison) in enumerate(zip(engines, results.values())):
    suffix = f"-{i + 1}" if len(engines) > 1 else ""
    model = nested_model(layers, engine, list(accuracies), dtype=_DTYPE.value)
    figures = {
      "latency_cdf": plots.latency_cdf(comparison),
      "served_accuracy": plots.served_accuracy(comparison),
      "misses": plots.misses(comparison),
      "frontier": plots.frontier(comparison),
      "buffer": plots.buffer_savings(model),
    }
    for kind, figure in figures.items():
      out = io.BytesIO()
      figure.savefig(out, format="png")
      contents[f"{kind}{suffix}.png"] = out.getvalue()
  for name, path in files.items():
    cli.write_output(str(path), contents[name], overwrite=_OVERWRITE.value)
  logging.getLogger("figs_jax").info("%s files in %s", len(files), _OUT.value)


def policies_help() -> str:
  from figs_jax.engine.serving import policies

  return f"POLICIES\n{policies.__doc__}"


if __name__ == "__main__":
  cli.run(main, more_help=policies_help)
