"""Every recipe is a function with a signature, a docstring and clear errors."""

import inspect
import pathlib
import pydoc
import re
from typing import Literal, get_args, get_origin

import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core import NM, Rules
from figs_jax.recipes import registry
from figs_jax.recipes.docstrings import entries

from .table import FIRST

each = pytest.mark.parametrize("name", [row.name for row in FIRST])
# Without the suite's own checks of types, which would come first.
create = inspect.unwrap(recipes.create)
API = pathlib.Path(__file__).parents[2] / "docs" / "api" / "recipes.md"


def literals(name):
  """Option -> its choices."""
  return {
    key: get_args(option.annotation)
    for key, option in registry.parameters(name).items()
    if get_origin(option.annotation) is Literal
  }


def message(call, *args, **options):
  """The error of a call, in one line."""
  with pytest.raises((TypeError, ValueError)) as error:
    call(*args, **options)
  assert "\n" not in str(error.value)
  return str(error.value)


@each
def test_the_signature_is_published(name):
  function = getattr(recipes, name)
  assert name in dir(recipes) and name in recipes.names()
  signature = inspect.signature(function)
  pattern, steps, *options = signature.parameters.values()
  assert (pattern.name, pattern.annotation) == ("pattern", NM | Rules | str)
  assert (steps.name, steps.annotation) == ("total_steps", int)
  assert pattern.default is steps.default is inspect.Parameter.empty
  assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
  published = {option.name: option.default for option in options}
  assert published == recipes.options(name)
  assert signature.return_annotation is recipes.Recipe
  assert function.__annotations__ == {
    **{p.name: p.annotation for p in (pattern, steps, *options)},
    "return": recipes.Recipe,
  }
  assert function.__name__ == function.__qualname__ == name
  assert function.__module__ == function.builder.__module__


@each
def test_the_docstring_documents_every_option(name):
  function = getattr(recipes, name)
  meanings = entries(function.__doc__)
  assert set(meanings) == set(inspect.signature(function).parameters)
  for key, meaning in meanings.items():
    assert re.match(r"[A-Zωβλ]", meaning) and meaning.endswith("."), key
    assert not re.match(r"(Of|As|That|What|How|Where|When)\b", meaning), key
  assert max(map(len, function.__doc__.splitlines())) <= 80
  text = pydoc.plain(pydoc.render_doc(function))
  assert re.search(rf"{name}\(\s*pattern: ", text)  # over lines in 3.13
  for key, default in recipes.options(name).items():
    assert re.search(rf"\b{key}: .*? = {re.escape(repr(default))}", text)
    assert f"\n      {key}: " in text
  for key, choices in literals(name).items():
    assert all(f"`{choice}`" in meanings[key] for choice in choices)


@each
def test_the_function_and_create_make_the_same_recipe(name):
  function, options = getattr(recipes, name), recipes.options(name)
  plain = function("1:4", 100)
  if plain != function("1:4", 100):  # parts that are functions of their own
    assert recipes.create(name, "1:4", 100).describe() == plain.describe()
    return
  assert plain == recipes.create(name, "1:4", 100) == function("1:4", 100)
  assert plain == function(pattern=NM(1, 4), total_steps=np.int64(100))
  assert plain == function("1:4", 100, **options)
  scalars = {key: np.asarray(options[key])[()] for key in ("dense", "finetune")}
  assert repr(plain) == repr(function("1:4", 100, **scalars))
  for key, choices in literals(name).items():
    for choice in choices:
      one = function("1:4", 100, **{key: choice})
      assert one == recipes.create(name, "1:4", 100, **{key: choice})


@each
def test_mistakes_get_the_same_clear_line_from_both(name):
  function = getattr(recipes, name)

  def both(*args, **options):
    text = message(function, *args, **options)
    assert text == message(create, name, *args, **options)
    return text

  for key, option in registry.parameters(name).items():
    kinds = get_args(option.annotation) or (option.annotation,)
    wrong = [object(), [1]]
    if str not in kinds:
      wrong += ["x", "1"]
    if bool not in kinds:
      wrong += [True, np.True_]
    if bool in kinds:
      wrong += [0, 1]
    if float not in kinds:
      wrong += [1.0, np.float32(1)]
    for value in wrong:
      text = both("1:4", 100, **{key: value})
      assert text.startswith(f"{name}: {key}: expected "), text
      assert ", got " in text
    near = f"{key}x"
    if near not in registry.parameters(name):
      text = both("1:4", 100, **{near: 1})
      assert text.startswith(f"{name}: unknown option {near!r}, did you mean")
  for key, choices in literals(name).items():
    text = both("1:4", 100, **{key: f"{choices[0]}_"})
    assert f"Did you mean {choices[0]!r}?" in text
  text = both(100, "1:4")
  assert text == f"{name}: pattern: expected NM, Rules or text, got 100"
  text = both("1:4", 100.0)
  assert text == f"{name}: total_steps: expected an integer, got 100.0"
  assert both("1:4", True).endswith("expected an integer, got True")
  assert both("1:4", 0).startswith(f"{name}: total_steps: expected ")
  assert both("1:4", 100, dense=2).startswith(f"{name}: dense: expected ")
  assert message(function).startswith(f"{name}: pattern: expected ")
  assert message(function, "1:4").startswith(f"{name}: total_steps: expected")
  assert "options by name, got 0.1" in message(function, "1:4", 100, 0.1)


def test_the_page_of_the_api_has_every_function():
  shown = re.findall(
    r"autofunction:: figs_jax\.recipes\.(\w+)$", API.read_text(), re.M
  )
  ours = [
    name
    for name in recipes.names()
    if recipes.function_of(name).__module__.startswith("figs_jax.")
  ]
  assert sorted(shown) == ours


def test_ones_own_recipe_is_a_function_too(own_recipe):
  """In its own module as in the package, with its builder beside it."""
  mine = own_recipe.cosine_leak
  assert recipes.cosine_leak is mine
  assert mine("1:8", 1000, chance=0.2).timeline.due != mine("1:8", 1000)
  plain = recipes.ste("1:8", 1000)
  assert mine.builder(plain, chance=0.2).leak is not plain.leak
  # Python 3.13 spreads a signature over lines.
  text = " ".join(pydoc.plain(pydoc.render_doc(mine)).split())
  assert re.search(r"cosine_leak\( ?pattern: ", text)
  assert "chance: float = 0.1, seed: int = 0, dense: float | int" in text
  assert "chance: Probability of a refresh at a step." in text


@pytest.fixture
def registrations(monkeypatch):
  monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))


def no_plain(): ...
def only_options(*, k=1): ...
def positional(plain, k=1): ...
def any_options(plain, **options): ...
def no_default(plain, *, k): ...
def taken(plain, *, dense=0.1): ...
def named(plain, *, name="x"): ...


@pytest.mark.usefixtures("registrations")
@pytest.mark.parametrize(
  ("builder", "text"),
  [
    (no_plain, r"mine: expected a builder .* got no_plain\(\)"),
    (only_options, "mine: expected a builder"),
    (positional, r"mine: k=1: expected options after a \*"),
    (any_options, r"mine: \*\*options: expected options after a \*"),
    (no_default, "mine: k: expected a default value"),
    (taken, "mine: dense: every recipe .* register"),
    (named, "mine: name: every recipe has"),
  ],
)
def test_builders_whose_arguments_cannot_be_options(builder, text):
  assert re.match(text, message(recipes.register("mine"), builder))
  assert "mine" not in recipes.names()


@pytest.mark.usefixtures("registrations")
@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("my-recipe", "expected a name that is a Python identifier"),
    ("lambda", "expected a name that is a Python identifier"),
    ("create", "figs_jax.recipes.create exists already"),
    ("recipe", "figs_jax.recipes.recipe exists already"),
    ("sr_ste", "registered already"),
  ],
)
def test_names_that_cannot_be_recipes(name, text):
  assert text in message(recipes.register(name), lambda plain: plain)


@pytest.mark.usefixtures("registrations")
def test_defaults_of_common_options_are_checked():
  decorate = recipes.register("mine", dense="half")
  text = message(decorate, lambda plain: plain)
  assert text == "mine: dense: expected a number, got 'half'"
  text = message(recipes.register, "mine", dens=0.5)
  assert "mine: 'dens' is not an option of every recipe, did you mean" in text


@pytest.mark.usefixtures("registrations")
def test_options_without_a_known_type_take_anything():
  @recipes.register("mine")
  def mine(plain, *, spice=3, herb: "Basil | None" = None):
    """Tasty."""
    return plain

  assert mine("1:4", 10, spice="hot", herb=object()) == mine("1:4", 10)
  assert "Tasty." in mine.__doc__
