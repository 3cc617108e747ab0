"""How Flax lays out a kernel: its shape, and the axes that are contracted.

Axes are negative, so that they stay valid if a vmapped or scanned layer adds
leading axes to its kernel.
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
  nnx.ConvTranspose,
  nnx.Embed,
)


def kernel_name(layer: nnx.Module) -> str:
  """The name of the kernel among the attributes of the layer.

  >>> kernel_name(nnx.Embed(8, 4, rngs=nnx.Rngs(0)))
  'embedding'
  """
  return "embedding" if isinstance(layer, nnx.Embed) else "kernel"


def kernel_of(layer: nnx.Module) -> nnx.Param:
  """The kernel variable of the layer, whatever its name.

  >>> kernel_of(nnx.Embed(8, 4, rngs=nnx.Rngs(0))).shape
  (8, 4)
  """
  return vars(layer)[kernel_name(layer)]


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
  if isinstance(layer, (nnx.Einsum, nnx.Conv, nnx.ConvTranspose)):
    return tuple(layer.kernel_shape)
  if isinstance(layer, nnx.Embed):
    return (layer.num_embeddings, layer.features)
  raise _unknown(layer)


def contraction_axis(layer: nnx.Module) -> Axis | None:
  """The contracted axes of the kernel: an int, a tuple if several, or None.

  Linear and Conv: -2, the input features, which ConvTranspose has at -1 with
  `transpose_kernel`. LinearGeneral: the input features. Einsum: the letters of
  the kernel that occur in the input and not in the output. Embed: -1, the
  features, which `attend` contracts.

  >>> contraction_axis(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
  -2
  >>> out = nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), rngs=nnx.Rngs(0))
  >>> contraction_axis(out)
  (-3, -2)
  """
  if isinstance(layer, (nnx.Linear, nnx.Conv)):
    return -2
  if isinstance(layer, nnx.ConvTranspose):
    return -1 if layer.transpose_kernel else -2
  if isinstance(layer, nnx.Embed):
    return -1
  if isinstance(layer, nnx.LinearGeneral):
    last, count = -len(layer.out_features), len(layer.in_features)
    return _one_or_many(tuple(range(last - count, last)))
  if isinstance(layer, nnx.Einsum):
    return einsum_axis(layer.einsum_str, len(layer.kernel_shape))
  raise _unknown(layer)


def einsum_axis(equation: str | None, rank: int) -> Axis | None:
  """The contracted axes of the second operand of an einsum.

  Args:
    equation: Einsum equation, as in `nnx.Einsum`.
    rank: Rank of the second operand.

  Raises:
    ValueError: If the equation is None.

  >>> einsum_axis("...hd,hdo->...o", 3)
  (-3, -2)
  """
  if not isinstance(equation, str):
    raise ValueError(
      f"Expected einsum_str in the constructor of Einsum, got {equation!r}: the"
      " contracted axes must be known before the call"
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
  """The output axes that the weight gradient sums over.

  These are batch and tokens for a product, batch and positions for a
  convolution.

  Args:
    layer: Layer of one of the dense types.
    ndim: Rank of the output of the layer.

  >>> token_axes(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), 3)
  (0, 1)
  """
  last = (nnx.Linear, nnx.Conv, nnx.ConvTranspose, nnx.Embed)
  if isinstance(layer, last):  # the features are the last axis
    return tuple(range(ndim - 1))
  if isinstance(layer, nnx.LinearGeneral):
    return tuple(range(len(layer.batch_axis), ndim - len(layer.out_features)))
  if isinstance(layer, nnx.Einsum):
    operands, output = str(layer.einsum_str).replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    before, dots, after = output.partition("...")
    # One letter per axis; "." for the axes of "..." if the kernel has them.
    inner = ("." if "..." in kernel else " ") * (ndim - len(before + after))
    letters = before + inner + after if dots else output
    return tuple(i for i, c in enumerate(letters) if c not in kernel)
  raise _unknown(layer)


def stacked_shape(layer: Any, path: str) -> tuple[int, ...]:
  """The leading axes that a transform added to the kernel; () if none.

  Raises:
    ValueError: If the kernel was stacked along other axes.
  """
  shape, plain = tuple(kernel_of(layer).shape), kernel_shape(layer)
  if len(shape) == len(plain):
    return ()
  lead = len(shape) - len(plain)
  if lead < 0 or shape[lead:] != plain:
    raise ValueError(
      f"{path}: expected a kernel of shape {plain} with leading axes, got"
      f" {shape}; stack layers along leading axes (out_axes=0)"
    )
  return shape[:lead]


def _one_or_many(axes: tuple[int, ...]) -> Axis | None:
  if not axes:
    return None
  return axes[0] if len(axes) == 1 else axes


def _unknown(layer: nnx.Module) -> ValueError:
  names = ", ".join(f"nnx.{kind.__name__}" for kind in DENSE_TYPES)
  return ValueError(
    f"{type(layer).__name__} has no kernel that can be masked: expected {names}"
  )
