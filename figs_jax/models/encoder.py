"""The pre-norm transformer block and its parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Float
from figs_jax.nn import Attention, SparseLinear

_glorot = nnx.initializers.xavier_uniform()
_VIT_INIT = {
  "kernel_init": _glorot,
  "bias_init": nnx.initializers.normal(1e-6),
}


@dataclasses.dataclass(frozen=True)
class Parts:
  """Dtypes and random streams that all parts of a model share."""

  dtype: Any
  param_dtype: Any
  rngs: nnx.Rngs

  def dropout(self, rate: float) -> nnx.Dropout:
    # Without a stream if nothing is drawn: the state holds no idle keys.
    return nnx.Dropout(rate, rngs=self.rngs if rate else None)

  def drop_path(self, most: float) -> DropPath:
    return DropPath(most, rngs=self.rngs if most else None)

  def norm(self, width: int, epsilon: float = 1e-6) -> LayerNorm:
    return LayerNorm(
      width,
      epsilon=epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      rngs=self.rngs,
    )

  def linear(self, inputs: int, outputs: int, **options: Any) -> SparseLinear:
    return SparseLinear(
      inputs,
      outputs,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      rngs=self.rngs,
      **options,
    )


class LayerNorm(nnx.LayerNorm):
  """`nnx.LayerNorm` over the last axis, computed in float32.

  The variance is E[(x - E[x])²]: E[x²] - E[x]² loses digits for large means.
  Flax multiplies x by the product of scale and 1 / deviation, an array of the
  size of x, which is a further pass over memory where XLA does not fuse it.
  """

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    variance = (wide**2).mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + self.epsilon)
    assert self.scale is not None and self.bias is not None
    scale, bias = (
      jnp.expand_dims(part[...].astype(jnp.float32), range(x.ndim - 1))
      for part in (self.scale, self.bias)
    )
    return (wide * scale + bias).astype(self.dtype)


class DropPath(nnx.Module):
  """Stochastic depth (arXiv 1603.09382): one draw per sample.

  Args:
    most: Largest rate of any call; 0 disables the layer.
    rngs: Random stream `dropout`; None if nothing is drawn.
  """

  def __init__(self, most: float, *, rngs: nnx.Rngs | None):
    self.most = most
    self.rngs = rngs["dropout"].fork() if rngs else nnx.data(None)
    self.deterministic = False

  def __call__(
    self, x: Float[Array, "batch tokens width"], rate: Any
  ) -> Float[Array, "batch tokens width"]:
    """x / (1 - rate) or 0 for each sample; rate is below 1, possibly traced."""
    if not self.most or self.deterministic:
      return x
    assert self.rngs is not None
    keep = 1 - jnp.asarray(rate, jnp.float32)
    drawn = jax.random.bernoulli(self.rngs(), keep, (x.shape[0], 1, 1))
    return jnp.where(drawn, x / keep.astype(x.dtype), jnp.zeros_like(x))

  def set_view(self, deterministic: bool | None = None, **kwargs) -> dict:
    """Lets `nnx.view` switch the mode; see `nnx.Dropout.set_view`."""
    if deterministic is not None:
      self.deterministic = deterministic
    return kwargs


class MLP(nnx.Module):
  """fc2(act(fc1(x))), with dropout after each; act is gelu or relu²."""

  def __init__(
    self,
    parts: Parts,
    width: int,
    dim: int,
    dropout: float,
    init: Mapping[str, nnx.Initializer] = _VIT_INIT,
    gelu: str = "exact",
    relu2: bool = False,
  ):
    self.gelu, self.relu2 = gelu, relu2
    self.fc1 = parts.linear(width, dim, **init)
    self.fc2 = parts.linear(dim, width, **init)
    self.dropout1 = parts.dropout(dropout)
    self.dropout2 = parts.dropout(dropout)

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    hidden = activated(self.fc1(x), self.gelu, self.relu2)
    return self.dropout2(self.fc2(self.dropout1(hidden)))


class SwiGLU(nnx.Module):
  """down(silu(gate(x)) * up(x)) (arXiv 2002.05202), with biases.

  Published files hold gate and up in one kernel, `weights_in` or `w12`.
  """

  def __init__(self, parts: Parts, width: int, dim: int, dropout: float):
    self.gate = parts.linear(width, dim, **_VIT_INIT)
    self.up = parts.linear(width, dim, **_VIT_INIT)
    self.down = parts.linear(dim, width, **_VIT_INIT)
    self.dropout1 = parts.dropout(dropout)
    self.dropout2 = parts.dropout(dropout)

  def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
    hidden = jax.nn.silu(self.gate(x)) * self.up(x)
    return self.dropout2(self.down(self.dropout1(hidden)))


def swiglu_width(width: int) -> int:
  """The hidden width of DINOv2's SwiGLU: 2/3 of 4 * width, in steps of 8.

  >>> swiglu_width(1536)
  4096
  """
  return (int(4 * width * 2 / 3) + 7) // 8 * 8


class LayerScale(nnx.Module):
  """A learned factor per channel of a branch (arXiv 2103.17239)."""

  def __init__(self, parts: Parts, width: int, initial: float):
    self.scale = nnx.Param(jnp.full((width,), initial, parts.param_dtype))

  def __call__(
    self, x: Float[Array, "batch tokens width"]
  ) -> Float[Array, "batch tokens width"]:
    return x * self.scale[...].astype(x.dtype)[None, None]


def gelu(x: Float[Array, "*b"], approximate: bool) -> Float[Array, "*b"]:
  """`jax.nn.gelu`; in float32, the exact form is x (1 + erf(x / sqrt(2))) / 2.

  JAX computes it from erfc, which takes twice as long and keeps the relative
  precision of results below 1e-6, beyond x = -5.

  >>> out = gelu(jnp.array([-1.0, 0.0, 1.0]), approximate=False)
  >>> [round(value, 4) for value in out.tolist()]
  [-0.1587, 0.0, 0.8413]
  """
  if approximate or x.dtype != jnp.float32:
    return jax.nn.gelu(x, approximate=approximate)
  return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def squared_relu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """max(x, 0)² (arXiv 2109.08668), "relu2" in `transformers`.

  >>> squared_relu(jnp.array([-2.0, 3.0])).tolist()
  [0.0, 9.0]
  """
  return jnp.square(jax.nn.relu(x))


def activated(
  x: Float[Array, "*b"], form: str, relu2: bool
) -> Float[Array, "*b"]:
  """The squared ReLU or the Gaussian error linear unit.

  Args:
    x: Inputs.
    form: Form of gelu, "exact" or "tanh" for its approximation.
    relu2: Whether to take the squared ReLU instead.

  >>> x = jnp.array([-2.0, 3.0])
  >>> activated(x, "exact", True).tolist()
  [0.0, 9.0]
  >>> [round(y, 3) for y in activated(x, "exact", False).tolist()]
  [-0.046, 2.996]
  """
  return squared_relu(x) if relu2 else gelu(x, approximate=form == "tanh")


class Block(nnx.Module):
  """x += scale1 * attn(norm1(x)); x += scale2 * mlp(norm2(x)).

  Without LayerScale, the factors are 1 and no parameters.
  """

  def __init__(
    self,
    parts: Parts,
    width: int,
    heads: int,
    mlp_dim: int,
    *,
    qkv_bias: bool,
    dropout: float,
    attention_dropout: float,
    drop_path: float,
    norm_epsilon: float = 1e-6,
    gelu: str = "exact",
    relu2: bool = False,
    swiglu: bool = False,
    layer_scale: float = 0.0,
  ):
    self.norm1 = parts.norm(width, norm_epsilon)
    self.attn = Attention(
      width,
      heads,
      qkv_bias=qkv_bias,
      dropout=attention_dropout,
      dtype=parts.dtype,
      param_dtype=parts.param_dtype,
      kernel_init=_glorot,
      rngs=parts.rngs,
    )
    self.norm2 = parts.norm(width, norm_epsilon)
    self.mlp: MLP | SwiGLU
    if swiglu:
      self.mlp = SwiGLU(parts, width, mlp_dim, dropout)
    else:
      self.mlp = MLP(parts, width, mlp_dim, dropout, gelu=gelu, relu2=relu2)
    self.scales = bool(layer_scale)
    if layer_scale:
      self.layer_scale1 = LayerScale(parts, width, layer_scale)
      self.layer_scale2 = LayerScale(parts, width, layer_scale)
    self.dropout = parts.dropout(dropout)
    self.drop_path1 = parts.drop_path(drop_path)
    self.drop_path2 = parts.drop_path(drop_path)

  def __call__(
    self, x: Float[Array, "batch tokens width"], rate: Any = 0.0
  ) -> Float[Array, "batch tokens width"]:
    """Applies the block with stochastic depth at this rate."""
    branch = self.dropout(self.attn(self.norm1(x)))
    branch = self.layer_scale1(branch) if self.scales else branch
    x = x + self.drop_path1(branch, rate)
    branch = self.mlp(self.norm2(x))
    branch = self.layer_scale2(branch) if self.scales else branch
    return x + self.drop_path2(branch, rate)
