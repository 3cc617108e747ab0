"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929).

Pre-norm. The defaults are LayerNorm epsilon 1e-6, as in the authors' code, and
exact gelu, as in timm and Hugging Face; options provide the authors' tanh
approximation and the epsilon 1e-12 of Hugging Face.

Initialization follows the authors' code (google-research/vision_transformer):
Glorot-uniform attention and feed-forward kernels, feed-forward biases normal
with deviation 1e-6, positions normal .02, class token and other biases zero,
the patch kernel LeCun-normal. The head departs from it: truncated normal .02
as in DeiT (arXiv 2012.12877), because a zero head would keep all gradients
below it at zero in the first step.

Options add what later models have: LayerScale, SwiGLU, register tokens, a
distillation token, and other ways to pool. `FORMS` names the published ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.rules import nearest, word_table
from figs_jax.core.types import Array, Float
from figs_jax.models import non_gemm, stack
from figs_jax.models.encoder import Block, Parts, swiglu_width
from figs_jax.models.gemm import row
from figs_jax.models.positions import sincos_positions
from figs_jax.models.sizes import (
  check_heads,
  check_images,
  check_positive,
  completed,
  pair,
  published,
)
from figs_jax.nn import Channels, SparseConv
from figs_jax.nn.initializers import in_float32

SIZES: dict[str, dict[str, int]] = {
  "Ti": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
  "S": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
  "B": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
  "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
  "H": {"width": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
  "g": {"width": 1536, "depth": 40, "heads": 24},
  "custom": {},
}
_DINO = {"layer_scale": 1e-5, "pool": "cls_gap"}
# Options of published models by the word before a size, as in "dinov2-S/14".
FORMS: dict[str, dict[str, Any]] = {
  "deit": {"distillation": "heads"},  # arXiv 2012.12877, distilled
  "dinov2": _DINO,  # arXiv 2304.07193
  "dinov2_reg": {**_DINO, "registers": 4},  # arXiv 2309.16588
  "mae": {"pool": "gap_norm"},  # arXiv 2111.06377, fine-tuned
}
_CHOICES = {
  "pool": ("cls", "gap", "gap_norm", "cls_gap"),
  "pos": ("learned", "sincos"),
  "gelu": ("exact", "tanh"),
  "distillation": ("none", "token", "heads"),
}


class ViT(nnx.Module):
  """A vision transformer from images to logits.

  Args:
    patch: Side of a square patch, or (height, width).
    width: Width of the tokens.
    depth: Number of blocks.
    heads: Number of attention heads; divides width.
    mlp_dim: Width of the feed-forward layers. Defaults to 4 * width, or with
      SwiGLU to 2/3 of it, rounded up to a multiple of 8.
    num_classes: Number of logits.
    image_size: Side of a square image, or (height, width); a multiple of the
      patch.
    in_channels: Number of image channels.
    pool: "cls" reads a class token, "gap" averages the patches of a model
      without one. With a class token, "gap_norm" averages the patches before
      the last norm (MAE), and "cls_gap" reads the token and the average, side
      by side (DINOv2).
    pos: "learned", or "sincos" (fixed, two-dimensional).
    dropout: Dropout rate after the positions, each attention block and each
      feed-forward layer.
    attention_dropout: Dropout rate of the attention weights.
    drop_path: Rate of stochastic depth at the last block; it rises linearly
      from 0 at the first one.
    scan: Whether to scan over one stacked block (`models.stack`), so that the
      compile time hardly grows with depth.
    remat: Whether to recompute each block in the backward pass.
    remat_policy: What is kept of a block that is recomputed: "block", its input
      alone; or "dots", also its products with kernels.
    qkv_bias: Whether q, k and v have biases.
    norm_epsilon: Epsilon of every LayerNorm.
    gelu: "exact", or "tanh" for its approximation.
    relu2: Whether the feed-forward activation is the squared ReLU, not gelu.
    swiglu: Whether the feed-forward layers are down(silu(gate(x)) * up(x)).
    layer_scale: Initial value of LayerScale; 0 is a model without it.
    registers: Number of further tokens, which have no position and are not read
      (arXiv 2309.16588).
    distillation: "none"; "token" for a second class token, which is not read;
      or "heads" for that token with a head of its own, whose logits are
      averaged with those of the other (DeiT).
    dtype: Dtype of the computation, as in "bfloat16". Logits are float32.
    param_dtype: Dtype of the parameters.
    rngs: Random streams `params` and, with any dropout, `dropout`.

  Raises:
    ValueError: If sizes do not divide one another or an option is unknown.
  """

  task: ClassVar[str] = "images"
  words: ClassVar[dict[str, str]] = word_table(
    ff=r"blocks/(?:\d+/)?mlp/(?:fc[12]|gate|up|down)/kernel",
    q=r"blocks/(?:\d+/)?attn/q/kernel",
    k=r"blocks/(?:\d+/)?attn/k/kernel",
    v=r"blocks/(?:\d+/)?attn/v/kernel",
    o=r"blocks/(?:\d+/)?attn/o/kernel",
    conv=r"patch_embed/kernel",
    embed=r"patch_embed/kernel",
    head=r"head(?:_dist)?/kernel",
  )
  movable_channels: ClassVar[tuple[Channels, ...]] = (
    Channels(
      r"blocks/(?:\d+/)?mlp", producers="fc1|gate|up", consumer="fc2|down"
    ),
    Channels(
      r"blocks/(?:\d+/)?attn", producers="v", consumer="o", heads="num_heads"
    ),
  )

  def __init__(
    self,
    *,
    patch: int | Sequence[int],
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int | None = None,
    num_classes: int = 1000,
    image_size: int | Sequence[int] = 224,
    in_channels: int = 3,
    pool: str = "cls",
    pos: str = "learned",
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    scan: bool = False,
    remat: bool = False,
    remat_policy: str = "block",
    qkv_bias: bool = True,
    norm_epsilon: float = 1e-6,
    gelu: str = "exact",
    relu2: bool = False,
    swiglu: bool = False,
    layer_scale: float = 0.0,
    registers: int = 0,
    distillation: str = "none",
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
  ):
    self.patch = pair("ViT", "patch", patch)
    self.image_size = pair("ViT", "image_size", image_size)
    self.width, self.depth, self.heads = width, depth, heads
    self.in_channels, self.num_classes = in_channels, num_classes
    self.pool, self.pos = pool, pos
    self.remat = stack.remat_of(remat, remat_policy)
    self.qkv_bias, self.norm_epsilon, self.gelu = qkv_bias, norm_epsilon, gelu
    self.relu2, self.swiglu, self.layer_scale = relu2, swiglu, layer_scale
    self.registers, self.distillation = registers, distillation
    hidden = swiglu_width(width) if swiglu else 4 * width
    self.mlp_dim = hidden if mlp_dim is None else mlp_dim
    self.dtype = jnp.dtype(dtype)
    self._check()
    param_dtype = jnp.dtype(param_dtype)
    parts = Parts(self.dtype, param_dtype, rngs)
    self.patch_embed = SparseConv(
      in_channels,
      width,
      self.patch,
      strides=self.patch,
      padding="VALID",
      # Stride equals kernel size: one product over flattened patches.
      group_axis=(-4, -3, -2),
      dtype=self.dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    normal = in_float32(nnx.initializers.normal(0.02))

    def tokens(count: int) -> nnx.Param:
      return nnx.Param(normal(rngs.params(), (1, count, width), param_dtype))

    if pool != "gap":
      self.cls_token = nnx.Param(jnp.zeros((1, 1, width), param_dtype))
    if distillation != "none":
      self.dist_token = tokens(1)
    if registers:
      self.register_tokens = tokens(registers)
    if pos == "learned":
      self.pos_embed = tokens(self.tokens - registers)
    self.dropout = parts.dropout(dropout)
    self.drop_path = drop_path

    def block(rngs: nnx.Rngs) -> Block:
      return Block(
        dataclasses.replace(parts, rngs=rngs),
        width,
        heads,
        self.mlp_dim,
        qkv_bias=qkv_bias,
        dropout=dropout,
        attention_dropout=attention_dropout,
        drop_path=drop_path,
        norm_epsilon=norm_epsilon,
        gelu=gelu,
        relu2=relu2,
        swiglu=swiglu,
        layer_scale=layer_scale,
      )

    self.blocks = stack.build_blocks(block, depth, scan=scan, rngs=rngs)
    self.norm = parts.norm(width, norm_epsilon)
    read = 2 * width if pool == "cls_gap" else width
    init = nnx.initializers.truncated_normal(0.02)
    self.head = parts.linear(read, num_classes, kernel_init=init)
    if distillation == "heads":
      self.head_dist = parts.linear(width, num_classes, kernel_init=init)

  @classmethod
  def from_variant(cls, variant: str, *, rngs: nnx.Rngs, **options: Any) -> ViT:
    """Creates a published size (Ti, S, B, L, H or g, as in "S/16").

    Args:
      variant: Size and patch, after the word of a form and a hyphen if it is
        one of `FORMS`, as in "dinov2-S/14". The size "custom", as in
        "custom/4", takes width, depth and heads from the options; with a
        published one, options that are not None override it.
      rngs: Random streams, see the constructor.
      **options: Keyword arguments of the constructor.

    Raises:
      ValueError: If the size is unknown or a custom one lacks its sizes.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
    >>> ViT.from_variant("custom/2", rngs=nnx.Rngs(0), **sizes).tokens
    5
    """
    sizes = completed(cls, variant, options, published(SIZES))
    return cls(rngs=rngs, **sizes)

  @staticmethod
  def sizes(variant: str) -> dict[str, Any]:
    """The options that the name of a variant stands for.

    Raises:
      ValueError: If the size is unknown.

    >>> ViT.sizes("custom/2")
    {'patch': 2}
    """
    form, _, size = variant.rpartition("-")
    match = re.fullmatch(r"(\w+)/(\d+)", size)
    if match is None or match[1] not in SIZES:
      raise ValueError(
        f"Unknown ViT variant {variant!r}: expected size/patch, as in 'S/16';"
        f" {nearest(size.partition('/')[0], SIZES)}"
      )
    if form and form not in FORMS:
      raise ValueError(
        f"Unknown ViT variant {variant!r}: {nearest(form, FORMS)} before '-'"
      )
    # DINOv2's largest model has SwiGLU.
    swiglu = {"swiglu": True} if match[1] == "g" else {}
    options = FORMS[form] if form else {}
    return {"patch": int(match[2]), **SIZES[match[1]], **swiglu, **options}

  @property
  def grid(self) -> tuple[int, int]:
    """Number of patches along height and width."""
    (h, w), (ph, pw) = self.image_size, self.patch
    return h // ph, w // pw

  @property
  def tokens(self) -> int:
    """Number of tokens per image, including those before the patches."""
    return self.grid[0] * self.grid[1] + self.placed + self.registers

  @property
  def placed(self) -> int:
    """Number of tokens before the patches that have a position."""
    return (self.pool != "gap") + (self.distillation != "none")

  def __call__(
    self, images: Float[Array | np.ndarray, "batch height width channels"]
  ) -> Float[Array, "batch classes"]:
    """Computes float32 logits.

    Raises:
      ValueError: If the images do not have `image_size` and `in_channels`, or
        are uint8.
    """
    x = self.features(images)
    logits = self.head(self._pooled(x))
    if self.distillation == "heads":
      logits = (logits + self.head_dist(x[:, self.placed - 1])) / 2
    return logits.astype(jnp.float32)

  def features(
    self, images: Float[Array | np.ndarray, "batch height width channels"]
  ) -> Float[Array, "batch tokens features"]:
    """All tokens after the last block; normalized, unless pool is "gap_norm".

    Class and distillation token come first, then registers, then patches in
    row-major order.

    Raises:
      ValueError: If the images do not have `image_size` and `in_channels`, or
        are uint8.

    >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
    >>> model = ViT.from_variant("dinov2_reg-custom/2", rngs=nnx.Rngs(0),
    ...                          **sizes)
    >>> model.features(np.zeros((1, 4, 4, 3), np.float32)).shape
    (1, 9, 8)
    """
    check_images(images, self.image_size, self.in_channels)
    x = self.patch_embed(jnp.asarray(images, self.dtype))
    x = x.reshape(x.shape[0], -1, self.width)
    first = [self.cls_token] if self.pool != "gap" else []
    first += [self.dist_token] if self.distillation != "none" else []
    x = jnp.concatenate([*self._repeated(first, x.shape[0]), x], axis=1)
    x = x + self.positions().astype(self.dtype)
    if self.registers:
      extra = self._repeated([self.register_tokens], x.shape[0])
      placed = self.placed
      x = jnp.concatenate([x[:, :placed], *extra, x[:, placed:]], axis=1)
    x = self.dropout(x)
    rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
    x, _ = stack.run_blocks(self.blocks, x, per_layer=rates, remat=self.remat)
    return x if self.pool == "gap_norm" else self.norm(x)

  def _repeated(
    self, tokens: Sequence[nnx.Param], batch: Any
  ) -> list[Float[Array, "batch tokens width"]]:
    """Tokens for each image of a batch."""
    arrays = [token[...].astype(self.dtype) for token in tokens]
    return [jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in arrays]

  def _pooled(
    self, x: Float[Array, "batch tokens width"]
  ) -> Float[Array, "batch read"]:
    """What the head reads."""
    if self.pool == "cls":
      return x[:, 0]
    mean = x[:, self.placed + self.registers :].mean(axis=1)
    if self.pool == "gap":
      return mean
    if self.pool == "gap_norm":
      return self.norm(mean)
    return jnp.concatenate([x[:, 0], mean], axis=-1)

  def example(self, batch: int) -> tuple[jax.ShapeDtypeStruct]:
    """Arguments of a call on `batch` images, as shapes."""
    shape = (batch, *self.image_size, self.in_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)

  def gemms(self, batch: int, seq: int | None = None) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`."""
    tokens, patches = self._lengths(seq)
    width, depth = self.width, self.width // self.heads
    size = self.patch[0] * self.patch[1] * self.in_channels
    products = batch * self.heads
    rows = [row("patch_embed", batch * patches, width, size, self.patch_embed)]
    for name, block, count in stack.named("blocks", self.blocks):
      attn, mlp, o = f"{name}/attn", block.mlp, block.attn.o
      *first, last = ("gate", "up", "down") if self.swiglu else ("fc1", "fc2")
      for part in ("q", "k", "v"):
        layer = getattr(block.attn, part)
        rows.append(
          row(f"{attn}/{part}", batch * tokens, width, width, layer, count)
        )
      many = products * count
      rows += [
        row(f"{attn}/qk", tokens, tokens, depth, None, many),
        row(f"{attn}/av", tokens, depth, tokens, None, many),
        row(f"{attn}/o", batch * tokens, width, width, o, count),
      ]
      hidden = self.mlp_dim
      for part in first:
        layer = getattr(mlp, part)
        rows.append(
          row(f"{name}/mlp/{part}", batch * tokens, hidden, width, layer, count)
        )
      layer = getattr(mlp, last)
      rows.append(
        row(f"{name}/mlp/{last}", batch * tokens, width, hidden, layer, count)
      )
    read = self.head.in_features
    rows.append(row("head", batch, self.num_classes, read, self.head))
    if self.distillation == "heads":
      head = self.head_dist
      rows.append(row("head_dist", batch, self.num_classes, width, head))
    return rows

  def non_gemms(
    self, batch: int, seq: int | None = None
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    tokens, patches = self._lengths(seq)
    width, logits = self.width, batch * self.heads * tokens**2
    size = batch * tokens * width
    # Patches, the tokens before them and the positions, which the batch shares.
    read = (
      batch * patches + 2 * self.placed + self.registers + patches
    ) * width
    rows = [non_gemm.row("embed", "embedding", read, size)]
    for name, _block, count in stack.named("blocks", self.blocks):
      hidden = batch * tokens * self.mlp_dim
      act = "silu" if self.swiglu else "relu2" if self.relu2 else "gelu"
      rows += [
        non_gemm.norm(f"{name}/norm1", batch * tokens, width, count),
        non_gemm.softmax(f"{name}/attn/softmax", logits, count),
        non_gemm.residual(f"{name}/attn/residual", size, count),
        non_gemm.norm(f"{name}/norm2", batch * tokens, width, count),
        non_gemm.activation(
          f"{name}/mlp/{act}", hidden, count, 1 + self.swiglu
        ),
        non_gemm.residual(f"{name}/mlp/residual", size, count),
      ]
    pooled = batch * width
    if self.pool != "gap_norm":
      rows.append(non_gemm.norm("norm", batch * tokens, width))
    if self.pool != "cls":
      averaged = patches * pooled
      rows.append(non_gemm.row("pool", "pooling", averaged, pooled))
    if self.pool == "gap_norm":
      rows.append(non_gemm.norm("norm", batch, width))
    return rows

  def _lengths(self, seq: int | None) -> tuple[int, int]:
    """Tokens and patches of an image, or of a sequence of `seq` tokens."""
    extra = self.placed + self.registers
    tokens = self.tokens if seq is None else seq
    if tokens <= extra:
      raise ValueError(
        f"ViT: expected seq of {extra + 1} or more (a patch beside the {extra}"
        f" other tokens), got {seq}"
      )
    return tokens, tokens - extra

  def positions(self) -> Float[Array, "1 places width"]:
    """Positions of all tokens but registers, learned or fixed."""
    if self.pos == "learned":
      return self.pos_embed[...]
    table = sincos_positions(self.grid, self.width)
    first = np.zeros((self.placed, self.width), np.float32)
    table = np.concatenate([first, table])
    return jnp.asarray(table[None])

  def _check(self) -> None:
    check_positive(self, "width", "depth", "num_classes", "in_channels")
    for length, patch in zip(self.image_size, self.patch):
      if patch < 1 or length < 1 or length % patch:
        nearby = max(1, round(length / max(patch, 1))) * patch
        raise ValueError(
          f"ViT: image size {length} is not a multiple of patch {patch}; set"
          f" image_size={nearby} or another patch"
        )
    check_heads("ViT", self.width, self.heads)
    for name, known in _CHOICES.items():
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f"ViT: unknown {name}={value!r}: {nearest(value, known)}"
        )
    if self.distillation != "none" and self.pool != "cls":
      raise ValueError(
        "ViT: expected pool='cls' for a model with a distillation token, got"
        f" pool={self.pool!r} and distillation={self.distillation!r}"
      )
    if self.relu2 and self.swiglu:
      raise ValueError(
        "ViT: expected swiglu=False with relu2=True, which takes the place of"
        " gelu"
      )
    if self.registers < 0 or self.layer_scale < 0:
      raise ValueError(
        "ViT: expected registers and layer_scale of 0 or more, got"
        f" {self.registers} and {self.layer_scale}"
      )
    if self.pos == "sincos" and self.width % 4:
      raise ValueError(
        "ViT: expected a multiple of 4 as width for pos='sincos', got"
        f" {self.width}; change it or set pos='learned'"
      )
