"""Every field of a configuration: its default, and what it means.

The one place where both are said. `default_config`, `--help` of the training
program and docs/configuration.md take them from here; what the options of
models and recipes mean is in the docstrings of those.
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
  """A default, or the type of one that is unset; and a meaning."""

  default: Any
  meaning: str


# Of every run.
SHARED: dict[str, Field] = {
  "family": Field("vit", "of models: vit, swin_v2 or t5."),
  "variant": Field(
    "S/16",
    "a published size of the family; custom, as in custom/4, takes"
    " config.model's.",
  ),
  "pattern": Field(
    "ff: 1:8", "which kernels get which N:M; the first rule that fits wins."
  ),
  "recipe_file": Field(
    "", "the file that registered a recipe of your own; --recipe_file sets it."
  ),
  "total_steps": Field(1000, "optimizer steps of the run."),
  "batch_size": Field(128, "examples of a step, over all devices."),
  "accumulate": Field(
    1, "parts that a batch is split into, one after the other; saves memory."
  ),
  "seed": Field(0, "of weights, dropout and recipe; of several, the first."),
  "seeds": Field(0, "0: one run; n: n seeds under one step."),
  "seeds_mode": Field(
    "auto", "of several seeds: vmap, map, or auto, what suits the device."
  ),
  "init_from": Field(
    "", "where the weights come from: a file, or the workdir of a dense run."
  ),
  "init_head": Field(
    "strict", "the classifier: strict takes the file's, fresh a new one."
  ),
  "init_seed": Field(0, "of a run with seeds, the place of the one to take."),
  "init_resize_positions": Field(
    False, "whether a ViT's positions may come from another image size."
  ),
  "optimizer.learning_rate": Field(1e-3, "of AdamW, after the warm-up."),
  "optimizer.warmup_steps": Field(0, "steps in which it rises from 0."),
  "optimizer.schedule": Field(
    "cosine", "after the warm-up: cosine, linear, rsqrt or constant."
  ),
  "optimizer.b1": Field(0.9, "decay of Adam's first moment."),
  "optimizer.b2": Field(0.999, "decay of Adam's second moment."),
  "optimizer.eps": Field(1e-8, "what is added to the second moment's root."),
  "optimizer.weight_decay": Field(
    0.01, "decoupled, times the learning rate; biases and scales have none."
  ),
  "optimizer.clip": Field(
    1.0, "largest global norm of the gradient; 0 does not clip."
  ),
  "ema_decay": Field(0.0, "of averaged weights; 0 keeps none."),
  "label_smoothing": Field(0.0, "share of a target that all classes get."),
  "log_every": Field(50, "steps between lines of metrics.jsonl."),
  "diagnose_every": Field(
    100, "steps between measures of masks and gradients; 0 never measures."
  ),
  "checkpoint_every": Field(
    200, "steps between checkpoints, each with an evaluation."
  ),
  "keep": Field(2, "newest checkpoints that are kept, beside the best."),
  "progress": Field(True, "whether a terminal gets a progress bar."),
  "mesh.data": Field(1, "devices over which batches are split; -1: the rest."),
  "mesh.fsdp": Field(
    1, "devices over which weights are split too; -1: the rest."
  ),
  "allow_change": Field(
    (), "names of fields in which a resumed run may differ from before."
  ),
  "data.seed": Field(
    0, "of order and augmentation, shared by all seeds of the model."
  ),
  "data.data_dir": Field(
    str,
    "where data sets are; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
  ),
  "data.download": Field(False, "whether to fetch a data set that is missing."),
  "data.train_split": Field(
    "train", "what is trained on, or a slice of it, as in train[:90%]."
  ),
  "data.eval_split": Field("test", "what is evaluated on."),
  "data.workers": Field(0, "processes that read; 0: threads do."),
  "data.eval_batch_size": Field(128, "examples of a step of evaluation."),
}
# Of families that read images.
IMAGES: dict[str, Field] = {
  "mixup": Field(0.0, "α of mixup; 0 mixes nothing."),
  "data.name": Field("digits", "digits, or any data set of tfds with images."),
  "data.augment": Field(
    "none", "none, standard (crops, flips), or rand-m15-n2 and the like."
  ),
  "data.image_size": Field(8, "side of the images."),
}
# Of families that read text.
TEXT: dict[str, Field] = {
  "data.name": Field(
    "stdlib_text",
    "stdlib_text, c4, glue, glue/sst2, wmt14_translate/de-en and the like.",
  ),
  "data.vocabulary": Field(
    "bytes",
    "bytes; sentencepiece:1024 trains so many pieces; or the path of a"
    " sentencepiece model.",
  ),
  "data.input_length": Field(128, "tokens of an input, the end included."),
  "data.target_length": Field(
    int,
    "tokens of a target; None where it follows, under span corruption.",
  ),
  "data.density": Field(0.15, "of span corruption: share that is masked."),
  "data.mean_span": Field(3.0, "of span corruption: mean length of a span."),
  "data.beams": Field(1, "of tasks: how evaluation decodes; 1 is greedy."),
}
_RECIPE = "its name, the argument of the file: --config=FILE:NAME."


def own(text: bool) -> dict[str, Field]:
  """Dotted name -> field, without the options of model and recipe.

  Args:
    text: whether the family reads text; images otherwise.

  >>> own(text=False)["optimizer.clip"].default
  1.0
  """
  return SHARED | (TEXT if text else IMAGES)


def defaults(text: bool) -> config_dict.ConfigDict:
  """A new configuration of the fields of `own`, none of them shared.

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


def flat(config: config_dict.ConfigDict) -> dict[str, Any]:
  """Dotted name -> value of every field.

  >>> flat(config_dict.ConfigDict({"mesh": {"data": 1}}))
  {'mesh.data': 1}
  """
  return traverse_util.flatten_dict(config.to_dict(), sep=".")


def meanings(config: config_dict.ConfigDict) -> dict[str, str]:
  """Dotted name -> what it means, of every field; "" where nothing says so.

  Args:
    config: from `default_config`, or a file that starts from it.
  """
  known = {
    name: field.meaning
    for name, field in own("vocabulary" in config.data).items()
  }
  model = inspect.getdoc(models.FAMILIES[config.family])
  known |= _under("model", docstrings.entries(model))
  known |= _under("recipe", listing.meanings(config.recipe.name))
  known["recipe.name"] = _RECIPE
  return {name: known.get(name, "") for name in flat(config)}


def catalogue(config: config_dict.ConfigDict, width: int = 80) -> str:
  """Every field with its value and its meaning, for `--help`.

  Args:
    config: as for `meanings`.
    width: characters per line.
  """
  lines = ["fields of the configuration (--config.FIELD=VALUE):"]
  values = flat(config)
  for name, meaning in meanings(config).items():
    said = f": {meaning.rstrip('.')}" if meaning else ""
    lines += textwrap.wrap(
      f"{name}={values[name]!r}{said}",
      width,
      initial_indent="  ",
      subsequent_indent="      ",
      break_long_words=False,
      break_on_hyphens=False,
    )
  return "\n".join(lines)


def _under(group: str, said: Mapping[str, str]) -> dict[str, str]:
  return {f"{group}.{name}": meaning for name, meaning in said.items()}
