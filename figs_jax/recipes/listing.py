"""The recipes as text, for `--help` and for static type checkers."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from typing import Any, Literal, get_args, get_origin

from figs_jax.recipes import registry
from figs_jax.recipes.docstrings import entries


def summary(name: str) -> str:
  """The first line of a recipe's docstring; "" if it has none.

  Args:
    name: One of `names()`.

  Raises:
    ValueError: If the recipe is unknown.

  >>> summary("ste")
  'Hard N:M masks from |w|, straight-through gradients, nothing else.'
  """
  text = inspect.getdoc(registry.function_of(name).builder) or ""
  return text.partition("\n")[0]


def meanings(name: str) -> dict[str, str]:
  """The description of each option of a recipe; "" if there is none.

  Args:
    name: One of `names()`.

  Raises:
    ValueError: If the recipe is unknown.

  >>> meanings("one_shot")["grad_mode"], meanings("dense")["finetune"]
  ('Gradient of pruned entries: `masked` or `ste`.', 'Share of the steps at the\
 end with strictly binary masks.')
  """
  described = entries(registry.function_of(name).__doc__)
  return {key: described.get(key, "") for key in registry.options(name)}


def catalogue(width: int = 80) -> str:
  """Every registered recipe with its summary, its options and their defaults.

  Options that all recipes have are listed once, and again where a recipe's
  default differs.

  Args:
    width: Characters per line.

  >>> lines = catalogue().splitlines()
  >>> lines[lines.index("  figs") + 2].strip()
  "k=8, grad_mode='ste', nested=False"
  """
  known = {name: registry.options(name) for name in registry.names()}
  shared = _shared(list(known.values()))
  lines = ["recipes (--config=FILE:RECIPE, options as --config.recipe.NAME):"]
  lines += _block("every recipe", "", shared, width)
  for name, options in known.items():
    own = {
      key: default
      for key, default in options.items()
      if key not in shared or shared[key] != default
    }
    lines += _block(name, summary(name), own, width)
  return "\n".join(lines)


def _shared(known: list[dict[str, Any]]) -> dict[str, Any]:
  """Options that all recipes have, with their most common default."""
  if not known:
    return {}
  return {
    key: Counter(options[key] for options in known).most_common(1)[0][0]
    for key in known[0]
    if all(key in options for options in known)
  }


def _block(
  name: str, text: str, options: dict[str, Any], width: int
) -> list[str]:
  """A recipe's name, with its summary and its options indented below."""
  listed = ", ".join(f"{key}={value!r}" for key, value in options.items())
  lines = [f"  {name}"]
  for row in filter(None, (text, listed)):
    lines += textwrap.wrap(
      row,
      width,
      initial_indent=" " * 4,
      subsequent_indent=" " * 6,
      break_long_words=False,
      break_on_hyphens=False,
    )
  return lines


def stub() -> str:
  """The file `figs_jax/recipes/__init__.pyi`, for static type checkers.

  It declares the recipes of the package, with their signatures and summaries;
  `python docs/draw_recipes.py` writes it.

  >>> "def sr_ste(" in stub()
  True
  """
  functions = [registry.function_of(name) for name in registry.names()]
  ours = [f for f in functions if f.__module__.startswith("figs_jax.")]
  return _STUB + "\n".join(_declared(function) for function in ours)


_STUB = """# Written by docs/draw_recipes.py.
from typing import Any, Literal

from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.recipes.bound_leaf import BoundLeaf as BoundLeaf
from figs_jax.recipes.bound_recipe import BoundRecipe as BoundRecipe
from figs_jax.recipes.citations import cite as cite
from figs_jax.recipes.recipe import Moment as Moment
from figs_jax.recipes.recipe import Recipe as Recipe
from figs_jax.recipes.registry import RecipeFunction as RecipeFunction
from figs_jax.recipes.registry import create as create
from figs_jax.recipes.registry import function_of as function_of
from figs_jax.recipes.registry import names as names
from figs_jax.recipes.registry import options as options
from figs_jax.recipes.registry import register as register
from figs_jax.recipes.timeline import Switch as Switch
from figs_jax.recipes.timeline import Timeline as Timeline

def __getattr__(name: str) -> Any: ...
"""


def _declared(function: registry.RecipeFunction) -> str:
  """A function of the stub."""
  known = inspect.signature(function).parameters
  lines = [f"def {function.__name__}("]
  for key, option in known.items():
    if option.kind is option.KEYWORD_ONLY and "  *," not in lines:
      lines.append("  *,")
    default = "" if option.default is option.empty else f" = {option.default!r}"
    lines.append(f"  {key}: {_type(option.annotation)}{default},")
  lines += [") -> Recipe:", f'  """{summary(function.__name__)}"""']
  text = "\n".join(lines).replace("'", '"')
  return f"{text}\n"


def _type(annotation: Any) -> str:
  """A type as text, with the names that the stub imports."""
  if get_origin(annotation) is Literal:
    return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
  if parts := get_args(annotation):
    return " | ".join(map(_type, parts))
  return "None" if annotation is type(None) else annotation.__name__
