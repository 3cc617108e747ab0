"""The weights that a run starts from: a published file, or a dense run's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from figs_jax.models import pretrained
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import Experiment
from figs_jax.train.restore import restore


def weights(experiment: Experiment) -> dict[str, np.ndarray] | None:
  """Parameters by path, as `config.init_from` says; None without it.

  It is a file or directory that `models.pretrained.load` reads, or the workdir
  of a dense run, whose newest weights are taken (not their average).

  Raises:
    ValueError: a file or run that cannot be read, of another family, or that
      does not fit the model; one line says what and the fix.
  """
  config = experiment.config
  if not config.init_from:
    return None
  path = Path(config.init_from)
  model = nnx.eval_shape(functools.partial(experiment.model, config.seed))
  options: dict[str, Any] = {
    "head": config.init_head,
    "resize_positions": config.init_resize_positions,
  }
  if not (path / "checkpoints").is_dir():
    return pretrained.read(model, path, **options)
  source = _dense(path, config.init_seed)
  tensors = {
    name: pretrained.Tensor(value.shape, value.dtype, lambda v=value: v)
    for name, value in pretrained.published(source).items()
  }
  return pretrained.matched(model, tensors, where=str(path), **options)


def _dense(workdir: Path, seed: int) -> nnx.Module:
  """The model of a run as its newest checkpoint has it."""
  experiment, state, _ = restore(workdir)
  if experiment.recipe.sparse:
    raise ConfigError(
      f"{workdir}: this run is sparse, under {experiment.recipe.name!r}; set"
      " --config.init_from to a dense run, or to a file of its weights"
    )
  if experiment.seeds:
    _, state, _ = restore(workdir, seed=seed)
  return state.finished()
