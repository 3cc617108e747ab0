"""Losses: functions (model, batch, key) -> (scalar, metrics)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.data.mixup import mixup


def cross_entropy(
  model: nnx.Module, batch: dict[str, Any], key: Array
) -> tuple[Array, dict[str, Array]]:
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
  return losses.mean(), {"accuracy": hits.mean(dtype=jnp.float32)}


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
  ) -> tuple[Array, dict[str, Array]]:
    images = batch["image"]
    targets = jax.nn.one_hot(batch["label"], self.num_classes)
    targets = optax.smooth_labels(targets, self.smoothing)
    if self.mixup:
      images, targets = mixup(key, images, targets, self.mixup)
    logits = model(images)
    losses = optax.softmax_cross_entropy(logits, targets)
    hits = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
    return losses.mean(), {"accuracy": hits.mean(dtype=jnp.float32)}


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
  """Mean cross-entropy of target tokens given the tokens before them, in nats.

  The mean is over the tokens of a batch or micro-batch, without padding (id 0).
  The accuracy is the share of tokens that the model ranks first.

  Attributes:
    smoothing: Label smoothing over the whole vocabulary.
  """

  smoothing: float = 0.0

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Array, dict[str, Array]]:
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
    tokens = jnp.maximum(counted.sum(), 1.0)
    return losses.sum() / tokens, {"accuracy": hits.sum() / tokens}


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
