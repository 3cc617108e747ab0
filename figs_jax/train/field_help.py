"""What `--help` of the training program says of each field."""

from __future__ import annotations

import inspect
import textwrap

from ml_collections import config_dict

from figs_jax import models
from figs_jax.models.legal_options import OF_COMPUTATION
from figs_jax.recipes import docstrings, listing
from figs_jax.train import schema
from figs_jax.train.config import OF_VARIANT

_CHANNELS = (
  "Number of channels of the images. Set it to convert a patch kernel of"
  " init_from between 3 (its sum for 1) and 1 (a third of it for each of 3)."
)
_RECIPE = "Name of the recipe, given after the file: --config=FILE:NAME."


def field_meanings(config: config_dict.ConfigDict) -> dict[str, str]:
  """Meanings of all fields by dotted name; "" for unknown fields.

  Args:
    config: Configuration that started from `default_config`.
  """
  known = {
    name: field.meaning
    for name, field in schema.own(models.task_of(config.family)).items()
  }
  model = docstrings.entries(inspect.getdoc(models.class_of(config.family)))
  known |= {f"model.{name}": meaning for name, meaning in model.items()}
  if config.family in models.FAMILIES:
    for name, default in models.options_of(config.family).items():
      if default is not None and name not in OF_COMPUTATION:
        variant = "variant or " if name in OF_VARIANT else ""
        known[f"model.{name}"] += (
          f" Unset: that of {variant}init_from, or {default}."
        )
    known["model.in_channels"] = _CHANNELS
  recipe = listing.meanings(config.recipe.name)
  known |= {f"recipe.{name}": meaning for name, meaning in recipe.items()}
  known["recipe.name"] = _RECIPE
  return {name: known.get(name, "") for name in schema.flat(config.to_dict())}


def field_list(config: config_dict.ConfigDict, width: int = 80) -> str:
  """Text that lists every field for `--help`: value, legal values, meaning.

  Args:
    config: Configuration that started from `default_config`.
    width: Characters per line.
  """
  lines = ["fields of the configuration (--config.FIELD=VALUE):"]
  values = schema.flat(config.to_dict())
  legal = schema.legal_values(config.family, config.recipe.name)
  for name, meaning in field_meanings(config).items():
    about = f" ({legal[name]}): {meaning}" if meaning else ""
    lines += textwrap.wrap(
      f"{name}={values[name]!r}{about}",
      width,
      initial_indent="  ",
      subsequent_indent="      ",
      break_long_words=False,
      break_on_hyphens=False,
    )
  return "\n".join(lines)
