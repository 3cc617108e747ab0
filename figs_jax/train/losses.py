"""Losses of (model, batch, key): a scalar, and metrics beside it."""

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
    model: image -> logits [batch, classes].
    batch: {"image": [batch, ...], "label": int [batch]}.
    key: unused; the model's own streams are already seeded.
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

  With both at 0 it equals `cross_entropy`. The reported accuracy counts the
  label of the larger share.
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
  """Mean cross-entropy, in nats, of target tokens given those before them.

  The mean is over the batch's tokens that are no padding (id 0); with
  micro-batches or several devices it is over each one's own. The reported
  accuracy is the share of them that the model ranks first.

  Attributes:
    smoothing: of labels, over the whole vocabulary.
  """

  smoothing: float = 0.0

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Array, dict[str, Array]]:
    """Of a model (inputs, targets) -> logits [batch, length, vocabulary].

    Args:
      model: shifts the targets by itself.
      batch: {"inputs": int [batch, n], "targets": int [batch, length]}.
      key: unused; the model's own streams are already seeded.
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
  """(nats, whether ranked first, whether counted) of each token, float32.

  Args:
    logits: float [batch, length, vocabulary].
    targets: int [batch, length]; 0 is padding, which is 0 in all three.
    smoothing: of labels.
  """
  counted = (jnp.asarray(targets) != 0).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if smoothing:
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    losses = (1 - smoothing) * losses + smoothing * uniform
  hits = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
  return losses * counted, hits * counted, counted
