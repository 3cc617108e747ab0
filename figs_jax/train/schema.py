"""The fields of a configuration: default, meaning and legal values of each.

`default_config`, `--help` of the training program (`figs_jax.train.field_help`)
and docs/configuration.md take them from here, and `check` compares a
configuration with them. The options of models and recipes are documented in
their docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from flax import traverse_util
from ml_collections import config_dict

from figs_jax import models
from figs_jax.core.field_names import near
from figs_jax.core.legal import (
  DTYPES,
  UNSET,
  WIDE_DTYPES,
  Either,
  Integer,
  Legal,
  Number,
  Numbers,
  Several,
  Typed,
  Unchecked,
  Word,
  suggestion,
)
from figs_jax.data.pixels import NAMED
from figs_jax.recipes import registry
from figs_jax.recipes.checks import shown


class ConfigError(ValueError):
  """An invalid configuration; the message names the field and the fix."""


class Field(NamedTuple):
  """A field of a configuration.

  Attributes:
    default: Default, or the type of a field without one.
    meaning: Meaning in one sentence.
    legal: Legal values. Defaults to all values of the default's type.
  """

  default: Any
  meaning: str
  legal: Legal | None = None


# Counters are 32-bit. Sizes are bounded, so that no configuration that a
# checkpoint brings along keeps a program busy or fills the memory.
_STEPS, _OFF_OR_STEPS = Integer("[1, 2**31)"), Integer("[0, 2**31)")
_SEED = Integer("[0, 2000000000]")
_EXAMPLES = Integer("[1, 1048576]")
_DEVICES = Integer("[1, 65536]", special=-1)
_RATE, _SHARE = Number("[0, 1)"), Number("[0, 1]")
_LENGTH = Integer("[2, 131072]")

# Fields of every run.
SHARED: dict[str, Field] = {
  "family": Field(
    "vit", "Model family: vit, swin_v2 or t5, or a class of your own."
  ),
  "variant": Field(
    "",
    "Published size of the family, or custom (as in custom/4), whose sizes are"
    " set in config.model. Defaults to that of init_from, or S/16 for a ViT.",
  ),
  "pattern": Field(
    "ff: 1:8", "N:M pattern of each kernel; the first rule that matches wins."
  ),
  "recipe_file": Field("", "File of your own recipe; set by --recipe_file."),
  "recipe_sha256": Field("", "SHA-256 of that file; set by --recipe_file."),
  "model_file": Field("", "File and class of your own; set by --model_file."),
  "model_sha256": Field("", "SHA-256 of that file; set by --model_file."),
  "total_steps": Field(1000, "Number of optimizer steps.", _STEPS),
  "batch_size": Field(
    128, "Examples per optimizer step, over all devices.", _EXAMPLES
  ),
  "grad_accum_steps": Field(
    1, "Micro-batches per optimizer step; more of them save memory.", _EXAMPLES
  ),
  "seed": Field(
    0,
    "Seed for initialization, dropout and the recipe (the first one if seeds >"
    " 0).",
    _SEED,
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
  "optimizer.b1": Field(0.9, "Decay of Adam's first moment.", _RATE),
  "optimizer.b2": Field(0.999, "Decay of Adam's second moment.", _RATE),
  "optimizer.eps": Field(
    1e-8,
    "Constant added to the root of Adam's second moment.",
    Number("(0, 1]"),
  ),
  "optimizer.weight_decay": Field(
    0.01,
    "Decoupled weight decay, times the learning rate; none on biases and"
    " scales.",
    Number("[0, 1000]"),
  ),
  "optimizer.clip": Field(
    1.0,
    "Largest global norm of the gradient; 0 disables clipping.",
    Number("[0, 1e9]"),
  ),
  "ema_decay": Field(0.0, "Decay of averaged weights; 0 keeps none.", _RATE),
  "label_smoothing": Field(
    0.0, "Share of each target spread over all classes.", _RATE
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
  "mesh.data": Field(
    1, "Devices to split batches over; -1 takes the remaining ones.", _DEVICES
  ),
  "mesh.fsdp": Field(
    1,
    "Devices to split weights over as well; -1 takes the remaining ones.",
    _DEVICES,
  ),
  "allow_change": Field(
    (),
    "Names of fields that may change when the run is resumed.",
    Several(Typed(str)),
  ),
  "data.seed": Field(
    0,
    "Seed for the order and augmentation of the data; see data.order.",
    _SEED,
  ),
  "data.order": Field(
    "own",
    "Order and augmentation: own per seed (data.seed + seed) or shared by all.",
    Word(("own", "shared")),
  ),
  "data.data_dir": Field(
    str,
    "Directory of the data sets. Defaults to $TFDS_DATA_DIR, or"
    " ~/tensorflow_datasets.",
  ),
  "data.download": Field(False, "Whether to download a missing data set."),
  "data.train_split": Field(
    "train", "Split to train on, or a slice of it, such as train[:90%]."
  ),
  "data.eval_split": Field("test", "Split to evaluate on."),
  "data.workers": Field(
    0,
    "Number of processes that read data; 0 reads in threads.",
    Integer("[0, 1024]"),
  ),
  "data.eval_batch_size": Field(
    128, "Examples per step of evaluation.", _EXAMPLES
  ),
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
  "data.name": Field(
    "digits",
    "Data set: digits, fashion_mnist, folder:DIR, npz:FILE, or any of tfds with"
    " images.",
  ),
  "data.mixed_sizes": Field(
    False,
    "Whether the images of folder:DIR may differ in size; each is cropped and"
    " resized.",
  ),
  "data.source": Field(
    str,
    "Directory of idx files to prepare fashion_mnist, mnist, kmnist or emnist"
    " from.",
  ),
  "data.mean": Field(
    "half",
    "Mean of the pixels, from 0 to 1: half (0.5), imagenet, or a number per"
    " channel.",
    Numbers(_SHARE, tuple(NAMED)),
  ),
  "data.std": Field(
    "half",
    "Their standard deviation, likewise; the model sees (pixel / 255 - mean) /"
    " std.",
    Numbers(Number("(0, 10]"), tuple(NAMED)),
  ),
  "data.augment": Field(
    "none",
    "Augmentation: none, standard (crops, flips), or RandAugment such as"
    " rand-m15-n2.",
  ),
  "data.image_size": Field(
    int,
    "Height and width of the images. Defaults to those of init_from, or 8.",
    Integer("[1, 4096]"),
  ),
}
# Fields of families that read text.
TEXT: dict[str, Field] = {
  "data.name": Field(
    "stdlib_text",
    "Data set: stdlib_text, text:FILE, c4, glue, or a tfds name such as"
    " glue/sst2 or wmt14_translate/de-en.",
  ),
  "data.text_column": Field(
    str, "Column of the text of text:FILE. Defaults to the one of a usual name."
  ),
  "data.label_column": Field(
    str, "Column of its labels. Defaults to the one of a usual name."
  ),
  "data.target_column": Field(
    str, "Column of its target texts. Defaults to the one of a usual name."
  ),
  "data.vocabulary": Field(
    "bytes",
    "Vocabulary: bytes, sentencepiece:1024 to train that many pieces, or the"
    " path of a sentencepiece model.",
  ),
  "data.input_length": Field(
    128, "Tokens per input, with the end token.", _LENGTH
  ),
  "data.target_length": Field(
    int,
    "Tokens per target; leave it unset for span corruption and for labels of"
    " text:FILE, which imply it.",
    _LENGTH,
  ),
  "data.density": Field(
    0.15, "Share of tokens that span corruption masks.", Number("(0, 1)")
  ),
  "data.mean_span": Field(
    3.0, "Mean length of a span of span corruption.", Number("[1, 131072]")
  ),
  "data.beams": Field(
    1, "Beams of decoding in evaluation; 1 is greedy.", Integer("[1, 1024]")
  ),
}
# Legal values of the models' options; flags are True or False.
MODEL: dict[str, Legal] = {
  "width": Integer("[1, 65536]"),
  "depth": Integer("[1, 512]"),
  "decoder_depth": Integer("[1, 512]"),
  "depths": Several(Integer("[1, 512]"), 1, 6),
  "heads": Integer("[1, 4096]"),
  "head_dim": Integer("[1, 4096]"),
  "mlp_dim": Integer("[1, 1048576]"),
  "mlp_ratio": Number("(0, 64]"),
  "window": Integer("[1, 64]"),
  "pretrained_windows": Several(Integer("[0, 64]"), 0, 6),
  "num_buckets": Integer("[4, 4096]"),
  "max_distance": Integer("[3, 1048576]"),
  "dropout": _RATE,
  "attention_dropout": _RATE,
  "drop_path": _RATE,
  "norm_epsilon": Number("(0, 1]"),
  "pool": Word(("cls", "gap")),
  "pos": Word(("learned", "sincos")),
  "gelu": Word(("exact", "tanh")),
  "dtype": DTYPES,
  "scaled": Typed(bool),
  "in_channels": Integer("[1, 4096]"),
}
# Legal numbers of the recipes' options; `figs_jax.recipes` checks how they fit
# together.
RECIPE: dict[str, Legal] = {
  "dense": _SHARE,
  "finetune": _SHARE,
  "refresh_every": _OFF_OR_STEPS,
  "decay": Number("[0, 1e9]"),
  "until": _SHARE,
  "omega": Number("(0, 1]"),
  "freq": _STEPS,
  "beta": Number("(0, 1e9]"),
  "zero_at": Number("(0, 1]"),
  "k": Integer("[1, 65536]", powers=True),
  "share": _RATE,
  "seed": _SEED,
  "t_min": _RATE,
  "t_max": _RATE,
  "threshold": Number("[0, 1e9]"),
  "window": Integer("[1, 1048576]"),
}
# Model options that decide how a model is computed, rather than what. All
# others are unset until a run begins; see `config.with_defaults`.
OF_COMPUTATION = ("scan", "remat", "dtype")
# Model options that follow from the variant or from the data.
DERIVED = (
  "patch", "num_classes", "image_size", "vocab", "input_length",
  "target_length", "param_dtype",
)  # fmt: skip
_MOST_VALUES = 2**28  # of a ViT's position embedding


def own(text: bool) -> dict[str, Field]:
  """Fields by dotted name, without the options of model and recipe.

  Args:
    text: Whether the family reads text, rather than images.

  >>> own(text=False)["optimizer.clip"].default
  1.0
  """
  return SHARED | (TEXT if text else IMAGES)


def defaults(text: bool) -> config_dict.ConfigDict:
  """A new configuration with the fields of `own`.

  >>> defaults(text=False).optimizer.clip, defaults(text=False).data.data_dir
  (1.0, None)
  """
  values = {
    name: config_dict.placeholder(field.default)
    if isinstance(field.default, type)
    else field.default
    for name, field in own(text).items()
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
    name: field_legal(field) for name, field in own("vocab" in options).items()
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
