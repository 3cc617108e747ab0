"""What layers cost on engines: modelled cycles, speed-up, energy, traffic.

  python launch/engine.py --layers FILE.csv --engines ws:32x32,figs --format csv
  python launch/engine.py --model vit:B/16 --batch 8 --pattern "ff: 1:8"
  python launch/engine.py --workdir RUN --baseline ws:32x16:sparse=false
  python launch/engine.py --model vit:B/16 --pattern "ff: 1:2" --engines figs,ws
    --sweep "pattern=1:2,1:4,...,1:128; rows=32,64" --format png --out a.png

Standard output holds the table and nothing else.
"""

import io
import logging
import os
from pathlib import Path
from typing import Any

from absl import flags

# The closed forms are small: no accelerator is taken for them unasked.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_LAYERS = flags.DEFINE_string(
  "layers",
  None,
  "CSV file of layers: columns name,M,N,K and, if wanted, pattern and count; or"
  " a SCALE-Sim topology of products or of convolutions.",
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model by name, as in vit:B/16 or vit:L/16:image_size=384."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run.")
_BATCH = flags.DEFINE_integer(
  "batch",
  None,
  "Images per pass, of --model and --workdir; 1 by default.",
  lower_bound=1,
  upper_bound=10**9 - 1,
)
_PATTERN = flags.DEFINE_string(
  "pattern",
  None,
  'Rules of a model, as in "ff: 1:8". Of a table, rules over the names of its'
  " layers, or one n:m, which its sparse layers take (all, if none is). Of a"
  " run, one n:m in place of the trained pattern.",
)
_ENGINES = flags.DEFINE_string(
  "engines", "ws:32x16,vegeta-s-16-2,figs", "Specs, separated by commas."
)
_SWEEP = flags.DEFINE_multi_string(
  "sweep",
  [],
  "Axes, as in pattern=1:2,1:4,...,1:128; several by ; or by repeating the"
  " flag. An axis is pattern (of the sparse layers; of all in a table without"
  " any), batch, or a field of the engines.",
)
_BASELINE = flags.DEFINE_string(
  "baseline",
  None,
  "Engine that speed-ups are over, on the same layers and patterns; by default"
  " each engine itself, running the layers dense.",
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "csv", "json", "md", "png"], "What is printed."
)
_PLOT = flags.DEFINE_enum(
  "plot",
  None,
  ["speedup", "roofline", "breakdown"],
  "Picture of --format png; by default speedup if patterns are swept, else"
  " breakdown.",
)
_OUT = flags.DEFINE_string(
  "out", None, "File to write in place of standard output."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out.")
_ITEMSIZE = flags.DEFINE_integer(
  "itemsize", 2, "Bytes per value.", lower_bound=1, upper_bound=64
)
_ENERGY = flags.DEFINE_string(
  "energy",
  None,
  "Picojoules: a type (int8, float16, bfloat16, float32), operations (mult=1.1,"
  "add=0.9,sram_byte=1.25,dram_byte=160), or both.",
)
_STEP = flags.DEFINE_integer(
  "step", None, "Step of --workdir; the newest good one by default."
)
_SEED = flags.DEFINE_integer(
  "seed", None, "Of a --workdir with seeds, the place of one; 0 by default."
)
_RECIPE_FILE = cli.define_user_file("recipe")


def main() -> None:
  cli.quiet()
  _check_flags()
  from figs_jax.engine import Energy, parse
  from figs_jax.engine.sweeps.text import read_axes, swept

  try:
    axes = read_axes(_SWEEP.value)
    engines = [parse(spec) for spec in _ENGINES.value.split(",")]
    tables = _tables(axes.pop("batch", None), "pattern" in axes)
    made = swept(
      tables,
      engines,
      axes,
      "csv" if _FORMAT.value == "png" else _FORMAT.value,
      baseline=_BASELINE.value,
      itemsize=_ITEMSIZE.value,
      energy=Energy.parse(_ENERGY.value) if _ENERGY.value else Energy(),
    )
    is_picture = _FORMAT.value == "png"
    data = _picture(made, axes) if is_picture else f"{made}\n".encode()
  except ValueError as error:
    cli.fail(str(error))
  if _OUT.value:
    cli.write_output(_OUT.value, data, overwrite=_OVERWRITE.value)
  else:
    cli.emit(data)
  if _FORMAT.value in ("csv", "png"):
    logging.getLogger("figs_jax").info(made.caption)


def _check_flags() -> None:
  for flag in (_ENERGY, _OUT, _RECIPE_FILE):
    if flag.value == "":
      cli.fail(f"--{flag.name} is empty; give it a value or leave it out")
  if not all(text.strip(" ;") for text in _SWEEP.value):
    cli.fail("--sweep is empty; give it an axis, as in rows=8,16")
  given = [
    f"--{flag.name}" for flag in (_LAYERS, _MODEL, _WORKDIR) if flag.value
  ]
  if len(given) != 1:
    got = " and ".join(given) or "none of them"
    cli.fail(f"give one of --layers, --model and --workdir, not {got}")
  for flag in (_STEP, _SEED, _RECIPE_FILE):
    if flag.value is not None and not _WORKDIR.value:
      cli.fail(f"--{flag.name} is of --workdir; leave it out")
  if _PLOT.value and _FORMAT.value != "png":
    cli.fail("--plot is of --format png; add it")
  if _FORMAT.value == "png" and not _OUT.value:
    cli.fail("--format png: add --out FILE.png")
  if not _OUT.value:
    return
  cli.check_output(_OUT.value, overwrite=_OVERWRITE.value)
  source = _LAYERS.value
  if source and Path(source).resolve() == Path(_OUT.value).resolve():
    cli.fail(f"--out {_OUT.value} is the table of --layers; name another")


def _tables(batches: Any, sweeps_pattern: bool) -> Any:
  """label -> layers, of the source that was given."""
  from figs_jax.cli import workloads

  if _LAYERS.value:
    if batches or _BATCH.value:
      cli.fail("the batch is part of M in a table: --batch is of --model")
    return workloads.from_file(_LAYERS.value, _PATTERN.value)
  if batches and _BATCH.value:
    cli.fail("--batch and --sweep batch=: give one of them")
  sizes = [_whole(text) for text in batches or [str(_BATCH.value or 1)]]
  if _MODEL.value:
    tables = workloads.from_model(_MODEL.value, sizes, _PATTERN.value)
  else:
    cli.run_user_file(_RECIPE_FILE)
    tables = workloads.from_run(
      str(_WORKDIR.value),
      sizes,
      _PATTERN.value,
      step=_STEP.value,
      seed=_SEED.value,
    )
  if sweeps_pattern:
    for label, table in tables.items():
      workloads.require_sparse(table, label)
  return tables


def _whole(text: str) -> int:
  if not (text.isdecimal() and len(text) < 10 and int(text)):
    cli.fail(f"batch {text!r}: give a whole number from 1 to {10**9 - 1}")
  return int(text)


def _picture(made: Any, axes: Any) -> bytes:
  from figs_jax.engine.plots import PLOTS

  kind = _PLOT.value or ("speedup" if "pattern" in axes else "breakdown")
  out = io.BytesIO()
  PLOTS[kind](made).savefig(out, format="png")
  return out.getvalue()


def grammar() -> str:
  from figs_jax.engine import spec_text as specs
  from figs_jax.engine.sweeps import text as axes

  return f"ENGINES\n{specs.__doc__}\nSWEEPS\n{axes.__doc__}"


if __name__ == "__main__":
  cli.run(main, more_help=grammar)
