"""launch/plot.py as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from figs_jax.train.loop import train

pytest.importorskip("matplotlib")
REPO = Path(__file__).parents[2]
pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
# Runs the program once per line of arguments, in one process: each start takes
# seconds. Prints (exit code, standard output, standard error) of each.
DRIVER = """
import contextlib, io, json, logging, runpy, sys
from absl import flags
own = ("workdir", "out", "plot", "engine", "layer", "seed", "overwrite")
for arguments in json.loads(sys.argv[1]):
  out, err = io.StringIO(), io.StringIO()
  sys.argv = ["plot.py", *arguments]
  logging.getLogger("figs_jax").handlers.clear()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      runpy.run_path("launch/plot.py", run_name="__main__")
    except SystemExit as end:
      code = end.code or 0
  print(json.dumps([code, out.getvalue(), err.getvalue()]))
  for name in (*own, "recipe_file"):
    delattr(flags.FLAGS, name)
"""


def program(*calls):
  """(code, out, err) of each call."""
  lines = json.dumps([[str(word) for word in call] for call in calls])
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, lines],
    cwd=REPO,
    env={
      **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
      "PYTHONPATH": str(REPO),
    },
    capture_output=True,
    text=True,
    timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_config):
  """A sparse run that has everything, and a dense one."""
  base = tmp_path_factory.mktemp("runs")
  train(
    tiny_config("ste", total_steps=4, checkpoint_every=2, diagnose_every=1),
    base / "sparse",
  )
  train(tiny_config("dense", total_steps=2), base / "dense")
  return base


def test_a_directory_gets_every_picture_and_the_report(runs, tmp_path):
  out, workdirs = tmp_path / "out", (runs / "sparse", runs / "dense")
  before = {p: p.stat().st_mtime_ns for p in sorted(runs.rglob("*"))}
  every = ("--workdir", *workdirs, "--engine", "ws:16x16", "--out", out)
  first, again, over, single, wrong = program(
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
  for (arguments, words), (code, out, err) in zip(
    cases, program(*(arguments for arguments, _ in cases))
  ):
    assert code == 2 and out == "", (arguments, err)
    assert len(err.splitlines()) == 1, (arguments, err)
    for word in words:
      assert word in err, (arguments, err)
  assert not file.exists()


def test_without_matplotlib_one_line(runs, tmp_path):
  done = subprocess.run(
    [
      sys.executable, "-c",
      "import runpy, sys; sys.modules['matplotlib'] = None\n"
      f"sys.argv = ['plot.py', '--workdir', {str(runs / 'sparse')!r},"
      f" '--plot=flips', '--out', {str(tmp_path / 'a.png')!r}]\n"
      "sys.modules['matplotlib.figure'] = None\n"
      "runpy.run_path('launch/plot.py', run_name='__main__')",
    ],
    cwd=REPO, capture_output=True, text=True, timeout=300,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)},
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert "pip install 'figs_jax[plots]'" in line
