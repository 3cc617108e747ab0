"""The matrices of a layer: its input rows X and its kernel W, by kind of layer.

Every layer multiplies X [stack, rows, K] by W [stack, K, N]. The stack has the
groups of a convolution or the batched letters of an einsum, and is 1 otherwise.
K is ordered such that the groups of m are consecutive.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.groups import Axis, normalized
from figs_jax.core.types import Array, Float, Shaped


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a kernel is a stack of matrices.

  Attributes:
    split: Shape of the kernel with the groups of a convolution apart.
    stack: Axes of `split` that are stacked.
    contracted: Axes of `split` along K, with the group axes last.
    natural: The same axes as the rows have them.
    free: Axes of `split` along N.
  """

  split: tuple[int, ...]
  stack: tuple[int, ...]
  contracted: tuple[int, ...]
  natural: tuple[int, ...]
  free: tuple[int, ...]

  @classmethod
  def of(cls, path: str, layer: Any, group_axis: Axis) -> Layout:
    """The layout of a layer with groups along axes of its kernel.

    Raises:
      ValueError: If the kind of layer is unknown, or groups lie on other axes
        than the contracted ones.
    """
    shape = tuple(layer.kernel.shape)
    split, stack, natural = _axes(path, layer)
    groups = normalized(shape, group_axis)
    if not set(groups) <= set(natural):
      raise ValueError(
        f"{path}: expected groups along contracted axes for calibrated pruning,"
        f" got axes {group_axis} of a kernel of shape {shape}; leave it out of"
        ' the pattern, as in "NAME: dense"'
      )
    rest = tuple(a for a in natural if a not in groups)
    free = [a for a in range(len(split)) if a not in (*stack, *natural)]
    return cls(split, stack, (*rest, *groups), natural, tuple(free))

  def matrices(self, kernel: Shaped[Array, "*shape"]) -> Shaped[Array, "s k n"]:
    """The kernel as a stack of matrices."""
    order = (*self.stack, *self.contracted, *self.free)
    sizes = [
      math.prod(self.split[a] for a in axes)
      for axes in (self.stack, self.contracted, self.free)
    ]
    return kernel.reshape(self.split).transpose(order).reshape(sizes)

  def kernel(
    self, matrices: Shaped[Array, "s k n"], shape: tuple[int, ...]
  ) -> Shaped[Array, "*shape"]:
    """The inverse of `matrices`."""
    order = (*self.stack, *self.contracted, *self.free)
    turned = matrices.reshape([self.split[a] for a in order])
    back = sorted(range(len(order)), key=order.__getitem__)
    return turned.transpose(back).reshape(shape)

  def columns(self, rows: Float[Array, "s r k"]) -> Float[Array, "s r k"]:
    """Rows in natural order, with columns as `matrices` has them."""
    if self.natural == self.contracted:
      return rows
    sizes = [self.split[a] for a in self.natural]
    order = [self.natural.index(a) + 2 for a in self.contracted]
    apart = rows.reshape(*rows.shape[:2], *sizes)
    return apart.transpose(0, 1, *order).reshape(rows.shape)


def input_rows(
  path: str, layer: Any, x: Shaped[Array, "*shape"]
) -> tuple[Float[Array, "s r k"], tuple[int, ...]]:
  """The rows X that a layer multiplies by its kernel, in the natural order.

  Args:
    path: Path of the layer in error messages.
    layer: Layer of one of the kinds that `sparsify` masks.
    x: Input of its call.

  Returns:
    The rows in float32, and the shape that they had before they were flattened.
  """
  if isinstance(layer, nnx.Linear):
    lead, rows, size = x.shape[:-1], x, x.shape[-1]
  elif isinstance(layer, nnx.Conv):
    # What a kernel position reads is what a kernel of one 1 returns, whatever
    # strides, dilation and padding are.
    *window, inputs, _ = layer.kernel.shape
    size, groups = math.prod(window) * inputs, layer.feature_group_count
    ones = jnp.eye(size, dtype=jnp.float32).reshape(*window, inputs, size)
    kernel = jnp.tile(ones, (*[1] * len(window), 1, groups))
    out = _seen_by(layer, kernel, x)
    lead = out.shape[:-1]
    rows = jnp.moveaxis(out.reshape(math.prod(lead), groups, size), 1, 0)
    return rows.astype(jnp.float32), lead
  elif isinstance(layer, nnx.LinearGeneral):
    axes = normalized(tuple(x.shape), layer.axis)
    rest = [a for a in range(x.ndim) if a not in axes]
    lead = tuple(x.shape[a] for a in rest)
    rows = x.transpose(*rest, *axes)
    size = math.prod(x.shape[a] for a in axes)
  else:
    inputs, kernel, output = _letters(path, layer)
    dots = x.ndim - len(inputs.replace(".", ""))
    names = "".join(chr(ord("A") + i) for i in range(dots))
    inputs, output = (t.replace(".", names) for t in (inputs, output))
    stack = [c for c in kernel if c in inputs and c in output]
    inner = [c for c in kernel if c in inputs and c not in output]
    rest = [c for c in inputs if c in output and c not in kernel]
    turned = jnp.einsum(f"{inputs}->{''.join(stack + rest + inner)}", x)
    sizes = dict(zip(inputs, x.shape))
    lead = tuple(sizes[c] for c in rest)
    count = math.prod(sizes[c] for c in stack)
    size = math.prod(sizes[c] for c in inner)
    rows = turned.reshape(count, math.prod(lead), size)
    return rows.astype(jnp.float32), lead
  return rows.reshape(1, math.prod(lead), size).astype(jnp.float32), lead


def _axes(path: str, layer: Any) -> tuple[tuple[int, ...], ...]:
  """Split shape, stacked axes and contracted axes of a layer's kernel."""
  shape = tuple(layer.kernel.shape)
  rank = len(shape)
  if isinstance(layer, nnx.Linear) and rank == 2:
    return shape, (), (0,)
  if isinstance(layer, nnx.Conv):
    groups = layer.feature_group_count
    split = (*shape[:-1], groups, shape[-1] // groups)
    if layer.mask is None and rank == len(layer.kernel_shape):
      return split, (rank - 1,), tuple(range(rank - 1))
  if isinstance(layer, nnx.LinearGeneral) and not layer.batch_axis:
    inner = len(layer.in_features)
    if rank == inner + len(layer.out_features):
      return shape, (), tuple(range(inner))
  if isinstance(layer, nnx.Einsum) and rank == len(layer.kernel_shape):
    inputs, kernel, output = _letters(path, layer)
    stack = [i for i, c in enumerate(kernel) if c in inputs and c in output]
    inner = [i for i, c in enumerate(kernel) if c in inputs and c not in output]
    return shape, tuple(stack), tuple(inner)
  raise ValueError(
    f"{path}: expected a linear layer, a convolution or an einsum without"
    f" stacked kernels, got {type(layer).__name__} with a kernel of shape"
    f' {shape}; leave it out of the pattern, as in "NAME: dense"'
  )


def _letters(path: str, layer: Any) -> tuple[str, str, str]:
  """Letters of input, kernel and output; "." for the axes of "..."."""
  text = layer.einsum_str.replace(" ", "").replace("...", ".")
  operands, output = text.split("->")
  inputs, kernel = operands.split(",")
  if "." in kernel or set(kernel) - set(inputs) - set(output):
    raise ValueError(
      f"{path}: expected an einsum whose kernel has named letters only, each"
      f" in the input or in the output, got {layer.einsum_str!r}"
    )
  return inputs, kernel, output


def _seen_by(layer: Any, kernel: Float[Array, "*k"], x: Array) -> Array:
  """The output of a convolution with another kernel and no bias."""
  view = object.__new__(nnx.Conv)
  vars(view).update(vars(layer))
  object.__setattr__(view, "kernel", nnx.Param(kernel))
  object.__setattr__(view, "bias", None)
  object.__setattr__(view, "use_bias", False)
  object.__setattr__(view, "dtype", np.dtype("float32"))
  return view(x.astype(jnp.float32))
