"""Default configurations, and those of saved runs.

A file in configs/ starts from `default_config(recipe)`, sets the fields that
its experiment changes, and returns it. Every field can be overridden on the
command line. `figs_jax.train.schema` lists the fields and checks them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from ml_collections import config_dict

from figs_jax import models, recipes
from figs_jax.core import field_names, optimizer_fields
from figs_jax.models import own_model
from figs_jax.models.legal_options import DERIVED, OF_COMPUTATION
from figs_jax.train import schema
from figs_jax.train.schema import ConfigError

# Fields that may change when a run is resumed: they affect none of its numbers.
FREE = (
  "keep",
  "log",
  "log_every",
  "mesh",
  "progress",
  "allow_change",
  "recipe_file",
  "model_file",
  "data.data_dir",
  "data.download",
  "data.source",
  "data.workers",
  "data.eval_batch_size",
  "teacher",  # its SHA-256 counts
  "distill.seed",
)
# Types of options without a default; all others are floats.
_KINDS: dict[str, type] = {
  **dict.fromkeys(
    (
      "width",
      "depth",
      "decoder_depth",
      "heads",
      "kv_heads",
      "head_dim",
      "mlp_dim",
      "window",
      "freq",
    ),
    int,
  ),  # fmt: skip
  **dict.fromkeys(("depths", "pretrained_windows"), tuple),
  "scaled": bool,
  "block": str,
}
_WARMUP = "optimizer.warmup_steps"
# Model options whose default the variant may change.
OF_VARIANT = (
  "head_dim", "gated", "tied", "stem", "shortcut", "length", "rope_theta",
  "rope_factor",
)  # fmt: skip
_OWN_RECIPE = "; pass the file of a recipe of your own as --recipe_file"
# Fields of saved runs that 0.2.0 has renamed.
_RENAMED = {"accumulate": "grad_accum_steps"}


def default_config(
  recipe: str = "figs", family: str | type = "vit"
) -> config_dict.ConfigDict:
  """A new configuration with every field, and defaults where sensible.

  Args:
    recipe: Recipe whose options become the fields of `config.recipe`.
    family: Model family, or a class of your own, whose options become the
      fields of `config.model`; `figs_jax.models.register` gets the class.

  Raises:
    ConfigError: If the recipe or family is unknown, or the class is refused.

  >>> default_config("sr_ste").recipe.name
  'sr_ste'
  """
  try:
    if isinstance(family, type):
      family = models.register(family).__name__
    model_options = models.options_of(family)
    recipe_options = recipes.options(recipe)
  except ValueError as error:
    known = recipe in recipes.names() or family not in models.names()
    raise ConfigError(f"{error}{'' if known else _OWN_RECIPE}") from error
  config = schema.defaults(models.task_of(family))
  config.family = family
  config.recipe = _fields({"name": recipe} | recipe_options)
  if own := models.REGISTERED.get(family):
    config.model = _fields(own.options)
    config.variant, config.pattern = "custom", "hidden: 1:4"
    config.model_file, config.model_sha256 = own.source, own.sha256
  else:
    config.model = _model_fields(model_options)
  return config


def _model_fields(options: Mapping[str, Any]) -> config_dict.ConfigDict:
  """The options of a model as fields; those that it computes are unset."""
  fields = config_dict.ConfigDict()
  for name, default in options.items():
    if name in OF_COMPUTATION:
      fields[name] = jnp.dtype(default).name if name == "dtype" else default
    elif name not in DERIVED:
      kind = _KINDS.get(name, float) if default is None else type(default)
      fields[name] = config_dict.placeholder(kind)
  return fields


def _fields(options: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Options of a recipe or an own class; those without a default are None."""
  fields = config_dict.ConfigDict()
  for name, default in options.items():
    if default is None:
      fields[name] = config_dict.placeholder(_KINDS.get(name, float))
    elif isinstance(default, type) and default in own_model.LEGAL:
      fields[name] = config_dict.placeholder(default)
    elif name == "dtype":
      fields[name] = jnp.dtype(default).name
    else:
      fields[name] = default
  return fields


def given(fields: config_dict.ConfigDict) -> dict[str, Any]:
  """The fields that are set.

  Args:
    fields: Fields, of which those that are None are not set.

  >>> given(config_dict.create(name="figs", k=2, dense=None))
  {'k': 2, 'name': 'figs'}
  """
  return {k: v for k, v in fields.items() if v is not None}


def with_defaults(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """A copy with defaults for the fields of the model that are not set.

  They are unset until a run begins, so that a field that is set differs from
  one that is free to follow `init_from`; see `workdir.initial_config`. What the
  variant decides stays unset.

  >>> config = with_defaults(default_config("figs"))
  >>> config.variant, config.data.image_size, config.model.pool
  ('S/16', 8, 'cls')
  """
  config = config.copy_and_resolve_references()
  if not config.variant and config.family == "vit":
    config.variant = "S/16"
  if "image_size" in config.data and config.data.image_size is None:
    config.data.image_size = 8
  if config.family in models.REGISTERED:  # its options have their defaults
    return config
  try:
    decided = models.FAMILIES[config.family].sizes(config.variant)
  except ValueError:
    decided = {}  # `build` says what is wrong
  for name, default in models.options_of(config.family).items():
    free = name not in (*OF_VARIANT, *decided, "in_channels")
    if not free or name not in config.model:
      continue
    if config.model[name] is None and default is not None:
      config.model[name] = default
  return config


def stream_seed(config: config_dict.ConfigDict) -> int | list[int]:
  """Seed of the training stream; one per seed if each has its own.

  Seed i of a run with several reads what a run of that seed alone reads.

  >>> config = default_config("figs")
  >>> config.seed, config.seeds, config.data.seed = 5, 3, 20
  >>> stream_seed(config)
  [25, 26, 27]
  >>> config.data.order = "shared"
  >>> stream_seed(config)
  20
  """
  first = config.data.seed
  if config.data.order == "shared":
    return first
  first += config.seed
  return [first + i for i in range(config.seeds)] if config.seeds else first


def recipe_of(config: config_dict.ConfigDict) -> recipes.Recipe:
  """The recipe of a configuration, created with its options.

  Args:
    config: Configuration of a run.

  Raises:
    ConfigError: If an option or the pattern is invalid.

  >>> config = default_config("figs")
  >>> config.pattern, config.total_steps = "2:4", 100
  >>> str(recipe_of(config).targets[0]), recipe_of(config).total_steps
  ('2:4', 100)
  """
  options = given(config.recipe)
  name = options.pop("name")
  try:
    return recipes.create(name, config.pattern, config.total_steps, **options)
  except ValueError as error:
    raise ConfigError(f"config.recipe or config.pattern: {error}") from error


def default_of(saved: Mapping[str, Any]) -> config_dict.ConfigDict:
  """`default_config` for the recipe and family of a saved configuration.

  Fields that it lacks have the values of the version that saved it.

  Raises:
    ConfigError: If the recipe or family is unknown. A file that a run names is
      never executed, so a recipe of one's own needs --recipe_file.

  >>> default_of({"family": "vit", "recipe": {"name": "ste"}}).recipe.name
  'ste'
  """
  try:
    recipe, file = saved["recipe"]["name"], saved.get("recipe_file")
    family, source = saved["family"], saved.get("model_file")
  except (LookupError, TypeError, AttributeError):
    # The error below says what is missing.
    recipe = file = family = source = None
  if isinstance(source, str) and source and family not in models.names():
    raise ConfigError(own_model.missing(str(family), source))
  if isinstance(file, str) and file and recipe not in recipes.names():
    raise ConfigError(
      f"Unknown recipe {recipe!r}, which this run took from {file}; add"
      f" --recipe_file {shlex.quote(file)}"
    )
  family, recipe = schema.kind_of(saved)
  config = with_defaults(default_config(recipe, family))
  config.data.order = "shared"  # as before the field existed
  return config


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A saved configuration, with defaults for fields it does not have.

  >>> old = {"family": "vit", "recipe": {"name": "ste"}, "optimizer": {"b1": 0}}
  >>> completed(old)["optimizer"]["b1"], completed(old)["optimizer"]["schedule"]
  (0, 'cosine')

  Raises:
    ConfigError: If this version of figs_jax lacks a field, or `default_of`
      raises it.
  """
  defaults = plain(default_of(saved))
  for old, new in _RENAMED.items():
    if old in saved:
      raise ConfigError(
        f"expected config.{new}, got a run of figs_jax 0.1 with config.{old};"
        " read it with that version, or train it again"
      )
  fields, own = schema.flat(defaults), schema.flat(saved)
  for name in own:
    source = own.get("model_file") if name.startswith("model.") else None
    if source and name not in fields:
      raise ConfigError(
        f"expected the class of {source} that this run was trained with, got"
        f" one without the option {name.removeprefix('model.')}; give the"
        " original file as --model_file"
      )
    if name not in fields:
      raise ConfigError(
        f"expected a run of this version of figs_jax, got one with the unknown"
        f" field config.{name}{field_names.near(name, fields)}"
      )
  fields |= own
  # A class without options has no field below `model`.
  return {"model": {}} | traverse_util.unflatten_dict(fields, sep=".")


def with_model(
  config: config_dict.ConfigDict, model: type | None = None
) -> config_dict.ConfigDict:
  """A copy of a configuration, with the file of a model class of one's own.

  Args:
    config: Configuration of a run.
    model: The class to register, if a program gives it.

  Raises:
    ConfigError: If `config` is not a `ConfigDict` or has another family, or
      `figs_jax.models.register` refuses the class.
  """
  if not isinstance(config, config_dict.ConfigDict):
    raise ConfigError(
      "expected a configuration from default_config(recipe, family), got a"
      f" {type(config).__name__}; set its fields, as in config.seed = 1"
    )
  if model is not None:
    register_model(model, config.get("family"))
  config = config.copy_and_resolve_references()
  if own := models.REGISTERED.get(str(config.get("family"))):
    config.model_file, config.model_sha256 = own.source, own.sha256
  return config


def register_model(
  model: type, family: Any, where: str = "--config.family"
) -> None:
  """Registers the class of a program for a configuration that names it.

  Args:
    model: The class.
    family: Family of the configuration.
    where: Place of that configuration, for the error.

  Raises:
    ConfigError: If `figs_jax.models.register` refuses the class, or the family
      is another one.
  """
  try:
    name = models.register(model).__name__
  except ValueError as error:
    raise ConfigError(str(error)) from error
  if family != name:
    raise ConfigError(
      f"{where}: expected a configuration of {name}, the class in model=, got"
      f" one of {family!r}; default_config(recipe, {name}) has its fields"
    )


def other_model(saved: Mapping[str, Any]) -> str | None:
  """A message if the file of a run's own class has other content now.

  Args:
    saved: Configuration of the run.

  >>> other_model({"family": "vit"})
  """
  own = models.REGISTERED.get(saved["family"])
  wanted = saved.get("model_sha256", "")
  if own is None or not wanted or not own.sha256 or wanted == own.sha256:
    return None
  return (
    f"expected {own.source} of SHA-256 {wanted[:12]}..., got"
    f" {own.sha256[:12]}..."
  )


def recipe_sha256(name: str) -> str:
  """SHA-256 of the file that defines a recipe of one's own, in hexadecimal.

  Args:
    name: One of `figs_jax.recipes.names()`.

  Returns:
    The hash; "" for a recipe of figs_jax or of a notebook.

  >>> recipe_sha256("figs")
  ''
  """
  function = recipes.function_of(name)
  if function.__module__.startswith("figs_jax."):
    return ""
  path = Path(inspect.unwrap(function.builder).__code__.co_filename)
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def other_recipe(saved: Mapping[str, Any], sha256: str) -> str | None:
  """A message if a run's recipe came from a file of other content.

  Args:
    saved: Configuration of the run.
    sha256: Hash from `recipe_sha256`; if either is empty, nothing is compared.

  >>> saved = {"recipe": {"name": "mine"}, "recipe_sha256": "ab" * 32}
  >>> other_recipe(saved, "cd" * 32).partition(";")[0]
  'expected recipe mine of SHA-256 abababababab..., got cdcdcdcdcdcd...'
  >>> other_recipe(saved, "")
  """
  wanted = saved.get("recipe_sha256", "")
  if not wanted or not sha256 or wanted == sha256:
    return None
  return (
    f"expected recipe {saved['recipe']['name']} of SHA-256 {wanted[:12]}...,"
    f" got {sha256[:12]}...; give the original file as --recipe_file"
  )


def plain(config: config_dict.ConfigDict) -> dict[str, Any]:
  """A configuration as JSON saves it, which turns tuples into lists.

  Args:
    config: Configuration of a run.

  >>> plain(config_dict.create(allow_change=("seed",)))
  {'allow_change': ['seed']}
  """
  return json.loads(json.dumps(config.to_dict()))


def differences(
  saved: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
  """Dotted names of fields that differ, except those in `FREE`.

  A warm-up may be a count in one and the same share in the other, and a field
  of the optimizer its default in one and None in the other.

  >>> differences({"a": {"b": 1}, "keep": 2}, {"a": {"b": 2}, "keep": 3})
  ['a.b']
  """
  old, new = (
    optimizer_fields.resolved(schema.flat(each)) for each in (saved, config)
  )
  if _warmup(old) == _warmup(new):
    old[_WARMUP] = new.get(_WARMUP)
  return sorted(
    name
    for name in old.keys() | new.keys()
    if old.get(name) != new.get(name)
    and name not in FREE
    and name.split(".")[0] not in FREE
  )


def _warmup(fields: Mapping[str, Any]) -> int | None:
  if _WARMUP not in fields:
    return None
  return schema.warmup_steps(fields[_WARMUP], fields["total_steps"])


def changes(
  saved: Mapping[str, Any], config: config_dict.ConfigDict
) -> tuple[list[str], list[str]]:
  """Fields that differ from those of a saved run, and the refused ones.

  Those in `config.allow_change` are not refused.

  Args:
    saved: Configuration of the run.
    config: Configuration that resumes it.

  Returns:
    Dotted names, sorted: of all fields that differ, and of the refused ones.

  >>> config = default_config("figs")
  >>> saved = plain(config)
  >>> config.total_steps, config.data.seed = 7, 1
  >>> config.allow_change = ("total_steps",)
  >>> changes(saved, config)
  (['data.seed', 'total_steps'], ['data.seed'])
  """
  changed = differences(completed(saved), plain(config))
  unknown = set()  # hashes of which one is empty, as of a notebook's class
  if not other_recipe(saved, config.recipe_sha256):
    unknown.add("recipe_sha256")
  if not other_model(saved):
    unknown.add("model_sha256")
  changed = [name for name in changed if name not in unknown]
  free = set(config.allow_change)
  return changed, [
    name for name in changed if not free & {name, name.split(".")[0]}
  ]
