"""The parts of a ResNet stage: blocks of convolutions and their shortcuts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Float
from figs_jax.models import non_gemm, stack
from figs_jax.models.gemm import row
from figs_jax.nn import BatchNorm, SparseConv

KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
EXPANSION = {"basic": 1, "bottleneck": 4}


@dataclasses.dataclass(frozen=True)
class Parts:
  """Options that all parts of a model share, and its random streams."""

  dtype: Any
  param_dtype: Any
  momentum: float
  epsilon: float
  zero_init: bool
  rngs: nnx.Rngs

  def conv(
    self, inputs: int, outputs: int, side: int, stride: int = 1
  ) -> SparseConv:
    """A square convolution without bias, padded by half of its side.

    "SAME" would pad an even image unevenly under a stride of 2.
    """
    pad = (side // 2, side // 2)
    return SparseConv(
      inputs,
      outputs,
      (side, side),
      strides=(stride, stride),
      padding=(pad, pad),
      use_bias=False,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      rngs=self.rngs,
    )

  def norm(self, channels: int, last: bool = False) -> BatchNorm:
    """A norm; its scale may start at 0 if it is the last one of a block."""
    zero = last and self.zero_init
    init = nnx.initializers.zeros if zero else nnx.initializers.ones
    return BatchNorm(
      channels,
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      scale_init=init,
      rngs=self.rngs,
    )


class Block(nnx.Module):
  """relu(shortcut(x) + branch(x)), with a norm after every convolution.

  Attributes:
    convs: Names of the convolutions of the branch, in order.
    stride: Stride of the first 3x3 convolution and of the shortcut.
  """

  def __init__(
    self,
    parts: Parts,
    kind: str,
    inputs: int,
    width: int,
    stride: int,
    shortcut: str,
  ):
    outputs = EXPANSION[kind] * width
    self.outputs, self.stride = outputs, stride
    if kind == "basic":
      self.convs = ("conv3x3_1", "conv3x3_2")
      self.conv3x3_1 = parts.conv(inputs, width, 3, stride)
      self.norm1 = parts.norm(width)
      self.conv3x3_2 = parts.conv(width, outputs, 3)
      self.norm2 = parts.norm(outputs, last=True)
    else:
      self.convs = ("conv1x1_1", "conv3x3_2", "conv1x1_3")
      self.conv1x1_1 = parts.conv(inputs, width, 1)
      self.norm1 = parts.norm(width)
      self.conv3x3_2 = parts.conv(width, width, 3, stride)
      self.norm2 = parts.norm(width)
      self.conv1x1_3 = parts.conv(width, outputs, 1)
      self.norm3 = parts.norm(outputs, last=True)
    self.projects = shortcut == "projection" and (
      stride > 1 or inputs != outputs
    )
    if self.projects:
      self.downsample = parts.conv(inputs, outputs, 1, stride)
      self.downsample_norm = parts.norm(outputs)

  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch height_out width_out channels_out"]:
    y = x
    for number, name in enumerate(self.convs, 1):
      y = getattr(self, f"norm{number}")(getattr(self, name)(y))
      if number < len(self.convs):
        y = jax.nn.relu(y)
    return jax.nn.relu(self._shortcut(x) + y)

  def _shortcut(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch height_out width_out channels_out"]:
    if self.projects:
      return self.downsample_norm(self.downsample(x))
    x = x[:, :: self.stride, :: self.stride]
    new = self.outputs - x.shape[-1]
    around = (new // 2, new - new // 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), around))

  def gemms(
    self, name: str, batch: int, size: tuple[int, int], count: int
  ) -> list[dict[str, Any]]:
    """Products of this block on feature maps of this size, as im2col."""
    rows = []
    inner = size
    for conv in self.convs:
      layer = getattr(self, conv)
      inner = _after(inner, layer)
      rows.append(conv_row(f"{name}/{conv}", batch, inner, layer, count))
    if self.projects:
      path = f"{name}/downsample"
      rows.append(conv_row(path, batch, inner, self.downsample, count))
    return rows

  def non_gemms(
    self, name: str, batch: int, size: tuple[int, int], count: int
  ) -> list[dict[str, Any]]:
    rows = []
    inner = size
    for number, conv in enumerate(self.convs, 1):
      layer = getattr(self, conv)
      inner = _after(inner, layer)
      positions, channels = batch * inner[0] * inner[1], layer.out_features
      path = f"{name}/norm{number}"
      rows.append(batch_norm(path, positions, channels, count))
      if number < len(self.convs):
        path, values = f"{name}/relu{number}", positions * channels
        rows.append(non_gemm.activation(path, values, count))
    positions = batch * inner[0] * inner[1]
    if self.projects:
      path = f"{name}/downsample_norm"
      rows.append(batch_norm(path, positions, self.outputs, count))
    values = positions * self.outputs
    path = f"{name}/relu{len(self.convs)}"
    return [
      *rows,
      non_gemm.residual(f"{name}/residual", values, count),
      non_gemm.activation(path, values, count),
    ]


class Stage(nnx.Module):
  """Blocks on feature maps of one size; the first one may change it.

  Attributes:
    size: Height and width of the feature maps.
    outputs: Number of channels.
    first: First block.
    blocks: Further ones, see `models.stack`; only if there are any.
  """

  def __init__(
    self,
    parts: Parts,
    kind: str,
    inputs: int,
    width: int,
    depth: int,
    *,
    stride: int,
    size: tuple[int, int],
    shortcut: str,
    scan: bool,
  ):
    self.size_before = size
    self.size = halved(size) if stride == 2 else size
    self.first = Block(parts, kind, inputs, width, stride, shortcut)
    self.outputs = self.first.outputs

    def block(rngs: nnx.Rngs) -> Block:
      own = dataclasses.replace(parts, rngs=rngs)
      return Block(own, kind, self.outputs, width, 1, shortcut)

    if depth > 1:
      self.blocks = stack.build_blocks(
        block, depth - 1, scan=scan, rngs=parts.rngs
      )

  def __call__(
    self, x: Float[Array, "batch height width channels"], remat: bool
  ) -> Float[Array, "batch height_out width_out channels_out"]:
    x, _ = stack.run_blocks(nnx.List([self.first]), x, remat=remat)
    if hasattr(self, "blocks"):
      x, _ = stack.run_blocks(self.blocks, x, remat=remat)
    return x

  def rows(self, name: str, batch: int, method: str) -> list[dict[str, Any]]:
    """The rows of each block: "gemms" or "non_gemms"."""
    rows = getattr(self.first, method)(
      f"{name}/first", batch, self.size_before, 1
    )
    if hasattr(self, "blocks"):
      for path, block, count in stack.named(f"{name}/blocks", self.blocks):
        rows += getattr(block, method)(path, batch, self.size, count)
    return rows


def halved(size: tuple[int, int]) -> tuple[int, int]:
  """The size after a stride of 2 with padding of half the window.

  >>> halved((7, 8))
  (4, 4)
  """
  return (size[0] + 1) // 2, (size[1] + 1) // 2


def conv_row(
  name: str,
  batch: int,
  size: tuple[int, int],
  layer: SparseConv,
  count: int = 1,
) -> dict[str, Any]:
  """The row of a convolution as im2col, for outputs of this size.

  K runs over the places of the window, and within each over the input channels,
  which have the groups.
  """
  height, width, inputs, outputs = layer.kernel.shape[-4:]
  positions = batch * size[0] * size[1]
  return row(name, positions, outputs, height * width * inputs, layer, count)


def batch_norm(
  name: str, positions: int, channels: int, count: int = 1
) -> dict[str, Any]:
  """A norm that reads a mean, a variance, a scale and a bias per channel."""
  return non_gemm.norm(name, positions, channels, count, parameters=4)


def _after(size: tuple[int, int], layer: SparseConv) -> tuple[int, int]:
  return halved(size) if layer.strides == (2, 2) else size
