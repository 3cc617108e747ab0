"""Runs on disk: restoring one from its workdir, and weights to start from."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import config_dict

from figs_jax.train import schema, seeds
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import ConfigError, completed
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.state import TrainState


def restore(
  workdir: str | Path,
  step: int | None = None,
  *,
  seed: int | None = None,
  data_dir: str | None = None,
) -> tuple[Experiment, TrainState, int]:
  """Restores (experiment, state, step) of a run without writing to it.

  Args:
    workdir: Directory of the run.
    step: Step to restore. Defaults to the newest good one.
    seed: Index of the seed to restore alone, for a run with several.
    data_dir: Directory of the data sets, in place of the configured one.

  Raises:
    ValueError: If the run has no such seed, no such checkpoint, or only a
      damaged or foreign one (`CheckpointError`).
  """
  with Checkpointer(workdir) as checkpoints:
    saved = completed(checkpoints.meta(step)["config"])
    schema.check(saved)
    config = config_dict.ConfigDict(saved)
    if data_dir is not None:
      config.data.data_dir = data_dir
    experiment = build(config)
    _check_seed(workdir, experiment, seed)
    state, _, step = checkpoints.restore(experiment.abstract_state, step)
  if seed is not None:
    state = seeds.take(state, seed)
  return experiment, state, step


def finished_model(
  workdir: str | Path,
  *,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
) -> nnx.Module:
  """The model of a run at its target pattern, in evaluation mode.

  Args:
    workdir, step, data_dir: Same as in `restore`.
    seed: Index of the seed, for a run with several. Defaults to the first.
    ema: Whether to take the averaged weights.

  Raises:
    ValueError: If `restore` raises it.
  """
  _, state, _ = restore(workdir, step, seed=seed, data_dir=data_dir)
  return next(seeds.singles(state)).finished(ema=ema)


def initial_weights(experiment: Experiment) -> dict[str, np.ndarray] | None:
  """Parameters by path from `config.init_from`; None if it is empty.

  `init_from` is a file or directory that `models.pretrained.load` reads, or the
  workdir of a dense run, whose newest weights are taken (not their average).

  Raises:
    ValueError: If the file or run cannot be read, belongs to another family, or
      does not fit the model.
  """
  config = experiment.config
  if not config.init_from:
    return None
  from figs_jax.models import pretrained

  path = Path(config.init_from)
  model = nnx.eval_shape(functools.partial(experiment.model, config.seed))
  options: dict[str, Any] = {
    "head": config.init_head,
    "resize_positions": config.init_resize_positions,
  }
  if not (path / "checkpoints").is_dir():
    return pretrained.read(model, path, **options)
  source = _dense_model(path, config.init_seed)
  tensors = {
    name: pretrained.Tensor(value.shape, value.dtype, lambda v=value: v)
    for name, value in pretrained.published(source).items()
  }
  return pretrained.matched(model, tensors, where=str(path), **options)


def _dense_model(workdir: Path, seed: int) -> nnx.Module:
  """The model of a dense run's newest checkpoint."""
  experiment, state, _ = restore(workdir)
  if experiment.recipe.sparse:
    raise ConfigError(
      f"{workdir}: expected a dense run, got recipe"
      f" {experiment.recipe.name!r}; set --config.init_from to a dense run or"
      " to a file of weights"
    )
  if experiment.seeds:
    _check_seed(workdir, experiment, seed)
    state = seeds.take(state, seed)
  return state.finished()


def _check_seed(
  workdir: str | Path, experiment: Experiment, seed: int | None
) -> None:
  count = len(experiment.seeds)
  if seed is None or 0 <= seed < count:
    return
  allowed = f"expected 0 to {count - 1}" if count else "this run has one seed"
  raise ValueError(f"{workdir}: {allowed}, got seed={seed}")
