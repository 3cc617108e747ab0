"""One-shot pruning of weights or of a run, from data by name.

What `launch/prune.py` does: it loads a dense model and calibration data, prunes
with `figs_jax.prune`, and measures the model before and after.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from figs_jax import models, nn
from figs_jax.cli.export import export_model
from figs_jax.core.rules import Rules
from figs_jax.export import ExportError
from figs_jax.models import own_model, pretrained
from figs_jax.pruning import PrunedLayer, prune
from figs_jax.pruning.methods import check_options, check_pattern
from figs_jax.train import workdir as runs
from figs_jax.train.config import default_config, with_defaults
from figs_jax.train.losses import IGNORED
from figs_jax.train.tasks import (
  ImageClassification,
  MaskedText,
  NextTokenText,
  Task,
  task_of,
)

REPORT = "pruning.json"


@dataclasses.dataclass(frozen=True)
class Source:
  """A dense model and the task of its calibration data.

  Attributes:
    model: Dense model in evaluation mode.
    task: Task with the data.
    rules: Patterns by the words of the model.
    words: Further words of a class of one's own.
    has_labels: Whether the model predicts what the data have (as many classes,
      or masked tokens), so that its loss can be measured.
  """

  model: Any
  task: Task
  rules: Rules
  words: dict[str, str] | None
  has_labels: bool

  @property
  def name(self) -> str:
    """Name of the data."""
    return self.task.config.data.name


def source_of(
  pattern: str,
  *,
  weights: str | None = None,
  workdir: str | None = None,
  data: dict[str, Any],
) -> Source:
  """Loads a dense model, and looks its calibration data up.

  Args:
    pattern: Rules.
    weights: Directory with config.json and weights, or None.
    workdir: Directory of a dense run, or None.
    data: Fields of `config.data` that are set, as `name`.

  Raises:
    ValueError: If the model cannot be read, is not dense, or does not fit the
      data.
  """
  rules = Rules.parse(pattern)
  if workdir is not None:
    experiment, state, _ = runs.restore(
      workdir, seed=None, data_dir=data.get("data_dir")
    )
    if experiment.recipe.sparse and not experiment.recipe.ends_dense:
      raise ValueError(
        f"{workdir}: expected a dense run, got recipe"
        f" {experiment.recipe.name!r}; its weights are pruned already"
      )
    if experiment.seeds:
      raise ValueError(
        f"{workdir}: expected a run with one seed, got {len(experiment.seeds)}"
      )
    model, config = state.finished(), experiment.config
    config = config.copy_and_resolve_references()
  else:
    model = models.from_pretrained(str(weights))
    (family,) = (n for n, k in models.FAMILIES.items() if type(model) is k)
    config = default_config("dense", family)
    for field, option in (
      ("image_size", "image_size"),
      ("input_length", "input_length"),
      ("target_length", "target_length"),
    ):
      size = getattr(model, option, None)
      if field in config.data and size is not None:
        config.data[field] = size[0] if isinstance(size, tuple) else size
    words = Path(str(weights), "vocab.txt")
    if models.task_of(family) == "masked_text" and words.exists():
      config.data.vocabulary = f"wordpiece:{words}"
  for field, value in data.items():
    if field not in config.data:
      raise ValueError(
        f"--{field}: expected no such flag, since {type(model).__name__} does"
        " not read such data"
      )
    config.data[field] = value
  if "augment" in config.data:
    config.data.augment = "none"
  for field in ("label_smoothing", "mixup"):
    if field in config:
      config[field] = 0.0
  config = with_defaults(config)
  task = task_of(config)
  name = config.data.name
  words = None
  if type(model) not in models.FAMILIES.values():
    words = own_model.own_words(model, rules)
  return Source(model, task, rules, words, _fits(name, model, task))


def _fits(name: str, model: Any, task: Task) -> bool:
  """Checks the data against the model; whether its labels fit as well."""
  options = task.model_options
  kind = type(model).__name__
  if isinstance(task, ImageClassification):
    wanted = getattr(model, "in_channels", options["in_channels"])
    if options["in_channels"] != wanted:
      raise ValueError(
        f"{name}: expected images with {wanted} channels, as the {kind} reads,"
        f" got {options['in_channels']}; choose other calibration data"
      )
    classes = getattr(model, "num_classes", options["num_classes"])
    return classes == options["num_classes"]
  size, rows = task.texts.vocabulary.size, model.vocab
  if rows not in (size, options.get("vocab", size)):
    raise ValueError(
      f"{name}: expected the vocabulary of the {kind}, of {rows} rows, got one"
      f" of {size} tokens; name it with --vocabulary"
    )
  if isinstance(task, MaskedText):
    fixed = (
      ("output", "num_classes") if "num_classes" in options else ("output",)
    )
    return all(
      getattr(model, name, options[name]) == options[name] for name in fixed
    )
  return True


def check(
  source: Source,
  method: str,
  options: dict[str, Any],
  refit: bool,
  transposable: bool,
) -> None:
  """Raises `ValueError` if an option is unknown or the rules do not fit."""
  check_options(method, options, refit=refit, transposable=transposable)
  sparse = nnx.eval_shape(
    lambda: nn.sparsify(source.model, source.rules, words=source.words)
  )
  leaves = nn.masked_leaves(sparse)
  if not leaves:
    raise ValueError("--pattern: expected a pattern that masks a kernel")
  for leaf in leaves.values():
    check_pattern(method, leaf.pattern, transposable=transposable)


def calibration_batches(
  source: Source, examples: int, batch_size: int
) -> list[dict[str, Any]]:
  """The first examples of the shuffled training split, in equal batches.

  Raises:
    ValueError: If `examples` is not a multiple of the batch size, or the data
      have fewer.
  """
  batch_size = min(batch_size, examples)
  if examples < 1 or examples % batch_size:
    raise ValueError(
      f"--examples: expected a positive multiple of --batch_size={batch_size},"
      f" got {examples}"
    )
  stream = iter(source.task.train_batches(batch_size))
  count = examples // batch_size
  batches = list(itertools.islice(stream, count))
  if len(batches) < count:
    raise ValueError(
      f"--examples: expected at most {len(batches) * batch_size}, the size of"
      f" the calibration data, got {examples}"
    )
  return batches


def arguments(source: Source, batch: dict[str, Any]) -> Any:
  """The arguments of the model's call from a batch of the data room."""
  match source.task:
    case ImageClassification():
      return batch["image"]
    case MaskedText():
      return batch["inputs"], batch["types"]
    case NextTokenText():
      return batch["inputs"], batch["inputs"] != 0  # 0 is padding
  return batch["inputs"], batch["targets"]


def measured(
  source: Source, model: nnx.Module, examples: int, batch_size: int
) -> dict[str, float]:
  """Loss (in nats) and accuracy of the first examples of the eval split."""
  graphdef, state = nnx.split(model)
  key = jax.random.key(0)

  @jax.jit
  def one_batch(state: Any, batch: Any) -> Any:
    model = nnx.merge(graphdef, state)
    loss, others = source.task.loss(model, batch, key)
    return {"loss": loss, **others}

  totals: dict[str, Any] = {}
  batches = source.task.eval_batches(batch_size)
  for batch in itertools.islice(
    iter(batches), math.ceil(examples / batch_size)
  ):
    if "label" in batch:
      labels = np.where(batch["valid"], batch["label"], IGNORED)
      batch = batch | {"label": labels}
    for name, mean in one_batch(state, batch).items():
      total, weight = totals.get(name, (0.0, 0.0))
      totals[name] = total + float(mean.total), weight + float(mean.weight)
  return {
    name: total / weight if weight else math.nan
    for name, (total, weight) in totals.items()
  }


def prune_source(
  source: Source,
  batches: list[dict[str, Any]],
  method: str,
  *,
  permute: bool = False,
  on_layer: Callable[[PrunedLayer], None] | None = None,
  **options: Any,
) -> tuple[nnx.Module, list[PrunedLayer]]:
  """Prunes the model of a source, with its channels permuted before if asked.

  Raises:
    ValueError: If `figs_jax.permute_channels` or `figs_jax.prune` raises it.
  """
  model = source.model
  if permute:
    model, _ = nn.permute_channels(model, source.rules, words=source.words)
  return prune(
    model,
    [arguments(source, batch) for batch in batches],
    source.rules,
    method,
    words=source.words,
    on_layer=on_layer,
    **options,
  )


def write(model: nnx.Module, out: str, report: dict[str, Any]) -> list[str]:
  """Writes model.safetensors, config.json and the report, in a directory.

  Without config.json if transformers has no such model; then `init_from` reads
  the weights, and `from_pretrained` cannot.

  Raises:
    ValueError: If the directory exists, or the model is not N:M.
  """
  try:
    lines = export_model(model, out, "dense")
  except pretrained.PretrainedError as error:  # transformers lacks an option
    Path(out).mkdir()
    pretrained.save(model, Path(out, "model.safetensors"))
    lines = [f"no config.json: {error}"]
  text = json.dumps(report, indent=2, allow_nan=False) + "\n"
  Path(out, REPORT).write_text(text)
  return lines


def check_out(out: str) -> None:
  """Raises `ExportError` if a directory exists or cannot be made."""
  place = Path(out)
  if place.exists():
    raise ExportError(
      f"{out}: expected a new directory, got one that exists; remove it or"
      " choose another --out"
    )
  if not place.absolute().parent.is_dir():
    raise ExportError(f"{out}: no such directory; create its parent first")


def finite(values: dict[str, float]) -> dict[str, float | None]:
  """The values with None in place of NaN and infinity, which JSON lacks."""
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


def as_row(layer: PrunedLayer) -> dict[str, Any]:
  """A layer of the JSON report."""
  return dataclasses.asdict(layer) | {"pattern": str(layer.pattern)}
