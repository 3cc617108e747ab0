"""Placement of arrays on a mesh with the axes `data`, `fsdp` and `tensor`.

The batch is split over `data` and `fsdp`. A kernel is split over `tensor`
along the axis that `RULES` of `figs_jax.nn.logical_axes` names by its logical
word, and over `fsdp` along another one; masks, moments and averages lie as
their kernel does. A group never spans devices, so that the mask update needs no
collective.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
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
from figs_jax.nn.logical_axes import BATCH_AXES, RULES, logical_axes
from figs_jax.recipes import BoundRecipe

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over data * fsdp * tensor devices; -1 takes the remaining devices.

  Neighbours in `tensor` are neighbours among the devices, as they communicate
  most.

  Raises:
    ValueError: If the product does not fit the number of devices or, with
      several processes, does not use all of them, or if `tensor` spans
      processes.

  >>> dict(make_mesh().shape)
  {'data': 1, 'fsdp': 1, 'tensor': 1}
  """
  count, sizes = jax.device_count(), [data, fsdp, tensor]
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
  if jax.process_count() > 1 and jax.local_device_count() % sizes[2]:
    raise ValueError(
      f"mesh {asked}: expected tensor to divide {jax.local_device_count()}, the"
      " devices of a process; set --config.mesh.tensor"
    )
  return jax.make_mesh(
    tuple(sizes),
    AXES,
    axis_types=(AxisType.Auto,) * 3,
    devices=jax.devices()[:size],
  )


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
  """Number of parts of a batch.

  >>> batch_parts(make_mesh())
  1
  """
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh, seeds: bool = False) -> NamedSharding:
  """Splits the batch axis over `data` and `fsdp`.

  Args:
    mesh: Mesh from `make_mesh`.
    seeds: Whether an axis of seeds, which is never split, leads the batch axis.

  >>> tuple(batch_sharding(make_mesh(), seeds=True).spec)
  (None, ('data', 'fsdp'))
  """
  spec = PartitionSpec(*([None] if seeds else []), BATCH_AXES)
  return NamedSharding(mesh, spec)


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
    seeds: Whether the leaves have a leading seed axis, which is never split.

  Raises:
    ValueError: If a part of an axis over `tensor` would split a group.

  >>> kernel = jax.ShapeDtypeStruct((8, 6), "float32")
  >>> mesh = AbstractMesh((1, 4, 1), AXES)
  >>> shardings = state_shardings({"fc": {"kernel": kernel}}, mesh)
  >>> shardings["fc"]["kernel"].shard_shape(kernel.shape)  # 4 do not divide 6
  (2, 6)
  """
  placement = _Placement.of(getattr(state, "params", state), mesh, bound, seeds)

  def one(path, leaf):
    spec = placement.spec(path_str(path), tuple(leaf.shape[seeds:]))
    lead = [None] * seeds if spec else []
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
