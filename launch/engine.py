"""What layers cost on engines: modelled cycles, speed-up, energy, traffic.

  python launch/engine.py --layers FILE.csv --engines ws:32x32,figs --format csv
  python launch/engine.py --model vit:B/16 --batch 8 --pattern "ff: 1:8"
    --layers_out layers.csv
  python launch/engine.py --workdir RUN --baseline ws:32x16:sparse=false
  python launch/engine.py --model vit:B/16 --weights PRUNED.safetensors --cover
  python launch/engine.py --model vit:B/16 --pattern "ff: 1:2" --engines figs,ws
    --sweep "pattern=1:2,1:4,...,1:128; rows=32,64" --format png --out a.png
  python launch/engine.py --model vit:B/16 --pattern "ff: 1:2" --engines ws
    --sweep "rows=1,2,...,1000; cols=1,2,...,1000" --pareto time_ns,area_mm2
  python launch/engine.py --model llama:8b --phase decode --context 4096
    --batch 8 --pattern "ff: 2:4" --engines tensorcore:h100,tpu:v5e
  python launch/engine.py --model bert:base --batch 64 --engines tpu:v5e
    --sweep "seq=512,1024,2048,...,65536; fuse=none,flat; buffer=33554432"

Standard output holds the table and nothing else.
"""

import dataclasses
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
  "CSV file of layers with columns name,M,N,K and optionally pattern and count;"
  " or a SCALE-Sim topology of products or convolutions.",
)
_MODEL = flags.DEFINE_string(
  "model", None, "Model by name, as in vit:B/16 or vit:L/16:image_size=384."
)
_WEIGHTS = flags.DEFINE_string(
  "weights",
  None,
  "Weights of --model: a .safetensors file, a directory with one, or an .npz of"
  " big_vision. Their zeros are masks, beside those of --pattern.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a training run.")
_BATCH = flags.DEFINE_integer(
  "batch",
  None,
  "Images per pass of --model or --workdir; 1 by default.",
  lower_bound=1,
  upper_bound=10**9 - 1,
)
_SEQ = flags.DEFINE_integer(
  "seq",
  None,
  "Tokens of a sequence of --model: of a ViT with its class token, of T5's"
  " inputs; by default the model's own.",
  lower_bound=1,
  upper_bound=2**31 - 1,
)
_PHASE = flags.DEFINE_enum(
  "phase",
  None,
  ["prefill", "decode"],
  "Phase of a decoder (gpt2, llama): all tokens of a prompt, or one token of"
  " each sequence; by default whole sequences with all their logits.",
)
_CONTEXT = flags.DEFINE_integer(
  "context",
  None,
  "Tokens of the prompt with --phase prefill; with decode, those that the next"
  " token attends to, itself included; by default the longest of the model.",
  lower_bound=1,
  upper_bound=2**31 - 1,
)
_FUSE = flags.DEFINE_enum(
  "fuse",
  "none",
  ["none", "flat"],
  "How attention runs: none writes its logits to memory and reads them again;"
  " flat keeps them on chip (FLAT), in 32 MiB unless --sweep has buffer=.",
)
_PATTERN = flags.DEFINE_string(
  "pattern",
  None,
  'For --model, rules such as "ff: 1:8". For --layers, rules over the names of'
  " its layers, or one n:m for its sparse layers (for all, if none is sparse)."
  " For --workdir, one n:m in place of the trained pattern.",
)
_ENGINES = flags.DEFINE_string(
  "engines", "ws:32x16,vegeta-s-16-2,figs", "Specs, separated by commas."
)
_ENGINE_FILE = cli.define_user_file("engine")
_SWEEP = flags.DEFINE_multi_string(
  "sweep",
  [],
  "Axes, as in rows=8,16,...,256; several separated by ; or by repeating the"
  " flag. An axis is pattern (of the sparse layers; of all in a table without"
  " any), batch, seq, context, fuse, the buffer or sram_bw of fuse=flat, or a"
  " field of the engines.",
)
_PARETO = flags.DEFINE_string(
  "pareto",
  None,
  "Two quantities, as in time_ns,area_mm2: prints the points of the sweep that"
  " no other beats in both. --format png draws them over the others.",
)
_SMALLEST = flags.DEFINE_string(
  "smallest",
  None,
  "Quantity, as in cycles, -utilisation or rows*cols*cycles: prints the --top"
  " points of the sweep where it is smallest.",
)
_TOP = flags.DEFINE_integer(
  "top", None, "Points that --smallest prints; 1 by default.", lower_bound=1
)
_POINTS = flags.DEFINE_string(
  "points",
  None,
  "Columns, as in rows,cols,cycles, or all: writes them for every point of the"
  " sweep to --out FILE.csv or FILE.npz.",
)
_WHERE = flags.DEFINE_string(
  "where",
  None,
  "Conditions on the points of --pareto, --smallest or --points, as in"
  " 'rows*cols<=1024; utilisation>0.5'.",
)
_BASELINE = flags.DEFINE_string(
  "baseline",
  None,
  "Engine that speed-ups are over, on the same layers and patterns; or dense,"
  " the fastest dense array of as many multipliers and as wide an input port."
  " By default each engine itself, running the layers dense.",
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "csv", "json", "md", "png"], "What is printed."
)
_PLOT = flags.DEFINE_enum(
  "plot",
  None,
  ["speedup", "length", "roofline", "breakdown", "pareto"],
  "Picture of --format png; by default speedup if patterns are swept, length"
  " (speed-up over sequence length) if seq or context is, else breakdown."
  " pareto draws cycles against multipliers (with --area, area) and traffic.",
)
_OUT = flags.DEFINE_string(
  "out", None, "File to write in place of standard output."
)
_LAYERS_OUT = flags.DEFINE_string(
  "layers_out",
  None,
  "CSV file for every layer on every engine; a table has equal ones as one.",
)
flags.DEFINE_alias("layers-out", "layers_out")
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace --out and --layers_out."
)
_DTYPE = flags.DEFINE_string(
  "dtype",
  None,
  "Data type of the operands: float32, tf32, bf16, fp16, fp8, int8 or fp4. A"
  " chip runs at its own rate for it and refuses what it lacks; to an array it"
  " is the size of a value.",
)
_ITEMSIZE = flags.DEFINE_integer(
  "itemsize",
  None,
  "Bytes per value; those of --dtype by default, else 2. On a chip 4 stand for"
  " float32, 2 for bf16, and 1 for int8, or fp8 on chips without int8.",
  lower_bound=1,
  upper_bound=64,
)
_ENERGY = flags.DEFINE_string(
  "energy",
  None,
  "Picojoules: a type (int8, float16, bfloat16, float32), operations (mult=1.1,"
  "add=0.9,sram_byte=1.25,dram_byte=160), or both; by default"
  " those of --dtype.",
)
_AREA = flags.DEFINE_string(
  "area",
  None,
  "Square micrometres: a type (int8, float16, float32), parts (mult=1640,"
  "add=4184,register_bit=4.522,mux_bit=1.862,value_bits=16,sum_bits=32,scale=1),"
  " or both. Adds the area of each engine to a report, and sets the area_mm2 of"
  " a sweep; a reconstruction from counted parts.",
)
_COVER = flags.DEFINE_bool(
  "cover",
  False,
  "Print the density of each real mask of --workdir or --weights, the n:4 that"
  " its rows take on a VEGETA engine, and the speed-ups by row and by layer.",
)
_STEP = flags.DEFINE_integer(
  "step", None, "Step of --workdir; the newest good one by default."
)
_SEED = flags.DEFINE_integer(
  "seed", None, "Place of one seed of a --workdir with several; 0 by default."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of --workdir's data, if it was moved."
)
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_SELECTIONS = (_PARETO, _SMALLEST, _POINTS)
# Columns of --pareto and --smallest beside the axes and what was asked for.
_SHOWN = ("cycles", "utilisation", "energy_pj", "dram_bytes")
_AREA_NOTE = " Areas are reconstructed from counted parts, without wires."


def main() -> None:
  cli.quiet()
  _check_flags()
  cli.run_user_file(_ENGINE_FILE)
  cli.run_model_files(_MODEL_FILE)
  from figs_jax.engine import Area, Energy, parse
  from figs_jax.engine.sweeps.axes import WORKLOAD_AXES
  from figs_jax.engine.sweeps.text import read_axes

  log = logging.getLogger("figs_jax").info
  try:
    axes = read_axes(_SWEEP.value)
    engines = [parse(spec) for spec in _ENGINES.value.split(",")]
    lengths = {name: axes.pop(name, ()) for name in WORKLOAD_AXES}
    tables = _tables(lengths, "pattern" in axes)
    options: dict[str, Any] = {
      "itemsize": _ITEMSIZE.value,
      "dtype": _DTYPE.value,
    }
    if _ENERGY.value:
      options["energy"] = Energy.parse(_ENERGY.value)
    if _AREA.value:
      options["area"] = Area.parse(_AREA.value)
    chosen = any(flag.value is not None for flag in _SELECTIONS)
    make = _selected if chosen else _covered if _COVER.value else _reported
    data, caption, count = make(tables, engines, axes, options)
  except ValueError as error:
    cli.fail(str(error))
  if data and _OUT.value:
    cli.write_output(_OUT.value, data, overwrite=_OVERWRITE.value)
  elif data:
    cli.emit(data)
  if _SWEEP.value:
    sizes = lengths | axes
    each = ", ".join(f"{name} {len(x):,}" for name, x in sizes.items() if x)
    log(f"Swept {count:,} points ({each}; engines {len(engines)}).")
  if _FORMAT.value in ("csv", "png") or not data:
    log(caption)


def _reported(tables, engines, axes, options) -> tuple[bytes, str, int]:
  """The report of every layer on every design, its caption, and the designs."""
  from figs_jax.engine import report

  fmt = "csv" if _FORMAT.value == "png" else _FORMAT.value
  options |= {"axes": axes or None, "baseline": _BASELINE.value}
  options["fuse"] = _FUSE.value
  made = report(tables, engines, fmt, **options)
  if _LAYERS_OUT.value:
    cli.write_output(
      _LAYERS_OUT.value,
      f"{made.layers_csv}\n".encode(),
      overwrite=_OVERWRITE.value,
      flag=_LAYERS_OUT.name,
    )
  if _FORMAT.value == "png":
    return _picture(made, axes, tables), made.caption, len(made.totals)
  return f"{made}\n".encode(), made.caption, len(made.totals)


def _covered(tables, engines, axes, options) -> tuple[bytes, str, int]:
  """How the rows of the real masks are covered, and the speed-ups."""
  from figs_jax.engine.studies.row_cover import CAPTION, cover_text, row_covers

  del axes, options
  arrays = [each for each in engines if "granularity" in each.CHOICES]
  (table,) = tables.values()
  covers = {str(each): row_covers(table, each) for each in arrays or engines}
  text = cover_text(covers, _FORMAT.value)
  return f"{text}\n".encode(), CAPTION, len(covers)


def _selected(tables, engines, axes, options) -> tuple[bytes, str, int]:
  """Some points of a sweep as a table, or all of them in a file."""
  from figs_jax.engine import sweep
  from figs_jax.engine.reports.text import columns_text
  from figs_jax.engine.sweeps.points import UnreadMasksError

  for name in ("fuse", "buffer", "sram_bw"):
    if name in axes or name == "fuse" and _FUSE.value != "none":
      raise ValueError(
        f"{name}: expected a report, since points are selected by the products"
        " alone; leave out --pareto, --smallest and --points"
      )
  caption = "Modelled cycles (ns on rooflines), not measured."
  # The table of picojoules is of 45 nm arrays.
  bare = [] if _ENERGY.value else [x for x in engines if not x.is_array]
  asked = " ".join(
    flag.value for flag in (*_SELECTIONS, _WHERE) if flag.value is not None
  )
  if bare and "energy_pj" in asked:
    raise ValueError(
      f"energy_pj of {bare[0]}: the default picojoules are of 45 nm arrays and"
      " say nothing of a GPU or TPU; give your own with --energy"
    )
  unknown = {"energy_pj"} if bare else set()

  def swept(tables):
    layers = tables if len(tables) > 1 else next(iter(tables.values()))
    return sweep(engines, axes, layers, **options)

  if _DTYPE.value:
    caption += f" Operands are {_DTYPE.value}."
  if any(table.forward is not None for table in tables.values()):
    caption += " Products alone."
  try:
    designs = swept(tables)
  except UnreadMasksError as error:
    caption += f" Patterns are taken at their worst: {error}."
    designs = swept(
      {k: dataclasses.replace(x, masks=None) for k, x in tables.items()}
    )
  where = _WHERE.value
  if _POINTS.value:
    names = [name.strip() for name in _POINTS.value.split(",")]
    if names == ["all"]:
      names = [name for name in designs.columns if name not in unknown]
    replace = {"where": where, "overwrite": _OVERWRITE.value}
    try:
      count = designs.write(str(_OUT.value), names, **replace)
    except OSError as error:
      cli.fail(f"--out {_OUT.value}: {error.strerror}")
    caption += f" {count:,} points in {_OUT.value}."
    return b"", caption, len(designs)
  if _PARETO.value:
    quantities = [text.strip() for text in _PARETO.value.split(",")]
    if len(quantities) != 2:
      cli.fail("--pareto takes two quantities, as in cycles,energy_pj")
    points = designs.pareto(*quantities, where=where)
    what = f"that no other beats in {' and '.join(quantities)}"
  else:
    quantities = [str(_SMALLEST.value)]
    points = designs.smallest(quantities[0], _TOP.value or 1, where=where)
    what = f"with the smallest {quantities[0]}"
  caption += (
    f" {len(points['design']):,} of {len(designs):,} points,"
    f" {f'where {where}, ' if where else ''}those {what}."
  )
  if any("area_mm2" in text for text in (*quantities, where or "")):
    caption += _AREA_NOTE
  if _FORMAT.value == "png":
    from figs_jax.engine.sweeps.front_plot import pareto_front

    figure = pareto_front(designs, *quantities, where=where)
    return _png(figure), caption, len(designs)
  # Without the engine, which the design tells, and other results.
  hidden = ("engine", "n", "m", *designs.results)
  labels = [name for name in designs.columns if name not in hidden]
  names = dict.fromkeys(("design", *labels, *quantities, *_SHOWN))
  names = {name: None for name in names if name not in unknown}
  text = columns_text({x: points[x] for x in names}, caption, _FORMAT.value)
  return f"{text}\n".encode(), caption, len(designs)


def _check_flags() -> None:
  texts = (
    _LAYERS,
    _MODEL,
    _WORKDIR,
    _WEIGHTS,
    _ENERGY,
    _DTYPE,
    _AREA,
    _OUT,
    _LAYERS_OUT,
    _DATA_DIR,
    _RECIPE_FILE,
    _ENGINE_FILE,
    _WHERE,
    *_SELECTIONS,
  )
  for flag in texts:
    if flag.value is not None and not flag.value.strip():
      cli.fail(f"--{flag.name} is empty; give it a value or leave it out")
  if not all(text.strip(" ;") for text in _SWEEP.value):
    cli.fail("--sweep is empty; give it an axis, as in rows=8,16")
  given = _given(_LAYERS, _MODEL, _WORKDIR)
  if len(given) != 1:
    got = " and ".join(given) or "none of them"
    cli.fail(f"give one of --layers, --model and --workdir, not {got}")
  for flag in (_STEP, _SEED, _DATA_DIR, _RECIPE_FILE):
    if flag.value is not None and not _WORKDIR.value:
      cli.fail(f"--{flag.name} is of --workdir; leave it out")
  if _MODEL_FILE.value and _LAYERS.value:
    cli.fail("--model_file is of --model or --workdir; leave it out")
  if _WEIGHTS.value is not None and not _MODEL.value:
    cli.fail("--weights are of --model; name it, as in --model vit:B/16")
  _check_cover()
  _check_selection()
  shows_area = _PLOT.value == "pareto" or _given(*_SELECTIONS)
  if _AREA.value and _FORMAT.value in ("csv", "png") and not shows_area:
    cli.fail("--area is shown in a table, md or json; choose one as --format")
  if _PLOT.value and _FORMAT.value != "png":
    cli.fail("--plot is of --format png; add it")
  if _FORMAT.value == "png" and not _OUT.value:
    cli.fail("--format png: add --out FILE.png")
  known = {Path(x).resolve(): "--layers" for x in (_LAYERS.value,) if x}
  for flag in (_OUT, _LAYERS_OUT):
    if not flag.value:
      continue
    cli.check_output(flag.value, overwrite=_OVERWRITE.value, flag=flag.name)
    other = known.setdefault(Path(flag.value).resolve(), f"--{flag.name}")
    if other != f"--{flag.name}":
      cli.fail(
        f"--{flag.name} {flag.value} is the file of {other}; name another"
      )


def _check_cover() -> None:
  """Refuses flags that do not go with --cover."""
  if not _COVER.value:
    return
  if _LAYERS.value:
    cli.fail(
      "--cover needs real masks: give --workdir, or --model and --weights"
    )
  others = (_BASELINE, _PLOT, _AREA, _ENERGY, _LAYERS_OUT, *_SELECTIONS)
  for name in _given(*others) + ["--sweep"] * bool(_SWEEP.value):
    cli.fail(f"{name} does not go with --cover; leave one out")
  if _FORMAT.value == "png":
    cli.fail("--format png does not go with --cover; leave one out")


def _check_selection() -> None:
  """Refuses flags that do not go with --pareto, --smallest or --points."""
  chosen = _given(*_SELECTIONS)
  if len(chosen) > 1:
    cli.fail(f"give one of {' and '.join(chosen)}")
  if not chosen:
    for name in _given(_WHERE, _TOP):
      cli.fail(f"{name} needs --pareto, --smallest or --points; add one")
    return
  (name,) = chosen
  if not _SWEEP.value:
    cli.fail(f"{name} selects points of a --sweep; add axes, as in rows=8,16")
  for other in _given(_BASELINE, _PLOT, _LAYERS_OUT):
    cli.fail(f"{other} does not go with {name}; leave one out")
  if _FORMAT.value == "png" and not _PARETO.value:
    cli.fail(f"--format png does not go with {name}; leave one out")
  if _TOP.value and not _SMALLEST.value:
    cli.fail(f"--top goes with --smallest, not {name}; leave one out")
  if _POINTS.value and Path(_OUT.value or "").suffix not in (".csv", ".npz"):
    cli.fail("--points: add --out FILE.csv or --out FILE.npz")


def _given(*several: Any) -> list[str]:
  return [f"--{flag.name}" for flag in several if flag.value is not None]


def _tables(lengths: Any, sweeps_pattern: bool) -> Any:
  """Label -> layers, from the source that was given."""
  from figs_jax.cli import workloads

  batches = lengths["batch"]
  given = [name for name in ("seq", "context") if lengths[name]]
  given += [flag.name for flag in (_SEQ, _PHASE, _CONTEXT) if flag.value]
  if given and not _MODEL.value:
    cli.fail(f"--{given[0]} is of --model; leave it out")
  if _LAYERS.value:
    if batches or _BATCH.value:
      cli.fail("the batch is part of M in a table: --batch is of --model")
    tables = workloads.from_file(_LAYERS.value, _PATTERN.value)
    return workloads.all_sparse(tables) if sweeps_pattern else tables
  for flag in (_BATCH, _SEQ, _CONTEXT):
    name, swept = flag.name, lengths[flag.name]
    if swept and flag.value:
      cli.fail(f"--{name} and --sweep {name}=: give one of them")
    for size in swept:
      if not isinstance(size, int) or not 0 < size < 10**9:
        cli.fail(f"{name} {size!r}: expected an integer from 1 to {10**9 - 1}")
  sizes = batches or [_BATCH.value or 1]
  if _MODEL.value:
    tables = workloads.from_model(
      _MODEL.value,
      sizes,
      _PATTERN.value,
      _WEIGHTS.value,
      seqs=lengths["seq"] or [*filter(None, [_SEQ.value])],
      contexts=lengths["context"] or [*filter(None, [_CONTEXT.value])],
      phase=_PHASE.value,
    )
  else:
    cli.run_user_file(_RECIPE_FILE)
    from figs_jax.data import DataError

    try:
      tables = workloads.from_run(
        str(_WORKDIR.value),
        sizes,
        _PATTERN.value,
        step=_STEP.value,
        seed=_SEED.value,
        data_dir=_DATA_DIR.value,
      )
    except DataError as error:
      cli.fail(str(error))
  if sweeps_pattern:
    for label, table in tables.items():
      workloads.require_sparse(table, label)
  return tables


def _picture(made: Any, axes: Any, tables: Any) -> bytes:
  from figs_jax.engine.plots import PLOTS

  kind = "speedup" if "pattern" in axes else "breakdown"
  forwards = [table.forward for table in tables.values()]
  if len({forward and forward.seq for forward in forwards}) > 1:
    kind = "length"
  return _png(PLOTS[_PLOT.value or kind](made))


def _png(figure: Any) -> bytes:
  out = io.BytesIO()
  figure.savefig(out, format="png")
  return out.getvalue()


def grammar() -> str:
  from figs_jax.engine import spec_text
  from figs_jax.engine.sweeps import text

  return f"ENGINES\n{spec_text.__doc__}\nSWEEPS\n{text.__doc__}"


if __name__ == "__main__":
  cli.run(main, more_help=grammar)
