"""Plots runs, and reports them as one HTML file.

  python launch/plot.py --workdir runs/a --out plots/
  python launch/plot.py --workdir runs/a runs/b runs/c --plot pareto
    --engines figs,vegeta-s-16-2 --out pareto.png
  python launch/plot.py --workdir runs/dense runs/a runs/b --plot noise
    --out noise.png
  python launch/plot.py --workdir runs/a --out report.html

A directory gets report.html and every plot that the runs have the data for.
Nothing is written to a workdir, and of a data set only the description is read,
but for --plot noise: it takes gradients of training batches.
"""

import logging
import os
from pathlib import Path
from typing import Any

from absl import flags

# Plots are cheap: do not occupy an accelerator unless asked to.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_CHEAP = ("masks", "flips", "variance", "training", "pareto", "roofline")
_KINDS = (*_CHEAP, "noise")
_PER_RUN = ("masks", "roofline")  # the other plots show all runs
_OF_MASKS = ("masks", "flips", "variance")  # not for dense runs
_SUFFIXES = (".png", ".svg", ".pdf", ".html")

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", [], "Directories of runs: --workdir A B C."
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Directory, made if it is missing, or a file: .png, .svg or .pdf for one"
  " --plot, .html for the report.",
)
_PLOT = flags.DEFINE_enum(
  "plot",
  None,
  _KINDS,
  "masks: entries of a kernel over checkpoints; flips: mask changes over steps;"
  " variance: variance of gradients over steps; training: loss and accuracy;"
  " pareto: accuracy against speed-up; roofline: layers on each engine; noise:"
  " variance and signal-to-noise ratio of gradients over training batches at"
  " every checkpoint, and the final loss against them. All but noise, which"
  " takes a while, by default.",
)
_ENGINES = flags.DEFINE_string(
  "engines",
  "figs,vegeta-s-16-2",
  "Engines of pareto, roofline and the report, separated by commas;"
  " launch/engine.py --help explains them. Speed-ups are over the fastest dense"
  " array of as many multipliers and as wide an input port.",
)
_LAYER = flags.DEFINE_string(
  "layer", None, "Path of the kernel of masks. Defaults to the first."
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Index of the seed of masks, in runs with several."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data, if it was moved after training."
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Whether to replace existing files."
)
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()
_ENGINE_FILE = cli.define_user_file("engine")


def main(words: list[str]) -> None:
  cli.quiet()
  out = _checked_out()
  if words and not _WORKDIR.value:
    cli.fail(f"Unexpected argument {words[0]!r}; list runs after --workdir")
  workdirs = [*_WORKDIR.value, *words]
  if not workdirs:
    cli.fail("--workdir is missing: name the directories of one or more runs")
  cli.run_user_file(_RECIPE_FILE)
  cli.run_model_files(_MODEL_FILE)
  cli.run_user_file(_ENGINE_FILE)
  from figs_jax.analysis.history import histories
  from figs_jax.cli import compilation_cache
  from figs_jax.data import DataError
  from figs_jax.engine import parse
  from figs_jax.engine.figures import figure_type

  compilation_cache.enable()
  try:
    figure_type()  # fails early without matplotlib
    engines = _ENGINES.value.split(",")
    for spec in engines:
      parse(spec)
    runs = histories(workdirs, data_dir=_DATA_DIR.value)
    if _is_directory(out):
      _directory(out, runs, engines)
    else:
      _one_file(out, runs, engines)
  except (ValueError, DataError) as error:
    cli.fail(str(error))


def _checked_out() -> Path:
  if not _OUT.value:
    cli.fail("--out is missing: name a directory, or a file as in --out a.png")
  out = Path(_OUT.value)
  if _is_directory(out):
    if out.exists() and not out.is_dir():
      cli.fail(f"--out {out}: expected a directory or a .png, got a file")
    return out
  if out.suffix not in _SUFFIXES:
    cli.fail(f"--out {out}: expected a file ending in {', '.join(_SUFFIXES)}")
  if out.suffix == ".html" and _PLOT.value:
    cli.fail(f"--plot {_PLOT.value} is one plot; end --out with .png")
  if out.suffix != ".html" and not _PLOT.value:
    cli.fail(
      f"--out {out}: a file holds one plot; add --plot, one of"
      f" {', '.join(_KINDS)}, or name a directory"
    )
  _check(out)
  return out


def _is_directory(out: Path) -> bool:
  return out.is_dir() or str(_OUT.value).endswith("/") or not out.suffix


def _check(path: Path) -> None:
  cli.check_output(str(path), overwrite=_OVERWRITE.value)


def _save(path: Path, data: bytes) -> None:
  cli.write_output(str(path), data, overwrite=_OVERWRITE.value)


def _one_file(out: Path, runs: list[Any], engines: list[str]) -> None:
  if out.suffix == ".html":
    from figs_jax.analysis import report_html

    _save(out, report_html(runs, engines).encode())
    return
  kind = str(_PLOT.value)
  if kind in _PER_RUN and len(runs) > 1:
    cli.fail(f"--plot {kind} shows one run; name a directory for several")
  from figs_jax.analysis.plot_style import image_bytes

  _save(out, image_bytes(_figure(kind, runs, engines, runs), out.suffix[1:]))


def _directory(out: Path, runs: list[Any], engines: list[str]) -> None:
  """Checks all files before the first plot."""
  kinds = [_PLOT.value] if _PLOT.value else list(_CHEAP)
  plans: dict[Path, tuple[str, list[Any]]] = {}
  for kind in kinds:
    shown = runs
    if kind in _OF_MASKS and not _PLOT.value:
      shown = [run for run in runs if run.recipe != "dense"] or runs
    if kind in _PER_RUN:
      for run in shown:
        name = "-".join((kind, *run.label.split("/")))
        path = out / f"{name}.png"
        if path in plans:
          cli.fail(f"--workdir: two runs would write {path}; rename one")
        plans[path] = kind, [run]
    else:
      plans[out / f"{kind}.png"] = kind, shown
  page = out / "report.html"
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    cli.fail(f"--out {out}: {error.strerror}; name another directory")
  for path in [*plans, *([] if _PLOT.value else [page])]:
    _check(path)
  from figs_jax.analysis import report_html
  from figs_jax.analysis.plot_style import image_bytes

  log = logging.getLogger("figs_jax")
  for path, (kind, shown) in plans.items():
    try:
      figure = _figure(kind, shown, engines, runs)
    except ValueError as error:
      if _PLOT.value:
        raise
      log.warning("no %s: %s", path.name, error)
      continue
    _save(path, image_bytes(figure, "png"))
    log.info("%s", path)
  if not _PLOT.value:
    _save(page, report_html(runs, engines).encode())
    log.info("%s", page)


def _figure(
  kind: str, runs: list[Any], engines: list[str], family: list[Any]
) -> Any:
  """One plot; the colour of a run is that of its index in `family`."""
  from figs_jax import analysis

  order = [run.label for run in family]
  if kind == "masks":
    (run,) = runs
    masks = analysis.mask_evolution(run, _LAYER.value, seed=_SEED.value)
    return analysis.plot_masks(masks, run.label)
  if kind == "roofline":
    from figs_jax.engine import report
    from figs_jax.engine.plots import roofline

    (run,) = runs
    return roofline(report(run.layers, engines), run.label)
  if kind == "noise":
    return _noise(runs, order)
  if kind == "pareto":
    points = analysis.pareto_points(runs, engines)
    return analysis.plot_pareto(points, order)
  plot = {
    "flips": analysis.plot_mask_changes,
    "variance": analysis.plot_gradient_variance,
    "training": analysis.plot_training,
  }[kind]
  return plot(runs, order)


def _noise(runs: list[Any], order: list[str]) -> Any:
  """The noise of some runs; of several, its correlation is logged too."""
  from figs_jax import analysis

  several = len(runs) > 1
  if several:
    _ = [run.final_losses for run in runs]  # fails before the slow part
  rows = analysis.noise_rows(runs)
  relations = analysis.noise_and_loss(runs, rows) if several else []
  for relation in relations:
    logging.getLogger("figs_jax").info("%s", relation.sentence)
  return analysis.plot_noise(rows, relations, order)


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)  # --workdir A B C --out D
  cli.run(main, words=True)
