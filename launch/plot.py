"""Pictures of runs, and a report of them as one HTML file.

  python launch/plot.py --workdir runs/a --out pictures/
  python launch/plot.py --workdir runs/a runs/b runs/c --plot pareto
    --engine ws:32x16,figs --out pareto.png
  python launch/plot.py --workdir runs/a --out report.html

Of a directory, every picture that the runs have numbers for is written to it,
and report.html. Nothing in a workdir is written, no data set is read.
"""

import logging
import os
from pathlib import Path
from typing import Any

from absl import flags

# Pictures are small: no accelerator is taken for them unasked.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_KINDS = ("masks", "flips", "variance", "training", "pareto", "roofline")
_OF_EACH = ("masks", "roofline")  # a picture per run; the others hold them all
_OF_MASKS = ("masks", "flips", "variance")  # which a dense run has not
_SUFFIXES = (".png", ".svg", ".pdf", ".html")

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", [], "Directories of runs: --workdir A B C."
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "A directory, made if it is missing; or a file: .png, .svg or .pdf of one"
  " --plot, .html of the report.",
)
_PLOT = flags.DEFINE_enum(
  "plot",
  None,
  _KINDS,
  "masks: entries of a kernel over checkpoints; flips, variance: of masks and"
  " gradients over steps; training: loss and accuracy; pareto: accuracy against"
  " speed-up; roofline: the layers on each engine. All by default.",
)
_ENGINE = flags.DEFINE_string(
  "engine",
  "ws:32x16,vegeta-s-16-2,figs",
  "Specs of engines, separated by commas, of pareto, roofline and the report;"
  " launch/engine.py --help explains them.",
)
_LAYER = flags.DEFINE_string(
  "layer", None, "Path of the kernel that masks shows; the first by default."
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of runs with seeds, the place of the one that masks shows."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files of --out.")
_RECIPE_FILE = cli.define_user_file("recipe")


def main(words: list[str]) -> None:
  cli.quiet()
  out = _checked_out()
  if words and not _WORKDIR.value:
    cli.fail(f"unexpected argument {words[0]!r}; runs follow --workdir")
  workdirs = [*_WORKDIR.value, *words]
  if not workdirs:
    cli.fail("--workdir is missing: name the directory of a run, or several")
  cli.run_user_file(_RECIPE_FILE)
  from figs_jax.analysis.history import histories
  from figs_jax.engine import parse
  from figs_jax.engine.plots import figure_type

  try:
    figure_type()  # says at once if matplotlib is missing
    engines = _ENGINE.value.split(",")
    for spec in engines:
      parse(spec)
    runs = histories(workdirs)
    if _is_directory(out):
      _directory(out, runs, engines)
    else:
      _one_file(out, runs, engines)
  except ValueError as error:
    cli.fail(str(error))


def _checked_out() -> Path:
  if not _OUT.value:
    cli.fail("--out is missing: name a directory, or a file as in --out a.png")
  out = Path(_OUT.value)
  if _is_directory(out):
    if out.exists() and not out.is_dir():
      cli.fail(f"--out {out}: this is a file; name a directory, or a .png")
    return out
  if out.suffix not in _SUFFIXES:
    cli.fail(f"--out {out}: the ending must be {', '.join(_SUFFIXES)}")
  if out.suffix == ".html" and _PLOT.value:
    cli.fail(f"--plot {_PLOT.value} is a picture; end --out with .png")
  if out.suffix != ".html" and not _PLOT.value:
    cli.fail(
      f"--out {out}: a file holds one picture; add --plot, one of"
      f" {', '.join(_KINDS)}, or name a directory"
    )
  _check(out)
  return out


def _is_directory(out: Path) -> bool:
  return out.is_dir() or str(_OUT.value).endswith("/") or not out.suffix


def _check(path: Path) -> None:
  cli.check_output(str(path), overwrite=_OVERWRITE.value, flag="--out")


def _save(path: Path, data: bytes) -> None:
  cli.save(str(path), data, overwrite=_OVERWRITE.value, flag="--out")


def _one_file(out: Path, runs: list[Any], engines: list[str]) -> None:
  if out.suffix == ".html":
    from figs_jax.analysis.html_report import html

    _save(out, html(runs, engines).encode())
    return
  kind = str(_PLOT.value)
  if kind in _OF_EACH and len(runs) > 1:
    cli.fail(f"--plot {kind} is of one run; name a directory for several")
  from figs_jax.analysis.plot_style import image

  _save(out, image(_drawn(kind, runs, engines, runs), out.suffix[1:]))


def _directory(out: Path, runs: list[Any], engines: list[str]) -> None:
  """All files are checked before anything is drawn."""
  kinds = [_PLOT.value] if _PLOT.value else list(_KINDS)
  plans: dict[Path, tuple[str, list[Any]]] = {}
  for kind in kinds:
    shown = runs
    if kind in _OF_MASKS and not _PLOT.value:
      shown = [run for run in runs if run.recipe != "dense"] or runs
    if kind in _OF_EACH:
      for run in shown:
        name = "-".join((kind, *run.label.split("/")))
        path = out / f"{name}.png"
        if path in plans:
          cli.fail(f"--workdir: two runs would both be {path}; rename one")
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
  from figs_jax.analysis.html_report import html
  from figs_jax.analysis.plot_style import image

  log = logging.getLogger("figs_jax")
  for path, (kind, shown) in plans.items():
    try:
      figure = _drawn(kind, shown, engines, runs)
    except ValueError as error:
      if _PLOT.value:
        raise
      log.warning("no %s: %s", path.name, error)
      continue
    _save(path, image(figure, "png"))
    log.info("%s", path)
  if not _PLOT.value:
    _save(page, html(runs, engines).encode())
    log.info("%s", page)


def _drawn(
  kind: str, runs: list[Any], engines: list[str], family: list[Any]
) -> Any:
  """One picture; its runs have their colours from their places in `family`."""
  from figs_jax.analysis import plots

  order = [run.label for run in family]
  if kind == "masks":
    from figs_jax.analysis.history import evolution

    (run,) = runs
    found = evolution(run, _LAYER.value, seed=_SEED.value)
    return plots.masks(found, run.label)
  if kind == "roofline":
    from figs_jax.engine import report
    from figs_jax.engine.plots import roofline

    (run,) = runs
    return roofline(report(run.layers, engines), run.label)
  if kind == "pareto":
    from figs_jax.analysis.pareto import points

    return plots.pareto(points(runs, engines), order)
  draw = {
    "flips": plots.flips,
    "variance": plots.variance,
    "training": plots.training,
  }[kind]
  return draw(runs, order)


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)  # --workdir A B C --out D
  cli.run(main, words=True)
