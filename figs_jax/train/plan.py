"""What a training step needs on many devices, before any of them is there.

The step is compiled ahead of time from shapes alone. Bytes of parameters, masks
and moments follow from their shardings; temporary bytes and collectives are
read from the program that XLA compiled for virtual CPU devices, and differ from
those of an accelerator.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from figs_jax.core.rules import nearest
from figs_jax.data.vocabulary import Bytes
from figs_jax.engine import chips
from figs_jax.train.collectives import Collective, collectives
from figs_jax.train.compilation import (
  CompiledStep,
  check_batch_size,
  compiled_step,
)
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.sharding import (
  batch_sharding,
  make_mesh,
  state_shardings,
)
from figs_jax.train.tasks import ImageClassification, Text

_KINDS = ("tpu", "gpu")
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and communication of one training step.

  Attributes:
    devices: Number of devices.
    mesh: Size of each mesh axis.
    chip: Chip, as in "tpu:v5e".
    memory_bytes: Bytes of the memory of a chip.
    compiled_for: Platform that the program was compiled for.
    parameters: Number of parameters of the model.
    params_bytes: Bytes of the parameters on the fullest device.
    masks_bytes: Bytes of the masks there.
    moments_bytes: Bytes of the state of the optimizer there.
    other_bytes: Bytes of averaged parameters, batch statistics and counters.
    batch_bytes: Bytes of a device's part of a batch.
    temp_bytes: Bytes of activations, gradients and buffers; an estimate unless
      the program was compiled for the chip.
    collectives: Collectives of a step, those with most bytes first.
  """

  devices: int
  mesh: dict[str, int]
  chip: str
  memory_bytes: int
  compiled_for: str
  parameters: int
  params_bytes: int
  masks_bytes: int
  moments_bytes: int
  other_bytes: int
  batch_bytes: int
  temp_bytes: int
  collectives: list[Collective]

  @property
  def state_bytes(self) -> int:
    """Bytes that stay on a device from step to step."""
    return (
      self.params_bytes
      + self.masks_bytes
      + self.moments_bytes
      + self.other_bytes
    )

  @property
  def total_bytes(self) -> int:
    """Bytes of a device in a step."""
    return self.state_bytes + self.batch_bytes + self.temp_bytes

  @property
  def fits(self) -> bool:
    """Whether a step fits into the memory of the chip."""
    return self.total_bytes <= self.memory_bytes

  @property
  def largest_all_gather(self) -> Collective | None:
    """The all-gather with most bytes in one run, or None."""
    gathers = (c for c in self.collectives if c.kind == "all-gather")
    return max(gathers, key=lambda c: c.bytes, default=None)

  @property
  def verdict(self) -> str:
    """Whether it fits, why, and what to try if it does not."""
    what = (
      f"{_gib(self.total_bytes)} of {_gib(self.memory_bytes)} per device are"
      f" needed, {_gib(self.state_bytes)} of them for the state"
    )
    if self.fits:
      return f"fits: {what}"
    if self.state_bytes > self.memory_bytes / 2:
      hint = "a larger --config.mesh.fsdp or --config.mesh.tensor"
    else:
      hint = (
        "--config.model.remat=True, a larger --config.grad_accum_steps or"
        " --config.mesh.tensor, or a smaller --config.batch_size"
      )
    return f"does not fit, because {what}; try {hint}"

  def as_dict(self) -> dict[str, Any]:
    """Fields and verdict, for JSON."""
    fields = dataclasses.asdict(self)
    for entry, one in zip(fields["collectives"], self.collectives):
      entry["total_bytes"] = one.total
    gather = self.largest_all_gather
    return {
      **fields,
      "temp_is_estimate": self.compiled_for != self.chip.partition(":")[0],
      "state_bytes": self.state_bytes,
      "total_bytes": self.total_bytes,
      "fits": self.fits,
      "verdict": self.verdict,
      "largest_all_gather": gather and dataclasses.asdict(gather),
    }


def chip_of(spec: str) -> tuple[str, chips.Chip]:
  """Name and data sheet of a chip, as "tpu:v5e" or "gpu:h100".

  Raises:
    figs_jax.train.ConfigError: If the chip is unknown.

  >>> chip_of("tpu:v5e")[1].memory
  16000000000
  """
  kind, _, name = spec.partition(":")
  known = [f"{k}:{x}" for k in _KINDS for x in chips.names(k)]
  if kind in _KINDS and (pair := chips.find(kind, name)):
    return f"{kind}:{pair[0]}", pair[1]
  raise ConfigError(f"--chip: unknown chip {spec!r}, {nearest(spec, known)}")


def plan_step(
  config: config_dict.ConfigDict,
  devices: int,
  chip: str,
  *,
  vocabulary_size: int | None = None,
) -> Plan:
  """Compiles the training step of a configuration from shapes alone.

  Args:
    config: Configuration of a run. If it leaves `mesh.data` at 1, that takes
      the devices that the other axes leave.
    devices: Number of devices, of which JAX must have as many.
    chip: Chip, as in "tpu:v5e" or "gpu:h100".
    vocabulary_size: Number of tokens of a text data set. Then neither the data
      nor the vocabulary is read.

  Raises:
    figs_jax.train.ConfigError: If the chip is unknown, the mesh does not fit
      the devices, or the configuration has seeds or a teacher.
    ValueError, DataError: If the configuration or its data are invalid.
  """
  chip, sheet = chip_of(chip)
  sizes = dict(config.mesh)
  if sizes["data"] == 1 and -1 not in sizes.values():
    sizes["data"] = -1
  if devices > jax.device_count():
    raise ConfigError(
      f"--devices: expected at most {jax.device_count()}, the devices of JAX,"
      f" got {devices}"
    )
  free = math.prod(abs(size) for size in sizes.values())
  if devices % free or (-1 not in sizes.values() and free != devices):
    raise ConfigError(
      f"--devices={devices}: expected a multiple of mesh.fsdp * mesh.tensor,"
      f" and mesh.data=-1 or the rest, got the mesh {dict(config.mesh)}; set"
      " --config.mesh.data, --config.mesh.fsdp, --config.mesh.tensor"
    )
  sizes = {k: devices // free if v == -1 else v for k, v in sizes.items()}
  if config.seeds:
    raise ConfigError(
      f"--config.seeds: expected 0, got {config.seeds}; a plan is of one run"
    )
  if config.teacher:
    raise ConfigError(
      f"--config.teacher: expected '', got {config.teacher!r}; a plan is of a"
      " run without a teacher"
    )
  mesh = make_mesh(**sizes)
  check_batch_size(config, mesh)
  experiment = _experiment(config, vocabulary_size)
  abstract = experiment.abstract_state
  shardings = state_shardings(abstract, mesh, abstract.bound)
  state = jax.tree.map(_placed, abstract, shardings)
  split = batch_sharding(mesh)
  batch = jax.tree.map(lambda x: _placed(x, split), _batch(experiment))
  step = compiled_step(experiment, shardings, mesh)
  assert isinstance(step, CompiledStep)  # without seeds
  # Never run, so its machine code need not be good: memory and collectives are
  # settled before that is made.
  program = step.lower(state, batch).compile(_QUICKLY)
  memory: Any = program.memory_analysis()
  text = program.as_text()
  assert text is not None  # XLA has both for the CPU
  params, masks, moments = (
    _per_device(tree) for tree in (state.params, state.masks, state.opt_state)
  )
  return Plan(
    devices=devices,
    mesh=sizes,
    chip=chip,
    memory_bytes=sheet.memory,
    compiled_for=jax.default_backend(),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    params_bytes=params,
    masks_bytes=masks,
    moments_bytes=moments,
    other_bytes=_per_device(state) - params - masks - moments,
    batch_bytes=_per_device(batch),
    temp_bytes=int(memory.temp_size_in_bytes),
    collectives=collectives(text, sizes),
  )


def _experiment(
  config: config_dict.ConfigDict, vocabulary_size: int | None
) -> Experiment:
  """The experiment, with a stand-in for texts of known vocabulary size."""
  if vocabulary_size is None:
    return build(config)
  config = config.copy_and_resolve_references()
  config.data.vocabulary, pairs = "bytes", None
  if config.data.get("target_length"):  # pairs of texts, else span corruption
    pairs = {"train": [{"text": "a", "target": "b"}] * 2}
    pairs["test"] = pairs["train"]
  else:
    config.data.name = "stdlib_text"
  config.data.train_split, config.data.eval_split = "train", "test"
  experiment = build(config, pairs)
  task = experiment.task
  if not isinstance(task, Text):
    raise ConfigError(
      "--vocabulary_size: expected a model that writes text, got the family"
      f" {config.family!r}; leave it out"
    )
  texts = dataclasses.replace(task.texts, vocabulary=Bytes(vocabulary_size))
  return dataclasses.replace(
    experiment, task=dataclasses.replace(task, texts=texts)
  )


def _batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch."""
  task, size = experiment.task, experiment.config.batch_size
  if isinstance(task, ImageClassification):
    options = task.model_options
    side = options["image_size"]
    shape = (side, side) if isinstance(side, int) else tuple(side)
    image = (size, *shape, options["in_channels"])
    return {
      "image": jax.ShapeDtypeStruct(image, jnp.float32),
      "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
  batches = task.train_batches(1, shard_index=0, num_shards=1)
  try:
    one = next(batches)
  finally:
    batches.close()
  return {
    name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
    for name, array in one.items()
  }


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _per_device(tree: Any) -> int:
  """Bytes of a device's parts of abstract arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _gib(size: int) -> str:
  return f"{size / 2**30:.2f} GiB"
