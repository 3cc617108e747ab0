"""Recipes by name. A builder turns a plain recipe and options into its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, nearest
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.timeline import Timeline

_BUILDERS: dict[str, Callable[..., Recipe]] = {}
_COMMON = ("dense", "finetune", "refresh_every")


def register(name: str) -> Callable[[Callable], Callable]:
  """Decorator that makes a builder available to `create`.

  A builder is called as `builder(plain, **options)`: `plain` is hard N:M with
  straight-through gradients on the run's timeline; the builder returns it with
  parts replaced. Its keyword-only arguments are the recipe's options.

  Raises:
    ValueError: the name is taken.

  >>> import dataclasses
  >>> @register("masked_example")
  ... def masked_example(plain):
  ...   return dataclasses.replace(plain, grad_mode="masked")
  >>> create("masked_example", "2:4", 100).grad_mode
  'masked'
  >>> _ = _BUILDERS.pop("masked_example")  # so that the example leaves no trace
  """

  def add(builder: Callable[..., Recipe]) -> Callable[..., Recipe]:
    if name in _BUILDERS:
      raise ValueError(f"recipe {name!r} is registered already: rename yours")
    _BUILDERS[name] = builder
    return builder

  return add


def names() -> tuple[str, ...]:
  """Every recipe that `create` knows, sorted."""
  return tuple(sorted(_BUILDERS))


def options(name: str) -> dict[str, Any]:
  """The options of a recipe with their defaults.

  Raises:
    ValueError: no recipe has that name.

  >>> options("figs")["k"]
  8
  """
  common = inspect.signature(create).parameters
  own = inspect.signature(_builder(name)).parameters.values()
  return {
    **{key: common[key].default for key in _COMMON},
    **{p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY},
  }


def create(
  name: str,
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.0125,
  finetune: float | int = 0.10,
  refresh_every: int = 1,
  **own: Any,
) -> Recipe:
  """A recipe for a run.

  Args:
    name: one of `names()`; what each computes is said by its builder in
      `figs_jax.recipes.catalog`.
    pattern: the target: an `NM`, `Rules`, or text such as "1:8" or
      "head: dense, ff: 1:8".
    total_steps: optimizer steps of the whole run.
    dense: share of the steps that are dense at the start.
    finetune: share of the steps at the end with strictly binary masks.
    refresh_every: masks are recomputed at multiples of this many steps, and
      whenever their pattern changes.
    **own: the options of that recipe; `options(name)` lists them.

  Raises:
    ValueError: an unknown name or option (the nearest is suggested), or a value
      that makes no sense.

  >>> recipe = create("figs", "1:4", total_steps=1000)
  >>> recipe.pattern_at(500), recipe.leak_at(500)
  (NM(n=2, m=8), 0.0)
  >>> print(recipe.describe())
  figs: 1:4, 1000 steps
    steps     phase      pattern  leak  gradient
    0..11     dense      4:4      1     all kept
    12..233   sparse     8:32     0     ste
    234..455  sparse     4:16     0     ste
    456..677  sparse     2:8      0     ste
    678..899  sparse     1:4      0     ste
    900..999  fine-tune  1:4      0     ste
    masks are recomputed every step and at each new stage
  """
  builder = _builder(name)
  known = options(name)
  for key in own:
    if key not in known:
      raise ValueError(
        f"recipe {name!r} has no option {key!r}, {nearest(key, known)}"
      )
  line = Timeline.of_fractions(total_steps, dense, finetune, refresh_every)
  return builder(Recipe(name, _pattern(pattern), line), **own)


def _builder(name: str) -> Callable[..., Recipe]:
  if name not in _BUILDERS:
    raise ValueError(f"no recipe {name!r}, {nearest(str(name), _BUILDERS)}")
  return _BUILDERS[name]


def _pattern(pattern: NM | Rules | str) -> NM | Rules:
  if isinstance(pattern, Rules):
    return pattern
  if isinstance(pattern, str) and re.search(r"[^\d\s:]", pattern):
    return Rules.parse(pattern)
  return NM.parse(pattern)
