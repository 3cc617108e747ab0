"""Recipes by name: a decorator publishes a builder as a typed function.

A builder takes the plain recipe and its own options, and returns the recipe
with parts replaced. `register` turns it into a function of a pattern, the
length of the run and all options: its own and those that every recipe has.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
import os
import sys
from collections.abc import Callable
from typing import (
  Any,
  Concatenate,
  ParamSpec,
  Protocol,
  cast,
  overload,
  runtime_checkable,
)

from figs_jax.core._flow import Flow
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, nearest
from figs_jax.recipes.checks import MISSING, check_type, shown
from figs_jax.recipes.criterion import Transposable
from figs_jax.recipes.docstrings import entries, with_entries
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.timeline import Timeline

P = ParamSpec("P")
_FUNCTIONS: dict[str, RecipeFunction] = {}


@runtime_checkable
class RecipeFunction(Protocol[P]):
  """A registered recipe: a function that `help` and `inspect` can read.

  At run time its signature and docstring list every option. For a static type
  checker the first overload has the recipe's own options, the second one those
  that all recipes share.

  Attributes:
    builder: The decorated function, for builders that extend this recipe.
  """

  __name__: str
  __module__: str
  builder: Callable[Concatenate[Recipe, P], Recipe]

  @overload
  def __call__(
    self,
    pattern: NM | Rules | str,
    total_steps: int,
    /,
    *args: P.args,
    **options: P.kwargs,
  ) -> Recipe: ...

  @overload
  def __call__(
    self,
    pattern: NM | Rules | str,
    total_steps: int,
    *,
    dense: float | int = ...,
    finetune: float | int = ...,
    refresh_every: int = ...,
    transposable: bool = ...,
    mvue: NM | str = ...,
    **options: Any,
  ) -> Recipe: ...


def plain_recipe(
  name: str,
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.0125,
  finetune: float | int = 0.10,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Hard N:M masks and straight-through gradients after a dense phase.

  Every builder starts from it. Its options are those that all recipes have.

  Args:
    name: Name of the recipe.
    pattern: Target pattern: an `NM`, `Rules`, or text such as "1:8" or
      "head: dense, ff: 1:8".
    total_steps: Optimizer steps of the whole run.
    dense: Share of the steps that are dense at the start.
    finetune: Share of the steps at the end with strictly binary masks.
    refresh_every: Steps between two updates of the masks, which also change at
      every new stage; 0 updates them at new stages only.
    transposable: Whether masks are N:M along both axes of a kernel
      (2102.08124), so that the input gradient is a sparse product too.
    mvue: Pattern, such as "1:2", to which the gradient of a sparse layer's
      output is pruned without bias before it enters the weight gradient
      (2203.10991); "" leaves it whole.

  Raises:
    ValueError: If a value is out of range or the pattern cannot be read.
  """
  rules = Rules.parse(pattern)
  line = Timeline.of_fractions(total_steps, dense, finetune, refresh_every)
  pruned = NM.parse(mvue) if mvue else None
  recipe = Recipe(name, rules.single or rules, line, flow=Flow(mvue=pruned))
  if transposable:
    return dataclasses.replace(recipe, criterion=Transposable())
  return recipe


_PLAIN = inspect.signature(plain_recipe, eval_str=True).parameters
_MEANINGS = entries(plain_recipe.__doc__)
COMMON: dict[str, Any] = {
  key: option.default
  for key, option in _PLAIN.items()
  if option.kind is option.KEYWORD_ONLY
}


def register(
  name: str, **defaults: Any
) -> Callable[
  [Callable[Concatenate[Recipe, P], Recipe]],
  RecipeFunction[P],
]:
  """Decorator that publishes a builder as the recipe `name`.

  A builder is called as `builder(plain, **options)`: `plain` is hard N:M with
  straight-through gradients on the run's timeline, and the builder returns it
  with parts replaced. Its keyword-only arguments are the recipe's options;
  those with an annotation are checked. The first line of its docstring is the
  recipe's summary, and "Args:" describes the options.

  The decorated name becomes the function that `figs_jax.recipes.NAME` is, with
  the pattern, the number of steps and all options in its signature. The builder
  itself is its attribute `builder`.

  Args:
    name: Name of the recipe.
    **defaults: Defaults of options that every recipe has, where this recipe
      differs.

  Raises:
    ValueError: If the name is taken or not an identifier, if `defaults` has an
      unknown option, or if the builder's arguments cannot be options.

  >>> @register("masked_example")
  ... def masked_example(plain, *, grad_mode: str = "masked"):
  ...   return dataclasses.replace(plain, flow=Flow(grad_mode))
  >>> masked_example("2:4", 100).grad_mode
  'masked'
  >>> masked_example("2:4", 100) == create("masked_example", "2:4", 100)
  True
  >>> _ = _FUNCTIONS.pop("masked_example")  # so that no trace is left
  """
  for key in defaults:
    if key not in COMMON:
      raise ValueError(
        f"{name}: {key!r} is not an option of every recipe,"
        f" {nearest(key, COMMON)}"
      )

  def publish(
    builder: Callable[Concatenate[Recipe, P], Recipe],
  ) -> RecipeFunction[P]:
    builder = getattr(builder, "builder", builder)  # published before
    _check_name(name, builder)
    _FUNCTIONS[name] = _published(name, builder, defaults)
    return _FUNCTIONS[name]

  return publish


def names() -> tuple[str, ...]:
  """The names of all registered recipes, sorted.

  >>> "figs" in names()
  True
  """
  return tuple(sorted(_FUNCTIONS))


def options(name: str) -> dict[str, Any]:
  """The options of a recipe with their defaults.

  Args:
    name: One of `names()`.

  Raises:
    ValueError: If the recipe is unknown.

  >>> options("figs")["k"]
  8
  """
  return {key: p.default for key, p in parameters(name).items()}


def parameters(name: str) -> dict[str, inspect.Parameter]:
  """The options of a recipe as `inspect` gives them, with their types.

  Args:
    name: One of `names()`.

  Raises:
    ValueError: If the recipe is unknown.

  >>> parameters("figs")["k"].annotation
  <class 'int'>
  """
  known = inspect.signature(function_of(name)).parameters
  return {key: p for key, p in known.items() if p.kind is p.KEYWORD_ONLY}


def create(
  name: str, pattern: NM | Rules | str, total_steps: int, **options: Any
) -> Recipe:
  """The recipe of a run, for callers that have its name as text.

  `create("figs", "1:8", 1000, k=4)` is `figs_jax.recipes.figs("1:8", 1000,
  k=4)`; the docstring of that function describes the options.

  Args:
    name: One of `names()`.
    pattern: Target pattern: an `NM`, `Rules`, or text such as "1:8" or
      "head: dense, ff: 1:8".
    total_steps: Optimizer steps of the whole run.
    **options: Options of the recipe; `options(name)` gives the defaults.

  Raises:
    ValueError: If the recipe or an option is unknown (the message names the
      nearest one), or if a value has the wrong type or is out of range.

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
  return function_of(name)(pattern, total_steps, **options)


def function_of(name: str) -> RecipeFunction:
  """The function that is registered under a name.

  Args:
    name: One of `names()`.

  Raises:
    ValueError: If the recipe is unknown.

  >>> function_of("figs").__module__
  'figs_jax.recipes.catalog.decay'
  """
  if name not in _FUNCTIONS:
    hint = nearest(name, _FUNCTIONS)
    raise ValueError(f"Unknown recipe {name!r}, {hint}")
  return _FUNCTIONS[name]


def _published(
  name: str, builder: Callable[..., Recipe], defaults: dict[str, Any]
) -> RecipeFunction:
  """The function of a recipe, with its signature and docstring."""
  own = _own_options(name, builder)
  common = {
    key: _PLAIN[key].replace(default=defaults.get(key, default))
    for key, default in COMMON.items()
  }
  for key, value in defaults.items():
    check_type(f"{name}: {key}", _PLAIN[key].annotation, value)
  first = {key: _PLAIN[key] for key in ("pattern", "total_steps")}
  known = first | own | common

  @functools.wraps(builder)
  def recipe(
    pattern=MISSING, total_steps=MISSING, *excess, **options
  ) -> Recipe:
    if excess:
      raise TypeError(
        f"{name}: expected the options by name, got {shown(excess[0])} after"
        " total_steps"
      )
    given = {"pattern": pattern, "total_steps": total_steps, **options}
    for key, value in given.items():
      if key not in known:
        hint = nearest(key, [*own, *common])
        raise ValueError(f"{name}: unknown option {key!r}, {hint}")
      if value is not known[key].default:
        annotation = known[key].annotation
        given[key] = check_type(f"{name}: {key}", annotation, value)
    rules = Rules.parse(given["pattern"])
    shared = {
      key: given.get(key, option.default) for key, option in common.items()
    }
    try:
      plain = plain_recipe(name, rules, given["total_steps"], **shared)
      made = builder(plain, **{k: given[k] for k in own if k in given})
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from error
    if not isinstance(made, Recipe):
      raise TypeError(
        f"{name}: expected a Recipe from its builder, got {shown(made)}"
      )
    return made

  signature = inspect.Signature(list(known.values()), return_annotation=Recipe)
  annotated = {k: p.annotation for k, p in known.items()} | {"return": Recipe}
  meanings = _MEANINGS | entries(inspect.getdoc(builder))
  recipe.__dict__.update(builder=builder, __signature__=signature)
  recipe.__annotations__ = {
    k: kind for k, kind in annotated.items() if kind is not signature.empty
  }
  recipe.__name__ = recipe.__qualname__ = name
  recipe.__doc__ = with_entries(
    inspect.getdoc(builder) or f"The recipe `{name}`.",
    {key: meanings[key] for key in known if key in meanings},
    "ValueError: If an option is unknown, or a value has the wrong type or is"
    " out of range.",
  )
  return cast(RecipeFunction, recipe)


def _own_options(
  name: str, builder: Callable[..., Recipe]
) -> dict[str, inspect.Parameter]:
  """A builder's keyword-only arguments, their annotations as types."""
  try:
    signature = inspect.signature(builder, eval_str=True)
  except NameError:  # an annotation that only a type checker can resolve
    signature = inspect.signature(builder)
  arguments = list(signature.parameters.values())
  if not arguments or arguments[0].kind is arguments[0].KEYWORD_ONLY:
    raise ValueError(
      f"{name}: expected a builder of the form builder(plain, *, option=...),"
      f" got {builder.__name__}{signature}"
    )
  own = arguments[1:]
  for option in own:
    if option.kind is not option.KEYWORD_ONLY:
      raise ValueError(
        f"{name}: {option}: expected options after a *, as in"
        f" {builder.__name__}(plain, *, option=...)"
      )
    if option.default is option.empty:
      raise ValueError(f"{name}: {option.name}: expected a default value")
    if option.name in ("name", *_PLAIN):
      raise ValueError(
        f"{name}: {option.name}: every recipe has an argument of this name;"
        " choose another one, or set its default with"
        f" register({name!r}, {option.name}=...)"
      )
  return {option.name: option for option in own}


def _check_name(name: str, builder: Callable) -> None:
  """Raises ValueError unless `figs_jax.recipes.NAME` may be this recipe."""
  if not name.isidentifier() or keyword.iskeyword(name):
    raise ValueError(
      f"recipe {name!r}: expected a name that is a Python identifier"
    )
  if name in _FUNCTIONS:
    if not _same_source(_FUNCTIONS[name].builder, builder):
      raise ValueError(f"recipe {name!r} is registered already: rename yours")
  elif name in vars(sys.modules["figs_jax.recipes"]):
    raise ValueError(
      f"recipe {name!r}: figs_jax.recipes.{name} exists already: rename yours"
    )


def _same_source(old: Callable, new: Callable) -> bool:
  """Whether a notebook's cell or a file was merely run once more."""
  files = (
    os.path.realpath(inspect.unwrap(one).__code__.co_filename)
    for one in (old, new)
  )
  same_file = len(set(files)) == 1
  here = same_file or old.__module__ == new.__module__
  return here and old.__qualname__ == new.__qualname__
