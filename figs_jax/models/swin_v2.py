"""Swin transformer V2 (Liu et al., arXiv 2111.09883).

A pyramid of windowed attention: norms after the branches, cosine attention with
a learned temperature, a position bias computed from log-spaced offsets, and
shifted windows in every second block. LayerNorm epsilon 1e-5, exact gelu.

A window larger than the map is clipped to it and not shifted. Images, maps and
odd maps before merging that patch or window do not divide are padded with zeros
at the bottom and right, and padding is attended to, as in the Hugging Face
implementation. As there, the resolution that clips a window is rounded down and
its height decides.

Initialization follows the authors' code (microsoft/Swin-Transformer): truncated
normal .02, biases zero, temperature 1/10, and zero scales in the norms after
the branches. The patch kernel is LeCun-normal, since a norm follows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import nearest, word_table
from figs_jax.core.types import Array, Float
from figs_jax.models import non_gemm, stack, windows
from figs_jax.models.encoder import Parts
from figs_jax.models.gemm import row
from figs_jax.models.sizes import (
  check_heads,
  check_images,
  check_positive,
  completed,
  pair,
)
from figs_jax.models.swin_v2_stage import (
  EPSILON,
  INIT,
  Rates,
  Stage,
  StageShape,
)
from figs_jax.nn import Channels, SparseConv

SIZES: dict[str, dict[str, Any]] = {
  "T": {"width": 96, "depths": (2, 2, 6, 2), "heads": 3},
  "S": {"width": 96, "depths": (2, 2, 18, 2), "heads": 3},
  "B": {"width": 128, "depths": (2, 2, 18, 2), "heads": 4},
  "L": {"width": 192, "depths": (2, 2, 18, 2), "heads": 6},
}
_PATCH = 4
_VARIANT = re.compile(r"(\w+)/w(\d+)(?:to(\d+))?-(\d+)(?:to(\d+))?")
_BLOCK = r"stages/\d+/blocks/(?:\d+/)?"


class SwinV2(nnx.Module):
  """A Swin transformer V2 from images to logits.

  Args:
    patch: Side of a square patch.
    width: Number of channels of the first stage; doubles at every stage.
    depths: Number of blocks of each stage.
    heads: Number of heads of the first stage, a divisor of width; doubles at
      every stage.
    window: Side of a window in tokens.
    pretrained_windows: Side of the window that the position bias of each stage
      was trained with; 0, or None for all stages, stands for `window`.
    mlp_ratio: Width of the feed-forward layers over the width of their stage.
    num_classes: Number of logits.
    image_size: Side of a square image, or (height, width).
    in_channels: Number of image channels.
    dropout: Dropout rate after the patches, each attention block and each
      feed-forward layer.
    attention_dropout: Dropout rate of the attention weights.
    drop_path: Rate of stochastic depth at the last block; it rises linearly
      from 0 at the first one.
    scan: Whether to scan over the stacked blocks of a stage (`models.stack`).
    remat: Whether to recompute each block in the backward pass.
    remat_policy: What is kept of a block that is recomputed: "block", its input
      alone; or "dots", also its products with kernels.
    qkv_bias: Whether q and v have biases; k never has one.
    dtype: Dtype of the computation, as in "bfloat16". Logits are float32.
    param_dtype: Dtype of the parameters.
    rngs: Random streams `params` and, with any dropout, `dropout`.

  Raises:
    ValueError: If the sizes do not fit together or the image is too small for
      the last stage.
  """

  task: ClassVar[str] = "images"
  words: ClassVar[dict[str, str]] = word_table(
    ff=_BLOCK + r"mlp/fc[12]/kernel",
    q=_BLOCK + r"attn/q/kernel",
    k=_BLOCK + r"attn/k/kernel",
    v=_BLOCK + r"attn/v/kernel",
    o=_BLOCK + r"attn/o/kernel",
    merge=r"stages/\d+/merge/reduction/kernel",
    conv=r"patch_embed/kernel",
    embed=r"patch_embed/kernel",
    head=r"head/kernel",
  )
  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(_BLOCK + "mlp", producers="fc1", consumer="fc2"),
    Channels(_BLOCK + "attn", producers="v", consumer="o", heads="heads"),
  )

  def __init__(
    self,
    *,
    patch: int = _PATCH,
    width: int,
    depths: Sequence[int],
    heads: int,
    window: int,
    pretrained_windows: Sequence[int] | None = None,
    mlp_ratio: float = 4.0,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 256,
    in_channels: int = 3,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    scan: bool = False,
    remat: bool = False,
    remat_policy: str = "block",
    qkv_bias: bool = True,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.patch, self.width, self.heads = patch, width, heads
    self.depths, self.window = tuple(depths), window
    self.pretrained_windows = tuple(
      pretrained_windows or (0,) * len(self.depths)
    )
    self.image_size = pair("SwinV2", "image_size", image_size)
    self.in_channels, self.num_classes = in_channels, num_classes
    self.drop_path = drop_path
    self.remat = stack.remat_of(remat, remat_policy)
    self.mlp_ratio, self.qkv_bias = mlp_ratio, qkv_bias
    self.dtype = jnp.dtype(dtype)
    self._check()
    param_dtype = jnp.dtype(param_dtype)
    parts = Parts(self.dtype, param_dtype, rngs)
    self.patch_embed = SparseConv(
      in_channels,
      width,
      (patch, patch),
      strides=(patch, patch),
      padding="VALID",
      # The stride is the kernel, so this is one product over whole patches.
      group_axis=(-4, -3, -2),
      dtype=self.dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.patch_norm = parts.norm(width, EPSILON)
    self.dropout = parts.dropout(dropout)
    last = len(self.depths) - 1
    self.stages = nnx.List(
      Stage(
        parts,
        self._shape(i),
        depth,
        merge=i < last,
        qkv_bias=qkv_bias,
        rates=Rates(dropout, attention_dropout, drop_path),
        scan=scan,
      )
      for i, depth in enumerate(self.depths)
    )
    self.norm = parts.norm(width << last, EPSILON)
    self.head = parts.linear(width << last, num_classes, **INIT)

  @classmethod
  def from_variant(
    cls, variant: str, *, rngs: nnx.Rngs, **options: Any
  ) -> SwinV2:
    """Creates a published variant, or "custom/4" with a patch of 4.

    Args:
      variant: Size (T, S, B or L), window and image size, as in "B/w8-256".
        "B/w12to24-384" (or "B/w12to24-192to384") has windows of 24 and the
        position bias of windows of 12 on images of 192. "custom" takes width,
        depths, heads and window from the options; with a published variant,
        options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the variant is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depths": (1, 1), "heads": 2, "window": 2}
    >>> model = SwinV2.from_variant(
    ...   "custom/2", rngs=nnx.Rngs(0), image_size=8, **sizes)
    >>> [(stage.shape.height, stage.shape.channels) for stage in model.stages]
    [(4, 8), (2, 16)]
    """
    sizes = completed(
      cls,
      variant,
      options,
      "a published one, as in 'B/w8-256'",
      needed=("width", "depths", "heads", "window"),
    )
    return cls(rngs=rngs, **sizes)

  @staticmethod
  def sizes(variant: str) -> dict[str, Any]:
    """The options that the name of a variant stands for.

    Raises:
      ValueError: If the variant is unknown.

    >>> SwinV2.sizes("custom/4")
    {'patch': 4}
    """
    if re.fullmatch(r"custom/\d+", variant):
      return {"patch": int(variant.removeprefix("custom/"))}
    match = _VARIANT.fullmatch(variant)
    if match is None or match[1] not in SIZES:
      raise ValueError(
        f"Unknown SwinV2 variant {variant!r}: expected size/window-image, as in"
        " 'B/w8-256', 'B/w12to24-384' or 'custom/4';"
        f" {nearest(variant.partition('/')[0], [*SIZES, 'custom'])}"
      )
    first, image = int(match[2]), int(match[4])
    sizes: dict[str, Any] = {
      **SIZES[match[1]],
      "window": first,
      "image_size": image,
    }
    if match[3] is None and match[5] is None:
      return sizes
    if match[3] is None:
      raise ValueError(
        f"SwinV2 variant {variant!r} changes the image size only; write"
        f" 'w{first}to{first}-{image}to{match[5]}'"
      )
    # As published: windows of 12 were trained on images of 192.
    trained = image if match[5] else 16 * first
    sizes["window"], sizes["image_size"] = int(match[3]), int(match[5] or image)
    stages = range(len(SIZES[match[1]]["depths"]))
    sizes["pretrained_windows"] = tuple(
      min(first, (trained // _PATCH) >> i) for i in stages
    )
    return sizes

  @property
  def grid(self) -> tuple[int, int]:
    """Number of patches along height and width of the padded image."""
    height, width = self.image_size
    return -(-height // self.patch), -(-width // self.patch)

  def __call__(
    self, images: Float[Array | np.ndarray, "batch height width channels"]
  ) -> Float[Array, "batch classes"]:
    """Computes float32 logits.

    Raises:
      ValueError: If the images do not have `image_size` and `in_channels`, or
        are uint8.
    """
    check_images(images, self.image_size, self.in_channels)
    pads = [(0, windows.padding(n, self.patch)) for n in self.image_size]
    x = jnp.pad(jnp.asarray(images, self.dtype), ((0, 0), *pads, (0, 0)))
    x = self.patch_embed(x).reshape(x.shape[0], -1, self.width)
    x = self.dropout(self.patch_norm(x))
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    for stage, of_stage in zip(self.stages, self._per_stage(rates)):
      x = stage(x, of_stage, self.remat)
    return self.head(self.norm(x).mean(axis=1)).astype(jnp.float32)

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct]:
    """Arguments of a call on `batch` images, as shapes."""
    shape = (batch, *self.image_size, self.in_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  def gemms(self, batch: int) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`, padding included."""
    height, width = self.grid
    size = self.patch**2 * self.in_channels
    embed, head = self.patch_embed, self.head
    rows = [row("patch_embed", batch * height * width, self.width, size, embed)]
    for i, stage in enumerate(self.stages):
      rows += stage.gemms(f"stages/{i}", batch)
    rows.append(
      row("head", batch, self.num_classes, self.head.in_features, head)
    )
    return rows

  def non_gemms(self, batch: int) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    patches = batch * self.grid[0] * self.grid[1]
    rows = [non_gemm.norm("patch_norm", patches, self.width)]
    for i, stage in enumerate(self.stages):
      rows += stage.non_gemms(f"stages/{i}", batch)
    shape = self.stages[-1].shape
    tokens, width = batch * shape.height * shape.width, shape.channels
    pool = non_gemm.row("pool", "pooling", tokens * width, batch * width)
    return [*rows, non_gemm.norm("norm", tokens, width), pool]

  def _per_stage(self, rates: np.ndarray) -> list[np.ndarray]:
    return np.split(rates, np.cumsum(self.depths)[:-1])

  def _shape(self, index: int) -> StageShape:
    height, width = self.grid
    # Rounded down, unlike the map itself, as in the reference code.
    resolution = (self.image_size[0] // self.patch) >> index
    window = min(self.window, resolution)
    channels = self.width << index
    return StageShape(
      height=-(-height // 2**index),
      width=-(-width // 2**index),
      channels=channels,
      heads=self.heads << index,
      hidden=int(self.mlp_ratio * channels),
      window=window,
      shift=self.window // 2 if resolution > window else 0,
      pretrained=self.pretrained_windows[index],
    )

  def _check(self) -> None:
    check_positive(
      self, "patch", "width", "heads", "window", "num_classes", "in_channels"
    )
    if not self.depths or min(self.depths) < 1:
      raise ValueError(
        "SwinV2: expected at least one block per stage, as in"
        f" depths=(2, 2, 6, 2), got depths={self.depths}"
      )
    check_heads("SwinV2", self.width, self.heads)
    pretrained = self.pretrained_windows
    if len(pretrained) != len(self.depths) or any(
      side < 0 or side == 1 for side in pretrained
    ):
      raise ValueError(
        "SwinV2: expected pretrained_windows with one number for each of"
        f" {len(self.depths)} stages, 0 or at least 2, got {pretrained}"
      )
    if int(self.mlp_ratio * self.width) < 1:
      raise ValueError(
        f"SwinV2: mlp_ratio={self.mlp_ratio} leaves no feed-forward width"
      )
    least = self.patch << (len(self.depths) - 1)
    if min(self.image_size) < least:
      raise ValueError(
        f"SwinV2: image_size={self.image_size} is too small for"
        f" {len(self.depths)} stages and patches of {self.patch}; set"
        f" image_size={least} or more, a smaller patch or fewer depths"
      )
