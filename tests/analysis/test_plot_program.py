"""launch/plot.py as a user meets it."""

import pytest
from PIL import Image

from figs_jax.analysis import plot_style
from figs_jax.train.loop import train
from tests.programs import assert_one_clear_line, call, in_one_process

pytest.importorskip("matplotlib")
pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
PROGRAM = "launch/plot.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_config):
  """Two sparse runs that have everything, and a dense one."""
  base = tmp_path_factory.mktemp("runs")
  for recipe, name in (("ste", "sparse"), ("sr_ste", "other")):
    train(
      tiny_config(recipe, total_steps=4, checkpoint_every=2, diagnose_every=1),
      base / name,
    )
  train(tiny_config("dense", total_steps=2), base / "dense")
  return base


def test_a_directory_gets_every_picture_and_the_report(runs, tmp_path):
  out, workdirs = tmp_path / "out", (runs / "sparse", runs / "dense")
  before = {p: p.stat().st_mtime_ns for p in sorted(runs.rglob("*"))}
  every = ("--workdir", *workdirs, "--engine", "ws:16x16", "--out", out)
  first, again, over, single, wrong = in_one_process(
    PROGRAM,
    every,
    every,
    (*every, "--overwrite", "--plot", "pareto"),
    ("--workdir", workdirs[0], "--plot=flips", "--out", tmp_path / "a.svg"),
    ("--workdir", workdirs[1], "--plot=flips", "--out", tmp_path / "b.svg"),
  )
  assert first[0] == 0, first[2]
  assert {path.name for path in out.iterdir()} == {
    "masks-sparse.png", "flips.png", "variance.png", "training.png",
    "pareto.png", "roofline-sparse.png", "roofline-dense.png", "report.html",
  }  # fmt: skip
  for path in out.glob("*.png"):
    Image.open(path).verify()
  # Never silently.
  assert again[0] == 2 and "it exists" in again[2], again
  assert over[0] == 0, over[2]
  assert single[0] == 0 and (tmp_path / "a.svg").read_text().startswith("<?xml")
  assert wrong[0] == 2 and len(wrong[2].splitlines()) == 1, wrong[2]
  assert "a dense run has no masks" in wrong[2]
  assert not (tmp_path / "b.svg").exists()
  assert before == {p: p.stat().st_mtime_ns for p in sorted(runs.rglob("*"))}


def test_colours_are_those_of_all_runs_of_the_call(runs, tmp_path):
  """A dense run that comes first has its colour, though flips leave it out."""
  (done,) = in_one_process(
    PROGRAM,
    ("--workdir", *(runs / name for name in ("dense", "sparse", "other")),
     "--engine=ws", "--out", tmp_path / "out"),
  )  # fmt: skip
  assert done[0] == 0, done[2]
  for name, first in (("training", 0), ("pareto", 0), ("flips", 1)):
    with Image.open(tmp_path / "out" / f"{name}.png") as picture:
      seen = {colour for _, colour in picture.getcolors(1 << 20)}
    for place in range(4):
      rgb = tuple(int(plot_style.RUNS[place][i : i + 2], 16) for i in (1, 3, 5))
      assert ((*rgb, 255) in seen) == (first <= place < 3), (name, place)


def test_mistakes_are_one_clear_line(runs, tmp_path):
  sparse, file = runs / "sparse", tmp_path / "a.png"
  plain = ("--workdir", sparse)
  cases = [
    ((), ["--out is missing"]),
    (("--out", file, "--plot=flips"), ["--workdir is missing"]),
    (("--out", file, "--plot=flips", sparse), ["runs follow --workdir"]),
    ((*plain, "--out", file), ["add --plot", "pareto"]),
    ((*plain, "--out", tmp_path / "a.gif"), ["the ending must be .png"]),
    ((*plain, "--out", "r.html", "--plot=masks"), ["end --out with .png"]),
    ((*plain, "--out", "no/such/a.png", "--plot=masks"), ["no such directory"]),
    ((*plain, "--out", file, "--plot=flops"), ["flops", "see --help"]),
    (("--workdir", tmp_path, "--out", file, "--plot=flips"), ["no run here"]),
    ((*plain, sparse, "--out", file, "--plot=flips"), ["given twice"]),
    (
      (*plain, "--out", file, "--plot=pareto", "--engine=wss"),
      ["wss", "did you mean"],
    ),
    (
      (*plain, runs / "dense", "--out", file, "--plot=masks"),
      ["is of one run", "directory"],
    ),
    (
      (*plain, "--out", file, "--plot=masks", "--layer=fc1"),
      ["no masked kernel 'fc1'", "blocks/0/mlp/fc1/kernel"],
    ),
    (
      (*plain, "--out", file, "--plot=flips", "--recipe_file=none.py"),
      ["none.py", "no such file"],
    ),
  ]
  results = in_one_process(PROGRAM, *(arguments for arguments, _ in cases))
  for result, (_, words) in zip(results, cases, strict=True):
    assert_one_clear_line(result, *words)
  assert not file.exists()


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
