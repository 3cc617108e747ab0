"""Measures of models that read whole texts: masked tokens and labels."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.data.labels import padded
from figs_jax.train.losses import label_losses, token_losses
from figs_jax.train.metrics import (
  Sums,
  Values,
  accuracy_and_loss,
  as_counted,
  total,
)
from figs_jax.train.text_scores import scores_of


@dataclasses.dataclass(frozen=True)
class MaskedAccuracy:
  """Accuracy and loss per masked token."""

  headline: ClassVar[str] = "accuracy"

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    targets = jnp.where(batch["valid"][:, None], padded(batch["targets"]), 0)
    logits = model(batch["inputs"], batch["types"])
    losses, hits, counted = token_losses(logits, targets)
    return {
      "hits": hits.sum(-1),
      "losses": losses.sum(-1),
      "seen": counted.sum(-1),
    }

  count = staticmethod(total)
  tally = staticmethod(as_counted)
  values = staticmethod(accuracy_and_loss)


@dataclasses.dataclass(frozen=True)
class TextLabelScore:
  """Accuracy and loss of labels of texts, and the score of a task of GLUE.

  The scores are those of `figs_jax.train.text_scores.GlueScore`.

  Attributes:
    classes: Number of classes.
    task: Name of the task of GLUE, or "" for other data.
  """

  classes: int
  task: str = ""

  @property
  def headline(self) -> str:
    return "glue_score" if self.task else "accuracy"

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    logits = model(batch["inputs"], batch["types"])
    losses, hits, weights = label_losses(logits, batch["label"])
    valid = jnp.where(batch["valid"], weights, 0.0)
    return {
      "hits": hits * valid,
      "losses": losses * valid,
      "seen": valid,
      "given": jnp.argmax(logits, -1),
      "label": batch["label"],
    }

  def count(self, each: Sums) -> Sums:
    table = jnp.zeros((self.classes, self.classes), jnp.float32)
    table = table.at[each["given"], each["label"]].add(each["seen"])
    sums = {name: each[name].sum() for name in ("hits", "losses", "seen")}
    return sums | {"confusion": table}

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    """Yields accuracy, loss and, of GLUE, SCORE/TASK and glue_score."""
    yield from accuracy_and_loss(sums)
    if not self.task:
      return
    confusion, finite = sums["confusion"], np.isfinite(sums["losses"])
    tables = confusion.reshape(-1, *confusion.shape[-2:]).astype(np.int64)
    scores = {
      name: np.where(finite, np.reshape(flat, confusion.shape[:-2]), np.nan)
      for name, flat in scores_of(self.task, tables).items()
    }
    for name, value in scores.items():
      if name != "accuracy":
        yield f"{name}/{self.task}", value
    yield "glue_score", np.mean(list(scores.values()), axis=0)
