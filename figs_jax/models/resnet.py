"""Residual networks (He et al., arXiv 1512.03385), for ImageNet and CIFAR.

Bottlenecks have their stride in the 3x3 convolution (v1.5), as in torchvision,
timm and transformers. The stem "imagenet" is a 7x7 convolution of stride 2 and
a 3x3 maximum of stride 2; "cifar" is a 3x3 convolution. A shortcut that changes
shape is a 1x1 "projection" with its norm (option B of the paper), or the
"identity" (option A): every second pixel, with zeros as the new channels, which
lie around the old ones.

Initialization is that of torchvision: kernels normal with variance 2 / fan_out,
scales one, and a uniform head, whose bias is zero here.

The kernels are [height, width, inputs, outputs]. Their groups of m lie along
the input channels, at each place of the window by itself, as those of NVIDIA's
ASP and of SR-STE's code. A stem of three channels has no groups of 4 and stays
dense; words other than `stem` do not include it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import nearest, word_table
from figs_jax.core.types import Array, Float
from figs_jax.models import non_gemm
from figs_jax.models.gemm import row
from figs_jax.models.resnet_stage import (
  Parts,
  Stage,
  batch_norm,
  conv_row,
  halved,
)
from figs_jax.models.sizes import (
  check_images,
  check_positive,
  completed,
  of_variant,
  pair,
  published,
)
from figs_jax.nn import Channels, SparseLinear

_CIFAR = {"block": "basic", "width": 16, "stem": "cifar", "image_size": 32}
SIZES: dict[str, dict[str, Any]] = {
  "18": {"block": "basic", "depths": (2, 2, 2, 2), "width": 64},
  "34": {"block": "basic", "depths": (3, 4, 6, 3), "width": 64},
  "50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "width": 64},
  # Section 4.2 of the paper: 6 n + 2 layers, with identity shortcuts.
  **{
    f"cifar-{6 * n + 2}": {
      **_CIFAR, "depths": (n, n, n), "shortcut": "identity"
    }
    for n in (3, 5, 7, 9)
  },
  "cifar-18": {**_CIFAR, "depths": (2, 2, 2, 2), "width": 64},
  "custom": {},
}  # fmt: skip
_CHOICES = {
  "block": ("basic", "bottleneck"),
  "stem": ("imagenet", "cifar"),
  "shortcut": ("projection", "identity"),
}
_BLOCK = r"stages/\d+/(?:first|blocks(?:/\d+)?)"


class ResNet(nnx.Module):
  """A residual network from images to logits.

  Args:
    block: "basic", two 3x3 convolutions, or "bottleneck", a 3x3 one between two
      1x1 ones that has a quarter of the channels.
    depths: Number of blocks of each stage.
    width: Number of channels of the first stage's 3x3 convolutions and of the
      stem; doubles at every stage.
    stem: "imagenet" (7x7, then a maximum; both of stride 2) or "cifar" (3x3).
    shortcut: "projection" (option B) or "identity" (option A).
    zero_init: Whether the last scale of each block starts at 0, so that blocks
      start as the identity.
    num_classes: Number of logits.
    image_size: Side of a square image, or (height, width).
    in_channels: Number of image channels.
    norm_momentum: Decay of the running statistics; PyTorch's .1 is .9 here.
    norm_epsilon: Epsilon of every norm.
    scan: Whether to scan over the blocks of a stage but its first
      (`models.stack`).
    remat: Whether to recompute each block in the backward pass.
    dtype: Dtype of the computation, as in "bfloat16". Norms compute in float32,
      logits are float32.
    param_dtype: Dtype of the parameters.
    rngs: Random stream `params`.

  Raises:
    ValueError: If an option is unknown or the image is too small.
  """

  task: ClassVar[str] = "images"
  words: ClassVar[dict[str, str]] = word_table(
    hidden=_BLOCK + r"/(?:conv\w+|downsample)/kernel",
    conv3x3=_BLOCK + r"/conv3x3\w+/kernel",
    conv1x1=_BLOCK + r"/conv1x1\w+/kernel",
    downsample=_BLOCK + r"/downsample/kernel",
    stem=r"stem_conv/kernel",
    head=r"head/kernel",
  )

  def __init__(
    self,
    *,
    block: str,
    depths: Sequence[int],
    width: int,
    stem: str = "imagenet",
    shortcut: str = "projection",
    zero_init: bool = False,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 224,
    in_channels: int = 3,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    scan: bool = False,
    remat: bool = False,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.block, self.depths, self.width = block, tuple(depths), width
    self.stem, self.shortcut, self.zero_init = stem, shortcut, zero_init
    self.image_size = pair("ResNet", "image_size", image_size)
    self.in_channels, self.num_classes = in_channels, num_classes
    self.norm_momentum, self.norm_epsilon = norm_momentum, norm_epsilon
    self.scan, self.remat = scan, remat
    self.dtype = jnp.dtype(dtype)
    self._check()
    param_dtype = jnp.dtype(param_dtype)
    parts = Parts(
      self.dtype, param_dtype, norm_momentum, norm_epsilon, zero_init, rngs
    )
    large = stem == "imagenet"
    side = 7 if large else 3
    self.stem_conv = parts.conv(in_channels, width, side, 2 if large else 1)
    self.stem_norm = parts.norm(width)
    stages, inputs, size = [], width, self._stem_size
    for i, depth in enumerate(self.depths):
      stage = Stage(
        parts,
        block,
        inputs,
        width << i,
        depth,
        stride=1 if i == 0 else 2,
        size=size,
        shortcut=shortcut,
        scan=scan,
      )
      stages.append(stage)
      inputs, size = stage.outputs, stage.size
    self.stages = nnx.List(stages)
    self.head = SparseLinear(
      inputs,
      num_classes,
      # Uniform within 1 / sqrt(fan_in).
      kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
      dtype=self.dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  @classmethod
  def from_variant(
    cls, variant: str, *, rngs: nnx.Rngs, **options: Any
  ) -> ResNet:
    """Creates a published network or a "custom" one.

    Args:
      variant: "18", "34" or "50" for ImageNet; "cifar-20", "cifar-32",
        "cifar-44" or "cifar-56" of the paper; or "cifar-18", ResNet-18 with a
        3x3 stem. "custom" takes block, depths and width from the options; with
        a published variant, options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> model = ResNet.from_variant("cifar-20", rngs=nnx.Rngs(0), width=8)
    >>> model.depths, model.head.kernel.shape
    ((3, 3, 3), (32, 1000))
    """
    sizes = completed(
      cls,
      variant,
      options,
      published(SIZES, "one"),
      needed=("block", "depths", "width"),
    )
    return cls(rngs=rngs, **sizes)

  @staticmethod
  def sizes(variant: str) -> dict[str, Any]:
    """The options that the name of a variant stands for.

    Raises:
      ValueError: If the variant is unknown.

    >>> ResNet.sizes("34")["depths"]
    (3, 4, 6, 3)
    """
    return of_variant("ResNet", variant, SIZES)

  @property
  def movable_channels(self) -> tuple[Channels, ...]:
    """The channels between the convolutions of a block, with their norms."""
    inside = r"stages/\d+/(?:first|blocks/\d+)"
    if self.scan:
      inside = r"stages/\d+/(?:first|blocks)"
    first, *others = self.stages[0].first.convs
    pairs = zip((first, *others), others)
    return tuple(
      Channels(inside, producers=f"{before}|norm{number}", consumer=after)
      for number, (before, after) in enumerate(pairs, 1)
    )

  @property
  def _stem_size(self) -> tuple[int, int]:
    """Height and width of the first stage's inputs."""
    if self.stem == "cifar":
      return self.image_size
    return halved(halved(self.image_size))

  def __call__(
    self, images: Float[Array | np.ndarray, "batch height width channels"]
  ) -> Float[Array, "batch classes"]:
    """Computes float32 logits.

    Raises:
      ValueError: If the images do not have `image_size` and `in_channels`, or
        are uint8.
    """
    check_images(images, self.image_size, self.in_channels)
    x = self.stem_conv(jnp.asarray(images, self.dtype))
    x = jax.nn.relu(self.stem_norm(x))
    if self.stem == "imagenet":
      # Padding with -inf, which is never the maximum.
      x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage in self.stages:
      x = stage(x, self.remat)
    return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct]:
    """Arguments of a call on `batch` images, as shapes."""
    shape = (batch, *self.image_size, self.in_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  def gemms(self, batch: int) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`."""
    size = self._conv_size
    rows = [conv_row("stem_conv", batch, size, self.stem_conv)]
    for i, stage in enumerate(self.stages):
      rows += stage.rows(f"stages/{i}", batch, "gemms")
    inputs = self.head.in_features
    return [*rows, row("head", batch, self.num_classes, inputs, self.head)]

  def non_gemms(self, batch: int) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    positions = batch * self._conv_size[0] * self._conv_size[1]
    values = positions * self.width
    rows = [
      batch_norm("stem_norm", positions, self.width),
      non_gemm.activation("stem_relu", values),
    ]
    if self.stem == "imagenet":
      height, width = self._stem_size
      smaller = batch * height * width * self.width
      rows.append(non_gemm.row("stem_pool", "pooling", values, smaller))
    for i, stage in enumerate(self.stages):
      rows += stage.rows(f"stages/{i}", batch, "non_gemms")
    height, width = self.stages[-1].size
    pooled = batch * self.head.in_features
    pool = non_gemm.row("pool", "pooling", height * width * pooled, pooled)
    return [*rows, pool]

  @property
  def _conv_size(self) -> tuple[int, int]:
    """Height and width of the stem convolution's outputs."""
    return (
      halved(self.image_size) if self.stem == "imagenet" else (self.image_size)
    )

  def _check(self) -> None:
    check_positive(self, "width", "num_classes", "in_channels")
    for name, known in _CHOICES.items():
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f"ResNet: unknown {name}={value!r}: {nearest(value, known)}"
        )
    if not self.depths or min(self.depths) < 1:
      raise ValueError(
        "ResNet: expected at least one block per stage, as in depths=(2, 2, 2,"
        f" 2), got depths={self.depths}"
      )
    if min(self.image_size) < 1:
      raise ValueError(
        f"ResNet: expected image_size of 1 or more, got {self.image_size}"
      )
