"""Swin transformer V2 (Liu et al., arXiv 2111.09883).

A pyramid of windows: norms after the branches, cosine attention with a learned
temperature, a position bias computed from log-spaced offsets, windows shifted
in every second block. LayerNorm epsilon 1e-5, exact gelu.

A window is clipped to the resolution and then not shifted. Images that the
patch does not divide, maps that the window does not divide and odd maps before
merging are padded with zeros at bottom and right, and padding is attended to,
as in the Hugging Face implementation; there, as here, the resolution that
clips a window is rounded down, and its height decides.

Initialisation follows the authors' code (microsoft/Swin-Transformer): truncated
normal .02, biases zero, temperature 1/10, and the scale of every branch's norm
zero. The patch kernel is LeCun-normal: a norm follows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import nearest, word_table
from figs_jax.core.types import Array, Float
from figs_jax.models import windows
from figs_jax.models.encoder import Parts
from figs_jax.models.gemm import row
from figs_jax.models.sizes import (
  check_heads,
  check_images,
  check_positive,
  pair,
)
from figs_jax.models.swin_v2_stage import EPSILON, INIT, Rates, Shape, Stage
from figs_jax.nn import SparseConv

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
  """Images to logits.

  Args:
    patch: side of a square patch.
    width: channels of the first stage; they double with every other.
    depths: number of blocks of each stage.
    heads: of the first stage, a divisor of width; they double likewise.
    window: side of a window, in tokens.
    pretrained_windows: per stage, the side of the window that the position
      bias was trained with; 0, or None for all, where it is this one.
    mlp_ratio: width of the feed-forward layers, in widths of their stage.
    num_classes: length of the logits.
    image_size: side of a square image, or (height, width).
    in_channels: of the images.
    dropout: after the patches, each attention block and each feed-forward
      layer.
    attention_dropout: on the attention weights.
    drop_path: stochastic depth; the rate rises linearly from 0 at the first
      block to this at the last.
    scan: the blocks of a stage as one scanned block (`models.stack`).
    remat: recompute each block in the backward pass instead of storing it.
    qkv_bias: whether q and v have biases; k has none.
    dtype: of the computation, as in "bfloat16". Logits are float32.
    param_dtype: of the parameters.
    rngs: streams `params` and, with any dropout, `dropout`.

  Raises:
    ValueError: sizes that do not fit one another, or an image too small for
      the last stage.
  """

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
    self.drop_path, self.remat = drop_path, remat
    self.mlp_ratio, self.dtype = mlp_ratio, jnp.dtype(dtype)
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
    """A published size, window and image, or "custom/4" with that patch.

    Args:
      variant: "B/w8-256" is size B (T, S, B or L), windows of 8, images of 256.
        "B/w12to24-384" (or "B/w12to24-192to384") has windows of 24 and the
        position bias of windows of 12 on images of 192. "custom" leaves width,
        depths, heads and window to the options; with a published one they
        override it, unless None.
      rngs: as in the constructor.
      **options: of the constructor.

    Raises:
      ValueError: an unknown variant, or a custom one that lacks its sizes.

    >>> sizes = {"width": 8, "depths": (1, 1), "heads": 2, "window": 2}
    >>> model = SwinV2.from_variant(
    ...   "custom/2", rngs=nnx.Rngs(0), image_size=8, **sizes)
    >>> [(stage.shape.height, stage.shape.channels) for stage in model.stages]
    [(4, 8), (2, 16)]
    """
    given = {name: v for name, v in options.items() if v is not None}
    sizes = {**_sizes_of(variant), **given}
    for name in ("width", "depths", "heads", "window"):
      if sizes.get(name) is None:
        raise ValueError(
          f"SwinV2 variant {variant!r} needs {name}=; or use a published one,"
          " as in 'B/w8-256'"
        )
    return cls(rngs=rngs, **sizes)

  @property
  def grid(self) -> tuple[int, int]:
    """Patches along height and width, of the padded image."""
    height, width = self.image_size
    return -(-height // self.patch), -(-width // self.patch)

  def __call__(
    self, images: Float[Array | np.ndarray, "batch height width channels"]
  ) -> Float[Array, "batch classes"]:
    """Logits, float32.

    Raises:
      ValueError: the images are not of `image_size` and `in_channels`.
    """
    check_images(images.shape, self.image_size, self.in_channels)
    pads = [(0, windows.padding(n, self.patch)) for n in self.image_size]
    x = jnp.pad(jnp.asarray(images, self.dtype), ((0, 0), *pads, (0, 0)))
    x = self.patch_embed(x).reshape(x.shape[0], -1, self.width)
    x = self.dropout(self.patch_norm(x))
    rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
    for stage, of_stage in zip(self.stages, self._per_stage(rates)):
      x = stage(x, of_stage, self.remat)
    return self.head(self.norm(x).mean(axis=1)).astype(jnp.float32)

  def gemms(self, batch: int) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.layers_of`, padding included."""
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

  def _per_stage(self, rates: np.ndarray) -> list[np.ndarray]:
    return np.split(rates, np.cumsum(self.depths)[:-1])

  def _shape(self, index: int) -> Shape:
    height, width = self.grid
    # Rounded down, unlike the map itself, as in the reference.
    resolution = (self.image_size[0] // self.patch) >> index
    window = min(self.window, resolution)
    channels = self.width << index
    return Shape(
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
        f"SwinV2: depths={self.depths}: give each stage at least one block, as"
        " in depths=(2, 2, 6, 2)"
      )
    check_heads("SwinV2", self.width, self.heads)
    pretrained = self.pretrained_windows
    if len(pretrained) != len(self.depths) or any(
      side < 0 or side == 1 for side in pretrained
    ):
      raise ValueError(
        f"SwinV2: pretrained_windows={pretrained}: give one number to each of"
        f" the {len(self.depths)} stages, 0 or at least 2"
      )
    if int(self.mlp_ratio * self.width) < 1:
      raise ValueError(
        f"SwinV2: mlp_ratio={self.mlp_ratio} leaves no feed-forward width"
      )
    least = self.patch << (len(self.depths) - 1)
    if min(self.image_size) < least:
      raise ValueError(
        f"SwinV2: image_size={self.image_size} leaves nothing for the last of"
        f" {len(self.depths)} stages behind patches of {self.patch}; use at"
        f" least image_size={least}, a smaller patch or fewer depths"
      )


def _sizes_of(variant: str) -> dict[str, Any]:
  """What the name of a variant says."""
  if re.fullmatch(r"custom/\d+", variant):
    return {"patch": int(variant.removeprefix("custom/"))}
  match = _VARIANT.fullmatch(variant)
  if match is None or match[1] not in SIZES:
    raise ValueError(
      f"SwinV2 variant {variant!r}: write size/window-image, as in 'B/w8-256',"
      f" 'B/w12to24-384' or 'custom/4';"
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
      f"SwinV2 variant {variant!r}: the image changes but not the window; write"
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
