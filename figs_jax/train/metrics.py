"""Evaluation metrics: values of each example, their sums, and the results.

A measure has four methods. `each(model, batch)` returns arrays by name with a
leading axis of examples, 0 for padding (traced); `count(each)` returns their
sums, or what sums are made of (traced); `tally(counts)` turns that into sums
(on the host), and `values(sums)` yields (name, value) for the sums over a
split. A measure may name in `listed` what is put side by side over batches
instead of summed. Every measure yields `accuracy` and `loss`; `headline` names
the value that stands for all of them. If the sums have a leading seed axis, so
do the values. Measures of text are in `figs_jax.train.text_scores`.

The values of each example are at least `hits` (1 for a right label or text, or
the number of right tokens), `seen` (1, or the number of target tokens; 0 for an
example that does not count), `losses` (nats, summed over tokens) and, where it
is not `seen`, `tokens` (the number of tokens that `losses` sums over).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from figs_jax.data.labels import label_weights

Sums = dict[str, Any]
Values = Iterator[tuple[str, np.ndarray]]


def total(each: Sums) -> Sums:
  """The count of a measure that sums all values of the examples.

  Args:
    each: Values by name, [examples, ...].

  >>> float(total({"hits": np.array([1.0, 0.0, 1.0])})["hits"])
  2.0
  """
  return {name: values.sum(0) for name, values in each.items()}


def as_counted(counts: Sums) -> Sums:
  """The tally of a measure whose counts are sums already.

  Args:
    counts: Sums by name.
  """
  return counts


def accuracy_and_loss(sums: Sums) -> Values:
  """Yields both from `hits`, `losses` and the number of examples `seen`.

  Args:
    sums: Sums over a split, by name.

  >>> sums = {"hits": 3.0, "losses": 2.0, "seen": 4.0}
  >>> [(name, float(value)) for name, value in accuracy_and_loss(sums)]
  [('accuracy', 0.75), ('loss', 0.5)]
  """
  # argmax of NaN is a class, so the hits of a diverged seed mean nothing.
  finite = np.isfinite(sums["losses"])
  yield "accuracy", np.where(finite, sums["hits"] / sums["seen"], np.nan)
  yield "loss", sums["losses"] / sums["seen"]


def merged(measure: Any, one: Sums, other: Sums) -> Sums:
  """The sums of two parts of a split.

  >>> ours = {"seen": np.ones(()), "given": np.ones(2)}
  >>> class Measure:
  ...   listed = ("given",)
  >>> merged(Measure, ours, ours)["given"].shape
  (4,)
  """
  listed = getattr(measure, "listed", ())
  return {
    name: np.concatenate((one[name], other[name]), -1)
    if name in listed
    else one[name] + other[name]
    for name in one
  }


def kept(each: Sums) -> Sums:
  """The values that `per_example` needs.

  Args:
    each: Values of a measure by name.

  >>> sorted(kept({"hits": 1, "seen": 1, "losses": 1, "bytes": 1}))
  ['hits', 'losses', 'seen']
  """
  names = ("hits", "seen", "losses", "tokens")
  return {name: each[name] for name in names if name in each}


def per_example(each: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`correct`, `accuracy`, `loss` and `weight`, as in `evaluate.examples`.

  Args:
    each: Values of `kept`, float [seeds, examples].

  >>> one = np.ones((1, 2))
  >>> each = {"hits": one, "seen": 2 * one, "losses": one, "tokens": 4 * one}
  >>> {name: values.tolist() for name, values in per_example(each).items()}
  ... # doctest: +NORMALIZE_WHITESPACE
  {'correct': [[False, False]], 'accuracy': [[0.5, 0.5]],
  'loss': [[0.25, 0.25]], 'weight': [4.0, 4.0]}
  """
  counts = np.asarray(each["seen"][0]) != 0
  arrays = {k: np.asarray(v, np.float64)[:, counts] for k, v in each.items()}
  hits, seen, losses = (arrays[name] for name in ("hits", "seen", "losses"))
  weight = arrays.get("tokens", seen)
  finite = np.isfinite(losses)  # argmax of NaN is a class
  return {
    "correct": finite & (hits == seen),
    "accuracy": np.where(finite, hits / seen, np.nan).astype(np.float32),
    "loss": (losses / weight).astype(np.float32),
    "weight": weight[0].astype(np.float32),
  }


@dataclasses.dataclass(frozen=True)
class LabelAccuracy:
  """Accuracy and loss of images with one label each."""

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    logits, labels = model(batch["image"]), batch["label"]
    weights = label_weights(labels, logits.shape[-1])
    valid = jnp.where(batch["valid"], weights, 0.0)
    hits = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.where(weights == 1, labels, 0)
    )
    return {"hits": hits * valid, "losses": losses * valid, "seen": valid}

  headline: ClassVar[str] = "accuracy"
  count = staticmethod(total)
  tally = staticmethod(as_counted)
  values = staticmethod(accuracy_and_loss)
