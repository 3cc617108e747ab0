"""Loads colabs/own_recipe.py as a notebook would, and takes it out again."""

import contextlib
import importlib.util
import pathlib

from figs_jax import recipes
from figs_jax.recipes import registry

PATH = pathlib.Path(__file__).parents[2] / "colabs" / "own_recipe.py"


@contextlib.contextmanager
def registered():
  """The recipe is known inside, and unknown again to all other tests."""
  before = set(recipes.names())
  spec = importlib.util.spec_from_file_location("own_recipe", PATH)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  yield module
  for name in set(recipes.names()) - before:
    del registry._FUNCTIONS[name]
