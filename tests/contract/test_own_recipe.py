"""A researcher's test: a recipe of one's own in twenty lines."""

import ast

import jax
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.recipes.listing import catalogue

from . import own
from .harness import history
from .table import ROWS


def lines_of_code(path):
  """Lines that hold code: no blank ones, comments or docstrings."""
  tree, docstrings = ast.parse(path.read_text()), set()
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    documented = isinstance(node, (ast.Module, ast.FunctionDef))
    if documented and ast.get_docstring(node) is not None:
      docstrings |= set(range(body[0].lineno, body[0].end_lineno + 1))
  code = {
    number
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if line.strip() and not line.strip().startswith("#")
  }
  return len(code - docstrings)


def test_it_is_short_and_known(own_recipe):
  assert lines_of_code(own.PATH) <= 20
  assert "cosine_leak" in recipes.names()
  assert recipes.options("cosine_leak")["chance"] == 0.1
  assert any(row.name == "cosine_leak" for row in ROWS)
  with pytest.raises(ValueError, match="did you mean 'cosine_leak'"):
    recipes.create("cosine_leek", "1:4", 100)
  with pytest.raises(ValueError, match="did you mean 'chance'"):
    recipes.create("cosine_leak", "1:4", 100, chanse=0.2)


def test_help_lists_it():
  """`--help` prints this catalogue once a configuration has imported it."""
  text = catalogue()
  assert "  cosine_leak\n    D falls along a cosine" in text
  assert "chance=0.1, seed=0" in text


def test_it_describes_itself():
  recipe = recipes.create("cosine_leak", "1:4", 100, dense=0.1, finetune=0.1)
  text = recipe.describe()
  assert "cosine_leak: 1:4, 100 steps" in text and "1..0" in text
  assert recipe.leak_at(10) == 1 and recipe.leak_at(50) == pytest.approx(0.5)
  assert recipe.leak_at(90) == 0


@pytest.mark.standard_promotion
def test_masks_are_renewed_by_chance():
  """At some steps and not at others; which ones follows from the seed."""
  (row,) = [row for row in ROWS if row.name == "cosine_leak"]
  masks = history(row, "plain").seen["masks"]["fc1"][0]
  moved = [bool(np.any(a != b)) for a, b in zip(masks[4:], masks[5:])]
  assert any(moved) and not all(moved)
  due = recipes.create("cosine_leak", "1:4", 1000, chance=0.2).timeline.due
  share = np.mean(jax.jit(jax.vmap(due))(np.arange(1000)))
  assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1000)
