"""Runs on disk: restoring one from its workdir, and weights to start from."""

from __future__ import annotations

import dataclasses
import functools
import grp
import logging
import math
import os
import pwd
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import config_dict

from figs_jax import models
from figs_jax.data import own_data, pixels
from figs_jax.data.opened import Options
from figs_jax.data.text import writes_nothing
from figs_jax.export.reader import machine_memory
from figs_jax.models import REGISTERED
from figs_jax.train import distributed, schema, seeds
from figs_jax.train.checkpoint import Checkpointer, named_leaves
from figs_jax.train.config import (
  ConfigError,
  completed,
  other_model,
  other_recipe,
  recipe_of,
  recipe_sha256,
  register_model,
)
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.sharding import for_one_seed
from figs_jax.train.state import TrainState

_log = logging.getLogger("figs_jax")
_NAME_YOURS = (
  "name yours with --data_dir=, or in training with --config.data.data_dir="
)


class SavedPathError(ConfigError):
  """A path that a run saved and that is not used."""


def restore(
  workdir: str | Path,
  step: int | None = None,
  *,
  seed: int | None = None,
  data_dir: str | None = None,
  download: bool = False,
  data: Any = None,
  model: type | None = None,
  mesh: Mesh | None = None,
) -> tuple[Experiment, TrainState, int]:
  """Restores (experiment, state, step) of a run without writing to it.

  Paths that the run saved are read only if `is_own(workdir)`.

  Args:
    workdir: Directory of the run.
    step: Step to restore. Defaults to the newest good one.
    seed: Index of the seed to restore alone, for a run with several.
    data_dir: Directory of the data sets, in place of the configured one.
    download: Whether a missing data set may be downloaded, whatever was saved.
    data: Data of a program, if it trained on them.
    model: Model class of one's own, if it trained one; may be left out if
      `figs_jax.models.register` has it.
    mesh: Mesh to split the state over, whatever that of the run was. Defaults
      to one device.

  Raises:
    ValueError: If the run saved a path but is of another user and `data_dir` is
      missing, if its recipe came from another file or its model class is
      missing or has other parameters, or if the run has no such seed, no such
      checkpoint, or only a damaged or foreign one (`CheckpointError`).
  """
  with Checkpointer(workdir) as checkpoints:
    meta = checkpoints.meta(step)
    if model is not None:
      register_model(model, meta["config"].get("family"), str(workdir))
    saved = completed(meta["config"])
    schema.check(saved)
    if other := other_recipe(saved, recipe_sha256(saved["recipe"]["name"])):
      raise ConfigError(f"{workdir}: {other}")
    config = config_dict.ConfigDict(saved)
    _check_paths(workdir, config, data_dir)
    _check_sizes(workdir, config, meta["leaves"])
    if data_dir is not None:
      config.data.data_dir = data_dir
    config.data.download = download
    experiment = build(config, data)
    _check_model(workdir, experiment, meta["leaves"])
    _check_seed(workdir, experiment, seed)
    abstract = experiment.abstract_state
    if mesh is not None:
      abstract = experiment.abstract_on(experiment.shardings(mesh))
    state, _, step = checkpoints.restore(abstract, step)
  if seed is not None:
    state = seeds.take(state, seed)
  return experiment, state, step


def saved_config(
  workdir: str | Path, step: int | None = None
) -> dict[str, Any]:
  """The configuration saved with a step, completed by defaults.

  Args:
    workdir: Directory of the run.
    step: Step. Defaults to the newest good one.

  Raises:
    CheckpointError: If the checkpoint is missing, damaged or foreign.
    ConfigError: If `figs_jax.train.config.completed` raises it.
  """
  with Checkpointer(workdir) as checkpoints:
    return completed(checkpoints.meta(step)["config"])


def is_own(workdir: str | Path) -> bool:
  """Whether only this user can have written a run, by owner and permissions.

  The workdir, its config.json and every `meta` must belong to the user and be
  writable by nobody else; the private group of the user counts as the user. A
  copy that the user made of somebody else's run passes, and the parents of
  the workdir are not examined. Of a lone file, its own owner and permissions
  count.

  Args:
    workdir: Directory of the run, or a file.

  >>> import tempfile
  >>> is_own(tempfile.mkdtemp())
  True
  """
  root = Path(workdir)
  paths = [root, root / "checkpoints", root / "config.json"]
  paths += root.glob("checkpoints/*")
  paths += root.glob("checkpoints/*/meta")
  paths += root.glob("checkpoints/*/meta/*")
  states = [path.stat() for path in paths if path.exists()]
  return all(
    state.st_uid == os.getuid()
    and not state.st_mode & 0o002
    and (not state.st_mode & 0o020 or _is_private(state.st_gid))
    for state in states
  )


def _is_private(group: int) -> bool:
  """Whether a group is the user's own, with no other member."""
  try:
    user, known = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
  except KeyError:
    return False
  return known.gr_name == user.pw_name and not set(known.gr_mem) - {
    user.pw_name
  }


def _check_sizes(
  workdir: str | Path, config: config_dict.ConfigDict, leaves: dict[str, Any]
) -> None:
  """Raises if the saved arrays fill the memory or hold fewer blocks.

  Without `scan` a model is traced block by block, which takes minutes for a
  wrong depth; with it, and for seeds, the number costs nothing.
  """
  entries = sum(math.prod(leaf["shape"]) for leaf in leaves.values())
  memory = machine_memory() * jax.process_count()
  if entries > memory:  # of a byte or more each
    raise ConfigError(
      f"{workdir}: expected at most {memory} bytes, the memory of this machine,"
      f" got {entries} saved entries; read it on a larger machine"
    )
  for name in ("depth", "decoder_depth", "depths"):
    size = config.model.get(name)
    for each in size if isinstance(size, (list, tuple)) else [size or 0]:
      if not config.model.get("scan") and each > len(leaves):
        raise ConfigError(
          f"{workdir}: expected {name} of at most {len(leaves)}, as the saved"
          f" arrays allow, got {each}; the checkpoint contradicts itself"
        )


def _check_model(
  workdir: str | Path, experiment: Experiment, leaves: dict[str, Any]
) -> None:
  """Compares a class of one's own with the arrays that its run saved.

  Raises:
    ConfigError: If an array is missing, new or of another shape. If the file
      has another text alone, a line of the log says so.
  """
  config = experiment.config
  if config.family not in REGISTERED:
    return
  source = REGISTERED[config.family].source
  arrays = named_leaves(experiment.abstract_state)
  own, saved = (
    {
      name.partition(".")[2].replace(".", "/"): list(shape)
      for name, shape in each.items()
      if name.startswith(("params.", "rest."))
    }
    for each in (
      {name: leaf.shape for name, leaf in arrays.items()},
      {name: leaf["shape"] for name, leaf in leaves.items()},
    )
  )
  for name in sorted(own.keys() | saved.keys()):
    if own.get(name) != saved.get(name):
      raise ConfigError(
        f"{workdir}: expected the class that this run was trained with, but"
        f" {name} has shape {saved.get(name, 'none')} in the run and"
        f" {own.get(name, 'none')} in {source}; give the original file as"
        " --model_file"
      )
  if other := other_model(config.to_dict()):
    _log.warning("%s: %s; its parameters fit, so it is used", workdir, other)


def saved_files(config: config_dict.ConfigDict) -> dict[str, str]:
  """Paths of files that a configuration reads beside its data directory.

  Args:
    config: Configuration of a run.

  Returns:
    Path by what it is: a vocabulary, data set or data source.
  """
  options, files = config.data, {}
  vocabulary = options.get("vocabulary", "bytes")
  if vocabulary != "bytes" and not vocabulary.startswith("sentencepiece:"):
    files["vocabulary"] = vocabulary
  if options.name.startswith(own_data.PREFIXES):
    files["data set"] = options.name
  if options.get("source"):
    files["data source"] = options.source
  return files


def _check_paths(
  workdir: str | Path, config: config_dict.ConfigDict, data_dir: str | None
) -> None:
  """Raises if another user's run would choose a path on this machine."""
  files = saved_files(config)
  saved = config.data.data_dir if data_dir is None else None
  if (saved is None and not files) or is_own(workdir):
    name, words = config.data.name, config.data.get("vocabulary", "bytes")
    own = Options.of(config.data)
    if saved is not None and not writes_nothing(name, words, saved, own):
      what = repr(name) + (f" with {words!r}" if ":" in words else "")
      raise SavedPathError(
        f"{workdir}: {what} is not prepared in the saved data directory"
        f" {saved!r}, which is only read; {_NAME_YOURS}"
      )
    return
  if saved is not None:
    raise SavedPathError(
      f"{workdir}: others can write this run, so its data directory"
      f" {saved!r} is not used; {_NAME_YOURS}"
    )
  what, path = next(iter(files.items()))
  raise SavedPathError(
    f"{workdir}: others can write this run, so its {what} {path!r} is"
    " not used; copy the run into a directory that only you can write"
  )


def finished_model(
  workdir: str | Path,
  *,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
  data: Any = None,
  model: type | None = None,
) -> nnx.Module:
  """The model of a run at its target pattern, in evaluation mode.

  Args:
    workdir, step, data_dir, data, model: Same as in `restore`.
    seed: Index of the seed, for a run with several. Defaults to the first.
    ema: Whether to take the averaged weights.

  Raises:
    ValueError: If `restore` raises it.
  """
  _, state, _ = restore(
    workdir, step, seed=seed, data_dir=data_dir, data=data, model=model
  )
  return next(seeds.singles(state)).finished(ema=ema)


def initial_weights(
  experiment: Experiment,
  keep: Callable[[str, np.ndarray], Any] | None = None,
  mesh: Mesh | None = None,
  data: Any = None,
) -> dict[str, Any] | None:
  """Parameters by path from `config.init_from`; None if it is empty.

  `init_from` is a file or directory that `models.pretrained.load` reads, or the
  workdir of a dense run, whose newest weights are taken (not their average):
  in float32 from the masters of a run with `param_dtype`.

  Args:
    experiment: Experiment to begin.
    keep: Function of the path and the array of a parameter, whose result takes
      the place of the array. Of the weights of a family, the host holds one
      array at a time. Defaults to the arrays themselves.
    mesh: Mesh to restore a dense run on, split like the new run's state. With
      several processes, all must call this with it. Defaults to one device of
      each process.
    data: Data of a program, if the dense run trained on them.

  Raises:
    ValueError: If the file or run cannot be read, belongs to another family, or
      does not fit the model.
  """
  config = experiment.config
  if not config.init_from:
    return None
  from figs_jax.models import pretrained
  from figs_jax.models.own_weights import fitted, own_weights, read_own
  from figs_jax.models.pretrained import Config

  path = Path(config.init_from)
  model = nnx.eval_shape(functools.partial(experiment.model, config.seed))
  options: dict[str, Any] = {
    "head": config.init_head,
    "resize_positions": config.init_resize_positions,
    "interpolation": config.init_interpolation,
    "convert_channels": config.model.get("in_channels") is not None,
    "wording": functools.partial(_flags, model),
  }
  own = config.family in REGISTERED
  if own and config.init_head != "strict":
    raise ConfigError(
      f"--config.init_head: expected 'strict' for {config.family}, a class of"
      f" your own, got {config.init_head!r}"
    )

  def kept(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {k: keep(k, v) if keep else v for k, v in weights.items()}

  if own and not (path / "checkpoints").is_dir():
    return kept(read_own(model, path))
  if not (path / "checkpoints").is_dir():
    weights = pretrained.read(model, path, keep=keep, **options)
    if "mean" in config.data:
      compare_pixels(path, config.data, model)
    return weights
  source = _dense_model(
    path, config.init_seed, config.data.data_dir, data, mesh
  )
  if own:
    weights = own_weights(source, distributed.whole)
    return kept(fitted(model, weights, str(path)))
  if type(source) is type(model):
    Config.of_model(source, str(path)).check(model, **options)
  tensors = pretrained.to_publish(source, distributed.whole)
  return pretrained.matched(
    model, tensors, where=str(path), keep=keep, **options
  )


def initial_config(
  config: config_dict.ConfigDict, checkpoints: Checkpointer | None = None
) -> config_dict.ConfigDict:
  """A copy whose unset fields of the model are those of the run or its source.

  A run that goes on has those that it saved, so its source need not exist any
  more. A new run has those of `init_from`: of the config.json of `transformers`
  beside the weights, or of a dense run. A published variant that is set decides
  its own sizes.

  Args:
    config: Configuration, as the user wrote it.
    checkpoints: Checkpoints of the run. None is a new run.

  Raises:
    ValueError: If the source cannot be read or has another family.
  """
  config = config.copy_and_resolve_references()
  if config.family in REGISTERED:  # its options have their defaults
    return config
  if checkpoints is not None and checkpoints.steps():
    saved = completed(checkpoints.meta()["config"])
    if saved["family"] == config.family:
      _fill(config, saved["variant"], saved["data"], saved["model"])
    return config
  path = Path(config.init_from)
  if not config.init_from:
    return config
  if (path / "checkpoints").is_dir():
    saved = saved_config(path)
    if saved["family"] == config.family:
      size = saved["data"].get("image_size")
      _fill(config, saved["variant"], {"image_size": size}, saved["model"])
    return config
  from figs_jax.models import pretrained

  family = models.FAMILIES[config.family]
  source = pretrained.config_of(path, family.__name__)
  if source is None:
    return config
  sizes = family.sizes(config.variant) if config.variant else {}
  set_fields = {k: v for k, v in config.model.items() if v is not None}
  side = config.data.get("image_size")
  whole = source.completed(
    sizes | set_fields | ({"image_size": side} if side else {}),
    resize_positions=config.init_resize_positions,
  )
  patch = np.unique(whole.get("patch", 1))
  image = np.unique(whole.get("image_size", 1))
  if len(patch) > 1 or len(image) > 1:
    raise ConfigError(
      f"{source.where}: expected square patches and images, got patches"
      f" {whole['patch']} and images {whole['image_size']}; load the model with"
      " figs_jax.models.from_pretrained, for a loop of your own"
    )
  variant = f"custom/{patch[0]}" if "patch" in whole else "custom"
  taken = _fill(config, variant, {"image_size": int(image[0])}, whole)
  if taken:
    fields = ", ".join(f"{name}={value}" for name, value in taken.items())
    _log.info("%s: taking %s", source.where, fields)
  return config


def _fill(
  config: config_dict.ConfigDict,
  variant: str,
  of_data: Mapping[str, Any],
  of_model: Mapping[str, Any],
) -> dict[str, Any]:
  """Sets the fields that are not set, and returns them by name."""
  taken: dict[str, Any] = {}
  decided = {}
  if config.variant:
    try:
      decided = models.FAMILIES[config.family].sizes(config.variant)
    except ValueError:
      return {}  # `build` says what is wrong
  else:
    taken["variant"] = config.variant = variant
  if "image_size" in config.data and config.data.image_size is None:
    taken["data.image_size"] = config.data.image_size = of_data["image_size"]
  for name, value in of_model.items():
    free = name in config.model and name not in (*decided, "in_channels")
    if free and config.model[name] is None and value is not None:
      value = tuple(value) if isinstance(value, list) else value
      taken[f"model.{name}"] = config.model[name] = value
  return taken


def _flags(model: Any, **options: Any) -> str:
  """Options of a model and of its weights as flags of launch/train.py.

  >>> _flags(None, head="fresh", heads=4, patch=(16, 16), depths=(2, 2))
  "--config.init_head=fresh --config.model.heads=4 --config.variant=custom/16 \
'--config.model.depths=(2, 2)'"
  """
  words = []
  for option, value in options.items():
    name = f"model.{option}"
    if option in ("head", "resize_positions"):
      name = f"init_{option}"
    elif option == "convert_channels":
      name, value = "model.in_channels", model.in_channels
    elif option == "image_size":
      name = "data.image_size"
      value = value[0] if isinstance(value, tuple) else value
    elif option == "vocab":
      name, value = "data.vocabulary", ...
    elif option == "patch":
      side = value[0] if isinstance(value, tuple) else value
      name, value = "variant", f"custom/{side}"
    text = "" if value is ... else value
    words.append(shlex.quote(f"--config.{name}={text}"))
  return " ".join(words)


def compare_pixels(
  path: Path, fields: config_dict.ConfigDict, model: Any
) -> None:
  """Warns if published weights expect pixels of another scale.

  Args:
    path: File or directory of the weights.
    fields: Fields `data` of the configuration.
    model: Model of the run.
  """
  wanted = pixels.published(path)
  if wanted is not None and model.in_channels == 1:
    wanted = wanted.gray()
  given = pixels.PixelScale.parse(fields.mean, fields.std)
  if wanted is not None and wanted != given:
    _log.warning(
      "%s: these weights expect pixels of another scale, so their logits will"
      " differ; set %s",
      path,
      wanted.words(),
    )


def newest_state(
  workdir: Path,
  seed: int,
  data_dir: str | None,
  data: Any = None,
  mesh: Mesh | None = None,
) -> tuple[config_dict.ConfigDict, TrainState]:
  """(configuration, state of one seed) of a run that a new run names.

  Args:
    workdir: Directory of the run.
    seed: Index of the seed, if it has several.
    data_dir: Data directory of the new run; the saved one may be of another
      data set, and is tried first.
    data: Data of a program, if the run trained on them.
    mesh: Mesh to split the state over. Defaults to one device.

  Raises:
    ValueError: If `restore` raises it.
  """
  try:
    experiment, state, _ = restore(workdir, data=data, mesh=mesh)
  except SavedPathError:
    if data_dir is None:
      raise
    experiment, state, _ = restore(
      workdir, data_dir=data_dir, data=data, mesh=mesh
    )
  if experiment.seeds:
    _check_seed(workdir, experiment, seed)
    state = seeds.take(state, seed)
  return experiment.config, state


def _dense_model(
  workdir: Path, seed: int, data_dir: str | None, data: Any, mesh: Mesh | None
) -> nnx.Module:
  """The finished model of a dense run, whose parameters are its masters."""
  mesh = mesh and for_one_seed(mesh)  # the run may have had fewer seeds
  config, state = newest_state(workdir, seed, data_dir, data, mesh)
  recipe = recipe_of(config)
  if recipe.sparse and not recipe.ends_dense:
    raise ConfigError(
      f"{workdir}: expected a dense run, got recipe {config.recipe.name!r}; set"
      " --config.init_from to a dense run or to a file of weights"
    )
  return dataclasses.replace(state, params=state.weights).finished()


def _check_seed(
  workdir: str | Path, experiment: Experiment, seed: int | None
) -> None:
  count = len(experiment.seeds)
  if seed is None or 0 <= seed < count:
    return
  allowed = f"expected 0 to {count - 1}" if count else "this run has one seed"
  raise ValueError(f"{workdir}: {allowed}, got seed={seed}")
