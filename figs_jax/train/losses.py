"""Losses: functions (model, batch, key) -> (loss, metrics).

The loss and each metric is a `Mean`, which gradient accumulation combines
exactly, or a scalar, whose mean over micro-batches is taken.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.data.mixup import mixup


class Mean(NamedTuple):
  """A mean as sum and weight, so that parts of a batch combine exactly.

  Attributes:
    total: Sum over the examples or tokens.
    weight: Number of examples or tokens, which is 0 if there are none. No
      gradient passes through it.

  >>> long, short = Mean(jnp.array(6.0), jnp.array(3)), Mean(1.0, 1)
  >>> float(long.value), float(short.value)
  (2.0, 1.0)
  >>> float(Mean(long.total + short.total, long.weight + short.weight).value)
  1.75
  """

  total: Any
  weight: Any

  @property
  def value(self) -> Array:
    """The mean, or 0 if the weight is 0."""
    total = jnp.asarray(self.total)
    weight = jax.lax.stop_gradient(jnp.asarray(self.weight, total.dtype))
    return total / jnp.where(weight == 0, jnp.ones_like(weight), weight)


def as_mean(value: Any) -> Mean:
  """The mean itself; that of a scalar has weight 1."""
  return value if isinstance(value, Mean) else Mean(value, 1.0)


def cross_entropy(
  model: nnx.Module, batch: dict[str, Any], key: Array
) -> tuple[Mean, dict[str, Mean]]:
  """Mean softmax cross-entropy of integer labels, and the accuracy.

  Args:
    model: Model from images to logits [batch, classes].
    batch: {"image": [batch, ...], "label": int [batch]}.
    key: Unused, since the model's own streams are seeded already.
  """
  del key
  logits = model(batch["image"])
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  )
  hits = jnp.argmax(logits, -1) == batch["label"]
  return _mean(losses), {"accuracy": _mean(hits)}


@dataclasses.dataclass(frozen=True)
class MixedCrossEntropy:
  """Cross-entropy with mixup and label smoothing, drawn inside the step.

  With both at 0 it equals `cross_entropy`. For mixed images, the accuracy
  counts the label with the larger share.

  Attributes:
    num_classes: Number of classes.
    mixup: Parameter alpha of mixup; 0 disables it.
    smoothing: Label smoothing.
  """

  num_classes: int
  mixup: float = 0.0
  smoothing: float = 0.0

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Mean, dict[str, Mean]]:
    images = batch["image"]
    targets = jax.nn.one_hot(batch["label"], self.num_classes)
    targets = optax.smooth_labels(targets, self.smoothing)
    if self.mixup:
      images, targets = mixup(key, images, targets, self.mixup)
    logits = model(images)
    losses = optax.softmax_cross_entropy(logits, targets)
    hits = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
    return _mean(losses), {"accuracy": _mean(hits)}


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
  """Mean cross-entropy of target tokens given the tokens before them, in nats.

  The mean is over the tokens of the whole batch, without padding (id 0).
  The accuracy is the share of tokens that the model ranks first.

  Attributes:
    smoothing: Label smoothing over the whole vocabulary.
  """

  smoothing: float = 0.0

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """Loss and accuracy of a batch.

    Args:
      model: Model from (inputs, targets) to logits [batch, length, vocabulary];
        it shifts the targets itself.
      batch: {"inputs": int [batch, n], "targets": int [batch, length]}.
      key: Unused, since the model's own streams are seeded already.
    """
    del key
    logits = model(batch["inputs"], batch["targets"])
    losses, hits, counted = token_losses(
      logits, batch["targets"], self.smoothing
    )
    tokens = counted.sum()
    return Mean(losses.sum(), tokens), {"accuracy": Mean(hits.sum(), tokens)}


teacher_forcing = TeacherForcing()


def token_losses(
  logits: Array, targets: Any, smoothing: float = 0.0
) -> tuple[Array, Array, Array]:
  """(loss in nats, hit, counted) of each token, float32; 0 at padding.

  Args:
    logits: Float [batch, length, vocabulary].
    targets: Int [batch, length], where 0 is padding.
    smoothing: Label smoothing.
  """
  counted = (jnp.asarray(targets) != 0).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if smoothing:
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    losses = (1 - smoothing) * losses + smoothing * uniform
  hits = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
  return losses * counted, hits * counted, counted


def _mean(values: Array) -> Mean:
  return Mean(values.sum(dtype=jnp.float32), float(values.size))
