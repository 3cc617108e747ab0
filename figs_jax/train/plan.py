"""What a training step needs on many devices, before any of them is there.

The step is compiled ahead of time from shapes alone. Bytes of parameters, masks
and moments follow from their shardings; temporary bytes and collectives are
read from the program that XLA compiled, for the chip if it can (see
`figs_jax.train.targets`), else for virtual CPU devices, which differ from an
accelerator.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from ml_collections import config_dict

from figs_jax import models
from figs_jax.core.rules import nearest
from figs_jax.data.vocabulary import Bytes, Vocabulary, byte_vocabulary
from figs_jax.engine import (
  Assumptions,
  BytesPerValue,
  Estimate,
  Parallel,
  TrainingPhase,
  chips,
  estimate,
)
from figs_jax.engine.studies.cluster.of_chips import cluster_of, engine_of
from figs_jax.recipes.bound_recipe import MASK_UPDATE
from figs_jax.train import seeds
from figs_jax.train.collectives import Collective, collectives
from figs_jax.train.compilation import (
  CompiledStep,
  check_mesh,
  compiled_step,
)
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.run_rows import layers_of
from figs_jax.train.sharding import AXES, batch_sharding
from figs_jax.train.targets import Ended, Target, in_child, target_of, virtual
from figs_jax.train.tasks import ImageClassification, Text

_KINDS = ("tpu", "gpu")
_TRIES = 6  # plans made to find a change that fits


@dataclasses.dataclass(frozen=True)
class _Program:
  """What a compiled step needs; `refused` is why XLA does not compile it."""

  temp_bytes: int = 0
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  refused: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and communication of one training step.

  Attributes:
    devices: Number of devices.
    mesh: Size of each mesh axis.
    chip: Chip, as in "tpu:v5e".
    memory_bytes: Bytes of the memory of a chip.
    compiled_for: Platform that the program was compiled for: "tpu v5e", or
      "cpu" for virtual devices.
    reason: Why that is not the chip; "" if it is.
    refused: What the compiler for the chip says if the step does not fit; "" if
      it does, or was not asked.
    parameters: Number of parameters of the model.
    params_bytes: Bytes of the parameters on the fullest device.
    masks_bytes: Bytes of the masks there.
    moments_bytes: Bytes of the state of the optimizer there.
    other_bytes: Bytes of averaged parameters, batch statistics and counters.
    batch_bytes: Bytes of a device's part of a batch.
    temp_bytes: Bytes of activations, gradients and buffers; an estimate unless
      the program was compiled for the chip.
    collectives: Collectives of a step, those with most bytes first.
    modelled: Estimate of the engine's model of clusters for the same placement,
      or in words why there is none.
    fix: Changes of the configuration that were planned because the step does
      not fit, by field.
    fixed: Plan with these changes; None if none was made.

  >>> plan = Plan(
  ...   devices=1, mesh={"data": 1}, chip="tpu:v5e", memory_bytes=16 * 2**30,
  ...   compiled_for="cpu", reason="no libtpu", refused="", parameters=2**30,
  ...   params_bytes=2**32, masks_bytes=2**30, moments_bytes=2**33,
  ...   other_bytes=0, batch_bytes=0, temp_bytes=2**32, collectives=[],
  ...   modelled="")
  >>> plan.verdict
  'does not fit, because 17.00 GiB of 16.00 GiB per device are needed, 13.00 GiB
  of them for the state; try more --devices'
  """

  devices: int
  mesh: dict[str, int]
  chip: str
  memory_bytes: int
  compiled_for: str
  reason: str
  refused: str
  parameters: int
  params_bytes: int
  masks_bytes: int
  moments_bytes: int
  other_bytes: int
  batch_bytes: int
  temp_bytes: int
  collectives: list[Collective]
  modelled: Estimate | str
  fix: dict[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Plan | None = None

  @property
  def is_estimate(self) -> bool:
    """Whether temporary bytes are those of another platform than the chip."""
    return bool(self.reason)

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
    return not self.refused and self.total_bytes <= self.memory_bytes

  @property
  def largest_all_gather(self) -> Collective | None:
    """The all-gather with most bytes in one run, or None."""
    gathers = (c for c in self.collectives if c.kind == "all-gather")
    return max(gathers, key=lambda c: c.bytes, default=None)

  @property
  def mask_update_bytes(self) -> int:
    """Bytes that the mask update sends in a step; 0 for most recipes."""
    return sum(c.total for c in self.collectives if MASK_UPDATE in c.operation)

  @property
  def verdict(self) -> str:
    """Whether it fits, why, and what to try if it does not."""
    what = (
      f"{_gib(self.total_bytes)} of {_gib(self.memory_bytes)} per device are"
      f" needed, {_gib(self.state_bytes)} of them for the state"
    )
    if self.fits:
      return f"fits: {what}"
    because = f"does not fit, because {what}"
    if self.refused:
      because += f" (XLA: {self.refused})"
    flags = " ".join(f"--config.{name}={x}" for name, x in self.fix.items())
    if self.fixed is None:
      return f"{because}; try more --devices"
    needs = f"{_gib(self.fixed.total_bytes)} are needed"
    if self.fixed.fits:
      return f"{because}; try {flags}, with which {needs} and it fits (planned)"
    return f"{because}; try more --devices: even with {flags} {needs} (planned)"

  def as_dict(self) -> dict[str, Any]:
    """Fields, sums and verdict, for JSON; of `fixed`, its sum alone."""
    fields = dataclasses.asdict(dataclasses.replace(self, fixed=None))
    for entry, one in zip(fields["collectives"], self.collectives):
      entry["total_bytes"] = one.total
    gather, fixed = self.largest_all_gather, self.fixed
    return {
      **fields,
      "temp_is_estimate": self.is_estimate,
      "state_bytes": self.state_bytes,
      "total_bytes": self.total_bytes,
      "fits": self.fits,
      "verdict": self.verdict,
      "mask_update_bytes": self.mask_update_bytes,
      "largest_all_gather": gather and dataclasses.asdict(gather),
      "fixed": fixed and {"fits": fixed.fits, "total_bytes": fixed.total_bytes},
    }


def chip_of(spec: str) -> tuple[str, chips.Chip]:
  """Name and data sheet of a chip.

  Args:
    spec: Kind and name, as in "tpu:v5e" or "gpu:h100".

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

  For a TPU, the step is compiled in a new process, which imports the main
  module again: a script must call this under `if __name__ == "__main__"`. If
  libtpu ends that process, virtual devices stand in and `reason` says so.

  Args:
    config: Configuration of a run. If it leaves `mesh.data` at 1, that takes
      the devices that the other axes leave.
    devices: Number of devices. JAX must have as many, virtual ones too, unless
      XLA compiles the step for the chip.
    chip: Chip, as in "tpu:v5e" or "gpu:h100".
    vocabulary_size: Number of tokens of a text data set. Then neither the data
      nor the vocabulary is read.

  Raises:
    figs_jax.train.ConfigError: If the chip is unknown, the mesh does not fit
      the devices, or the configuration has a teacher.
    ValueError, DataError: If the configuration or its data are invalid.

  >>> import tempfile
  >>> from figs_jax.train.config import default_config
  >>> config = default_config("ste")
  >>> config.variant, config.batch_size = "custom/4", 8
  >>> config.model.update(width=8, depth=1, heads=2, mlp_dim=16)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   config.data.data_dir = folder
  ...   plan = plan_step(config, 1, "gpu:h100")
  >>> plan.params_bytes == 4 * plan.parameters  # float32
  True
  >>> plan.batch_bytes == 8 * (8 * 8 + 1) * 4  # images and labels
  True
  """
  chip, sheet = chip_of(chip)
  sizes = _sizes(config, devices)
  if config.teacher:
    raise ConfigError(
      f"--config.teacher: expected '', got {config.teacher!r}; a plan is of a"
      " run without a teacher"
    )
  if config.seeds and config.seeds_mode == "auto":  # what a TPU or GPU takes
    config = config.copy_and_resolve_references()
    config.seeds_mode = "vmap"
  target = target_of(chip, devices)
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  check_mesh(config, mesh)
  experiment = planned_experiment(config, vocabulary_size)
  batch, program, refused = _batch(experiment), None, ""
  if target.sides:
    try:
      program = in_child(_of_chip, config, vocabulary_size, target, sizes)
      if refused := program.refused:
        # The collectives are then those of another program.
        target = virtual(devices, f"the step does not fit {target.platform}")
    except Ended as error:
      target = virtual(devices, f"libtpu ended with {error}")
  if program is None or refused:
    program = _program(experiment, batch, target, sizes)
  state = experiment.abstract_on(experiment.shardings(mesh))
  split = batch_sharding(mesh, experiment.batch_axis == 0)
  own = jax.tree.map(lambda x: _placed(x, split), batch)
  params, masks, moments = (
    _per_device(tree) for tree in (state.params, state.masks, state.opt_state)
  )
  return Plan(
    devices=devices,
    mesh=sizes,
    chip=chip,
    memory_bytes=sheet.memory,
    compiled_for=target.platform,
    reason=target.reason,
    refused=refused,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    params_bytes=params,
    masks_bytes=masks,
    moments_bytes=moments,
    other_bytes=_per_device(state) - params - masks - moments,
    batch_bytes=_per_device(own),
    temp_bytes=program.temp_bytes,
    collectives=program.collectives,
    modelled=_modelled(experiment, sizes, chip),
  )


def plan_with_fix(
  config: config_dict.ConfigDict, devices: int, chip: str, **options: Any
) -> Plan:
  """`plan_step`, and if the step does not fit, plans of changes until one does.

  Changes are made one on top of the other: seeds on devices of their own, more
  of `mesh.fsdp` while the state takes over half of the memory, recomputed
  blocks, more micro-batches, packed masks, more of `mesh.tensor`.

  Args:
    config, devices, chip: Same as for `plan_step`.
    **options: Options of `plan_step`.

  Returns:
    The plan of the configuration. If that does not fit, its `fix` and `fixed`
    are the best changes and their plan, which may not fit either. At most six
    changes are planned, each of which is compiled.

  Raises:
    ValueError, DataError: If `plan_step` raises it for the configuration.
  """
  plan = plan_step(config, devices, chip, **options)
  fix: dict[str, Any] = {}
  fixed = plan
  changes = _changes(config, plan) if not plan.fits else iter(())
  for change in itertools.islice(changes, _TRIES):
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict(fix | change)
    try:
      tried = plan_step(own, devices, chip, **options)
    except ValueError:  # as a mesh that does not divide the heads
      continue
    if tried.total_bytes < fixed.total_bytes or tried.fits:
      fix, fixed = fix | change, tried
    if fixed.fits:
      break
  if fixed is plan:
    return plan
  return dataclasses.replace(plan, fix=fix, fixed=fixed)


def _changes(
  config: config_dict.ConfigDict, plan: Plan
) -> Iterator[dict[str, Any]]:
  """Changes that save memory, in the order to try them."""
  seed, data, fsdp, tensor = (plan.mesh[axis] for axis in AXES)
  state = plan.state_bytes
  more = math.gcd(config.seeds // seed, data) if config.seeds else 1
  if more > 1 and config.seeds_mode != "map":
    seed, data, state = seed * more, data // more, state // more
    yield {"mesh.seed": seed, "mesh.data": data}
  if data > 1 and state > plan.memory_bytes // 2:
    over = state / (plan.memory_bytes / 2)
    more = min(data, 2 ** math.ceil(math.log2(over)))
    more = more if data % more == 0 else data
    fsdp, data = fsdp * more, data // more
    yield {"mesh.fsdp": fsdp, "mesh.data": data}
  if config.model.get("remat", True) is False:
    yield {"model.remat": True}
  rows = config.batch_size // (data * fsdp)
  for count in (4, rows):
    if config.grad_accum_steps < count <= rows and rows % count == 0:
      yield {"grad_accum_steps": count}
  if plan.masks_bytes and config.mask_storage == "bool":
    yield {"mask_storage": "bits"}
  if data % 2 == 0:
    yield {"mesh.tensor": tensor * 2, "mesh.data": data // 2}


def _sizes(config: config_dict.ConfigDict, devices: int) -> dict[str, int]:
  """Sizes of the mesh over so many devices."""
  sizes = {axis: config.mesh[axis] for axis in AXES}
  if sizes["data"] == 1 and -1 not in sizes.values():
    sizes["data"] = -1
  free = math.prod(abs(size) for size in sizes.values())
  if devices % free or (-1 not in sizes.values() and free != devices):
    raise ConfigError(
      f"--devices={devices}: expected a multiple of mesh.seed * mesh.fsdp *"
      f" mesh.tensor, and mesh.data=-1 or the rest, got the mesh {sizes}; set"
      f" {', '.join(f'--config.mesh.{axis}' for axis in AXES)}"
    )
  return {k: devices // free if v == -1 else v for k, v in sizes.items()}


def _of_chip(
  config: config_dict.ConfigDict,
  vocabulary_size: int | None,
  target: Target,
  sizes: dict[str, int],
) -> _Program:
  """The program for TPUs, in a process that libtpu may end."""
  experiment = planned_experiment(config, vocabulary_size)
  try:
    return _program(experiment, _batch(experiment), target, sizes)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return _Program(refused=str(error).partition(": ")[2].splitlines()[0])


def _program(
  experiment: Experiment, batch: Any, target: Target, sizes: dict[str, int]
) -> _Program:
  mesh = target.mesh(sizes)
  shardings = experiment.shardings(mesh)
  own = experiment.abstract_on(shardings)
  split = batch_sharding(mesh, experiment.batch_axis == 0)
  batch = jax.tree.map(lambda x: _placed(x, split), batch)
  step = compiled_step(experiment, shardings, mesh)
  if isinstance(step, seeds.InTurn):  # the others wait in memory
    step, lone = step.step, seeds.lone_shardings(shardings)
    own = jax.eval_shape(
      functools.partial(seeds.take, seed=0), experiment.abstract_state
    )
    own = jax.tree.map(_placed, own, lone)
    if experiment.batch_axis == 0:
      split = batch_sharding(mesh)
      batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=split),
        batch,
      )
  assert isinstance(step, CompiledStep)
  compiled = step.lower(own, batch).compile(target.options)
  memory: Any = compiled.memory_analysis()
  text = compiled.as_text()
  assert text is not None  # XLA has both for CPUs and TPUs
  return _Program(int(memory.temp_size_in_bytes), collectives(text, sizes))


def _modelled(
  experiment: Experiment, sizes: dict[str, int], chip: str
) -> Estimate | str:
  """The estimate of the engine's model of clusters, or why there is none.

  `fsdp` shares weights, gradients and moments between replicas, as stage 3 of
  ZeRO does.
  """
  config = experiment.config
  if experiment.seeds:
    return "several seeds"
  model = nnx.eval_shape(functools.partial(experiment.model, config.seed))
  if not models.lists_products(model):
    return "a model of another class"
  engine, efficiency = engine_of(chip.partition(":")[2])
  dtype = "bf16" if experiment.dtype == "bfloat16" else "float32"
  value = 2 if dtype == "bf16" else 4
  replicas, accum = sizes["data"] * sizes["fsdp"], config.grad_accum_steps
  parallel = Parallel(
    replicas,
    sizes["tensor"],
    microbatches=accum,
    overlap=True,
    zero=3 if sizes["fsdp"] > 1 else 0,
    recompute="full" if config.model.get("remat") else "none",
  )

  def phase_at(batch: int) -> TrainingPhase:
    rows = layers_of(model, batch)
    return TrainingPhase(1, rows, input_gradient=experiment.recipe.transposable)

  try:
    return estimate(
      phase_at,
      engine,
      cluster_of(engine, math.prod(sizes.values())),
      parallel,
      config.batch_size,
      # In 16 bits the float32 weights are a copy beside those in use.
      sizes=BytesPerValue(value, gradient=4, states=8 + 4 * (value == 2)),
      assume=Assumptions(efficiency, dtype=dtype),
    )
  except ValueError as error:
    return str(error)


def planned_experiment(
  config: config_dict.ConfigDict, vocabulary_size: int | None
) -> Experiment:
  """The experiment, with a stand-in for texts of known vocabulary size.

  Args:
    config: Configuration of a run.
    vocabulary_size: Number of tokens. None reads the data and the vocabulary.

  Raises:
    figs_jax.train.ConfigError: If the model writes no text, but a size is
      given.
    ValueError, DataError: If the configuration or its data are invalid.

  >>> from figs_jax.train.config import default_config
  >>> config = default_config("dense", "t5")
  >>> config.variant, config.data.name = "custom", "c4"  # which is not read
  >>> config.model.update(width=8, depth=1, heads=2, head_dim=4, mlp_dim=16)
  >>> planned_experiment(config, 32_128).task.model_options["vocab"]
  32128
  """
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
  sentinels = byte_vocabulary().sentinels
  vocabulary = Vocabulary(Bytes(vocabulary_size - sentinels), sentinels)
  texts = dataclasses.replace(task.texts, vocabulary=vocabulary)
  return dataclasses.replace(
    experiment, task=dataclasses.replace(task, texts=texts)
  )


def _batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch."""
  task = experiment.task
  own = experiment.batch_axis == 0  # one batch for each seed
  lead = (len(experiment.seeds),) * own + (experiment.config.batch_size,)
  if isinstance(task, ImageClassification):
    options = task.model_options
    side = options["image_size"]
    shape = (side, side) if isinstance(side, int) else tuple(side)
    image = (*lead, *shape, options["in_channels"])
    return {
      "image": jax.ShapeDtypeStruct(image, jnp.float32),
      "label": jax.ShapeDtypeStruct(lead, jnp.int32),
    }
  batches = task.train_batches(1, shard_index=0, num_shards=1)
  try:
    one = next(batches)
  finally:
    batches.close()
  return {
    name: jax.ShapeDtypeStruct((*lead, *array.shape[len(lead) :]), array.dtype)
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
