"""What an evaluation counts in a batch, and what the counts come to.

A measure is a pair: `count(model, batch)` gives named sums over the valid part
of a batch (traced), `values(sums)` yields (name, value) of the sums over a
whole split. Every measure yields `accuracy` and `loss`.
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

from figs_jax.models import decode
from figs_jax.train.losses import token_losses

Sums = dict[str, Any]
Values = Iterator[tuple[str, np.ndarray]]


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

  def values(self, sums: Sums) -> Values:
    yield from _accuracy_and_loss(sums)
    yield "bits_per_byte", sums["losses"] / math.log(2) / sums["bytes"]


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """Share of examples whose greedily decoded targets are right to the end.

  With several tasks `accuracy` is the mean of theirs, each of which is yielded
  too, as in `accuracy/mnli`; `loss` is per target token of all.

  Attributes:
    tasks: names, in the order of their numbers.
  """

  tasks: tuple[str, ...]

  def count(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    valid = batch["valid"]
    targets = jnp.where(valid[:, None], batch["targets"], 0)
    losses, _, counted = token_losses(model(batch["inputs"], targets), targets)
    found = decode.greedy(model, batch["inputs"], targets.shape[1])
    hits = (found == targets).all(-1) & valid
    of_task = batch["task"][:, None] == jnp.arange(len(self.tasks))[None]
    return {
      "hits": (of_task & hits[:, None]).sum(0, dtype=jnp.float32),
      "seen": (of_task & valid[:, None]).sum(0, dtype=jnp.float32),
      "losses": losses.sum(),
      "tokens": counted.sum(),
    }

  def values(self, sums: Sums) -> Values:
    there = np.flatnonzero(np.atleast_2d(sums["seen"])[0])
    shares = sums["hits"][..., there] / sums["seen"][..., there]
    shares = np.where(np.isfinite(sums["losses"])[..., None], shares, np.nan)
    yield "accuracy", shares.mean(-1)
    yield "loss", sums["losses"] / sums["tokens"]
    if len(self.tasks) > 1:
      for i, task in enumerate(there.tolist()):
        yield f"accuracy/{self.tasks[task]}", shares[..., i]


def _accuracy_and_loss(sums: Sums) -> Values:
  # A diverged seed has hits all the same, since argmax takes NaN.
  finite = np.isfinite(sums["losses"])
  yield "accuracy", np.where(finite, sums["hits"] / sums["seen"], np.nan)
  yield "loss", sums["losses"] / sums["seen"]


Measure = LabelAccuracy | TokenLoss | ExactMatch
