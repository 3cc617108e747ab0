"""Groups of m entries along one or several axes of an array."""

from __future__ import annotations

import dataclasses
import math

from figs_jax.core.types import Array

Axis = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Groups:
  """How an array is split into groups of m, and joined again.

  The array is transposed by `order` (usually the identity) to `shape`, then
  reshaped to `grouped`: [..., groups, m, stride, ...] with m at `axis`.

  >>> groups = Groups.of((2, 8), m=4, axis=-1)
  >>> groups.grouped, groups.axis
  ((2, 2, 4), 2)
  """

  order: tuple[int, ...]
  shape: tuple[int, ...]
  grouped: tuple[int, ...]
  axis: int

  @classmethod
  def of(
    cls, shape: tuple[int, ...], m: int, axis: Axis, stride: int = 1
  ) -> Groups:
    """The groups of an array of this shape, see `nm_mask`.

    Raises:
      ValueError: If m * stride does not divide the length of the group axis, or
        an axis is out of range or named twice.
    """
    if isinstance(stride, bool) or stride < 1:
      raise ValueError(f"Expected a positive integer stride, got {stride}")
    axes = normalized(shape, axis)
    length = math.prod(shape[a] for a in axes)
    span = m * stride
    if length % span:
      at = "" if stride == 1 else f" at stride {stride}, which spans {span}"
      raise ValueError(
        f"axis {axis} of shape {shape} has length {length}, not a multiple of"
        f" m={m}{at}; choose an m that divides it, pass another axis=, or keep"
        " this array dense"
      )
    # Groups that fit into the last axes do not depend on the first ones.
    while len(axes) > 1 and math.prod(shape[a] for a in axes[1:]) % span == 0:
      axes = axes[1:]
    rest = [a for a in range(len(shape)) if a not in axes]
    lead = sum(a < axes[0] for a in rest)
    order = (*rest[:lead], *axes, *rest[lead:])
    turned = tuple(shape[a] for a in order)
    length = math.prod(shape[a] for a in axes)
    group = (length // span, m) if stride == 1 else (length // span, m, stride)
    grouped = (*turned[:lead], *group, *turned[lead + len(axes) :])
    return cls(order, turned, grouped, lead + 1)

  @property
  def m(self) -> int:
    return self.grouped[self.axis]

  def split(self, x: Array) -> Array:
    """Reshapes the array so that the entries of a group lie along `axis`."""
    return x.transpose(self.order).reshape(self.grouped)

  def join(self, x: Array) -> Array:
    """The inverse of `split`."""
    back = sorted(range(len(self.order)), key=self.order.__getitem__)
    return x.reshape(self.shape).transpose(back)


def normalized(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
  """The axes as non-negative numbers.

  Raises:
    ValueError: If an axis is out of range or named twice, or none is given.

  >>> normalized((2, 3, 4), (-1, 0))
  (2, 0)
  """
  given = (axis,) if isinstance(axis, int) else tuple(axis)
  rank = len(shape)
  if not given or any(not -rank <= a < rank for a in given):
    raise ValueError(
      f"axis {axis} of shape {shape}: expected one or more axes within"
      f" {-rank}..{rank - 1}"
    )
  axes = tuple(a % rank for a in given)
  if len(set(axes)) < len(axes):
    raise ValueError(
      f"axis {axis} of shape {shape}: expected different axes, got one twice"
    )
  return axes


def axis_length(shape: tuple[int, ...], axis: Axis) -> int:
  """The number of entries along the (flattened) axes.

  >>> axis_length((2, 3, 4), (-1, 0))
  8
  """
  return math.prod(shape[a] for a in normalized(shape, axis))


def other_axis(ndim: int, axis: Axis) -> int:
  """The last axis beside the group axes, as a negative number.

  Raises:
    ValueError: If all axes are group axes.

  >>> other_axis(2, -2), other_axis(4, (-1, 0))
  (-1, -2)
  """
  taken = {a % ndim for a in ((axis,) if isinstance(axis, int) else axis)}
  free = [a for a in range(ndim) if a not in taken]
  if not free:
    raise ValueError(
      f"a mask along two axes needs a kernel with an axis beside {axis}"
    )
  return free[-1] - ndim
