"""Evaluation metrics: what is counted per batch, and the values of the counts.

A measure has three methods. `count(model, batch)` returns arrays by name for
the valid examples of a batch (traced), `tally(counts)` turns them into sums (on
the host), and `values(sums)` yields (name, value) for the sums over a split.
Every measure yields `accuracy` and `loss`. If the sums have a leading seed
axis, so do the values. Measures of text are in `figs_jax.train.text_scores`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from figs_jax.data.labels import label_weights

Sums = dict[str, Any]
Values = Iterator[tuple[str, np.ndarray]]


def as_counted(counts: Sums) -> Sums:
  """The tally of a measure whose counts are sums already."""
  return counts


def accuracy_and_loss(sums: Sums) -> Values:
  """Yields both from `hits`, `losses` and the number of examples `seen`."""
  # argmax of NaN is a class, so the hits of a diverged seed mean nothing.
  finite = np.isfinite(sums["losses"])
  yield "accuracy", np.where(finite, sums["hits"] / sums["seen"], np.nan)
  yield "loss", sums["losses"] / sums["seen"]


@dataclasses.dataclass(frozen=True)
class LabelAccuracy:
  """Accuracy and loss of images with one label each."""

  def count(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    logits, labels = model(batch["image"]), batch["label"]
    weights = label_weights(labels, logits.shape[-1])
    valid = jnp.where(batch["valid"], weights, 0.0)
    hits = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.where(weights == 1, labels, 0)
    )
    return {
      "hits": (hits * valid).sum(),
      "losses": (losses * valid).sum(),
      "seen": valid.sum(),
    }

  tally = staticmethod(as_counted)
  values = staticmethod(accuracy_and_loss)
