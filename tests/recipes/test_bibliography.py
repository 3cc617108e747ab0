"""BibTeX of the sources: well formed, found by number, each once."""

import re

import pytest

from figs_jax import recipes
from figs_jax.recipes import bibliography
from figs_jax.recipes.bibliography import bibtex


def test_every_entry_is_well_formed():
  keys = []
  for source in bibliography.known():
    text = bibtex(source)
    head, *fields, last = text.splitlines()
    assert last == "}"
    keys.append(re.fullmatch(r"@(misc|article|inproceedings){(\w+),", head)[2])
    pairs = [re.fullmatch(r"  (\w+) = {(.+)},", line) for line in fields]
    table = {pair[1]: pair[2] for pair in pairs}
    assert len(table) == len(fields)
    assert text.isascii()
    for value in table.values():
      assert value.count("{") == value.count("}")
    if source == "figsdeck":
      assert "No author, date or published text is known" in table["note"]
      continue
    if source == "neuron2026architecture":
      assert table["url"].startswith("https://awsdocs-neuron.readthedocs")
      continue
    if re.fullmatch(r"\d{4}\.\d{4,5}", source):
      assert table["eprint"] == source
      assert table["archivePrefix"] == "arXiv"
      # First seen in that year or printed within two years of it.
      assert 0 <= int(table["year"]) - (2000 + int(source[:2])) <= 2
    else:
      assert re.fullmatch(r"10\.\d{4}/[\d.]+", table["doi"])
      assert table["doi"] == source
    for author in table["author"].split(" and "):
      assert re.fullmatch(r"[A-Z][\w{}\\' ]+, [A-Z][\w. -]+", author)
    surname = table["author"].split(",")[0].lower()
    assert keys[-1].startswith(surname + table["year"])
  assert len(set(keys)) == len(keys)


def test_order_is_kept_and_repeats_are_dropped():
  text = bibtex("2402.04744", "2102.04010", "2402.04744")
  assert re.findall(r"eprint = {(.*)}", text) == ["2402.04744", "2102.04010"]
  assert text == "\n\n".join([bibtex("2402.04744"), bibtex("2102.04010")])
  assert bibtex() == ""


def test_unknown_ids_are_named_with_the_nearest():
  with pytest.raises(ValueError, match="'2402.04774'.*mean '2402.04744'"):
    bibtex("2102.04010", "2402.04774")


def test_sources_of_every_recipe_are_known():
  for name in recipes.names():
    recipe = recipes.create(name, "1:4", 100)
    assert set(getattr(recipe, "sources", ())) <= set(bibliography.known())
