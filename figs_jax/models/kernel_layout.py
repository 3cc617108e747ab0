"""Where the axes of a kernel lie after transposes, reshapes and slices.

A traced program rarely multiplies by a kernel as it is stored. A `Kernel` says
which parts of the stored axes make up each axis of the array at hand, so that a
mask of the stored shape can be laid out like the operand of a product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
  """Part of an axis of a stored kernel.

  Attributes:
    axis: Axis of the stored kernel.
    stride: Distance of neighbours, in entries of that axis.
    size: Number of entries.
  """

  axis: int
  stride: int
  size: int

  @property
  def place(self) -> tuple[int, int]:
    """Sorts parts as they are stored, the fastest last."""
    return self.axis, -self.stride


Axes = tuple[tuple[Part, ...], ...]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What an array holds of one parameter.

  Attributes:
    path: Path of the parameter.
    shape: Shape of the stored parameter.
    axes: Parts in each axis of the array, none of a broadcast one; None if they
      cannot be followed.
    stack: Parts that a scan runs over.
    whole: Whether every entry occurs in its place, as opposed to a slice.

  >>> kernel = Kernel.of("head/kernel", (6, 4))
  >>> turned = kernel.transposed((1, 0)).reshaped((2, 2, 6))
  >>> [[part.stride for part in axis] for axis in turned.axes]
  [[2], [1], [1]]
  """

  path: str
  shape: tuple[int, ...]
  axes: Axes | None
  stack: tuple[Part, ...] = ()
  whole: bool = True

  @classmethod
  def of(cls, path: str, shape: Sequence[int]) -> Kernel:
    """A parameter as it is stored."""
    axes = tuple((Part(i, 1, size),) for i, size in enumerate(shape))
    return cls(path, tuple(shape), axes)

  @property
  def name(self) -> str:
    """The path without "/kernel"."""
    return self.path.removesuffix("/kernel")

  def lost(self) -> Kernel:
    """The parameter in an array whose axes cannot be followed."""
    return dataclasses.replace(self, axes=None, whole=False)

  def sliced(self) -> Kernel:
    """Some of the entries, along the same axes."""
    return dataclasses.replace(self, whole=False)

  def transposed(self, permutation: Sequence[int]) -> Kernel:
    if self.axes is None:
      return self
    axes = tuple(self.axes[i] for i in permutation)
    return dataclasses.replace(self, axes=axes)

  def broadcast(self, rank: int, places: Sequence[int]) -> Kernel:
    """The array with new axes; `places` are those of the old ones."""
    if self.axes is None:
      return self
    axes: list[tuple[Part, ...]] = [()] * rank
    for place, parts in zip(places, self.axes):
      axes[place] = parts
    return dataclasses.replace(self, axes=tuple(axes))

  def without(self, places: Sequence[int]) -> Kernel:
    """The array without these axes, which have length 1."""
    if self.axes is None:
      return self
    left = [parts for i, parts in enumerate(self.axes) if i not in places]
    return dataclasses.replace(self, axes=tuple(left))

  def scanned(self) -> Kernel:
    """One step's slice of the array that a scan runs over."""
    if self.axes is None:
      return self
    stack, axes = self.stack + self.axes[0], self.axes[1:]
    return dataclasses.replace(self, stack=stack, axes=axes)

  def reshaped(self, shape: Sequence[int]) -> Kernel:
    if self.axes is None:
      return self
    parts = [part for axis in self.axes for part in axis if part.size > 1]
    axes = []
    for size in shape:
      axis = []
      while size > 1 and parts:
        part = parts.pop(0)
        if size % part.size:
          if part.size % size:
            return self.lost()
          # The outer `size` entries belong to this axis, the rest to the next.
          inner = part.size // size
          parts.insert(0, part._replace(size=inner))
          part = part._replace(stride=part.stride * inner, size=size)
        axis.append(part)
        size //= part.size
      if size > 1:
        return self.lost()  # a broadcast axis was merged
      axes.append(tuple(axis))
    return dataclasses.replace(self, axes=tuple(axes))

  def laid_out(
    self, array: np.ndarray, groups: Sequence[Sequence[Part]]
  ) -> np.ndarray:
    """An array of the stored shape with its axes as these groups of parts.

    Args:
      array: Array of the stored shape.
      groups: Parts of each axis of the result.

    >>> kernel = Kernel.of("k", (2, 3))
    >>> (rows,), (columns,) = kernel.axes
    >>> kernel.laid_out(np.arange(6).reshape(2, 3), [[columns], [rows]])
    array([[0, 3],
           [1, 4],
           [2, 5]])
    """
    parts = [part for group in groups for part in group]
    order = sorted(range(len(parts)), key=lambda i: parts[i].place)
    stored = array.reshape([parts[i].size for i in order])
    sizes = [math.prod(part.size for part in group) for group in groups]
    return stored.transpose(np.argsort(order)).reshape(sizes)


def conv_parts(
  kernel: Kernel, spec: Sequence[int], groups: int, transposed: bool
) -> tuple[list[Part], list[Part], list[Part]] | None:
  """Parts of a convolution's kernel in its groups, K and N; None if unknown.

  Args:
    kernel: Kernel.
    spec: Its axes of output channels, input channels and positions.
    groups: Number of groups, which split the output channels.
    transposed: Whether positions belong to N, as in a transposed convolution.
  """
  if kernel.axes is None:
    return None
  outputs, channels, *window = spec
  shape = [math.prod(part.size for part in axis) for axis in kernel.axes]
  shape[outputs : outputs + 1] = [groups, shape[outputs] // groups]
  grouped = kernel.reshaped(shape).axes
  if grouped is None:
    return None
  place = [i + (i > outputs) for i in (outputs, channels, *window)]
  inside = [part for i in place[2:] for part in grouped[i]]
  K, N = list(grouped[place[1]]), list(grouped[outputs + 1])
  (N if transposed else K).extend(inside)
  return list(grouped[outputs]), K, N
