"""Scores that a mask ranks by: larger is kept.

Plain functions of arrays, for `nm_mask`, `transposable_nm_mask`, `top_mask` and
`global_masks`. A NaN weight or gradient gives a NaN score, which all of these
rank last, so it is pruned first. Products are computed in float32 at least,
since |w g| of two small 16-bit numbers underflows.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.groups import Axis, Groups, normalized
from figs_jax.core.types import Array, Float, Shaped

# Limit on the entries that share one drawn word.
_WORD = 16
# Steps of Weyl sequences: 2^32 over the golden ratio, and an odd number.
_GOLDEN, _ODD = 0x9E3779B9, 0xB5297A4D


def magnitude(
  weight: Shaped[Array | np.ndarray, "*shape"],
) -> Shaped[Array, "*shape"]:
  """|w|, in the dtype of the weight; of signed integers, in the unsigned one.

  Args:
    weight: Weights of any shape and real dtype.

  >>> magnitude(jnp.array([-2., 1.]))
  Array([2., 1.], dtype=float32)
  >>> magnitude(jnp.array([-128, 127], jnp.int8))
  Array([128, 127], dtype=uint8)
  """
  size = jnp.abs(jnp.asarray(weight))
  if jnp.issubdtype(size.dtype, jnp.signedinteger):
    # |-128| wraps around to -128 in 8 bits, which reads 128 without a sign.
    return lax.bitcast_convert_type(size, jnp.dtype(f"u{size.dtype}"))
  return size


def saliency(
  weight: Float[Array | np.ndarray, "*shape"],
  grad: Float[Array | np.ndarray, "*shape"],
) -> Float[Array, "*shape"]:
  """|w g|, to first order the change of the loss if w becomes 0.

  This is SNIP's connection sensitivity (arXiv 1810.02340) without the division
  by the sum, which does not change the ranking. The result is float32, or
  float64 if an input is.

  Args:
    weight: Weights of any shape.
    grad: Gradient dL/dw at these weights, of the same shape.

  Raises:
    ValueError: If the shapes differ.

  >>> saliency(jnp.array([-2., 1.]), jnp.array([.5, 3.]))
  Array([1., 3.], dtype=float32)
  """
  weight, grad = _wide(weight, grad)
  if weight.shape != grad.shape:
    raise ValueError(
      f"Expected a grad of the weight's shape {weight.shape}, got {grad.shape}"
    )
  return jnp.abs(weight * grad)


def activation(
  weight: Float[Array | np.ndarray, "*shape"],
  norms: Float[Array | np.ndarray, "*features"],
  axis: Axis = -2,
) -> Float[Array, "*shape"]:
  """|w| times the norm of its input feature (Wanda).

  |W_ij| ||X_i||_2 of arXiv 2306.11695, with the norm over all tokens of a
  calibration set: `jnp.linalg.norm(x, axis=0)` for x of [tokens, features].

  Args:
    weight: Kernel.
    norms: Norm of every input feature, with the shape of the kernel along
      `axis`.
    axis: Input axis, or several axes in the order of those of `norms`.

  Raises:
    ValueError: If norms do not have the shape of `axis`, or an axis is out of
      range or named twice.

  >>> activation(jnp.array([[1., -2.], [1., 1.]]), jnp.array([1., 3.]))
  Array([[1., 2.],
         [3., 3.]], dtype=float32)
  """
  weight, norms = _wide(weight, norms)
  axes = normalized(weight.shape, axis)
  features = tuple(weight.shape[a] for a in axes)
  if norms.shape != features:
    raise ValueError(
      f"Expected one norm per input feature, of shape {features} for axis"
      f" {axis} of a weight of shape {weight.shape}, got {norms.shape}"
    )
  order = sorted(range(len(axes)), key=axes.__getitem__)
  rest = [a for a in range(weight.ndim) if a not in axes]
  return jnp.abs(weight) * jnp.expand_dims(norms.transpose(order), rest)


def random_scores(key: Array, shape: tuple[int, ...]) -> Float[Array, ...]:
  """Uniform scores in [0, 1), float32, for a random mask.

  >>> random_scores(jax.random.key(0), (2, 3)).shape
  (2, 3)
  """
  return jax.random.uniform(key, shape, jnp.float32)


def random_words(key: Array, shape: tuple[int, ...], stream: int = 0) -> Array:
  """Random 32-bit words from a counter, for rounding and for the order of m.

  Each word has the mixed bits of its place, the key and the stream, which takes
  a tenth of the operations of `jax.random.bits` and no loop to compile. Two
  words of one draw are never equal.

  Args:
    key: Random key, of any implementation of JAX.
    shape: Shape of the draw, of fewer than 2^32 words.
    stream: Number that tells draws with one key apart.

  >>> random_words(jax.random.key(0), (2, 3)).dtype
  dtype('uint32')
  """
  words = jax.random.key_data(key)
  count = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  start = words[0] + jnp.uint32((stream * _GOLDEN) % 2**32)
  return _mixed(_mixed(count * jnp.uint32(_ODD) + start) ^ words[-1])


def random_order(
  key: Array, shape: tuple[int, ...], m: int, axis: Axis = -2
) -> Float[Array, ...]:
  """Random scores in [0, 1), of which every group of m has its own order.

  One random word serves up to 16 entries of a group: entry i has the mixed bits
  of word + i * constant. Up to m = 16 each subset of a group is as likely to
  have the largest scores as any other, to about 2^-16 of its probability. Do
  not use them as numbers.

  Args:
    key: Random key.
    shape: Shape of the kernel.
    m: Length of a group.
    axis: Group axis, see `nm_mask`.

  Raises:
    ValueError: If m does not divide the length of the group axis.

  >>> random_order(jax.random.key(0), (8, 3), 4).shape
  (8, 3)
  """
  groups = Groups.of(shape, m, axis)
  width = max(d for d in range(1, _WORD + 1) if m % d == 0)
  lead, tail = groups.grouped[: groups.axis], groups.grouped[groups.axis + 1 :]
  word = random_words(key, (*lead, m // width, 1, *tail), stream=1)
  line = (1,) * (len(lead) + 1) + (width,) + (1,) * len(tail)
  place = lax.broadcasted_iota(jnp.uint32, line, len(lead) + 1)
  scores = uniform(_mixed(word + place * jnp.uint32(_GOLDEN)))
  return groups.join(scores.reshape(groups.grouped))


def uniform(words: Array) -> Float[Array, ...]:
  """The leading 24 bits of each word as a float32 in [0, 1)."""
  return (words >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def _mixed(x: Array) -> Array:
  """The bijection lowbias32 of hash-prospector."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def _wide(*arrays: Array | np.ndarray) -> list[Array]:
  """The arrays in float32, or in float64 if one is."""
  given = [jnp.asarray(a) for a in arrays]
  wide = any(a.dtype == jnp.float64 for a in given)
  return [a.astype(jnp.float64 if wide else jnp.float32) for a in given]
