"""The optimizers of `config.optimizer.name` and the fields of each.

A field that is None has the optimizer's own default, which is that of optax. A
field that the optimizer does not have must be left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from figs_jax.core.legal import Integer, Legal, Number, Typed, Word

# Own fields and their defaults.
OPTIMIZERS: dict[str, dict[str, Any]] = {
  "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
  "sgd": {"momentum": 0.0, "nesterov": False},
  "lion": {"b1": 0.9, "b2": 0.99},
  "adafactor": {
    "momentum": 0.0,
    "decay_rate": 0.8,
    "factored": True,
    "min_dim_size_to_factor": 128,
    "clipping_threshold": 1.0,
    "multiply_by_parameter_scale": True,
  },
  "muon": {
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "consistent_rms": 0.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
  },
  "schedule_free": {
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_lr_power": 2.0,
  },
}
NAMES = Word(
  tuple(OPTIMIZERS),
  {"adam": "adamw", "sgdm": "sgd", "momentum": "sgd", "lionw": "lion"},
)
_RATE = Number("[0, 1)")
_MEANINGS: dict[str, tuple[str, type, Legal]] = {
  "b1": (
    "Decay of the first moment, for schedule_free the share of the average",
    float,
    _RATE,
  ),
  "b2": ("Decay of the second moment, for lion of its momentum", float, _RATE),
  "eps": (
    "Constant added to the root of the second moment",
    float,
    Number("(0, 1]"),
  ),
  "momentum": ("Decay of the momentum; 0 keeps none", float, _RATE),
  "nesterov": ("Whether momentum is Nesterov's", bool, Typed(bool)),
  "decay_rate": (
    "Exponent c of adafactor's second-moment decay, 1 - t^-c",
    float,
    Number("(0, 1]"),
  ),
  "factored": (
    "Whether adafactor keeps row and column means of the second moment",
    bool,
    Typed(bool),
  ),
  "min_dim_size_to_factor": (
    "Size that two axes of a kernel need to be factored",
    int,
    Integer("[2, 1048576]"),
  ),
  "clipping_threshold": (
    "Largest root mean square of adafactor's update; 0 disables it",
    float,
    Number("[0, 1e9]"),
  ),
  "multiply_by_parameter_scale": (
    "Whether adafactor's update is relative to the root mean square of the"
    " parameter",
    bool,
    Typed(bool),
  ),
  "ns_steps": (
    "Newton-Schulz iterations of muon's orthogonalization",
    int,
    Integer("[1, 100]"),
  ),
  "consistent_rms": (
    "Root mean square of muon's update, the same for all shapes; 0 scales it"
    " by the root of max(1, out / in) instead",
    float,
    Number("[0, 1000]"),
  ),
  "weight_lr_power": (
    "Exponent of the largest learning rate so far, the weight of a step in the"
    " average of schedule_free",
    float,
    Number("[0, 16]"),
  ),
}
# Field -> type, meaning with the defaults of each optimizer, legal values.
FIELDS: dict[str, tuple[type, str, Legal]] = {
  name: (
    kind,
    f"{meaning} (defaults: "
    + ", ".join(
      f"{optimizer} {own[name]}"
      for optimizer, own in OPTIMIZERS.items()
      if name in own
    )
    + ").",
    legal,
  )
  for name, (meaning, kind, legal) in _MEANINGS.items()
}
_PREFIX = "optimizer."


def options(optimizer: Any) -> dict[str, Any]:
  """The own fields of an optimizer, with its defaults for those that are None.

  Args:
    optimizer: The fields of `config.optimizer`, a mapping or ConfigDict.

  >>> options({"name": "sgd", "momentum": 0.9, "nesterov": None})
  {'momentum': 0.9, 'nesterov': False}
  """
  return {
    field: default if optimizer.get(field) is None else optimizer[field]
    for field, default in OPTIMIZERS[optimizer["name"]].items()
  }


def resolved(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields by dotted name, with the optimizer's own ones as it has them.

  Fields of other optimizers are left out, and so is the name adamw: runs of
  versions without other optimizers have the same fields.

  >>> resolved({"optimizer.name": "adamw", "optimizer.b2": None})
  {'optimizer.b1': 0.9, 'optimizer.b2': 0.999, 'optimizer.eps': 1e-08}
  """
  optimizer = {
    name.removeprefix(_PREFIX): value
    for name, value in fields.items()
    if name.startswith(_PREFIX)
  }
  name = optimizer.setdefault("name", "adamw")
  if name not in OPTIMIZERS or not optimizer.keys() & FIELDS.keys():
    return dict(fields)
  away = {f"{_PREFIX}{each}" for each in FIELDS}
  if name == "adamw":
    away.add(f"{_PREFIX}name")
  own = {f"{_PREFIX}{k}": v for k, v in options(optimizer).items()}
  return {k: v for k, v in fields.items() if k not in away} | own


def mistake(optimizer: Mapping[str, Any]) -> str | None:
  """A message if a field is set that the optimizer does not have.

  The values of adamw count as not set, so that a file's own can be undone.

  Args:
    optimizer: The fields of `config.optimizer`, each legal by itself.

  >>> mistake({"name": "lion", "momentum": 0.9})
  '--config.optimizer.momentum: expected a field of lion (b1, b2), got 0.9;\
 leave it out, or choose --config.optimizer.name=sgd, adafactor or muon'
  >>> mistake({"name": "sgd", "b1": 0.9, "b2": 0.999})
  """
  name = optimizer["name"]
  own, adamw = OPTIMIZERS[name], OPTIMIZERS["adamw"]
  for field in FIELDS:
    value = optimizer.get(field)
    if field in own or value in (None, adamw.get(field)):
      continue
    undo = f"set it to {adamw[field]}" if field in adamw else "leave it out"
    others = [each for each, has in OPTIMIZERS.items() if field in has]
    return (
      f"--config.{_PREFIX}{field}: expected a field of {name}"
      f" ({', '.join(own)}), got {value}; {undo}, or"
      f" choose --config.optimizer.name={_either(others)}"
    )
  if name == "schedule_free":
    return _free_mistake(optimizer)
  if (
    name == "sgd"
    and optimizer.get("nesterov")
    and not options(optimizer)["momentum"]
  ):
    return (
      "--config.optimizer.nesterov: expected a momentum, got 0; set"
      " --config.optimizer.momentum=0.9"
    )
  return None


def _free_mistake(optimizer: Mapping[str, Any]) -> str | None:
  """A message if fields do not fit the schedule-free optimizer."""
  schedule = optimizer.get("schedule", "constant")
  if schedule != "constant":
    return (
      "--config.optimizer.schedule: expected constant for schedule_free, whose"
      f" average takes the place of a decay, got {schedule}"
    )
  if not options(optimizer)["b1"]:
    return (
      "--config.optimizer.b1: expected a number above 0 for schedule_free,"
      " which divides by it, got 0"
    )
  return None


def _either(words: Iterable[str]) -> str:
  *first, last = words
  return f"{', '.join(first)} or {last}" if first else last
