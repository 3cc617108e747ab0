"""Recipes by name. A builder turns a plain recipe and options into its own."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Any

from figs_jax.core._flow import Flow
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, nearest
from figs_jax.recipes.criterion import Transposable
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.timeline import Timeline

_BUILDERS: dict[str, Callable[..., Recipe]] = {}
# Options of every recipe; `create` says what they mean.
COMMON: dict[str, Any] = {
  "dense": 0.0125,
  "finetune": 0.10,
  "refresh_every": 1,
  "transposable": False,
  "mvue": "",
}
_DEFAULTS: dict[str, dict[str, Any]] = {}


def register(name: str, **defaults: Any) -> Callable[[Callable], Callable]:
  """Decorator that makes a builder available to `create`.

  A builder is called as `builder(plain, **options)`: `plain` is hard N:M with
  straight-through gradients on the run's timeline; the builder returns it with
  parts replaced. Its keyword-only arguments are the recipe's options, the first
  line of its docstring is what `--help` says of it.

  Args:
    name: what `create` knows it by.
    **defaults: of the options that all recipes have, where they should differ.

  Raises:
    ValueError: the name is taken by another function, or `defaults` names no
      common option.

  >>> import dataclasses
  >>> @register("masked_example")
  ... def masked_example(plain):
  ...   return dataclasses.replace(plain, flow=Flow("masked"))
  >>> create("masked_example", "2:4", 100).grad_mode
  'masked'
  >>> _ = _BUILDERS.pop("masked_example")  # so that the example leaves no trace
  """

  for key in defaults:
    if key not in COMMON:
      raise ValueError(
        f"recipe {name!r}: {key!r} is no option of every recipe,"
        f" {nearest(key, COMMON)}"
      )

  def add(builder: Callable[..., Recipe]) -> Callable[..., Recipe]:
    if name in _BUILDERS and not _again(_BUILDERS[name], builder):
      raise ValueError(f"recipe {name!r} is registered already: rename yours")
    _BUILDERS[name], _DEFAULTS[name] = builder, defaults
    return builder

  return add


def _again(old: Callable, new: Callable) -> bool:
  """Whether a notebook's cell or a file was merely run once more."""
  files = (os.path.realpath(one.__code__.co_filename) for one in (old, new))
  same_file = len(set(files)) == 1
  here = same_file or old.__module__ == new.__module__
  return here and old.__qualname__ == new.__qualname__


def names() -> tuple[str, ...]:
  """Every recipe that `create` knows, sorted.

  >>> "figs" in names()
  True
  """
  return tuple(sorted(_BUILDERS))


def options(name: str) -> dict[str, Any]:
  """The options of a recipe with their defaults.

  Args:
    name: one of `names()`.

  Raises:
    ValueError: no recipe has that name.

  >>> options("figs")["k"]
  8
  """
  own = inspect.signature(builder_of(name)).parameters.values()
  return {
    **COMMON,
    **_DEFAULTS[name],
    **{p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY},
  }


def create(
  name: str,
  pattern: NM | Rules | str,
  total_steps: int,
  **given: Any,
) -> Recipe:
  """A recipe for a run.

  Args:
    name: one of `names()`; what each computes is said by its builder in
      `figs_jax.recipes.catalog`.
    pattern: the target: an `NM`, `Rules`, or text such as "1:8" or
      "head: dense, ff: 1:8".
    total_steps: optimizer steps of the whole run.
    **given: options; `options(name)` lists them with their defaults. Every
      recipe has those below, besides its own.

  Options:
    dense: share of the steps that are dense at the start.
    finetune: share of the steps at the end with strictly binary masks.
    refresh_every: masks are recomputed at multiples of this many steps and
      whenever their pattern changes; 0: only then.
    transposable: masks are N:M along both axes of a kernel (2102.08124), so
      that the input gradient is a sparse product too.
    mvue: the pattern, as "1:2", to which the gradient of a sparse layer's
      output is pruned, unbiased, before it enters the weight gradient
      (2203.10991); "" leaves it whole.

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
    masks: the largest |w|
    masks are recomputed every step and at each new stage
  """
  builder = builder_of(name)
  known = options(name)
  for key in given:
    if key not in known:
      raise ValueError(
        f"recipe {name!r} has no option {key!r}, {nearest(key, known)}"
      )
  common = {key: given.pop(key, known[key]) for key in COMMON}
  line = Timeline.of_fractions(
    total_steps, common["dense"], common["finetune"], common["refresh_every"]
  )
  mvue = NM.parse(common["mvue"]) if common["mvue"] else None
  rules = Rules.parse(pattern)
  target = rules.single or rules
  plain = Recipe(name, target, line, flow=Flow(mvue=mvue))
  if common["transposable"]:
    plain = dataclasses.replace(plain, criterion=Transposable())
  return builder(plain, **given)


def builder_of(name: str) -> Callable[..., Recipe]:
  """The function that was registered under a name.

  Raises:
    ValueError: no recipe has that name.
  """
  if name not in _BUILDERS:
    raise ValueError(f"no recipe {name!r}, {nearest(str(name), _BUILDERS)}")
  return _BUILDERS[name]
