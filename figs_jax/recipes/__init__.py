"""Recipes: how N:M masks, leak and gradients evolve during a run.

`create("figs", "1:8", total_steps)` gives a `Recipe`, a pure function of the
step; `names()` and `options(name)` list what there is, `register` adds yours.
"""

from figs_jax.recipes import catalog as _catalog
from figs_jax.recipes.bound_recipe import BoundLeaf, BoundRecipe
from figs_jax.recipes.citations import cite
from figs_jax.recipes.recipe import Moment, Recipe
from figs_jax.recipes.registry import create, names, options, register
from figs_jax.recipes.timeline import Switch, Timeline

del _catalog  # imported for its registrations

__all__ = [
  "BoundLeaf",
  "BoundRecipe",
  "Moment",
  "Recipe",
  "Switch",
  "Timeline",
  "cite",
  "create",
  "names",
  "options",
  "register",
]
