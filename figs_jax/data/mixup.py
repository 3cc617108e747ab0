"""Mixup and CutMix, pure functions for use inside the training step.

Both blend each example with its neighbour in the shuffled batch. One share s is
drawn per batch; the labels become s * labels + (1 - s) * neighbour's labels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def mixup(
  key: Array, images: Array, labels_onehot: Array, alpha: float
) -> tuple[Array, Array]:
  """Blends pixels (Zhang et al. 2018, arXiv:1710.09412, eq. 1).

  The example itself always gets the larger share; since Beta(alpha, alpha) is
  symmetric, this only fixes the order of each pair.

  Args:
    key: Random key.
    images: Images, float [batch, ...].
    labels_onehot: Label distributions, float [batch, classes], with rows that
      sum to 1.
    alpha: Parameter of the Beta distribution, a Python number; 0 disables
      mixup.

  Returns:
    (images, labels) of the shapes and dtypes given.

  Raises:
    ValueError: If `alpha` is negative.

  >>> images, labels = jnp.ones((4, 2, 2, 1)), jax.nn.one_hot(jnp.arange(4), 4)
  >>> mixed, soft = mixup(jax.random.key(0), images, labels, alpha=0.5)
  >>> soft.sum(axis=-1)
  Array([1., 1., 1., 1.], dtype=float32)
  """
  if _is_off("mixup", alpha):
    return images, labels_onehot
  share = _share(key, alpha)
  return _blend(images, share), _blend(labels_onehot, share)


def cutmix(
  key: Array, images: Array, labels_onehot: Array, alpha: float
) -> tuple[Array, Array]:
  """Pastes a box of the neighbour (Yun et al. 2019, arXiv:1905.04899).

  The box has the image's aspect and, before clipping at the border, the
  neighbour's share of the area; labels are weighted by the pixels really
  pasted.

  Args:
    key: a JAX random key.
    images: float [batch, height, width, channels].
    labels_onehot: float [batch, classes], rows of mass 1.
    alpha: Parameter of the Beta distribution, a Python number; 0 disables it.

  Returns:
    (images, labels) of the shapes and dtypes given.

  Raises:
    ValueError: If `alpha` is negative.

  >>> images, labels = jnp.ones((4, 2, 2, 1)), jax.nn.one_hot(jnp.arange(4), 4)
  >>> mixed, soft = cutmix(jax.random.key(0), images, labels, alpha=1.0)
  >>> mixed.shape, soft.shape
  ((4, 2, 2, 1), (4, 4))
  """
  if _is_off("cutmix", alpha):
    return images, labels_onehot
  share_key, y_key, x_key = jax.random.split(key, 3)
  side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
  height, width = images.shape[1:3]
  rows = _span(y_key, side, height)
  columns = _span(x_key, side, width)
  box = rows[:, None] & columns[None, :]
  neighbour = jnp.roll(images, 1, axis=0)
  mixed = jnp.where(box[None, :, :, None], neighbour, images)
  kept = 1 - box.mean(dtype=jnp.float32)
  return mixed, _blend(labels_onehot, kept)


def _is_off(name: str, alpha: float) -> bool:
  if alpha < 0:
    raise ValueError(f"{name}: alpha={alpha} must be 0 (off) or more")
  return alpha == 0


def _share(key: Array, alpha: float) -> Array:
  share = jax.random.beta(key, alpha, alpha)
  return jnp.maximum(share, 1 - share)


def _blend(values: Array, share: Array) -> Array:
  share = share.astype(values.dtype)
  return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


def _span(key: Array, side: Array, length: int) -> Array:
  """Pixels of one axis within side * length of a random centre, halved."""
  position = jnp.arange(length)
  centre = jax.random.randint(key, (), 0, length)
  half = (side * length / 2).astype(position.dtype)
  return (position >= centre - half) & (position < centre + half)
