"""Placement of arrays on a mesh of axes `seed`, `data`, `fsdp` and `tensor`.

The batch is split over `data` and `fsdp`. A kernel is split over `tensor`
along the axis that `RULES` of `figs_jax.nn.logical_axes` names by its logical
word, and over `fsdp` along another one; masks, moments and averages lie as
their kernel does. A group never spans devices, so that the mask update needs no
collective. States of several seeds are split over `seed` by their seed axis,
and so are batches if each seed has its own; seeds never communicate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from figs_jax.core.tree import path_str
from figs_jax.nn.logical_axes import (
  BATCH_AXES,
  RULES,
  SEED_AXIS,
  logical_axes,
)
from figs_jax.recipes import BoundRecipe

AXES = (SEED_AXIS, *BATCH_AXES, "tensor")


def make_mesh(
  data: int = 1, fsdp: int = 1, tensor: int = 1, seed: int = 1
) -> Mesh:
  """A mesh of seed * data * fsdp * tensor devices; -1 takes what is left.

  Neighbours in `tensor` are neighbours among the devices, as they communicate
  most; devices of other seeds, which never do, are farthest.

  Raises:
    ValueError: If the product does not fit the number of devices or, with
      several processes, does not use all of them, or if `tensor` spans
      processes or `process_share` raises it.

  >>> dict(make_mesh().shape)
  {'seed': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
  """
  count, sizes = jax.device_count(), [seed, data, fsdp, tensor]
  asked = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes))
  fields = ", ".join(f"--config.mesh.{name}" for name in AXES)
  if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
    raise ValueError(
      f"mesh {asked}: expected positive sizes, at most one of them -1; set"
      f" {fields}"
    )
  if -1 in sizes:
    sizes[sizes.index(-1)] = count // -math.prod(sizes)
  size = math.prod(sizes)
  if size > count or size == 0:
    raise ValueError(
      f"mesh {asked}: expected a product of at most {count}, the number of"
      f" devices; set {fields}"
    )
  if jax.process_count() > 1 and size != count:
    raise ValueError(
      f"mesh {asked} leaves {count - size} of the {count} devices of"
      f" {jax.process_count()} processes idle; set"
      " --config.mesh.data=-1"
    )
  if jax.process_count() > 1 and jax.local_device_count() % sizes[3]:
    raise ValueError(
      f"mesh {asked}: expected tensor to divide {jax.local_device_count()}, the"
      " devices of a process; set --config.mesh.tensor"
    )
  mesh = jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=jax.devices()[:size],
  )
  process_share(mesh)
  return mesh


def for_one_seed(mesh: Mesh) -> Mesh:
  """A mesh of the same devices, of which `data` gets those of `seed`.

  Args:
    mesh: Mesh from `make_mesh`.

  >>> dict(for_one_seed(make_mesh()).shape)
  {'seed': 1, 'data': 1, 'fsdp': 1, 'tensor': 1}
  """
  _, _, fsdp, tensor = mesh.devices.shape
  devices = mesh.devices.reshape(1, -1, fsdp, tensor)
  return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def check_seed_axis(seeds: int, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError unless the axis `seed` of a mesh divides the seeds.

  Args:
    seeds: Number of seeds of a run; 0 is a run without a seed axis.
    mesh: Mesh from `make_mesh`, or an abstract one with its axes.
  """
  parts = mesh.shape.get(SEED_AXIS, 1)
  if parts > 1 and (not seeds or seeds % parts):
    wanted = f"a divisor of seeds={seeds}" if seeds else "1 for a single run"
    raise ValueError(
      f"--config.mesh.seed: expected {wanted}, got {parts}; set it so, or set"
      f" --config.seeds to a multiple of {parts}"
    )


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
  """Number of parts of a batch.

  >>> batch_parts(make_mesh())
  1
  """
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class Share:
  """The part of each batch that a process reads.

  Attributes:
    index: Index of its shard of the examples.
    count: Number of shards.
    seeds: Parts of the axis `seed` that its devices hold.
  """

  index: int
  count: int
  seeds: tuple[int, ...]

  def of_seeds(self, seeds: Sequence[int], mesh: Mesh) -> list[int]:
    """Those of all seeds that its devices hold.

    >>> Share(0, 1, (0,)).of_seeds([5, 6], make_mesh())
    [5, 6]
    """
    each = len(seeds) // mesh.shape[SEED_AXIS]
    return [seeds[part * each + i] for part in self.seeds for i in range(each)]


def process_share(mesh: Mesh, process: int | None = None) -> Share:
  """The part of each batch that a process reads, by the devices that it has.

  Args:
    mesh: Mesh from `make_mesh`.
    process: Index of the process. Defaults to this one.

  Raises:
    ValueError: If the devices of a process hold only some of the parts of a
      batch for one seed, and others for another.

  >>> process_share(make_mesh())
  Share(index=0, count=1, seeds=(0,))
  """
  process = jax.process_index() if process is None else process
  owner = np.array([device.process_index for device in mesh.devices.flat])
  owner = owner.reshape(mesh.shape[SEED_AXIS], batch_parts(mesh), -1)
  held = {}
  for each in {process, *owner.flat}:
    mine = owner == each
    seeds, rows = mine.any((1, 2)).nonzero()[0], mine.any((0, 2)).nonzero()[0]
    held[each] = tuple(rows.tolist()), tuple(seeds.tolist())
    if mine.sum() != len(seeds) * len(rows) * owner.shape[2]:
      sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
      raise ValueError(
        f"mesh {sizes}: expected every process to hold the same parts of a"
        f" batch for each of its seeds, got {mine.sum()} devices per process;"
        " set --config.mesh.seed to a multiple or a divisor of the number of"
        " processes"
      )
  shards = sorted({rows for rows, _ in held.values()})
  rows, parts = held[process]
  return Share(shards.index(rows), len(shards), parts)


def batch_sharding(
  mesh: Mesh | AbstractMesh, seeds: bool = False
) -> NamedSharding:
  """Splits the batch axis over `data` and `fsdp`.

  Args:
    mesh: Mesh from `make_mesh`, or an abstract one with its axes.
    seeds: Whether an axis of seeds, which is split over `seed`, leads the batch
      axis.

  >>> tuple(batch_sharding(make_mesh(), seeds=True).spec)
  ('seed', ('data', 'fsdp'))
  """
  spec = PartitionSpec(*([SEED_AXIS] if seeds else []), BATCH_AXES)
  return NamedSharding(mesh, spec)


def metrics_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the metrics of several seeds over `seed` alone.

  >>> metrics_sharding(make_mesh()).is_fully_replicated
  True
  """
  apart = mesh.shape[SEED_AXIS] > 1  # else there may be no axis of seeds
  return NamedSharding(mesh, PartitionSpec(*[SEED_AXIS] * apart))


def replicated(mesh: Mesh) -> NamedSharding:
  """Keeps a copy on every device.

  Args:
    mesh: Mesh from `make_mesh`.

  >>> replicated(make_mesh()).shard_shape((8, 4))
  (8, 4)
  """
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(
  state: Any,
  mesh: Mesh | AbstractMesh,
  bound: BoundRecipe | None = None,
  seeds: bool = False,
) -> Any:
  """One `NamedSharding` per leaf of a (possibly abstract) state.

  Arrays of a kernel's shape, such as masks, moments and averages, lie as the
  kernel does. So do factored moments and the factors of an adapter, along the
  axes that they share with it. An array that no axis of the mesh divides is
  whole on every device.

  Args:
    state: State with `params`, or any pytree of parameters.
    mesh: Mesh from `make_mesh`, or an abstract one with its axes.
    bound: Recipe of the model, for the groups of its kernels. Defaults to a
      model without masks.
    seeds: Whether the leaves but `step` have a leading seed axis, which is
      split over `seed`.

  Raises:
    ValueError: If a part of an axis over `tensor` would split a group.

  >>> kernel = jax.ShapeDtypeStruct((8, 6), "float32")
  >>> mesh = AbstractMesh((1, 1, 4, 1), AXES)
  >>> shardings = state_shardings({"fc": {"kernel": kernel}}, mesh)
  >>> shardings["fc"]["kernel"].shard_shape(kernel.shape)  # 4 do not divide 6
  (2, 6)
  """
  placement = _Placement.of(getattr(state, "params", state), mesh, bound, seeds)

  def one(path, leaf):
    spec = placement.spec(path_str(path), tuple(leaf.shape[seeds:]))
    lead = [SEED_AXIS] if seeds and leaf.ndim else []
    return NamedSharding(mesh, PartitionSpec(*lead, *spec))

  return jax.tree_util.tree_map_with_path(one, state)


_Spec = tuple[Any, ...]  # mesh axes by axis; () is whole on every device


@dataclasses.dataclass(frozen=True)
class _Placement:
  """Shapes and mesh axes of the parameters by path."""

  shapes: Mapping[str, tuple[int, ...]]
  masks: Mapping[str, tuple[int, ...]]  # their shapes, which may be packed
  specs: Mapping[str, _Spec]
  mesh: Mapping[str, int]

  @classmethod
  def of(
    cls,
    params: Any,
    mesh: Mesh | AbstractMesh,
    bound: BoundRecipe | None,
    seeds: bool,
  ) -> _Placement:
    units, kept = (
      ({}, {}) if bound is None else (bound.shard_units, bound.mask_shapes)
    )
    shapes = {
      path_str(path): tuple(leaf.shape[seeds:])
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    specs: dict[str, _Spec] = {}
    masks = dict(shapes)
    for name, shape in shapes.items():
      path = next((path for path in _ends(name) if path in units), "")
      specs[name] = _spec(name, shape, mesh.shape, units.get(path, {}))
      masks[name] = kept.get(path, shape)
    for name in shapes:
      module, _, factor = name.rpartition("/adapter/")
      kernel = specs.get(f"{module}/kernel", ())
      if factor in _FACTORS and kernel and name not in units:
        # A has the inputs of the kernel, and B its outputs.
        rest = list(kernel)
        rest[_FACTORS[factor]] = None
        specs[name] = tuple(rest) if any(rest) else ()
    return cls(shapes, masks, specs, mesh.shape)

  def spec(self, name: str, shape: tuple[int, ...]) -> _Spec:
    """Mesh axes of a leaf whose path ends in that of its parameter."""
    param = next((path for path in _ends(name) if path in self.shapes), None)
    if param is None:
      return _spec(name, shape, self.mesh, {})
    whole, spec = self.shapes[param], self.specs[param]
    if shape in (whole, self.masks[param]):
      return spec
    if not spec:
      return ()
    above = name.removesuffix(param).split("/")
    for moment, place in _MEANS.items():
      if moment in above:
        # optax takes means over the longest axis and over the next one.
        mean = np.argsort(whole)[place]
        left = [axis for axis in range(len(whole)) if axis != mean]
        if shape == tuple(whole[axis] for axis in left):
          spec = tuple(spec[axis] for axis in left)
          return spec if any(spec) else ()
    return ()


# The axis of a factor of an adapter that its kernel does not have.
_FACTORS = {"lora_a": -1, "lora_b": -2}
# Factored second moments of optax.adafactor: which of the axes, in the order of
# their lengths, each is a mean over.
_MEANS = {"v_row": -1, "v_col": -2}


def _ends(name: str) -> Iterator[str]:
  """The path, and what is left of it without its first words."""
  while name:
    yield name
    name = name.partition("/")[2]


def _spec(
  name: str,
  shape: tuple[int, ...],
  mesh: Mapping[str, int],
  units: Mapping[int, int],
) -> _Spec:
  """Mesh axes of a parameter."""
  ndim = len(shape)
  if ndim < 2:
    return ()
  words = logical_axes(name, ndim)
  unit = [units.get(axis - ndim, 1) for axis in range(ndim)]
  spec: list[Any] = [None] * ndim
  tensor, fsdp = mesh["tensor"], mesh["fsdp"]
  taken = next((i for i, word in enumerate(words) if word in RULES), None)
  if taken is not None and tensor > 1 and shape[taken] % tensor == 0:
    if shape[taken] // tensor % unit[taken]:
      raise ValueError(
        f"{name}: axis {taken - ndim} ({words[taken]}) of length {shape[taken]}"
        f" over --config.mesh.tensor={tensor} has parts of"
        f" {shape[taken] // tensor}, expected multiples of {unit[taken]}, the"
        " longest group of its masks; set --config.mesh.tensor to a divisor of"
        f" {shape[taken] // unit[taken]}, or shorten the groups"
        " (--config.pattern, --config.recipe.k)"
      )
    spec[taken] = "tensor"
  else:
    taken = None
  # The longest axis beside groups, else one in whole groups. Stacked blocks
  # stay together, since a loop runs through them.
  stacked = ndim - sum(word is not None for word in words)
  stacked = stacked if any(words) else 0

  def parts(axis: int) -> int:
    return fsdp * (tensor if axis == taken else 1)

  fits = [
    axis
    for axis in range(ndim)
    if shape[axis] % parts(axis) == 0
    and shape[axis] // parts(axis) % unit[axis] == 0
  ]
  if fsdp > 1 and fits:
    best = max(
      fits,
      key=lambda axis: (
        axis >= stacked,
        axis != taken,
        axis - ndim not in units,
        shape[axis],
        axis,
      ),
    )
    spec[best] = "fsdp" if best != taken else ("tensor", "fsdp")
  return tuple(spec) if any(spec) else ()
