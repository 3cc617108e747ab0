"""cite: every recipe and engine has its sources, as BibTeX that parses."""

import re

import bibtexparser
import pytest

import figs_jax as figs
from figs_jax import recipes
from figs_jax.engine import parse
from figs_jax.recipes import bibliography, citations

# A dense run uses no method, so it has nobody to cite.
UNCITED = {"dense"}
OURS = [  # other tests may register more
  name
  for name in recipes.names()
  if recipes.function_of(name).__module__.startswith("figs_jax.")
]


def keys(text):
  """The keys of the entries, by another library's reading."""
  library = bibtexparser.parse_string(text)
  assert not library.failed_blocks
  assert len(library.blocks) == len(library.entries)
  for entry in library.entries:
    assert "title" in entry.fields_dict
  return [entry.key for entry in library.entries]


@pytest.mark.parametrize("name", OURS)
def test_every_recipe_has_a_source(name):
  assert bool(keys(figs.cite(name))) == (name not in UNCITED)


def test_another_library_reads_every_entry():
  text = bibliography.bibtex(*bibliography.known())
  entries = keys(text)
  assert len(entries) == len(set(entries)) == len(bibliography.known())
  for entry in bibtexparser.parse_string(text).entries:
    if "eprint" in entry.fields_dict:
      assert entry["archivePrefix"] == "arXiv"
      assert entry["author"].count(" and ") == entry["author"].count(",") - 1


def test_options_bring_their_sources():
  plain = recipes.create("figs", "1:4", 100)
  more = recipes.create("figs", "1:4", 100, transposable=True, mvue="1:2")
  assert figs.cite(plain) == plain.cite() == figs.cite("figs")
  extra = ["hubara2021accelerated", "chmiel2023minimum"]
  assert keys(figs.cite(more)) == keys(figs.cite(plain)) + extra
  # `transposable` names that paper itself, once.
  named = keys(figs.cite("transposable"))
  assert named.count("hubara2021accelerated") == 1


def test_entries_come_once_in_the_order_given():
  assert keys(figs.cite("sdgf_geometric", "sr_ste", "mdgf_exp")) == [
    "bambhaniya2024progressive",
    "zhou2021learning",
  ]


SPECS = ["ws:32x32", "is", "os", "figs:32x16:alpha=7", "vegeta-s-16-2"]
SPECS += ["vegeta", "tensorcore:h200", "gpu:h200", "tpu:v5e", "csr:h200"]
SPECS += ["nm-spmm:a100", "trainium2", "trainium3:dtype=fp8"]


@pytest.mark.parametrize("spec", SPECS)
def test_engines_have_sources(spec):
  parse(spec)  # is an engine
  assert keys(figs.cite(f"engine:{spec}"))


def test_every_kind_of_engine_is_known():
  kinds = {spec.partition(":")[0] for spec in SPECS} - {"vegeta-s-16-2"}
  assert kinds == set(citations.ENGINES)
  with pytest.raises(ValueError) as error:
    parse("nonsense")
  known = re.findall(r"[a-z0-9-]+", str(error.value).partition("nown: ")[2])
  assert set(known) == set(citations.ENGINES)


@pytest.mark.parametrize(
  ("wrong", "right"),
  [("figz", "figs"), ("sr-ste", "sr_ste"), ("engine:vegetta:4x4", "vegeta")],
)
def test_unknown_names_end_with_the_nearest(wrong, right):
  with pytest.raises(ValueError, match=f"did you mean '{right}'") as error:
    figs.cite(wrong)
  assert "\n" not in str(error.value)
