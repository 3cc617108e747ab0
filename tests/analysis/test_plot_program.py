"""launch/plot.py as a user meets it."""

import shutil

import pytest
from PIL import Image

from figs_jax.analysis import plot_style
from figs_jax.train.loop import train
from tests.programs import assert_one_clear_line, call, in_one_process

pytest.importorskip("matplotlib")
pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
PROGRAM = "launch/plot.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sparse_workdir, short_workdir, tiny_config):
  """Two sparse runs with diagnostics, and a dense one."""
  base = tmp_path_factory.mktemp("runs")
  shutil.copytree(sparse_workdir, base / "sparse")
  shutil.copytree(short_workdir, base / "other")
  train(tiny_config("dense", total_steps=2), base / "dense")
  return base


@pytest.fixture(scope="module")
def times(runs):
  """When each file of the runs was written."""
  return {p: p.stat().st_mtime_ns for p in sorted(runs.rglob("*"))}


def mistakes(runs, out):
  """Flags, and words of the line that they end in."""
  plain, file = ("--workdir", runs / "sparse"), out / "a.png"
  return [
    ((), ["--out is missing"]),
    (("--out", file, "--plot=flips"), ["--workdir is missing"]),
    (
      ("--out", file, "--plot=flips", runs / "sparse"),
      ["list runs after --workdir"],
    ),
    ((*plain, "--out", file), ["add --plot", "pareto"]),
    ((*plain, "--out", out / "a.gif"), ["expected a file ending in .png"]),
    ((*plain, "--out", "r.html", "--plot=masks"), ["end --out with .png"]),
    ((*plain, "--out", "no/such/a.png", "--plot=masks"), ["no such directory"]),
    (
      (*plain, "--out", file, "--plot=flops"),
      ["got 'flops'"],
    ),
    (("--workdir", out, "--out", file, "--plot=flips"), ["no run here"]),
    (
      (*plain, runs / "sparse", "--out", file, "--plot=flips"),
      ["given twice"],
    ),
    (
      (*plain, "--out", file, "--plot=pareto", "--engines=wss"),
      ["wss", "id you mean"],
    ),
    (
      (*plain, runs / "dense", "--out", file, "--plot=masks"),
      ["shows one run", "directory"],
    ),
    (
      (*plain, "--out", file, "--plot=masks", "--layer=fc1"),
      ["no masked kernel 'fc1'", "blocks/0/mlp/fc1/kernel"],
    ),
    (
      (*plain, "--out", file, "--plot=flips", "--recipe_file=none.py"),
      ["none.py", "no such file"],
    ),
    (
      (
        "--workdir",
        runs / "dense",
        runs / "other",
        "--plot=noise",
        "--out",
        file,
      ),
      ["from step 0 to 2", "decay phase", "--config.keep"],
    ),
    (
      ("--workdir", runs / "dense", "--plot=flips", "--out", out / "b.svg"),
      ["a dense run has no masks"],
    ),
  ]


@pytest.fixture(scope="module")
def results(runs, times, data_dir, tmp_path_factory):
  """(directory, results by name), all from one process."""
  out = tmp_path_factory.mktemp("out")
  every = (
    "--workdir", *(runs / name for name in ("dense", "sparse", "other")),
    "--engines=ws:16x16", "--out", out / "all",
  )  # fmt: skip
  calls = {
    "first": every,
    "again": every,
    "overwrite": (
      *every, "--overwrite", "--plot=pareto", "--data_dir", data_dir
    ),
    "single": (
      "--workdir", runs / "sparse", "--plot=flips", "--out", out / "a.svg"
    ),
    "noise": (
      "--workdir", runs / "other", "--plot=noise", "--out", out / "n.svg"
    ),
  }  # fmt: skip
  wrong = [flags for flags, _ in mistakes(runs, out)]
  done = in_one_process(PROGRAM, *calls.values(), *wrong)
  by_name = dict(zip(calls, done))
  return out, by_name | {"mistakes": done[len(calls) :]}


def test_a_directory_gets_every_plot_and_the_report(runs, times, results):
  out, results = results
  code, _, errors = results["first"]
  assert code == 0, errors
  assert {path.name for path in (out / "all").iterdir()} == {
    "masks-sparse.png", "flips.png", "variance.png", "training.png",
    "pareto.png", "roofline-sparse.png", "roofline-dense.png",
    "roofline-other.png", "report.html",
  }  # fmt: skip
  for path in (out / "all").glob("*.png"):
    Image.open(path).verify()
  # Nothing is replaced without being asked for.
  code, _, errors = results["again"]
  assert code == 2 and "it exists" in errors
  for name in ("overwrite", "single", "noise"):
    code, _, errors = results[name]
    assert code == 0, errors
  for name in ("a.svg", "n.svg"):
    assert (out / name).read_text().startswith("<?xml")
  assert times == {p: p.stat().st_mtime_ns for p in sorted(runs.rglob("*"))}


def test_colours_are_those_of_all_runs_of_the_call(results):
  """A dense run that comes first has its colour, though flips leave it out."""
  out, _ = results
  for name, first in (("training", 0), ("pareto", 0), ("flips", 1)):
    with Image.open(out / "all" / f"{name}.png") as picture:
      seen = {colour for _, colour in picture.getcolors(1 << 20)}
    for index in range(4):
      rgb = tuple(int(plot_style.RUNS[index][i : i + 2], 16) for i in (1, 3, 5))
      assert ((*rgb, 255) in seen) == (first <= index < 3), (name, index)


def test_mistakes_are_one_clear_line(runs, results):
  out, results = results
  cases = mistakes(runs, out)
  for result, (_, words) in zip(results["mistakes"], cases, strict=True):
    assert_one_clear_line(result, *words)
  assert not (out / "a.png").exists() and not (out / "b.svg").exists()


def test_without_matplotlib_one_line(runs, tmp_path):
  done = call(
    "-c",
    "import runpy, sys; sys.modules['matplotlib'] = None\n"
    f"sys.argv = ['plot.py', '--workdir', {str(runs / 'sparse')!r},"
    f" '--plot=flips', '--out', {str(tmp_path / 'a.png')!r}]\n"
    "sys.modules['matplotlib.figure'] = None\n"
    "runpy.run_path('launch/plot.py', run_name='__main__')",
  )
  assert_one_clear_line(done, "pip install 'figs_jax[plots]'")
