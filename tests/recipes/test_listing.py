"""The text that lists every recipe."""

import ast
from pathlib import Path

import pytest

from figs_jax import recipes
from figs_jax.recipes import listing, registry


def blocks(text):
  """{name: the lines below it}."""
  lines_of, name = {}, None
  for line in text.splitlines()[1:]:
    if line.startswith("    "):
      lines_of[name].append(line.strip())
    else:
      name = line.strip()
      lines_of[name] = []
  return lines_of


def test_every_recipe_is_listed_with_summary_and_defaults():
  text = listing.catalogue()
  listed = blocks(text)
  assert list(listed) == ["every recipe", *recipes.names()]
  shared = " ".join(listed["every recipe"])
  for name in recipes.names():
    body = " ".join(listed[name])
    assert listing.summary(name) and body.startswith(listing.summary(name))
    for option, default in recipes.options(name).items():
      assert f"{option}={default!r}" in (
        body if f"{option}={default!r}" not in shared else shared
      )
  assert "k=8" in " ".join(listed["figs"])
  assert "dense=" not in " ".join(listed["figs"])
  assert max(map(len, text.splitlines())) <= 80
  assert max(map(len, listing.catalogue(120).splitlines())) > 80


def test_what_is_registered_is_listed_until_it_is_gone(monkeypatch):
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))

  @recipes.register("own", dense=0.5)
  def own(plain, *, spice=3):
    """One line of mine.

    And more, which is not listed.
    """
    return plain

  @recipes.register("silent")
  def silent(plain):
    return plain

  listed = blocks(listing.catalogue())
  assert listed["own"] == ["One line of mine.", "spice=3, dense=0.5"]
  assert listed["silent"] == []
  monkeypatch.undo()
  assert "own" not in blocks(listing.catalogue())


def test_the_stub_for_type_checkers_is_up_to_date():
  path = Path(recipes.__file__).with_suffix(".pyi")
  assert path.read_text() == listing.stub(), "run python docs/draw_recipes.py"
  declared = ast.parse(path.read_text()).body
  imported = {
    alias.name
    for node in declared
    if isinstance(node, ast.ImportFrom) and "recipes" in node.module
    for alias in node.names
  }
  assert imported >= set(recipes.__all__)


def test_summary_of_an_unknown_recipe():
  with pytest.raises(ValueError, match="'fig', did you mean 'figs'"):
    listing.summary("fig")
