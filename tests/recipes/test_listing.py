"""The text that lists every recipe."""

import pytest

from figs_jax import recipes
from figs_jax.recipes import listing, registry


def blocks(text):
  """{name: the lines below it}."""
  found, name = {}, None
  for line in text.splitlines()[1:]:
    if line.startswith("    "):
      found[name].append(line.strip())
    else:
      name = line.strip()
      found[name] = []
  return found


def test_every_recipe_is_listed_with_summary_and_defaults():
  text = listing.catalogue()
  found = blocks(text)
  assert list(found) == ["every recipe", *recipes.names()]
  shared = " ".join(found["every recipe"])
  for name in recipes.names():
    body = " ".join(found[name])
    assert listing.summary(name) and body.startswith(listing.summary(name))
    for option, default in recipes.options(name).items():
      assert f"{option}={default!r}" in (
        body if f"{option}={default!r}" not in shared else shared
      )
  assert "k=8" in " ".join(found["figs"])
  assert "dense=" not in " ".join(found["figs"])
  assert max(map(len, text.splitlines())) <= 80
  assert max(map(len, listing.catalogue(120).splitlines())) > 80


def test_what_is_registered_is_listed_until_it_is_gone(monkeypatch):
  for table in ("_BUILDERS", "_DEFAULTS"):
    monkeypatch.setattr(registry, table, dict(getattr(registry, table)))

  @recipes.register("own", dense=0.5)
  def own(plain, *, spice=3):
    """One line of mine.

    And more, which is not listed.
    """
    return plain

  @recipes.register("silent")
  def silent(plain):
    return plain

  found = blocks(listing.catalogue())
  assert found["own"] == ["One line of mine.", "dense=0.5, spice=3"]
  assert found["silent"] == []
  monkeypatch.undo()
  assert "own" not in blocks(listing.catalogue())


def test_summary_of_an_unknown_recipe():
  with pytest.raises(ValueError, match="'fig', did you mean 'figs'"):
    listing.summary("fig")
