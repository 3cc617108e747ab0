"""How Flax lays out a kernel: its shape, and the axes that are contracted.

Axes are negative, so that they stay right when a vmapped or scanned layer puts
axes in front of its kernel.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from figs_jax.core.groups import Axis

DENSE_TYPES: tuple[type[nnx.Module], ...] = (
  nnx.Linear,
  nnx.LinearGeneral,
  nnx.Einsum,
  nnx.Conv,
)


def kernel_shape(layer: nnx.Module) -> tuple[int, ...]:
  """The shape that the layer's constructor gave its kernel.

  >>> kernel_shape(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
  (8, 4)
  """
  if isinstance(layer, nnx.Linear):
    return (layer.in_features, layer.out_features)
  if isinstance(layer, nnx.LinearGeneral):
    batch = tuple(layer.batch_axis.values())
    return (*batch, *layer.in_features, *layer.out_features)
  if isinstance(layer, (nnx.Einsum, nnx.Conv)):
    return tuple(layer.kernel_shape)
  raise _unknown(layer)


def contraction_axis(layer: nnx.Module) -> Axis | None:
  """The kernel's contracted axes: one int, a tuple if several, None if none.

  Linear and Conv: -2, the input features. LinearGeneral: its input features.
  Einsum: the kernel's letters that occur in the input and not in the output.

  >>> contraction_axis(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
  -2
  >>> out = nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), rngs=nnx.Rngs(0))
  >>> contraction_axis(out)
  (-3, -2)
  """
  if isinstance(layer, (nnx.Linear, nnx.Conv)):
    return -2
  if isinstance(layer, nnx.LinearGeneral):
    last, count = -len(layer.out_features), len(layer.in_features)
    return _one_or_many(tuple(range(last - count, last)))
  if isinstance(layer, nnx.Einsum):
    return einsum_axis(layer.einsum_str, len(layer.kernel_shape))
  raise _unknown(layer)


def einsum_axis(equation: str | None, rank: int) -> Axis | None:
  """The contracted axes of an einsum's second operand of that rank.

  Raises:
    ValueError: there is no equation.

  >>> einsum_axis("...hd,hdo->...o", 3)
  (-3, -2)
  """
  if not isinstance(equation, str):
    raise ValueError(
      f"Einsum with einsum_str={equation!r}: its contracted axes are unknown"
      " before the call; give einsum_str to the constructor"
    )
  operands, output = equation.replace(" ", "").split("->")
  inputs, kernel = operands.split(",")
  before, dots, after = kernel.partition("...")
  axes = {letter: i - rank for i, letter in enumerate(before)}
  axes |= {letter: i - len(after) for i, letter in enumerate(after)}
  if not dots:
    axes = {letter: i - len(kernel) for i, letter in enumerate(kernel)}
  contracted = sorted(
    axis
    for letter, axis in axes.items()
    if letter in inputs and letter not in output
  )
  return _one_or_many(tuple(contracted))


def token_axes(layer: nnx.Module, ndim: int) -> tuple[int, ...]:
  """The output's axes that its kernel lacks: those the weight gradient sums.

  Batch and tokens for a product, batch and places for a convolution.

  Args:
    layer: of one of the dense types.
    ndim: of the layer's output.

  >>> token_axes(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), 3)
  (0, 1)
  """
  if isinstance(layer, (nnx.Linear, nnx.Conv)):
    return tuple(range(ndim - 1))
  if isinstance(layer, nnx.LinearGeneral):
    return tuple(range(len(layer.batch_axis), ndim - len(layer.out_features)))
  if isinstance(layer, nnx.Einsum):
    operands, output = str(layer.einsum_str).replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    before, dots, after = output.partition("...")
    # One letter per axis: those of the dots are the kernel's, or no one's.
    inner = ("." if "..." in kernel else " ") * (ndim - len(before + after))
    letters = before + inner + after if dots else output
    return tuple(i for i, c in enumerate(letters) if c not in kernel)
  raise _unknown(layer)


def stacked_shape(layer: Any, path: str) -> tuple[int, ...]:
  """The axes that a transform put before the kernel; () for a plain layer.

  Raises:
    ValueError: the kernel was stacked along another than the leading axes.
  """
  shape, plain = tuple(layer.kernel.shape), kernel_shape(layer)
  if len(shape) == len(plain):
    return ()
  lead = len(shape) - len(plain)
  if lead < 0 or shape[lead:] != plain:
    raise ValueError(
      f"{path}: kernel of shape {shape} in a layer built for {plain}; stack"
      " layers along leading axes (out_axes=0) so that groups stay in place"
    )
  return shape[:lead]


def _one_or_many(axes: tuple[int, ...]) -> Axis | None:
  if not axes:
    return None
  return axes[0] if len(axes) == 1 else axes


def _unknown(layer: nnx.Module) -> ValueError:
  names = ", ".join(f"nnx.{kind.__name__}" for kind in DENSE_TYPES)
  return ValueError(
    f"{type(layer).__name__} has no kernel that can be masked: use {names}"
  )
