"""Losses: functions (model, batch, key) -> (loss, metrics).

The loss and each metric is a `Mean`, which gradient accumulation combines
exactly, or a scalar, whose mean over micro-batches is taken.

Labels and target tokens follow the rule of `figs_jax.data.labels`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.data.batch_checks import check_range, entries, type_name
from figs_jax.data.labels import IGNORED, label_weights, padded
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


def check_loss(loss: Any) -> None:
  """Raises ValueError unless a loss takes (model, batch, key).

  >>> check_loss(lambda model, batch, key: (jnp.mean(model(batch)), {}))
  """
  try:
    signature = inspect.signature(loss)
  except ValueError:  # not every callable has one
    return
  except TypeError:
    raise ValueError(
      f"loss: expected a function of (model, batch, key), got {type_name(loss)}"
    ) from None
  try:
    signature.bind(None, None, None)
  except TypeError:
    raise ValueError(
      "loss: expected a function of (model, batch, key), got one of"
      f" {signature}"
    ) from None


def check_result(result: Any) -> None:
  """Raises ValueError unless a loss has returned (loss, metrics).

  >>> check_result((jnp.ones(()), {}))
  """
  pair = isinstance(result, (tuple, list)) and not isinstance(result, Mean)
  if not pair or len(result) != 2 or not isinstance(result[1], Mapping):
    got = type_name(result)
    if pair and len(result) == 2:
      got = f"({type_name(result[0])}, {type_name(result[1])})"
    raise ValueError(
      "loss: expected (loss, metrics), a scalar and a dict, got"
      f" {got}; return (loss, {{}})"
    )
  value = result[0].total if isinstance(result[0], Mean) else result[0]
  numbers = isinstance(value, (int, float)) or hasattr(value, "dtype")
  if (
    not numbers
    or jnp.shape(value)
    or not jnp.issubdtype(jnp.result_type(value), jnp.floating)
  ):
    raise ValueError(
      "loss: expected a float scalar or a figs_jax.train.losses.Mean, got"
      f" {type_name(value)}; take the mean over the batch"
    )


def cross_entropy(
  model: nnx.Module, batch: dict[str, Any], key: Array
) -> tuple[Mean, dict[str, Mean]]:
  """Mean softmax cross-entropy of integer labels, and the accuracy.

  Args:
    model: Model from images to logits [batch, classes].
    batch: {"image": [batch, ...], "label": int [batch]}.
    key: Unused, since the model's own streams are seeded already.

  Raises:
    ValueError: If `entries` or `label_weights` raises it.
  """
  del key
  images, labels = entries(batch, "image", "label")
  logits = model(images)
  check_range("label", logits.shape[-1], IGNORED)
  losses, hits, weights = label_losses(logits, labels)
  return _mean(losses, weights), {"accuracy": _mean(hits, weights)}


def label_losses(logits: Array, labels: Any) -> tuple[Array, Array, Array]:
  """(loss in nats, hit, weight) of each label, float32; see `label_weights`.

  Args:
    logits: Float [..., classes].
    labels: Int [...].

  Raises:
    ValueError: If the shapes differ, or `label_weights` raises it.
  """
  if jnp.shape(labels) != logits.shape[:-1]:
    raise ValueError(
      f"expected labels of shape {list(logits.shape[:-1])}, one for each row of"
      f" logits {list(logits.shape)}, got {list(jnp.shape(labels))}; of one-hot"
      " rows take argmax(-1)"
    )
  weights = label_weights(labels, logits.shape[-1])
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(weights == 1, labels, 0)
  )
  hits = jnp.argmax(logits, -1) == labels
  return losses.astype(jnp.float32), hits.astype(jnp.float32), weights


@dataclasses.dataclass(frozen=True)
class MixedCrossEntropy:
  """Cross-entropy with mixup and label smoothing, drawn inside the step.

  With both at 0 it equals `cross_entropy`. For mixed images, the accuracy
  counts the label with the larger share. An image that is mixed with an ignored
  one counts with its share.

  Attributes:
    num_classes: Number of classes.
    mixup: Parameter alpha of mixup; 0 disables it.
    smoothing: Label smoothing.
    binary: Whether the loss is the binary cross-entropy of each class,
      averaged over classes as in timm, instead of that of a softmax.
  """

  num_classes: int
  mixup: float = 0.0
  smoothing: float = 0.0
  binary: bool = False

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Mean, dict[str, Mean]]:
    images, labels = entries(batch, "image", "label")
    check_range("label", self.num_classes, IGNORED)
    weights = label_weights(labels, self.num_classes)
    targets = jax.nn.one_hot(labels, self.num_classes)
    targets = optax.smooth_labels(targets, self.smoothing) * weights[:, None]
    if self.mixup:
      both = jnp.concatenate([targets, weights[:, None]], axis=1)
      images, both = mixup(key, images, both, self.mixup)
      targets, weights = both[:, :-1], both[:, -1]
    targets /= jnp.where(weights == 0, 1.0, weights)[:, None]
    logits = model(images)
    if self.binary:
      losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    else:
      losses = optax.softmax_cross_entropy(logits, targets)
    hits = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
    return _mean(losses, weights), {"accuracy": _mean(hits, weights)}


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
  """Mean cross-entropy of target tokens given the tokens before them, in nats.

  The mean is over the tokens of the whole batch, without padding (id 0) and
  ignored (-100) ones, which the model sees as padding. The accuracy is the
  share of tokens that the model ranks first.

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

    Raises:
      ValueError: If `entries`, `label_weights` or the model raises it.
    """
    del key
    inputs, targets = entries(batch, "inputs", "targets")
    targets = padded(targets)
    logits = self.logits(model, inputs, targets)
    check_range("inputs", logits.shape[-1])
    check_range("targets", logits.shape[-1], IGNORED)
    losses, hits, counted = token_losses(logits, targets, self.smoothing)
    tokens = counted.sum()
    return Mean(losses.sum(), tokens), {"accuracy": Mean(hits.sum(), tokens)}

  @staticmethod
  def logits(model: nnx.Module, inputs: Array, targets: Array) -> Array:
    """What the model predicts for each target token."""
    return model(inputs, targets)


class NextToken(TeacherForcing):
  """Mean cross-entropy of the token after each input token, in nats.

  As `TeacherForcing`, for a causal model from inputs to logits: targets are the
  inputs one place later, or padding where the loss does not count.
  """

  @staticmethod
  def logits(model: nnx.Module, inputs: Array, targets: Array) -> Array:
    """What the model predicts after each input token."""
    del targets
    return model(inputs)


teacher_forcing = TeacherForcing()
next_token = NextToken()


def token_losses(
  logits: Array, targets: Any, smoothing: float = 0.0
) -> tuple[Array, Array, Array]:
  """(loss in nats, hit, counted) of each token, float32; 0 at padding.

  Args:
    logits: Float [batch, length, vocabulary].
    targets: Int [batch, length], where 0 is padding; see `label_weights` too.
    smoothing: Label smoothing.
  """
  losses, hits, weights = label_losses(logits, targets)
  counted = jnp.where(jnp.equal(targets, 0), 0.0, weights)
  if smoothing:
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    losses = (1 - smoothing) * losses + smoothing * uniform
  return losses * counted, hits * counted, counted


def _mean(values: Array, weights: Array) -> Mean:
  total = (values.astype(jnp.float32) * weights).sum()
  return Mean(total, weights.sum())
