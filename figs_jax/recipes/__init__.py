"""Recipes: N:M masks, leak and gradients over the steps of a run.

Every registered recipe is a function of this package: `recipes.figs("1:8",
total_steps=1000, k=4)` gives a `Recipe`, a pure function of the step.
`create("figs", "1:8", 1000, k=4)` is the same by name, `names()` lists the
names, and `register` adds a recipe of your own.
"""

from typing import Any

from figs_jax.recipes import catalog as _catalog
from figs_jax.recipes.bound_leaf import BoundLeaf
from figs_jax.recipes.bound_recipe import BoundRecipe
from figs_jax.recipes.citations import cite
from figs_jax.recipes.recipe import Moment, Recipe
from figs_jax.recipes.registry import (
  RecipeFunction,
  create,
  function_of,
  names,
  options,
  register,
)
from figs_jax.recipes.timeline import Switch, Timeline

del _catalog  # imported for its registrations

# The recipes are left out, so that an import of * does not hide the built-in
# class `set`.
__all__ = [
  "BoundLeaf",
  "BoundRecipe",
  "Moment",
  "Recipe",
  "RecipeFunction",
  "Switch",
  "Timeline",
  "cite",
  "create",
  "function_of",
  "names",
  "options",
  "register",
]


def __getattr__(name: str) -> Any:
  if name in names():
    return function_of(name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *names()})
