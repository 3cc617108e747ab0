"""The one schema of an experiment, and what makes a configuration legal.

A file in configs/ starts from `default_config(recipe)`, sets what its
experiment changes, and returns it. Every leaf can be overridden on the command
line; `validate` refuses what no run could use, before anything is built.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import config_dict

from figs_jax import models, recipes
from figs_jax.train import schema as fields

# What may differ between a run and its resumption without being asked for.
FREE = (
  "keep",
  "log_every",
  "mesh",
  "progress",
  "allow_change",
  "recipe_file",
  "data.data_dir",
  "data.download",
  "data.workers",
  "data.eval_batch_size",
)
# Of options without a default; any other takes a number.
_KINDS: dict[str, type] = {
  **dict.fromkeys(
    ("width", "depth", "decoder_depth", "heads", "mlp_dim", "window", "freq"),
    int,
  ),
  **dict.fromkeys(("depths", "pretrained_windows"), tuple),
}
# Options whose default is the variant's.
_OF_VARIANT = ("head_dim", "gated", "tied")


class ConfigError(ValueError):
  """A configuration that no run could use; one line says where and why."""


# Model options that follow from the variant or from the data.
_DERIVED = (
  "patch",
  "num_classes",
  "image_size",
  "in_channels",
  "vocab",
  "input_length",
  "target_length",
  "param_dtype",
)
_OWN_RECIPE = (
  "; one of your own is known once its file has run: give it as --recipe_file"
)
SCHEDULES = ("cosine", "linear", "rsqrt", "constant")


def default_config(
  recipe: str = "figs", family: str = "vit"
) -> config_dict.ConfigDict:
  """Every field, with a default where one is sensible.

  `figs_jax.train.schema` says what each means.

  Args:
    recipe: its options become the fields of `config.recipe`.
    family: its options become the fields of `config.model`.

  Raises:
    ConfigError: an unknown recipe or family.

  >>> default_config("sr_ste").recipe.name
  'sr_ste'
  """
  try:
    model_options = models.options_of(family)
    recipe_options = recipes.options(recipe)
  except ValueError as error:
    known = recipe in recipes.names() or family not in models.names()
    raise ConfigError(f"{error}{'' if known else _OWN_RECIPE}") from error
  config = fields.defaults(reads_text(family))
  config.family = family
  config.model = _fields(
    {k: v for k, v in model_options.items() if k not in _DERIVED}
  )
  config.recipe = _fields({"name": recipe} | recipe_options)
  return config


def reads_text(family: str) -> bool:
  """Whether a family's batches are text; images otherwise.

  >>> reads_text("vit")
  False
  """
  return "vocab" in models.options_of(family)


def _fields(options: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Options as fields; None where there is no default."""
  fields = config_dict.ConfigDict()
  for name, default in options.items():
    if name in _OF_VARIANT:
      fields[name] = config_dict.placeholder(type(default))
    elif default is None:
      fields[name] = config_dict.placeholder(_KINDS.get(name, float))
    elif name == "dtype":
      fields[name] = jnp.dtype(default).name
    else:
      fields[name] = default
  return fields


def given(fields: config_dict.ConfigDict) -> dict[str, Any]:
  """The fields that have a value."""
  return {k: v for k, v in fields.items() if v is not None}


def recipe_of(config: config_dict.ConfigDict) -> recipes.Recipe:
  """The recipe that a configuration names, with its options."""
  options = given(config.recipe)
  name = options.pop("name")
  try:
    return recipes.create(name, config.pattern, config.total_steps, **options)
  except ValueError as error:
    raise ConfigError(f"config.recipe or config.pattern: {error}") from error


def validate(config: config_dict.ConfigDict) -> None:
  """Raises ConfigError at the first field that no run could use."""
  for name in (
    "total_steps", "batch_size", "accumulate", "log_every",
    "checkpoint_every", "keep",
  ):  # fmt: skip
    _need(config[name] >= 1, name, config[name], "at least 1")
  for name in ("seeds", "diagnose_every", "init_seed"):
    _need(config[name] >= 0, name, config[name], "0 or more")
  for name in ("ema_decay", "label_smoothing"):
    _need(0 <= config[name] < 1, name, config[name], "in [0, 1)")
  if "beams" in config.data:  # of text
    _need(config.data.beams >= 1, "data.beams", config.data.beams, "at least 1")
  if "mixup" in config:  # of images
    _need(config.mixup >= 0, "mixup", config.mixup, "0 or more")
  _need(
    config.batch_size % config.accumulate == 0,
    "batch_size",
    config.batch_size,
    f"a multiple of accumulate={config.accumulate}",
  )
  modes = ("auto", "vmap", "map")
  _need(
    config.seeds_mode in modes, "seeds_mode", config.seeds_mode, f"in {modes}"
  )
  heads = ("strict", "fresh")
  _need(config.init_head in heads, "init_head", config.init_head, f"in {heads}")
  optimizer = config.optimizer
  _need(
    optimizer.schedule in SCHEDULES,
    "optimizer.schedule",
    optimizer.schedule,
    f"in {SCHEDULES}",
  )
  for name in ("warmup_steps", "weight_decay", "clip"):
    _need(
      optimizer[name] >= 0, f"optimizer.{name}", optimizer[name], "0 or more"
    )
  _need(
    optimizer.warmup_steps < config.total_steps,
    "optimizer.warmup_steps",
    optimizer.warmup_steps,
    f"less than total_steps={config.total_steps}",
  )


def _need(holds: bool, name: str, value: Any, wanted: str) -> None:
  if not holds:
    raise ConfigError(
      f"config.{name}={value!r} must be {wanted}; set --config.{name}"
    )


def default_of(saved: Mapping[str, Any]) -> config_dict.ConfigDict:
  """`default_config` of the recipe and family of a run's saved configuration.

  Raises:
    ConfigError: its recipe or family is not known here. Nothing that is named
      in a run is executed, so a recipe's file is asked for.

  >>> default_of({"family": "vit", "recipe": {"name": "ste"}}).recipe.name
  'ste'
  """
  recipe, file = saved["recipe"]["name"], saved.get("recipe_file")
  if file and recipe not in recipes.names():
    raise ConfigError(
      f"no recipe {recipe!r} here; the run had it from {file}: add"
      f" --recipe_file {shlex.quote(file)}"
    )
  return default_config(recipe, saved["family"])


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A run's saved configuration; fields that are newer have their default.

  >>> old = {"family": "vit", "recipe": {"name": "ste"}, "optimizer": {"b1": 0}}
  >>> completed(old)["optimizer"]["b1"], completed(old)["optimizer"]["schedule"]
  (0, 'cosine')

  Raises:
    ConfigError: as `default_of`.
  """
  default = default_of(saved)
  # As it is saved: without tuples.
  return _merged(json.loads(json.dumps(default.to_dict())), saved)


def _merged(default: dict[str, Any], saved: Mapping[str, Any]):
  out = dict(default)
  for name, value in saved.items():
    both = isinstance(value, Mapping) and isinstance(out.get(name), dict)
    out[name] = _merged(out[name], value) if both else value
  return out


def differences(saved: dict[str, Any], config: dict[str, Any]) -> list[str]:
  """Dotted fields in which a run's saved configuration differs from a new one.

  Fields in `FREE` do not count: they change no number of the run.

  >>> differences({"a": {"b": 1}, "keep": 2}, {"a": {"b": 2}, "keep": 3})
  ['a.b']
  """
  old, new = _flat(saved), _flat(config)
  return sorted(
    name
    for name in old.keys() | new.keys()
    if old.get(name) != new.get(name)
    and name not in FREE
    and name.split(".")[0] not in FREE
  )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= _flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = list(value) if isinstance(value, tuple) else value
  return out
