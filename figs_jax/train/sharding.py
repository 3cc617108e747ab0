"""Placement of arrays on a mesh with the axes `data` and `fsdp`.

The batch is split over both axes. Kernels, their masks and their moments are
split over `fsdp` along an axis other than their group axis, so that a group
never spans devices and the mask update needs no collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from figs_jax.core.tree import MaskedKernel, path_str


def make_mesh(data: int = 1, fsdp: int = 1) -> Mesh:
  """A mesh over data * fsdp devices; -1 takes the remaining devices.

  Raises:
    ValueError: If the product does not fit the number of devices or, with
      several processes, does not use all of them.

  >>> dict(make_mesh().shape)
  {'data': 1, 'fsdp': 1}
  """
  count, asked = jax.device_count(), f"data={data}, fsdp={fsdp}"
  if (data, fsdp).count(-1) > 1 or min(data, fsdp) < -1 or 0 in (data, fsdp):
    raise ValueError(
      f"mesh {asked}: expected positive sizes, at most one of them -1; set"
      " --config.mesh.data and --config.mesh.fsdp"
    )
  if data == -1:
    data = count // fsdp
  if fsdp == -1:
    fsdp = count // data
  if data * fsdp > count or data * fsdp == 0:
    raise ValueError(
      f"mesh {asked}: expected a product of at most {count}, the number of"
      " devices; set --config.mesh.data and --config.mesh.fsdp"
    )
  if jax.process_count() > 1 and data * fsdp != count:
    raise ValueError(
      f"mesh {asked} leaves {count - data * fsdp} of the {count} devices of"
      f" {jax.process_count()} processes idle; set"
      " --config.mesh.data=-1"
    )
  devices = jax.devices()[: data * fsdp]
  return jax.make_mesh(
    (data, fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def batch_sharding(mesh: Mesh, seeds: bool = False) -> NamedSharding:
  """Splits the batch axis over both mesh axes.

  Args:
    mesh: Mesh from `make_mesh`.
    seeds: Whether an axis of seeds, which is never split, leads the batch axis.

  >>> tuple(batch_sharding(make_mesh(), seeds=True).spec)
  (None, ('data', 'fsdp'))
  """
  axes = ("data", "fsdp")
  spec = PartitionSpec(None, axes) if seeds else PartitionSpec(axes)
  return NamedSharding(mesh, spec)


def replicated(mesh: Mesh) -> NamedSharding:
  """Keeps a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(
  state: Any,
  mesh: Mesh,
  leaves: Mapping[str, MaskedKernel],
  seeds: bool = False,
) -> Any:
  """One `NamedSharding` per leaf of a (possibly abstract) state.

  Args:
    state: Pytree whose kernels, masks and moments end in the same paths.
    mesh: Mesh from `make_mesh`.
    leaves: Masked leaves by path, for their group axes.
    seeds: Whether the leaves have a leading seed axis, which is never split.
  """
  size = mesh.shape["fsdp"]

  def one(path, leaf):
    ndim = len(leaf.shape)
    whole = replicated(mesh)
    if size == 1 or ndim - seeds < 2:
      return whole
    name = "/" + path_str(path)
    group = next(
      (v.axis for k, v in leaves.items() if name.endswith("/" + k)), ()
    )
    axes = (group,) if isinstance(group, int) else group
    grouped = {axis % (ndim - seeds) for axis in axes}
    free = [
      axis
      for axis in range(ndim - seeds)
      if axis not in grouped and leaf.shape[axis + seeds] % size == 0
    ]
    if not free:
      return whole
    longest = max(free, key=lambda axis: (leaf.shape[axis + seeds], axis))
    spec: list[str | None] = [None] * ndim
    spec[longest + seeds] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, state)
