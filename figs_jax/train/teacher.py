"""The teacher of a configuration: read, compared with the run, and named.

A run records the SHA-256 of its teacher's arrays, not where they lie, so that
the teacher may move but not change. Only training reads it: what a distilled
run saved is evaluated and exported without its teacher.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import config_dict

from figs_jax import models
from figs_jax.core.tree import flatten
from figs_jax.models import own_model
from figs_jax.train import losses, schema
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import Experiment
from figs_jax.train.losses import Distill, Teacher
from figs_jax.train.sharding import state_shardings
from figs_jax.train.workdir import compare_pixels, newest_state

_log = logging.getLogger("figs_jax")
# Fields of a run that decide what its model reads.
_OF_INPUTS = ("data.mean", "data.std", "data.vocabulary")


@dataclasses.dataclass(frozen=True)
class Source:
  """A teacher that was read.

  Attributes:
    path: Where it lies.
    teacher: Its model.
    sha256: SHA-256 of its parameters and statistics, in hexadecimal.
    config: Configuration of its run by dotted name; empty for published
      weights.
  """

  path: str
  teacher: Teacher
  sha256: str
  config: Mapping[str, Any]


def read(config: config_dict.ConfigDict, data: Any = None) -> Source | None:
  """Reads `config.teacher`; None if it is empty.

  Args:
    config: Configuration of the new run.
    data: Data of a program, if its runs train on them.

  Raises:
    figs_jax.train.ConfigError: If nothing can be read there.
  """
  if not config.teacher:
    return None
  path, fields = Path(config.teacher), {}
  try:
    if (path / "checkpoints").is_dir():
      saved, state = newest_state(
        path, config.distill.seed, config.data.data_dir, data
      )
      model = state.finished()
      fields = schema.flat(saved.to_dict())
    else:
      model = models.from_pretrained(path)
  except (ValueError, OSError) as error:
    raise ConfigError(f"--config.teacher: {error}") from error
  return Source(str(path), Teacher(model), sha256_of(model), fields)


def sha256_of(model: nnx.Module) -> str:
  """SHA-256 of a model's variables but random streams, in hexadecimal.

  Args:
    model: Any NNX module.

  >>> layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  >>> same = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  >>> other = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
  >>> sha256_of(layer) == sha256_of(same) != sha256_of(other)
  True
  """
  _, _, state = nnx.split(model, nnx.RngState, ...)
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(nnx.to_pure_dict(state)).items()):
    array = np.asarray(leaf)
    digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def other(saved: Mapping[str, Any], config: config_dict.ConfigDict) -> str:
  """What to say of a run that is resumed with another teacher.

  Args:
    saved: Configuration of the run.
    config: Configuration that resumes it.

  >>> other({"teacher_sha256": 64 * "a"}, config_dict.create(teacher_sha256=""))
  'expected a teacher of SHA-256 aaaaaaaaaaaa..., with which this run was
  started, got no teacher'
  """
  wanted, got = (
    f"a teacher of SHA-256 {each[:12]}..." if each else "no teacher"
    for each in (saved.get("teacher_sha256", ""), config.teacher_sha256)
  )
  return f"expected {wanted}, with which this run was started, got {got}"


def taught(experiment: Experiment, source: Source | None) -> Experiment:
  """The experiment with a teacher that was compared with its data.

  Args:
    experiment: Experiment to train; its configuration gets the SHA-256.
    source: Teacher from `read`, or None, which changes nothing.

  Raises:
    figs_jax.train.ConfigError: If the teacher reads other inputs, or gives
      other logits.
  """
  if source is None:
    return experiment
  config = experiment.config
  of_labels = experiment.task.loss
  if not isinstance(of_labels, losses.LogitLoss):
    raise ConfigError(
      f"--config.teacher: expected a task with one row of logits per example or"
      f" token, got {config.family}"
    )
  _compare(experiment, source)
  config.teacher_sha256 = source.sha256
  loss = Distill(
    source.teacher,
    config.distill.temperature,
    config.distill.weight,
    of_labels,
  )
  return dataclasses.replace(experiment, distill=loss)


def _compare(experiment: Experiment, source: Source) -> None:
  config, saved = experiment.config, source.config
  where = f"--config.teacher: {source.path}"
  own = schema.flat(config.to_dict())
  for name in _OF_INPUTS:
    wanted, got = own.get(name), saved.get(name)
    if saved and wanted != got:
      raise ConfigError(
        f"{where}: expected a run with {name}={wanted}, as this one, got {got};"
        f" set --config.{name}={got}, or take another teacher"
      )
  if saved and saved["data.name"] != config.data.name:
    _log.warning(
      "%s: this teacher was trained on %s, and its logits teach %s",
      source.path,
      saved["data.name"],
      config.data.name,
    )
  if not saved and "mean" in config.data:
    compare_pixels(Path(source.path), config.data, experiment.abstract_dense)
  student: Any = experiment.abstract_dense
  example = own_model.example_of(student, 2)
  inputs = student.example(2) if example is None else (example,)
  wanted = _logits(Teacher(student), inputs)
  try:
    got = _logits(source.teacher, inputs)
  except (ValueError, TypeError) as error:
    shapes = ", ".join(str(list(x.shape)) for x in inputs)
    reason = " ".join(str(error).split())
    raise ConfigError(
      f"{where}: expected a model of inputs of shape {shapes}, as the student,"
      f" but it refuses them ({reason}); take a teacher of the same image size"
      " or vocabulary"
    ) from error
  if wanted != got:
    raise ConfigError(
      f"{where}: expected logits of shape {list(wanted)}, those of the student,"
      f" got {list(got)}; take a teacher of the same classes or vocabulary"
    )


def _logits(teacher: Teacher, inputs: tuple[Any, ...]) -> tuple[int, ...]:
  return jax.eval_shape(teacher.logits, teacher.arrays, inputs).shape


def placed(loss: Distill | None, mesh: Mesh) -> Any:
  """The teacher's arrays on a mesh, split over `fsdp` like parameters.

  Args:
    loss: Loss of the experiment.
    mesh: Mesh of the run.

  Returns:
    The `constants` of the loss, or None without one.

  >>> from figs_jax.train.sharding import make_mesh
  >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  >>> loss = Distill(Teacher(model), temperature=2.0, weight=0.5)
  >>> arrays = placed(loss, make_mesh())
  >>> [array.shape for array in jax.tree.leaves(arrays)]
  [(2,), (4, 2)]
  """
  if loss is None:
    return None
  shardings = state_shardings(loss.constants, mesh)
  return jax.jit(lambda arrays: arrays, out_shardings=shardings)(
    jax.tree.map(_on_host, loss.constants)
  )


def _on_host(leaf: Any) -> Any:
  """NumPy's array, which every process can place; a key stays as it is."""
  is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return leaf if is_key else np.asarray(leaf)
