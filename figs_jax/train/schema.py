"""The fields of a configuration: default and meaning of each.

`default_config`, `--help` of the training program and docs/configuration.md
take them from here. The options of models and recipes are documented in their
docstrings.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util
from ml_collections import config_dict

from figs_jax import models
from figs_jax.recipes import docstrings, listing


class Field(NamedTuple):
  """A default, or the type of a field without one, and the meaning."""

  default: Any
  meaning: str


# Fields of every run.
SHARED: dict[str, Field] = {
  "family": Field("vit", "Model family: vit, swin_v2 or t5."),
  "variant": Field(
    "S/16",
    "Published size of the family, or custom (as in custom/4), whose sizes are"
    " set in config.model.",
  ),
  "pattern": Field(
    "ff: 1:8", "N:M pattern of each kernel; the first rule that matches wins."
  ),
  "recipe_file": Field(
    "", "File that registers a recipe of your own; set by --recipe_file."
  ),
  "total_steps": Field(1000, "Number of optimizer steps."),
  "batch_size": Field(128, "Examples per optimizer step, over all devices."),
  "grad_accum_steps": Field(
    1, "Micro-batches per optimizer step; more of them save memory."
  ),
  "seed": Field(
    0,
    "Seed for initialization, dropout and the recipe (the first one if seeds >"
    " 0).",
  ),
  "seeds": Field(0, "Number of seeds to train together; 0 trains one run."),
  "seeds_mode": Field(
    "auto",
    "How seeds are trained: vmap, map, or auto, which chooses by the device.",
  ),
  "init_from": Field(
    "", "Initial weights: a file, or the workdir of a dense run."
  ),
  "init_head": Field(
    "strict", "Classifier of init_from: strict keeps it, fresh makes a new one."
  ),
  "init_seed": Field(
    0, "Index of the seed to start from, if init_from is a run with several."
  ),
  "init_resize_positions": Field(
    False, "Whether to resize a ViT's positions from another image size."
  ),
  "optimizer.learning_rate": Field(1e-3, "Learning rate after the warm-up."),
  "optimizer.warmup_steps": Field(
    0, "Steps in which the learning rate rises from 0."
  ),
  "optimizer.schedule": Field(
    "cosine",
    "Learning rate after the warm-up: cosine, linear, rsqrt or constant.",
  ),
  "optimizer.b1": Field(0.9, "Decay of Adam's first moment."),
  "optimizer.b2": Field(0.999, "Decay of Adam's second moment."),
  "optimizer.eps": Field(
    1e-8, "Constant added to the root of Adam's second moment."
  ),
  "optimizer.weight_decay": Field(
    0.01,
    "Decoupled weight decay, times the learning rate; none on biases and"
    " scales.",
  ),
  "optimizer.clip": Field(
    1.0, "Largest global norm of the gradient; 0 disables clipping."
  ),
  "ema_decay": Field(0.0, "Decay of the averaged weights; 0 keeps none."),
  "label_smoothing": Field(
    0.0, "Share of each target spread over all classes."
  ),
  "log_every": Field(50, "Steps between lines of metrics.jsonl."),
  "diagnose_every": Field(
    100, "Steps between statistics of masks and gradients; 0 disables them."
  ),
  "checkpoint_every": Field(
    200, "Steps between checkpoints, each with an evaluation."
  ),
  "keep": Field(2, "Number of newest checkpoints to keep, beside the best."),
  "progress": Field(True, "Whether to show a progress bar on a terminal."),
  "mesh.data": Field(
    1, "Devices to split batches over; -1 takes the remaining ones."
  ),
  "mesh.fsdp": Field(
    1, "Devices to split weights over as well; -1 takes the remaining ones."
  ),
  "allow_change": Field(
    (), "Names of fields that may change when the run is resumed."
  ),
  "data.seed": Field(
    0, "Seed for order and augmentation, shared by all seeds of the model."
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
    0, "Number of processes that read data; 0 reads in threads."
  ),
  "data.eval_batch_size": Field(128, "Examples per step of evaluation."),
}
# Fields of families that read images.
IMAGES: dict[str, Field] = {
  "loss": Field(
    "softmax",
    "Training loss: the cross-entropy of a softmax, or bce, the binary"
    " cross-entropy of each class, averaged over classes.",
  ),
  "mixup": Field(0.0, "Parameter alpha of mixup; 0 disables it."),
  "data.name": Field(
    "digits",
    "Data set: digits, fashion_mnist, npz:FILE, or any of tfds with images.",
  ),
  "data.source": Field(
    str,
    "Directory of idx files to prepare fashion_mnist, mnist or kmnist from.",
  ),
  "data.augment": Field(
    "none",
    "Augmentation: none, standard (crops, flips), or RandAugment such as"
    " rand-m15-n2.",
  ),
  "data.image_size": Field(8, "Height and width of the images."),
}
# Fields of families that read text.
TEXT: dict[str, Field] = {
  "data.name": Field(
    "stdlib_text",
    "Data set: stdlib_text, c4, glue, or a tfds name such as glue/sst2 or"
    " wmt14_translate/de-en.",
  ),
  "data.vocabulary": Field(
    "bytes",
    "Vocabulary: bytes, sentencepiece:1024 to train that many pieces, or the"
    " path of a sentencepiece model.",
  ),
  "data.input_length": Field(128, "Tokens per input, with the end token."),
  "data.target_length": Field(
    int,
    "Tokens per target; leave it unset for span corruption, which implies it.",
  ),
  "data.density": Field(0.15, "Share of tokens that span corruption masks."),
  "data.mean_span": Field(3.0, "Mean length of a span of span corruption."),
  "data.beams": Field(1, "Beams of decoding in evaluation; 1 is greedy."),
}
_RECIPE = "Name of the recipe, given after the file: --config=FILE:NAME."


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


def field_meanings(config: config_dict.ConfigDict) -> dict[str, str]:
  """Meanings of all fields by dotted name; "" for unknown fields.

  Args:
    config: Configuration that started from `default_config`.
  """
  known = {
    name: field.meaning
    for name, field in own("vocabulary" in config.data).items()
  }
  model = inspect.getdoc(models.FAMILIES[config.family])
  known |= _under("model", docstrings.entries(model))
  known |= _under("recipe", listing.meanings(config.recipe.name))
  known["recipe.name"] = _RECIPE
  return {name: known.get(name, "") for name in flat(config.to_dict())}


def field_list(config: config_dict.ConfigDict, width: int = 80) -> str:
  """Text that lists every field with value and meaning, for `--help`.

  Args:
    config: Configuration that started from `default_config`.
    width: Characters per line.
  """
  lines = ["fields of the configuration (--config.FIELD=VALUE):"]
  values = flat(config.to_dict())
  for name, meaning in field_meanings(config).items():
    lines += textwrap.wrap(
      f"{name}={values[name]!r}: {meaning}".removesuffix(": "),
      width,
      initial_indent="  ",
      subsequent_indent="      ",
      break_long_words=False,
      break_on_hyphens=False,
    )
  return "\n".join(lines)


def _under(group: str, meanings: Mapping[str, str]) -> dict[str, str]:
  return {f"{group}.{name}": meaning for name, meaning in meanings.items()}
