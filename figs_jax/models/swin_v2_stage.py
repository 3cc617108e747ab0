"""The parts of a Swin-V2 stage: window attention, blocks, patch merging."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.types import Array, Bool, Float
from figs_jax.models import non_gemm, stack, windows
from figs_jax.models.encoder import MLP, Parts
from figs_jax.models.gemm import row
from figs_jax.nn.attention import attend

INIT = {"kernel_init": nnx.initializers.truncated_normal(0.02)}
EPSILON = 1e-5
_HIDDEN = 512
_LOG_MOST = math.log(100.0)
# Far below any logit of a trained model. The authors' code adds -100, Hugging
# Face's adds it twice; they differ if a temperature approaches 1/100.
_APART = -200.0


@dataclasses.dataclass(frozen=True)
class StageShape:
  """Sizes of a stage.

  Attributes:
    height: Height of the feature map.
    width: Width of the feature map.
    channels: Number of channels.
    heads: Number of attention heads.
    hidden: Width of the feed-forward layers.
    window: Side of a window, clipped to the resolution.
    shift: Shift of every second block.
    pretrained: Side of the window that the position bias was trained with; 0
      stands for `window`.
  """

  height: int
  width: int
  channels: int
  heads: int
  hidden: int
  window: int
  shift: int
  pretrained: int

  @property
  def padded(self) -> tuple[int, int]:
    """Height and width, padded to multiples of the window."""
    pad_h, pad_w = (
      windows.padding(n, self.window) for n in (self.height, self.width)
    )
    return self.height + pad_h, self.width + pad_w

  @property
  def merged(self) -> tuple[int, int]:
    """Height and width after patch merging."""
    return (self.height + 1) // 2, (self.width + 1) // 2


@dataclasses.dataclass(frozen=True)
class Rates:
  """Dropout rates after projections, of attention weights, of branches."""

  dropout: float
  attention: float
  path: float


class OffsetBias(nnx.Module):
  """16 sigmoid(fc2(relu(fc1(log offset)))): one bias per head and offset.

  Computed in float32 for any model dtype: it is small, its input a logarithm.
  """

  def __init__(self, parts: Parts, shape: StageShape):
    parts = dataclasses.replace(parts, dtype=jnp.dtype("float32"))
    self.fc1 = parts.linear(2, _HIDDEN, **INIT)
    self.fc2 = parts.linear(_HIDDEN, shape.heads, use_bias=False, **INIT)
    self.window, self.pretrained = shape.window, shape.pretrained

  def __call__(self) -> Float[Array, "heads tokens tokens"]:
    """The bias of all pairs of tokens in a window."""
    offsets = jnp.asarray(windows.log_offsets(self.window, self.pretrained))
    table = 16 * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(offsets))))
    return table[windows.offset_index(self.window)].transpose(2, 0, 1)


class WindowAttention(nnx.Module):
  """softmax(cos(q, k) / temperature + position bias) v within each window.

  The key has no bias. 1 / temperature is learned per head, at most 100.
  """

  def __init__(
    self, parts: Parts, shape: StageShape, qkv_bias: bool, rates: Rates
  ):
    channels = shape.channels
    self.heads = shape.heads
    self.q = parts.linear(channels, channels, use_bias=qkv_bias, **INIT)
    self.k = parts.linear(channels, channels, use_bias=False, **INIT)
    self.v = parts.linear(channels, channels, use_bias=qkv_bias, **INIT)
    self.o = parts.linear(channels, channels, **INIT)
    start = jnp.full((shape.heads,), math.log(10.0), parts.param_dtype)
    self.logit_scale = nnx.Param(start)
    self.cpb = OffsetBias(parts, shape)
    self.dropout = parts.dropout(rates.attention)

  def __call__(
    self,
    x: Float[Array, "batch windows tokens channels"],
    apart: Bool[Array, "windows tokens tokens"] | None,
  ) -> Float[Array, "batch windows tokens channels"]:
    """Attention within each window.

    Args:
      x: Tokens of all windows.
      apart: Pairs that must not attend to each other; None allows all.
    """
    q, k = (_unit(self._heads(part(x))) for part in (self.q, self.k))
    v = self._heads(self.v(x))
    logits = jnp.einsum(
      "bwqhd,bwkhd->bwhqk", q, k, preferred_element_type=jnp.float32
    )
    scale = jnp.asarray(self.logit_scale[...], jnp.float32)
    scale = jnp.exp(jnp.minimum(scale, _LOG_MOST))
    logits = logits * scale[None, None, :, None, None] + self.cpb()[None, None]
    if apart is not None:
      far = jnp.where(apart, jnp.float32(_APART), jnp.float32(0))
      logits = logits + far[None, :, None]
    return self.o(attend(logits, v, self.dropout).reshape(x.shape))

  def _heads(
    self, x: Float[Array, "batch windows tokens channels"]
  ) -> Float[Array, "batch windows tokens heads depth"]:
    return x.reshape(*x.shape[:-1], self.heads, -1)


class WindowBlock(nnx.Module):
  """x += norm1(attn(x)); x += norm2(mlp(x)): norms follow the branches."""

  def __init__(
    self, parts: Parts, shape: StageShape, qkv_bias: bool, rates: Rates
  ):
    self.shape = shape
    self.attn = WindowAttention(parts, shape, qkv_bias, rates)
    self.norm1 = _branch_norm(parts, shape.channels)
    self.mlp = MLP(parts, shape.channels, shape.hidden, rates.dropout, INIT)
    self.norm2 = _branch_norm(parts, shape.channels)
    self.dropout = parts.dropout(rates.dropout)
    self.drop_path1 = parts.drop_path(rates.path)
    self.drop_path2 = parts.drop_path(rates.path)

  def __call__(
    self, x: Float[Array, "batch tokens channels"], place: tuple[Any, Any]
  ) -> Float[Array, "batch tokens channels"]:
    """Applies the block; place is (stochastic depth rate, 1 if shifted)."""
    rate, odd = place
    attended = self.dropout(self._attend(x, self.shape.shift * odd))
    x = x + self.drop_path1(self.norm1(attended), rate)
    return x + self.drop_path2(self.norm2(self.mlp(x)), rate)

  def _attend(
    self, x: Float[Array, "batch tokens channels"], shift: Any
  ) -> Float[Array, "batch tokens channels"]:
    """Attention in windows of the padded map, rolled up and left by shift."""
    shape, side = self.shape, self.shape.window
    height, width = shape.padded
    grid = x.reshape(x.shape[0], shape.height, shape.width, -1)
    missing = (height - shape.height, width - shape.width)
    grid = jnp.pad(grid, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    # A static shift of 0 costs nothing; under a scan it is traced.
    still = not shape.shift or not isinstance(shift, Array) and not shift
    if not still:
      grid = _rolled(grid, -shift)
    apart = None if still else windows.apart(height, width, side, shift)
    out = self.attn(windows.split_windows(grid, side), apart)
    out = windows.join_windows(out, side, height, width)
    if not still:
      out = _rolled(out, shift)
    return out[:, : shape.height, : shape.width].reshape(x.shape)


class PatchMerging(nnx.Module):
  """Merges 2 x 2 tokens of C channels into one of 2 C; odd maps are padded."""

  def __init__(self, parts: Parts, shape: StageShape):
    self.shape = shape
    channels = shape.channels
    self.reduction = parts.linear(
      4 * channels, 2 * channels, use_bias=False, **INIT
    )
    self.norm = parts.norm(2 * channels, EPSILON)

  def __call__(
    self, x: Float[Array, "batch tokens channels"]
  ) -> Float[Array, "batch merged double"]:
    """norm(reduction(top left, bottom left, top right, bottom right))."""
    height, width = self.shape.height, self.shape.width
    grid = x.reshape(x.shape[0], height, width, -1)
    grid = jnp.pad(grid, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = self.shape.merged
    fours = grid.reshape(x.shape[0], rows, 2, columns, 2, -1)
    fours = fours.transpose(0, 1, 3, 4, 2, 5)
    fours = fours.reshape(x.shape[0], rows * columns, -1)
    return self.norm(self.reduction(fours))


class Stage(nnx.Module):
  """Blocks at one resolution, every second one shifted, then patch merging.

  Args:
    parts: Dtypes and random streams of the model.
    shape: Sizes.
    depth: Number of blocks.
    merge: Whether patch merging follows.
    qkv_bias: Whether q and v have biases.
    rates: Dropout rates.
    scan: Whether to scan over stacked blocks (`models.stack`).
  """

  def __init__(
    self,
    parts: Parts,
    shape: StageShape,
    depth: int,
    *,
    merge: bool,
    qkv_bias: bool,
    rates: Rates,
    scan: bool,
  ):
    self.shape = shape

    def block(rngs: nnx.Rngs) -> WindowBlock:
      return WindowBlock(
        dataclasses.replace(parts, rngs=rngs), shape, qkv_bias, rates
      )

    self.blocks = stack.build_blocks(block, depth, scan=scan, rngs=parts.rngs)
    self.merge = PatchMerging(parts, shape) if merge else None

  def __call__(
    self,
    x: Float[Array, "batch tokens channels"],
    rates: np.ndarray,
    remat: str,
  ) -> Float[Array, "batch merged wide"]:
    """Applies the stage; rates are those of stochastic depth per block."""
    odd = np.arange(len(rates), dtype=np.int32) % 2
    x, _ = stack.run_blocks(self.blocks, x, per_layer=(rates, odd), remat=remat)
    return x if self.merge is None else self.merge(x)

  def gemms(self, name: str, batch: int) -> list[dict[str, Any]]:
    """Rows of `figs_jax.models.gemms_of` for the stage stored at `name`."""
    shape, width = self.shape, self.shape.channels
    tokens, side = shape.height * shape.width, shape.window
    inside, seen = side**2, math.prod(shape.padded)  # per window; per image
    offsets, depth = (2 * side - 1) ** 2, width // shape.heads
    rows = []
    for path, block, count in stack.named(f"{name}/blocks", self.blocks):
      attn, cpb = block.attn, block.attn.cpb
      rows += [
        row(
          f"{path}/attn/{part}",
          batch * seen,
          width,
          width,
          getattr(attn, part),
          count,
        )
        for part in ("q", "k", "v")
      ]
      many = batch * seen // inside * shape.heads * count
      first, second = f"{path}/attn/cpb/fc1", f"{path}/attn/cpb/fc2"
      fc1, fc2 = block.mlp.fc1, block.mlp.fc2
      rows += [
        # Computed once per pass, for any batch size.
        row(first, offsets, _HIDDEN, 2, cpb.fc1, count),
        row(second, offsets, shape.heads, _HIDDEN, cpb.fc2, count),
        row(f"{path}/attn/qk", inside, inside, depth, None, many),
        row(f"{path}/attn/av", inside, depth, inside, None, many),
        row(f"{path}/attn/o", batch * seen, width, width, attn.o, count),
        row(f"{path}/mlp/fc1", batch * tokens, shape.hidden, width, fc1, count),
        row(f"{path}/mlp/fc2", batch * tokens, width, shape.hidden, fc2, count),
      ]
    if self.merge is not None:
      m, reduction = batch * math.prod(shape.merged), self.merge.reduction
      path = f"{name}/merge/reduction"
      rows.append(row(path, m, 2 * width, 4 * width, reduction))
    return rows

  def non_gemms(self, name: str, batch: int) -> list[dict[str, Any]]:
    """Rows of `figs_jax.models.non_gemms_of` for the stage at `name`."""
    shape, width, heads = self.shape, self.shape.channels, self.shape.heads
    tokens, seen = batch * shape.height * shape.width, math.prod(shape.padded)
    pairs, offsets = shape.window**4, (2 * shape.window - 1) ** 2
    logits = batch * seen // shape.window**2 * heads * pairs
    both, bias = 2 * batch * seen * width, heads * pairs
    rows = []
    for path, _, count in stack.named(f"{name}/blocks", self.blocks):
      attn, mlp = f"{path}/attn", f"{path}/mlp"
      rows += [
        # q / |q| and k / |k|.
        non_gemm.row(f"{attn}/unit", "norm", both, both, count),
        # The position bias is made once per pass, for any batch size.
        non_gemm.activation(f"{attn}/cpb/relu", offsets * _HIDDEN, count),
        non_gemm.activation(f"{attn}/cpb/sigmoid", offsets * heads, count),
        non_gemm.row(f"{attn}/cpb/bias", "embedding", bias, bias, count),
        non_gemm.softmax(f"{attn}/softmax", logits, count, bias),
        non_gemm.norm(f"{path}/norm1", tokens, width, count),
        non_gemm.residual(f"{attn}/residual", tokens * width, count),
        non_gemm.activation(f"{mlp}/gelu", tokens * shape.hidden, count),
        non_gemm.norm(f"{path}/norm2", tokens, width, count),
        non_gemm.residual(f"{mlp}/residual", tokens * width, count),
      ]
    if self.merge is not None:
      merged = batch * math.prod(shape.merged)
      rows.append(non_gemm.norm(f"{name}/merge/norm", merged, 2 * width))
    return rows


def _branch_norm(parts: Parts, width: int) -> nnx.LayerNorm:
  """A norm with zero scale, as in the authors' code: a new block returns x."""
  norm = parts.norm(width, EPSILON)
  norm.scale = nnx.Param(jnp.zeros((width,), parts.param_dtype))
  return norm


def _rolled(
  x: Float[Array, "batch height width channels"], shift: Any
) -> Float[Array, "batch height width channels"]:
  """Rolls the map down and right by the shift."""
  return jnp.roll(jnp.roll(x, shift, 1), shift, 2)


def _unit(x: Float[Array, "*lead depth"]) -> Float[Array, "*lead depth"]:
  """x / |x| in float32; 0, such as the keys of padding, stays 0.

  The slope at 0 is set to 1: the reference code has 1e12, which only padding
  would see, but which would dominate a pruned gradient.
  """
  wide = x.astype(jnp.float32)
  square = jnp.sum(wide**2, axis=-1, keepdims=True)
  square = jnp.where(square > 1e-24, square, 1.0)
  return (wide * jax.lax.rsqrt(square)).astype(x.dtype)
