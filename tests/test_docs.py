"""The documents' code runs, and the recipes' pages say what the code says."""

import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from figs_jax import models, recipes
from figs_jax.core._flow import GRAD_MODES
from figs_jax.core.masks import is_nm
from figs_jax.engine import spec_text
from figs_jax.recipes import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
RECIPES = "\n".join(
  text for name, text in PAGES.items() if name.startswith("recipes")
)
NAMES = sorted(
  name
  for name in recipes.names()
  if recipes.function_of(name).__module__.startswith("figs_jax.")
)
SECTIONS = {
  text.partition("\n")[0].strip("`"): text
  for text in re.split(r"^## ", RECIPES, flags=re.MULTILINE)[1:]
}
BLOCKS = [
  pytest.param(block, id=f"{path.name}-{number}")
  for path in sorted(DOCS.glob("*.md"))
  for number, block in enumerate(
    re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
  )
]
LOOP = next(p.values[0] for p in BLOCKS if "def train_step" in p.values[0])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  """Forgets the recipes, engines and models that a document registers."""
  monkeypatch.setattr(spec_text, "_CLASSES", dict(spec_text._CLASSES))
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))
  for name in set(recipes.names()) - set(NAMES):
    del registry._FUNCTIONS[name]
  yield
  models.REGISTERED.clear()


@pytest.fixture(scope="module")
def script():
  """docs/draw_recipes.py."""
  path = DOCS / "draw_recipes.py"
  spec = importlib.util.spec_from_file_location("draw_recipes", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
  if "import equinox" in block:
    pytest.importorskip("equinox")
  with jax.numpy_rank_promotion("allow"):  # a reader's default
    exec(compile(block, "a block of the documents", "exec"), {})


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", ["step", "rigl", "s_ste", "mdgf_sdgf", "asp"])
def test_the_loop_serves_every_kind_of_recipe(name, capsys):
  scope = {}
  text = LOOP.replace('name = "sr_ste"', f'name = "{name}"')
  exec(compile(text, "the loop", "exec"), scope)
  assert scope["recipe"].name == name
  assert is_nm(scope["params"]["hidden"]["kernel"], "1:4")
  assert float(capsys.readouterr().out) < 0.3  # the target's variance is 1


def test_every_recipe_has_a_section_and_nothing_else_does(script):
  assert sorted(script.documented(RECIPES)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sections_name_modes_and_sources(name):
  recipe = recipes.create(name, "1:4", 100)
  section = SECTIONS[name]
  gradient = re.search(
    r"\*\*Gradient\*\*(.*?)\*\*Sources?\*\*", section, re.DOTALL
  )
  named = [m for m in re.findall(r"`(\w+)`", gradient[1]) if m in GRAD_MODES]
  if recipe.sparse:
    assert named[0] == recipe.grad_mode
  if "grad_mode" in recipes.options(name):
    assert set(named) == {mode for mode in GRAD_MODES if _takes(name, mode)}
  papers = {s for s in recipe.sources if re.fullmatch(r"\d+\.\d+", s)}
  tail = section[gradient.end() :].partition("<!--")[0]
  assert set(re.findall(r"arxiv\.org/abs/([\d.]+)\)", tail)) == papers
  assert "$$\n" in section.partition("![")[0]  # the equation


def _takes(name, mode):
  try:
    return bool(recipes.create(name, "1:4", 100, grad_mode=mode))
  except ValueError:
    return False


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_options_are_those_of_the_code(name):
  common = _rows(SECTIONS["What all recipes share"])
  options = common | _rows(SECTIONS[name])
  known = recipes.options(name)
  assert options == {key: repr(default) for key, default in known.items()}


def test_every_option_has_a_meaning():
  for name, page in PAGES.items():
    assert not re.findall(r"^\| `\w+` \| `.+?` \| *\|$", page, re.M), name


def _rows(section):
  """option -> default, from the rows "| `option` | `default` | ... |"."""
  rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE)
  return dict(rows)


def test_generated_parts_are_up_to_date(script):
  renew = "run python docs/draw_recipes.py"
  for page in PAGES.values():
    assert script.renewed(page) == page, renew
  with pytest.raises(ValueError, match="cannot generate 'nonsense'"):
    script.renewed("<!-- begin nonsense -->\n<!-- end -->")


def test_pictures_exist_and_are_small():
  used = set(re.findall(r"!\[.*?\]\((.+?)\)", RECIPES))
  there = {f"recipes/{path.name}" for path in DOCS.glob("recipes/*.png")}
  assert used == there == {f"recipes/{n}.png" for n in (*NAMES, "all")}
  for name in used:
    most = 60_000 if name == "recipes/all.png" else 40_000
    assert (DOCS / name).stat().st_size <= most, name


def test_pictures_show_what_the_code_does(script):
  whole = json.loads(_stamp("all"))
  assert sorted(whole) == NAMES
  for name in NAMES:
    recipe = recipes.create(name, script.PATTERN, script.STEPS)
    now, shown = json.loads(script.stamp(recipe)), json.loads(_stamp(name))
    assert json.loads(whole[name]) == shown
    assert now.keys() == shown.keys()
    for key, values in now.items():
      renew = f"{name}: {key} has changed, run python docs/draw_recipes.py"
      if key in ("leak", "pull", "share"):
        np.testing.assert_allclose(values, shown[key], atol=2e-4, err_msg=renew)
      else:
        assert values == shown[key], renew


def _stamp(name):
  with Image.open(DOCS / "recipes" / f"{name}.png") as picture:
    return picture.text["Timeline"]


def test_links_in_the_documents_exist():
  for path in DOCS.glob("*.md"):
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
      assert (DOCS / target).exists(), f"{path.name}: {target}"
