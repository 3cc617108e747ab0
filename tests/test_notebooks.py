"""The notebooks run from top to bottom, and git holds them without outputs.

Their code cells run one after the other in one namespace, as a kernel would run
them, but in a plain Python process: that needs no kernel, no sockets, and the
cells use nothing of IPython but that figures are shown. Lengths of training are
cut by their one constant, STEPS.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.programs import call

nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "colabs").glob("*.ipynb"))
NAMES = {
  "quick_start",
  "write_a_recipe",
  "cluster_explorer",
  "engine_explorer",
  "from_dense_checkpoint",
  "prune_a_real_model",
  "your_own_model_and_data",
  "serve_one_checkpoint",
}
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code(notebook):
  """Sources of the code cells; `%matplotlib inline` is of kernels alone."""
  return [
    cell.source.removeprefix("%matplotlib inline\n")
    for cell in notebook.cells
    if cell.cell_type == "code"
  ]


def test_all_are_there():
  assert {path.stem for path in PATHS} == NAMES


@each
def test_it_is_valid_and_without_outputs(path):
  notebook = read(path)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None, cell.source
  assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@each
def test_badge_first_then_the_installation(path):
  first, second = read(path).cells[:2]
  link = f"/blob/main/colabs/{path.name})"
  assert first.source.startswith("[![Open in Colab](") and link in first.source
  assert "pip" in second.source
  places = {
    place
    for other in PATHS
    for place in re.findall(
      r"github(?:\.com)?/(\w+/figs_jax)", str(read(other))
    )
  }
  assert len(places) == 1, places  # one repository, in badges and pip


@each
def test_its_lines_are_short_and_parse(path):
  for source in code(read(path)):
    ast.parse(source)
    assert max(map(len, source.splitlines())) <= 80, source


def test_the_first_cell_installs_nothing_where_figs_jax_is(monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("it would install")

  monkeypatch.setattr(subprocess, "run", refuse)
  for path in PATHS:
    exec(code(read(path))[0], {})


def test_the_recipe_is_that_of_the_file():
  """docs/recipes.md and the contract tests take colabs/own_recipe.py."""
  text = (ROOT / "colabs" / "own_recipe.py").read_text()
  recipe = text[text.index("import dataclasses") :].strip()
  assert recipe in code(read(ROOT / "colabs" / "write_a_recipe.ipynb"))


def words(name):
  """What its cells of text say, without line breaks."""
  cells = read(ROOT / "colabs" / f"{name}.ipynb").cells
  text = " ".join(c.source for c in cells if c.cell_type == "markdown")
  return " ".join(text.split())


def test_the_limits_of_single_steps_are_named():
  text = words("quick_start")
  assert "one in `config.diagnose_every`" in text
  assert "not looked at" in text and "`rigl` and `set`" in text


def test_engines_without_a_knee_are_named_where_knees_are_read():
  from figs_jax import engine

  (cell,) = [
    source
    for source in code(read(ROOT / "colabs" / "engine_explorer.ipynb"))
    if "plots.roofline" in source
  ]
  specs = re.findall(r'"([a-z]+:\w+)"', cell)
  assert len(specs) == 3
  for spec in specs:
    limited = hasattr(engine.parse(spec), "hbm")
    named = f"`{spec}` has no memory limit" in words("engine_explorer")
    assert named != limited


# Texts that a notebook must print, for any numbers.
SAID = {
  "quick_start": ["exact N:M: True", "speed-up 1.00×", "vegeta-s-16-2"],
  "write_a_recipe": ["cosine_leak keeps the contract", "test accuracy"],
  "cluster_explorer": ["1.008 trillion parameters", "placements", "masks"],
  "engine_explorer": ["256 designs", "of them cache"],
  "serve_one_checkpoint": [
    "8:32: ",
    "all weights: ",
    "nested queue",
    "fixed 32:32",
  ],
  "from_dense_checkpoint": ["from_scratch", "from_run", "from_file"],
  "prune_a_real_model": [
    "a small ViT on the digits instead",
    "sparsegpt, permuted",
    "asp",
  ],
  "your_own_model_and_data": [
    "digit_0 digit_1",
    "exact N:M: True, {'conv/kernel': True}",
    "equal logits: True",
  ],
}


@pytest.mark.slow
@each
def test_it_runs(path, tmp_path):
  cells = [
    re.sub(r"^STEPS = \d+$", "STEPS = 24", source, flags=re.MULTILINE)
    for source in code(read(path))
  ]
  # A cell's last expression is shown, which draws a figure.
  program = tmp_path / "cells.py"
  program.write_text(
    f"cells = {cells!r}\n"
    "import ast\n"
    "scope = {'__name__': '__main__'}\n"
    "for number, source in enumerate(cells):\n"
    "  tree = ast.parse(source)\n"
    "  last = tree.body[-1]\n"
    "  shown = isinstance(last, ast.Expr) and tree.body.pop()\n"
    "  exec(compile(tree, f'cell {number}', 'exec'), scope)\n"
    "  if shown:\n"
    "    lone = ast.Expression(shown.value)\n"
    "    value = eval(compile(lone, f'cell {number}', 'eval'), scope)\n"
    "    if hasattr(value, 'savefig'):\n"
    "      value.savefig(f'{number}.png')\n"
  )
  # No example weights, wherever they are.
  done = call(program, cwd=tmp_path, MPLBACKEND="agg", FIGS_JAX_EXAMPLES="")
  assert done.returncode == 0, done.stderr[-3000:]
  for words in SAID[path.stem]:
    assert words in done.stdout
