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
