"""A run's experiment and state from its workdir, read only."""

from __future__ import annotations

from pathlib import Path

from ml_collections import config_dict

from figs_jax.train import seeds
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import completed
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.state import TrainState


def restore(
  workdir: str | Path,
  step: int | None = None,
  *,
  seed: int | None = None,
  data_dir: str | None = None,
) -> tuple[Experiment, TrainState, int]:
  """(experiment, state, step) of a run; nothing in it is written.

  Args:
    workdir: of the run.
    step: None takes the newest good one.
    seed: of a run with seeds, the place of the one to take alone, from 0.
    data_dir: replaces that of the configuration.

  Raises:
    ValueError: no such seed, or (`CheckpointError`) no such checkpoint, or a
      damaged or foreign one.
  """
  with Checkpointer(workdir) as checkpoints:
    config = config_dict.ConfigDict(completed(checkpoints.meta(step)["config"]))
    if data_dir is not None:
      config.data.data_dir = data_dir
    experiment = build(config)
    _check_seed(workdir, experiment, seed)
    state, _, step = checkpoints.restore(experiment.abstract_state, step)
  if seed is not None:
    state = seeds.take(state, seed)
  return experiment, state, step


def _check_seed(
  workdir: str | Path, experiment: Experiment, seed: int | None
) -> None:
  count = len(experiment.seeds)
  if seed is None or 0 <= seed < count:
    return
  if not count:
    raise ValueError(
      f"{workdir}: seed={seed}, but this run has one; leave it out"
    )
  raise ValueError(
    f"{workdir}: seed={seed}, but this run has {count}; give 0 to {count - 1}"
  )
