"""What an evaluation counts in a batch, and what the counts come to.

A measure is three functions: `count(model, batch)` gives arrays by name of the
valid part of a batch (traced), `tally(counts)` makes of them what can be summed
(on the host), and `values(sums)` yields (name, value) of the sums over a whole
split. Every measure yields `accuracy` and `loss`; with a seed axis in front of
the sums, one value per seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from figs_jax.train.losses import token_losses

Sums = dict[str, Any]
Values = Iterator[tuple[str, np.ndarray]]


def as_counted(counts: Sums) -> Sums:
  """The tally of a measure whose counts are sums already."""
  return counts


@dataclasses.dataclass(frozen=True)
class LabelAccuracy:
  """Accuracy and loss of one label per image."""

  def count(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    logits = model(batch["image"])
    valid = batch["valid"].astype(jnp.float32)
    hits = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    )
    return {
      "hits": (hits * valid).sum(),
      "losses": (losses * valid).sum(),
      "seen": valid.sum(),
    }

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    yield from _accuracy_and_loss(sums)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLoss:
  """Loss and accuracy per target token, and bits per byte of raw text.

  bits per byte = nats of all target tokens / ln 2 / bytes of the raw text in
  the spans that were taken out. All of the targets is paid for: the sentinels,
  which say how long each span is, and the end too; only the text is counted.
  So it compares models whatever their vocabulary, at one density and mean span,
  and it is of a byte whose surroundings on both sides are known, unlike the
  figure of a language model that reads from left to right.

  Attributes:
    byte_lengths: int [vocabulary], bytes of raw text of each id.
  """

  byte_lengths: np.ndarray

  def count(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    targets = jnp.where(batch["valid"][:, None], batch["targets"], 0)
    logits = model(batch["inputs"], targets)
    losses, hits, counted = token_losses(logits, targets)
    lengths = jnp.asarray(self.byte_lengths, jnp.float32)
    return {
      "hits": hits.sum(),
      "losses": losses.sum(),
      "seen": counted.sum(),
      "bytes": lengths[targets].sum(),
    }

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    yield from _accuracy_and_loss(sums)
    yield "bits_per_byte", sums["losses"] / math.log(2) / sums["bytes"]


def _accuracy_and_loss(sums: Sums) -> Values:
  # A diverged seed has hits all the same, since argmax takes NaN.
  finite = np.isfinite(sums["losses"])
  yield "accuracy", np.where(finite, sums["hits"] / sums["seen"], np.nan)
  yield "loss", sums["losses"] / sums["seen"]
