"""The jitted training step of a configuration, on its mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from ml_collections import config_dict

from figs_jax.nn.logical_axes import SEED_AXIS
from figs_jax.train import distributed, seeds, teacher
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import Experiment
from figs_jax.train.sharding import (
  batch_parts,
  batch_sharding,
  check_seed_axis,
  make_mesh,
  metrics_sharding,
)
from figs_jax.train.state import update


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """Function (state, batch) -> (state, metrics); the state is donated.

  Attributes:
    jitted: Jitted function of state, batch and constants.
    constants: Arrays of a teacher, or None.
    split: Sharding of the batches of several processes, else None.
  """

  jitted: Any
  constants: Any = None
  split: NamedSharding | None = None

  def __call__(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    if self.split is not None:
      batch = distributed.global_batch(self.split, batch)
    return self.jitted(state, batch, self.constants)

  def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
    """The step for shapes, to be compiled ahead of time."""
    return self.jitted.lower(state, batch, self.constants)


def check_mesh(
  config: config_dict.ConfigDict, mesh: Mesh | AbstractMesh
) -> None:
  """Raises ConfigError unless a mesh divides the seeds and batches of a run.

  Args:
    config: Configuration of a run.
    mesh: Its mesh.

  >>> from figs_jax.train.config import default_config
  >>> config = default_config("dense")
  >>> config.batch_size, config.grad_accum_steps = 10, 4
  >>> check_mesh(config, make_mesh())
  Traceback (most recent call last):
    ...
  figs_jax.train.schema.ConfigError: --config.batch_size: expected a multiple
  of 4, ... got 10
  """
  check_seed_axis(config.seeds, mesh)
  if mesh.shape[SEED_AXIS] > 1 and config.seeds_mode == "map":
    raise ConfigError(
      "--config.seeds_mode: expected auto or vmap with"
      f" mesh.seed={mesh.shape[SEED_AXIS]}, whose devices train their seeds at"
      " the same time, got map, which trains one after the other"
    )
  parts = batch_parts(mesh) * config.grad_accum_steps
  if config.batch_size % parts:
    raise ConfigError(
      f"--config.batch_size: expected a multiple of {parts}, mesh.data *"
      f" mesh.fsdp * grad_accum_steps, got {config.batch_size}"
    )


def compiled_step(
  experiment: Experiment, shardings: Any, mesh: Mesh | None = None
) -> CompiledStep | seeds.InTurn:
  """The jitted step of a configuration; the state is donated.

  Args:
    experiment: Experiment to train.
    shardings: Shardings of the state.
    mesh: Mesh over which to split this process's batches, arrays of NumPy.
      Every device then holds all of the metrics of its seeds. Defaults to
      batches and metrics as they come.
  """
  axis = experiment.batch_axis
  fn: Callable[..., Any] = partial(update)  # an object has a cache of its own
  constants = split = None
  if experiment.distill is not None:
    constants = teacher.placed(experiment.distill, mesh or make_mesh())
  turns = in_turn(experiment, mesh)
  if turns:
    shardings, axis = seeds.lone_shardings(shardings), None
  elif experiment.seeds:
    fn = partial(seeds.step_seeds, batch_axis=axis, mesh=mesh)
  options: dict[str, Any] = {"out_shardings": (shardings, None)}
  if mesh is not None:
    fn = _on_mesh(fn, mesh) if mesh.size > 1 else fn
    split = batch_sharding(mesh, axis == 0)
    options = {
      "in_shardings": (None, split, None),
      "out_shardings": (shardings, metrics_sharding(mesh)),
    }
  jitted = jax.jit(fn, donate_argnums=0, **options)
  if jax.process_count() == 1:
    split = None
  step = CompiledStep(jitted, constants, split)
  return seeds.InTurn(step, experiment.batch_axis) if turns else step


def _on_mesh(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """The step, traced where the models see the axes of the mesh."""

  def update_on_mesh(state, batch, constants):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(state, batch, constants)

  return update_on_mesh


def in_turn(experiment: Experiment, mesh: Mesh | None = None) -> bool:
  """Whether the seeds are trained one after the other.

  In mode "auto", if this is the faster way in benchmarks/loop.py, but never if
  devices hold seeds of their own.

  Args:
    experiment: Experiment to train.
    mesh: Mesh of the run. Defaults to one that does not split the seeds.
  """
  mode = experiment.config.seeds_mode
  if mode == "auto":
    apart = mesh is not None and mesh.shape[SEED_AXIS] > 1
    on_cpu = jax.default_backend() == "cpu"
    mode = "map" if on_cpu and not apart else "vmap"
  return bool(experiment.seeds) and mode == "map"
