"""The fields of a configuration: default, meaning and legal values of each.

`default_config`, `--help` of the training program (`figs_jax.train.field_help`)
and docs/configuration.md take them from here, and `check` compares a
configuration with them. The options of models and recipes are documented in
their docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from flax import traverse_util
from ml_collections import config_dict

from figs_jax import models
from figs_jax.core import optimizer_fields
from figs_jax.core.field_names import near
from figs_jax.core.legal import (
  BELOW_ONE,
  EXAMPLES,
  SEED,
  SHARE,
  UNSET,
  WIDE_DTYPES,
  Either,
  Field,
  Integer,
  Legal,
  Number,
  Several,
  Typed,
  Unchecked,
  Word,
  suggestion,
)
from figs_jax.data import fields as data_fields
from figs_jax.data.pixels import NAMED
from figs_jax.models.legal_options import DERIVED, MODEL, OF_COMPUTATION
from figs_jax.recipes import registry
from figs_jax.recipes.bound_leaf import MASK_STORAGES
from figs_jax.recipes.checks import shown


class ConfigError(ValueError):
  """An invalid configuration; the message names the field and the fix."""


# Counters are 32-bit.
_STEPS, _OFF_OR_STEPS = Integer("[1, 2**31)"), Integer("[0, 2**31)")
_DEVICES = Integer("[1, 65536]", special=-1)

# Fields of every run.
SHARED: dict[str, Field] = {
  "family": Field(
    "vit",
    "Model family: bert, gpt2, llama, resnet, swin_v2, t5 or vit, or a class of"
    " your own.",
  ),
  "variant": Field(
    "",
    "Published size of the family, or custom (as in custom/4), whose sizes are"
    " set in config.model. Defaults to that of init_from, or S/16 for a ViT.",
  ),
  "pattern": Field(
    "ff: 1:8", "N:M pattern of each kernel; the first rule that matches wins."
  ),
  "activations": Field(
    "",
    "N:M patterns of the inputs of linear layers, by rules as in pattern; none"
    " by default.",
  ),
  "recipe_file": Field("", "File of your own recipe; set by --recipe_file."),
  "recipe_sha256": Field("", "SHA-256 of that file; set by --recipe_file."),
  "model_file": Field("", "File and class of your own; set by --model_file."),
  "model_sha256": Field("", "SHA-256 of that file; set by --model_file."),
  "total_steps": Field(1000, "Number of optimizer steps.", _STEPS),
  "batch_size": Field(
    128, "Examples per optimizer step, over all devices.", EXAMPLES
  ),
  "grad_accum_steps": Field(
    1, "Micro-batches per optimizer step; more of them save memory.", EXAMPLES
  ),
  "seed": Field(
    0,
    "Seed for initialization, dropout and the recipe (the first one if seeds >"
    " 0).",
    SEED,
  ),
  "seeds": Field(
    0,
    "Number of seeds to train together; 0 trains one run.",
    Integer("[0, 1024]"),
  ),
  "seeds_mode": Field(
    "auto",
    "How seeds are trained: vmap, map, or auto, which chooses by the device.",
    Word(("auto", "vmap", "map")),
  ),
  "init_from": Field(
    "", "Initial weights: a file or directory, or the workdir of a dense run."
  ),
  "init_head": Field(
    "strict",
    "Classifier of init_from: strict keeps it, fresh makes a new one.",
    Word(("strict", "fresh")),
  ),
  "init_seed": Field(
    0,
    "Index of the seed to start from, if init_from is a run with several.",
    Integer("[0, 1024)"),
  ),
  "init_resize_positions": Field(
    False, "Whether the weights of init_from may have another image size."
  ),
  "init_interpolation": Field(
    "linear",
    "How positions of init_from are then interpolated: linear as in the paper's"
    " code; bicubic as in transformers, bicubic_antialias for its DINOv2 with"
    " registers.",
    Word(("linear", "bicubic", "bicubic_antialias")),
  ),
  "teacher": Field(
    "",
    "Teacher to distill from: the workdir of a run, or a directory for"
    " figs_jax.models.from_pretrained.",
  ),
  "teacher_sha256": Field("", "SHA-256 of its arrays; set by training."),
  "distill.temperature": Field(
    2.0, "Temperature T of both softmaxes.", Number("(0, 1000]")
  ),
  "distill.weight": Field(
    0.5,
    "Share w of the teacher: (1 - w) loss + w T^2 KL(teacher, student).",
    SHARE,
  ),
  "distill.seed": Field(
    0,
    "Index of the seed to learn from, if the teacher is a run with several.",
    Integer("[0, 1024)"),
  ),
  "train_only": Field(
    "",
    "Regular expressions of the parameters to train, divided by commas, or of"
    " modules, as in head; all others stay as they are. Unset trains all.",
  ),
  "optimizer.name": Field(
    "adamw",
    f"Optimizer: {', '.join(optimizer_fields.OPTIMIZERS)}.",
    optimizer_fields.NAMES,
  ),
  "optimizer.learning_rate": Field(
    1e-3, "Learning rate after the warm-up.", Number("[0, 1000]")
  ),
  "optimizer.warmup_steps": Field(
    0.0,
    "Steps in which the learning rate rises from 0; below 1 it is their share"
    " of total_steps.",
    Number("[0, 2**31)"),
  ),
  "optimizer.schedule": Field(
    "cosine",
    "Learning rate after the warm-up: cosine, linear, rsqrt or constant.",
    Word(("cosine", "linear", "rsqrt", "constant")),
  ),
  "optimizer.weight_decay": Field(
    0.01,
    "Weight decay, times the learning rate: decoupled, for sgd in the gradient;"
    " none on biases and scales.",
    Number("[0, 1000]"),
  ),
  "optimizer.clip": Field(
    1.0,
    "Largest global norm of the gradient; 0 disables clipping.",
    Number("[0, 1e9]"),
  ),
  **{
    f"optimizer.{name}": Field(*field)
    for name, field in optimizer_fields.FIELDS.items()
  },
  "param_dtype": Field(
    "float32",
    "Dtype of the parameters; with bfloat16, the optimizer moves float32"
    " masters, by which masks are chosen.",
    Word(("float32", "bfloat16")),
  ),
  "ema_decay": Field(
    0.0, "Decay of averaged weights; 0 keeps none.", BELOW_ONE
  ),
  "recalibrate_batch_norm": Field(
    50,
    "Training batches from which batch normalization computes its statistics"
    " anew after the last step, if the finished weights differ from the trained"
    " ones; 0 keeps the running ones.",
    _OFF_OR_STEPS,
  ),
  "label_smoothing": Field(
    0.0, "Share of each target spread over all classes.", BELOW_ONE
  ),
  "log_every": Field(50, "Steps between lines of metrics.jsonl.", _STEPS),
  "diagnose_every": Field(
    100,
    "Steps between statistics of masks and gradients; 0 disables them.",
    _OFF_OR_STEPS,
  ),
  "checkpoint_every": Field(
    200, "Steps between checkpoints, each with an evaluation.", _STEPS
  ),
  "keep": Field(
    2, "Number of newest checkpoints to keep, beside the best.", _STEPS
  ),
  "progress": Field(
    True, "Whether to show progress, compilation and evaluations on stderr."
  ),
  "log.tensorboard": Field(
    "auto",
    "TensorBoard events: auto (if tensorboardX is installed), on or off.",
    Word(("auto", "on", "off")),
  ),
  "log.wandb": Field("", "Project of Weights & Biases to log to, or none."),
  "mesh.seed": Field(
    1,
    "Devices to split the seeds over, which never communicate; -1 takes the"
    " remaining ones.",
    _DEVICES,
  ),
  "mesh.data": Field(
    1, "Devices to split batches over; -1 takes the remaining ones.", _DEVICES
  ),
  "mesh.fsdp": Field(
    1,
    "Devices to split weights over as well; -1 takes the remaining ones.",
    _DEVICES,
  ),
  "mesh.tensor": Field(
    1,
    "Devices to split heads, feed-forward layers and vocabulary over; -1 takes"
    " the remaining ones.",
    _DEVICES,
  ),
  "mask_storage": Field(
    "bool",
    "Masks in memory and checkpoints: bool, a byte per weight, or bits.",
    Word(MASK_STORAGES),
  ),
  "allow_change": Field(
    (),
    "Names of fields that may change when the run is resumed.",
    Several(Typed(str)),
  ),
  **data_fields.SHARED,
}
# Fields of families that read images.
IMAGES: dict[str, Field] = {
  "loss": Field(
    "softmax",
    "Training loss: the cross-entropy of a softmax, or bce, the binary"
    " cross-entropy of each class, averaged over classes.",
    Word(("softmax", "bce")),
  ),
  "mixup": Field(
    0.0, "Parameter alpha of mixup; 0 disables it.", Number("[0, 1000]")
  ),
  **data_fields.IMAGES,
}
# Fields of the runs of each task of `figs_jax.train.tasks`.
OF_TASK: dict[str, dict[str, Field]] = {
  "causal_text": data_fields.CAUSAL_TEXT,
  "images": IMAGES,
  "masked_text": data_fields.MASKED_TEXT,
  "text_to_text": data_fields.TEXT,
}
# Legal numbers of the recipes' options; `figs_jax.recipes` checks how they fit
# together.
RECIPE: dict[str, Legal] = {
  "dense": SHARE,
  "finetune": SHARE,
  "refresh_every": _OFF_OR_STEPS,
  "decay": Number("[0, 1e9]"),
  "until": SHARE,
  "omega": Number("(0, 1]"),
  "freq": _STEPS,
  "beta": Number("(0, 1e9]"),
  "zero_at": Number("(0, 1]"),
  "k": Integer("[1, 65536]", powers=True),
  "sampled": Integer("[0, 1024]"),
  "share": BELOW_ONE,
  "rank": Integer("[0, 65536]"),
  "lazy": SHARE,
  "seed": SEED,
  "t_min": BELOW_ONE,
  "t_max": BELOW_ONE,
  "threshold": Number("[0, 1e9]"),
  "window": Integer("[1, 1048576]"),
}
_MOST_VALUES = 2**28  # of a ViT's position embedding


def own(task: str) -> dict[str, Field]:
  """Fields by dotted name, without the options of model and recipe.

  Args:
    task: Task of the family, as in `figs_jax.models.task_of`.

  >>> own("images")["optimizer.clip"].default
  1.0
  """
  return SHARED | OF_TASK[task]


def defaults(task: str) -> config_dict.ConfigDict:
  """A new configuration with the fields of `own`.

  >>> defaults("images").optimizer.clip, defaults("images").data.data_dir
  (1.0, None)
  """
  values = {
    name: config_dict.placeholder(field.default)
    if isinstance(field.default, type)
    else field.default
    for name, field in own(task).items()
  }
  return config_dict.ConfigDict(traverse_util.unflatten_dict(values, sep="."))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """Values of all fields by dotted name.

  >>> flat({"mesh": {"data": 1}})
  {'mesh.data': 1}
  """
  return traverse_util.flatten_dict(config, sep=".")


def legal_values(family: str, recipe: str) -> dict[str, Legal]:
  """Legal values of all fields by dotted name.

  Args:
    family: One of `figs_jax.models.names()`.
    recipe: One of `figs_jax.recipes.names()`.

  >>> str(legal_values("vit", "figs")["recipe.k"])
  'a power of two in [1, 65536]'
  """
  options = models.options_of(family)
  known: dict[str, Legal] = {
    name: field_legal(field)
    for name, field in own(models.task_of(family)).items()
  }
  known["family"] = Word(tuple(models.names()))
  own_class = models.REGISTERED.get(family)
  if own_class:
    known["variant"] = Word(("custom",))
    known |= {f"model.{name}": each for name, each in own_class.legal.items()}
  for name, default in options.items():
    if name not in DERIVED and own_class is None:
      legal = MODEL.get(name) or Typed(type(default))
      fixed = name in OF_COMPUTATION
      known[f"model.{name}"] = legal if fixed else Either(UNSET, legal)
  if family == "t5":  # its activations overflow in float16
    known["model.dtype"] = WIDE_DTYPES
  known["recipe.name"] = Word((recipe,))
  ours = registry.function_of(recipe).__module__.startswith("figs_jax.")
  for name, option in registry.parameters(recipe).items():
    numbers = RECIPE.get(name) if ours else None
    known[f"recipe.{name}"] = _of_annotation(option.annotation, numbers)
  return known


def field_legal(field: Field) -> Legal:
  """The legal values of a field of `own`.

  >>> str(field_legal(Field(False, "Whether to download.")))
  'True or False'
  """
  if isinstance(field.default, type):
    return Either(UNSET, field.legal or Typed(field.default))
  return field.legal or Typed(type(field.default))


def _of_annotation(annotation: Any, numbers: Legal | None) -> Legal:
  """The legal values of a recipe's option; `numbers` are those of numbers."""
  union = get_origin(annotation) is not Literal
  kinds = (union and get_args(annotation)) or (annotation,)
  legal: Legal = numbers or Unchecked("checked by the recipe")
  if get_origin(kinds[0]) is Literal:
    legal = Word(get_args(kinds[0]))
  elif bool in kinds or str in kinds:
    legal = Typed(bool if bool in kinds else str)
  return Either(UNSET, legal) if type(None) in kinds else legal


def check(config: Mapping[str, Any] | config_dict.ConfigDict) -> None:
  """Checks a whole configuration, in a moment and without building anything.

  Args:
    config: Configuration of a run, or what its config.json holds.

  Raises:
    ConfigError: If a field is unknown, missing or illegal, or fields do not fit
      together. The message is one line.

  >>> config = {"family": "vit", "recipe": {"name": "figs"}, "keep": 0}
  >>> check(config)
  Traceback (most recent call last):
    ...
  figs_jax.train.schema.ConfigError: --config.keep: expected an integer in\
 [1, 2**31), got 0
  """
  if isinstance(config, config_dict.ConfigDict):
    config = config.to_dict()
  family, recipe = kind_of(config)
  legal, fields = legal_values(family, recipe), flat(config)
  if ("data.vocabulary" in legal) != ("data.vocabulary" in fields) and any(
    name.startswith("data.") for name in fields
  ):
    kinds = ("text", "images")
    wanted, got = kinds if "data.vocabulary" in legal else kinds[::-1]
    raise ConfigError(
      f"config.family={family!r}: expected data fields for {wanted}, got those"
      f" for {got}; start the configuration from default_config(recipe,"
      f" {family!r})"
    )
  options = {x.removeprefix("recipe.") for x in fields if x[:7] == "recipe."}
  if not options <= {x.removeprefix("recipe.") for x in legal} and any(
    options == {"name", *registry.parameters(x)} for x in registry.names()
  ):
    raise ConfigError(
      f"--config.recipe.name={recipe}: expected the recipe after the file, as"
      f" in --config=FILE:{recipe}, since it decides the fields of"
      f" config.recipe; in Python start from default_config({recipe!r})"
    )
  for name, value in fields.items():
    if name not in legal:
      raise ConfigError(f"--config.{name}: unknown field{near(name, legal)}")
    if value not in legal[name]:
      raise ConfigError(
        f"--config.{name}: expected {legal[name]}, got {shown(value)}"
        f"{suggestion(legal[name], value)}"
      )
  for name in legal:
    if name not in fields:
      raise ConfigError(
        f"--config.{name}: missing; start the configuration from"
        f" default_config({recipe!r}, {family!r})"
      )
  _check_together(fields)


def kind_of(config: Mapping[str, Any]) -> tuple[str, str]:
  """(family, recipe) of a configuration.

  Raises:
    ConfigError: If there are none, or they are unknown.

  >>> kind_of({"family": "vit", "recipe": {"name": "ste"}})
  ('vit', 'ste')
  """
  try:
    family, recipe = config["family"], config["recipe"]["name"]
  except (LookupError, TypeError):
    raise ConfigError(
      "expected a configuration with the fields family and recipe.name; start"
      " it from figs_jax.train.default_config(recipe)"
    ) from None
  for name, value, names in (
    ("family", family, models.names()),
    ("recipe.name", recipe, registry.names()),
  ):
    if not isinstance(value, str) or value not in names:
      legal = Word(tuple(names))
      raise ConfigError(
        f"--config.{name}: expected {legal}, got {shown(value)}"
        f"{suggestion(legal, value)}"
      )
  return family, recipe


def warmup_steps(warmup: float | int, total_steps: int) -> int:
  """Steps of the warm-up from `optimizer.warmup_steps`, a count or a share.

  >>> warmup_steps(30, 600), warmup_steps(0.05, 600), warmup_steps(0.05, 20)
  (30, 30, 1)
  """
  # Rounded first, since 0.29 * 100 is 28.999999999999996.
  return int(round(warmup * total_steps, 6) if warmup < 1 else warmup)


def _check_together(fields: Mapping[str, Any]) -> None:
  """Checks fields that depend on each other, each legal by itself."""
  parts, steps = fields["grad_accum_steps"], fields["total_steps"]
  size, warmup = fields["batch_size"], fields["optimizer.warmup_steps"]
  if size % parts:
    raise ConfigError(
      f"--config.batch_size: expected a multiple of grad_accum_steps={parts},"
      f" got {size}"
    )
  if warmup >= 1 and warmup % 1 or warmup_steps(warmup, steps) >= steps:
    raise ConfigError(
      "--config.optimizer.warmup_steps: expected a share below 1, as in 0.05,"
      f" or an integer less than total_steps={steps}, got {warmup}"
    )
  optimizer = {k[10:]: v for k, v in fields.items() if k[:10] == "optimizer."}
  if mistake := optimizer_fields.mistake(optimizer):
    raise ConfigError(mistake)
  if optimizer["name"] == "schedule_free":
    for name, none in (("ema_decay", 0), ("train_only", "")):
      if value := fields[name]:
        raise ConfigError(
          f"--config.{name}: expected {none!r} with schedule_free, which"
          f" averages all weights, got {value!r}"
        )
  loss = fields.get("loss", "softmax")
  if fields["teacher"] and loss != "softmax":
    raise ConfigError(
      "--config.loss: expected softmax with a teacher, whose term compares"
      f" softmaxes, got {loss}; leave --config.teacher out or set loss=softmax"
    )
  if loss == "mse" and (value := fields["data.objective"]) != "auto":
    raise ConfigError(
      "--config.data.objective: expected auto with loss=mse, which learns"
      f" scores, got {value}"
    )
  for name in ("label_smoothing", "data.pack") if loss == "mse" else ():
    if value := fields[name]:
      raise ConfigError(
        f"--config.{name}: expected {type(value)()} with loss=mse, which learns"
        f" one score of each row, got {value}"
      )
  mean, std = fields.get("data.mean"), fields.get("data.std")
  if mean != std and {mean, std} & set(NAMED):
    raise ConfigError(
      f"--config.data.std: expected the name of both, or numbers for both, got"
      f" mean {mean} and std {std}"
    )
  patch = re.fullmatch(r"\w+/(\d{1,4})", fields["variant"])
  if fields["family"] == "vit" and patch and int(patch[1]):
    side = (fields["data.image_size"] or 0) // int(patch[1])
    width = fields["model.width"] or 1280  # of H
    if side**2 * width > _MOST_VALUES:
      raise ConfigError(
        f"--config.data.image_size: expected at most {_MOST_VALUES} values of"
        f" position embeddings, got {side**2} patches of width {width}; use a"
        " larger patch in --config.variant"
      )
