"""Losses: functions (model, batch, key) -> (loss, metrics).

The loss and each metric is a `Mean`, which gradient accumulation combines
exactly, or a scalar, whose mean over micro-batches is taken.

Labels and target tokens follow the rule of `figs_jax.data.labels`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.data.batch_checks import check_range, entries, segments, type_name
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


def check_rows(loss: Any, recipe: str) -> None:
  """Raises ValueError unless a loss has `rows`, of whose logits others learn.

  Args:
    loss: Loss of a run.
    recipe: Name of its recipe, for the message.
  """
  if not isinstance(loss, LogitLoss):
    raise ValueError(
      f"recipe {recipe!r} with distill=True: expected a loss that is a"
      f" LogitLoss, as cross_entropy, got {type_name(loss)}; set distill=False"
    )


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


class Rows(NamedTuple):
  """What a loss over logits is the mean of, an entry per example or token.

  Attributes:
    inputs: Arguments of the call of the model.
    logits: Float [..., classes].
    losses: Losses in nats [...].
    hits: Whether the model ranks the target first [...], as 0 or 1.
    weights: Share with which the entry counts [...], 0 if it is ignored.
  """

  inputs: tuple[Any, ...]
  logits: Any
  losses: Any
  hits: Any
  weights: Any

  def means(self) -> tuple[Mean, dict[str, Mean]]:
    """The loss and its metrics."""
    accuracy = _mean(self.hits, self.weights)
    return _mean(self.losses, self.weights), {"accuracy": accuracy}


class LogitLoss:
  """A loss that is the mean of `rows`; `distill` takes any of them."""

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """Calls the model once and returns the entries of the batch.

    Args:
      model: Model from inputs to logits.
      batch: Arrays of a batch.
      key: Key of the loss's own draws.
    """
    raise NotImplementedError

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """Loss and accuracy of a batch.

    Args:
      model, batch, key: Same as in `rows`.

    Raises:
      ValueError: If `rows` raises it.
    """
    return self.rows(model, batch, key).means()


@dataclasses.dataclass(frozen=True)
class CrossEntropy(LogitLoss):
  """Mean softmax cross-entropy of integer labels, and the accuracy."""

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """The entries of a batch of images.

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
    return Rows((images,), logits, *label_losses(logits, labels))


cross_entropy = CrossEntropy()


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
class MixedCrossEntropy(LogitLoss):
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

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """The entries of a batch of images, as in `CrossEntropy.rows`."""
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
    return Rows((images,), logits, losses, hits, weights)


@dataclasses.dataclass(frozen=True)
class TeacherForcing(LogitLoss):
  """Mean cross-entropy of target tokens given the tokens before them, in nats.

  The mean is over the tokens of the whole batch, without padding (id 0) and
  ignored (-100) ones, which the model sees as padding. The accuracy is the
  share of tokens that the model ranks first.

  Attributes:
    smoothing: Label smoothing over the whole vocabulary.
  """

  smoothing: float = 0.0

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """The entries of a batch of token rows.

    Args:
      model: Model from (inputs, targets) to logits [batch, length, vocabulary];
        it shifts the targets itself.
      batch: {"inputs": int [batch, n], "targets": int [batch, length]}, and the
        segments of packed rows.
      key: Unused, since the model's own streams are seeded already.

    Raises:
      ValueError: If `entries`, `label_weights` or the model raises it.
    """
    del key
    inputs, targets = entries(batch, "inputs", "targets")
    targets = padded(targets)
    arguments = self.arguments(inputs, targets, segments(batch))
    logits = model(*arguments)
    check_range("inputs", logits.shape[-1])
    check_range("targets", logits.shape[-1], IGNORED)
    scores = token_losses(logits, targets, self.smoothing)
    return Rows(arguments, logits, *scores)

  @staticmethod
  def arguments(inputs: Any, targets: Any, segments: Any = ()) -> tuple:
    """What the model is called with; segments of packed rows, or none."""
    return (inputs, targets, segments) if segments else (inputs, targets)


class NextToken(TeacherForcing):
  """Mean cross-entropy of the token after each input token, in nats.

  As `TeacherForcing`, for a causal model from inputs to logits: targets are the
  inputs one place later, or padding where the loss does not count.
  """

  @staticmethod
  def arguments(inputs: Any, targets: Any, segments: Any = ()) -> tuple:
    """What the model is called with; segments of packed rows, or none."""
    del targets
    return (inputs, None, *segments) if segments else (inputs,)


teacher_forcing = TeacherForcing()
next_token = NextToken()


@dataclasses.dataclass(frozen=True)
class MaskedTokens(LogitLoss):
  """Mean cross-entropy of masked tokens, in nats (arXiv 1810.04805, 3.1).

  The mean is over the tokens of the whole batch that `targets` gives, without
  padding (id 0) and ignored (-100) ones. The accuracy is the share of tokens
  that the model ranks first.

  Attributes:
    smoothing: Label smoothing over the whole vocabulary.
  """

  smoothing: float = 0.0

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """The entries of a batch of token rows.

    Args:
      model: Model from (inputs, types) to logits [batch, length, vocabulary].
      batch: {"inputs": int [batch, length], "types": token types and "targets":
        the ids to predict, 0 elsewhere, of the same shape}.
      key: Unused, since the model's own streams are seeded already.

    Raises:
      ValueError: If `entries`, `label_weights` or the model raises it.
    """
    del key
    inputs, types, targets = entries(batch, "inputs", "types", "targets")
    arguments = inputs, types, *segments(batch)
    logits = model(*arguments)
    check_range("inputs", logits.shape[-1])
    check_range("targets", logits.shape[-1], IGNORED)
    scores = token_losses(logits, padded(targets), self.smoothing)
    return Rows(arguments, logits, *scores)


masked_tokens = MaskedTokens()


@dataclasses.dataclass(frozen=True)
class TextLabels(LogitLoss):
  """Mean softmax cross-entropy of the labels of texts, and the accuracy.

  Attributes:
    smoothing: Label smoothing.
  """

  smoothing: float = 0.0

  def rows(self, model: nnx.Module, batch: dict[str, Any], key: Array) -> Rows:
    """The entries of a batch of texts.

    Args:
      model: Model from (inputs, types) to logits [batch, classes].
      batch: {"inputs": int [batch, length], "types": token types of the same
        shape, "label": int [batch]}.
      key: Unused, since the model's own streams are seeded already.

    Raises:
      ValueError: If `entries`, `label_weights` or the model raises it.
    """
    del key
    inputs, types, labels = entries(batch, "inputs", "types", "label")
    logits = model(inputs, types)
    check_range("label", logits.shape[-1], IGNORED)
    losses, hits, weights = label_losses(logits, labels)
    if self.smoothing:
      uniform = -jax.nn.log_softmax(logits).mean(-1)
      losses = (1 - self.smoothing) * losses + self.smoothing * uniform
    return Rows((inputs, types), logits, losses, hits, weights)


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


class Teacher:
  """A model in evaluation mode, split into its graph and its arrays.

  A teacher equals itself only, so that a step is compiled for one.

  Attributes:
    graphdef: Static part of the model.
    arrays: Its variables, a pytree.
  """

  def __init__(self, model: nnx.Module):
    model = nnx.clone(model)
    model.eval()
    self.graphdef, self.arrays = nnx.split(model)

  def logits(self, arrays: Any, inputs: tuple[Any, ...]) -> Array:
    """Logits of the inputs, without a gradient.

    Args:
      arrays: Arrays of the teacher, which may be traced or placed elsewhere.
      inputs: Arguments of the call of the student.
    """
    model: Any = nnx.merge(self.graphdef, arrays)
    return jax.lax.stop_gradient(model(*inputs))


@dataclasses.dataclass(frozen=True)
class Distill:
  """A loss with a teacher, see `distill`.

  Attributes:
    teacher: Model to learn from.
    temperature: Temperature T of both softmaxes.
    weight: Share of the teacher's term.
    loss: Loss of the labels; None takes the one that the batch fits.
    arrays: Arrays of the teacher in the place of its own, see `with_constants`.
  """

  teacher: Teacher
  temperature: float
  weight: float
  loss: LogitLoss | None = None
  arrays: Any = dataclasses.field(default=None, compare=False, repr=False)

  @property
  def constants(self) -> Any:
    """Arrays that the loss reads; a compiled step takes them as arguments."""
    return self.teacher.arrays

  def with_constants(self, arrays: Any) -> Distill:
    """The same loss with these arrays, for use inside a trace.

    Args:
      arrays: Pytree like `constants`.
    """
    return dataclasses.replace(self, arrays=arrays)

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Array
  ) -> tuple[Mean, dict[str, Mean]]:
    """Loss and metrics of a batch.

    Args:
      model: Student.
      batch: Arrays of a batch, as the loss of the labels takes them.
      key: Key of the draws of that loss.

    Raises:
      ValueError: If that loss raises it, or the logits of student and teacher
        differ in shape.
    """
    of_labels = self.loss or _of_labels(model, batch)
    rows = of_labels.rows(model, batch, key)
    if self.weight == 0:  # bit-equal, and the teacher costs nothing
      return rows.means()
    arrays = self.teacher.arrays if self.arrays is None else self.arrays
    teacher = self.teacher.logits(arrays, rows.inputs)
    soft = self.temperature**2 * kl_divergence(
      teacher, rows.logits, self.temperature
    )
    hard, metrics = rows.means()
    # L = (1 - w) CE + w T² KL(teacher || student)    (1503.02531, sec. 2)
    weighed = (1 - self.weight) * rows.losses + self.weight * soft
    metrics |= {"label_loss": hard, "teacher_loss": _mean(soft, rows.weights)}
    return _mean(weighed, rows.weights), metrics


def _of_labels(model: nnx.Module, batch: dict[str, Any]) -> LogitLoss:
  if "types" in batch:
    return masked_tokens if "targets" in batch else TextLabels()
  if "targets" not in batch:
    return cross_entropy
  causal = getattr(model, "task", None) == "causal_text"
  return next_token if causal else teacher_forcing


def kl_divergence(
  teacher: Array, student: Array, temperature: float = 1.0
) -> Array:
  """KL(p || q) in nats of each row, p of the teacher and q of the student.

  p = softmax(teacher / T) and q = softmax(student / T), in float32. Hinton et
  al. multiply it by T², so that its gradient does not shrink with T.

  Args:
    teacher: Logits [..., classes].
    student: Logits [..., classes].
    temperature: T > 0.

  Raises:
    ValueError: If the shapes differ.

  >>> student = jnp.log(jnp.array([0.25, 0.75]))
  >>> round(float(kl_divergence(jnp.zeros(2), student)), 4)  # log(4/3) / 2
  0.1438
  """
  if teacher.shape != student.shape:
    raise ValueError(
      f"teacher: expected logits of shape {list(student.shape)}, those of the"
      f" student, got {list(teacher.shape)}; distill from a model with the same"
      " classes (or vocabulary) and lengths"
    )
  log_p, log_q = (
    jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    for logits in (teacher, student)
  )
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def distill(
  teacher: nnx.Module | Teacher,
  temperature: float = 2.0,
  weight: float = 0.5,
  loss: LogitLoss | None = None,
) -> Distill:
  """A loss that also follows a teacher (Hinton et al., arXiv 1503.02531).

  L = (1 - weight) * loss + weight * T² * KL(p || q), where p and q are the
  softmaxes of the teacher's and the student's logits over T. The mean of both
  terms is over the examples or tokens that `loss` counts. The teacher sees the
  student's own inputs (mixed images too), in evaluation mode and without a
  gradient. Its arrays are arguments of the compiled step: neither parameters of
  the state nor part of its checkpoints.

  Args:
    teacher: Model that maps the student's inputs to logits of the same shape.
    temperature: T > 0.
    weight: Share of the teacher's term, in [0, 1].
    loss: Loss of the labels. Defaults to the one that batch and model fit:
      `cross_entropy`, or for text `teacher_forcing`, `next_token`,
      `masked_tokens` or `TextLabels()`.

  Raises:
    ValueError: If an argument is invalid, or `loss` has no `rows`.

  >>> student, teacher = (nnx.Linear(4, 3, rngs=nnx.Rngs(i)) for i in range(2))
  >>> batch = {"image": jnp.ones((2, 4)), "label": jnp.array([0, 2])}
  >>> loss, metrics = distill(teacher)(student, batch, jax.random.key(0))
  >>> sorted(metrics)
  ['accuracy', 'label_loss', 'teacher_loss']
  """
  if not isinstance(teacher, (nnx.Module, Teacher)):
    raise ValueError(
      "teacher: expected an nnx.Module, as from"
      " figs_jax.models.from_pretrained(path) or"
      " figs_jax.train.workdir.finished_model(workdir), got"
      f" {type_name(teacher)}"
    )
  if not 0 < temperature < math.inf:
    raise ValueError(f"temperature: expected T > 0, got {temperature!r}")
  if not 0 <= weight <= 1:
    raise ValueError(f"weight: expected a share in [0, 1], got {weight!r}")
  if loss is not None and not isinstance(loss, LogitLoss):
    raise ValueError(
      "loss: expected a figs_jax.losses.LogitLoss, as cross_entropy, got"
      f" {type_name(loss)}; in a loss of your own add kl_divergence(teacher"
      " logits, student logits, temperature) instead"
    )
  if not isinstance(teacher, Teacher):
    teacher = Teacher(teacher)
  return Distill(teacher, float(temperature), float(weight), loss)
