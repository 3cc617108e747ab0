"""Losses: labels that count, are ignored or are refused, by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax.data.labels import IGNORED
from figs_jax.data.mixup import mixup
from figs_jax.train.losses import (
  MixedCrossEntropy,
  TeacherForcing,
  cross_entropy,
  teacher_forcing,
)
from figs_jax.train.metrics import LabelAccuracy
from tests.models import families

pytestmark = pytest.mark.standard_promotion
KEY = jax.random.key(0)
LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SOFTMAX = {
  "plain": cross_entropy,
  "mixed": MixedCrossEntropy(3),
  "smooth": MixedCrossEntropy(3, smoothing=0.1),
}
LOSSES = {
  **SOFTMAX,
  "mixup": MixedCrossEntropy(3, mixup=0.5, smoothing=0.1),
  "bce": MixedCrossEntropy(3, binary=True),
}


class Itself(nnx.Module):
  """The logits are the images, or the logits of every token."""

  def __call__(self, inputs, targets=None):
    return jnp.asarray(inputs)


def values(loss, labels, logits=LOGITS):
  batch = {"image": jnp.asarray(logits), "label": np.array(labels)}
  loss, metrics = loss(Itself(), batch, KEY)
  return float(loss.value), float(metrics["accuracy"].value)


def log_softmax(logits):
  logits = np.float64(logits)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", SOFTMAX)
def test_ignored_labels_do_not_count(name):
  labels = np.array([2, IGNORED, 0, 1])
  kept = labels != IGNORED
  rows, smoothing = log_softmax(LOGITS)[kept], 0.1 * (name == "smooth")
  nats = -(1 - smoothing) * rows[np.arange(3), labels[kept]]
  nats -= smoothing * rows.mean(-1)
  hits = LOGITS[kept].argmax(-1) == labels[kept]
  wanted = pytest.approx((nats.mean(), hits.mean()), rel=1e-6)
  assert values(SOFTMAX[name], labels) == wanted


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_ignored_labels_is_zero(name):
  assert values(LOSSES[name], [IGNORED] * 4) == (0.0, 0.0)


@pytest.mark.parametrize("label", [-1, 3, 2**31 - 1, -101])
@pytest.mark.parametrize("name", LOSSES)
def test_other_labels_are_refused(name, label):
  """-1 was trained as the last class, 3 gave NaN, and both 0 when mixed."""
  labels = np.array([0, label, 1, 2])
  with pytest.raises(ValueError, match=f"from 0 to 2, or -100 .* {label}; set"):
    values(LOSSES[name], labels)

  def traced(labels):
    batch = {"image": jnp.asarray(LOGITS), "label": labels}
    return LOSSES[name](Itself(), batch, KEY)[0].value

  assert np.isnan(jax.jit(traced)(labels))


def test_binary_cross_entropy_by_hand():
  """The mean over examples and classes, as in timm."""
  labels = np.array([2, 1, 0, 1])
  p = 1 / (1 + np.exp(-np.float64(LOGITS)))
  y = np.eye(3)[labels] * 0.9 + 0.1 / 3
  wanted = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
  loss = MixedCrossEntropy(3, smoothing=0.1, binary=True)
  assert values(loss, labels)[0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_a_mixed_image_counts_with_its_share(binary):
  labels = np.array([2, IGNORED, 0, 1])
  images, shares = mixup(KEY, jnp.asarray(LOGITS), jnp.eye(4), 0.5)
  shares = np.asarray(shares, np.float64)
  y = shares[:, labels != IGNORED] @ np.eye(3)[[2, 0, 1]]
  weights = y.sum(-1)
  assert sorted(np.round(weights, 6)) != [1] * 4
  if binary:
    p, y = 1 / (1 + np.exp(-np.float64(images))), y / weights[:, None]
    each = (y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1) * weights
  else:
    each = (log_softmax(images) * y).sum(-1)
  loss = MixedCrossEntropy(3, mixup=0.5, binary=binary)
  wanted = -each.sum() / weights.sum()
  assert values(loss, labels)[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_tokens_are_padding(smoothing):
  """Of T5 too, which would look -100 up; gradients are finite."""
  model = families.create("t5")
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 24, (2, 2, 5), np.int32)
  targets[0, 3:], targets[1, 1] = IGNORED, IGNORED
  loss = TeacherForcing(smoothing)

  def of(targets):
    batch = {"inputs": inputs, "targets": targets}
    return nnx.value_and_grad(lambda m: loss(m, batch, KEY)[0].value)(model)

  value, grads = of(targets)
  same, _ = of(np.where(targets == IGNORED, 0, targets))
  assert np.isfinite(value) and value == same
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("token", [-1, 3])
def test_other_tokens_are_refused(token):
  batch = {"inputs": LOGITS[None], "targets": np.array([[0, 1, 2, token]])}
  with pytest.raises(ValueError, match=f"from 0 to 2, .* got {token}; .*vocab"):
    teacher_forcing(Itself(), batch, KEY)

  def traced(targets):
    return teacher_forcing(Itself(), {**batch, "targets": targets}, KEY)

  assert np.isnan(jax.jit(traced)(batch["targets"])[0].value)


def test_evaluation_ignores_the_same():
  valid = np.array([True, True, True, False])
  batch = {"image": LOGITS, "label": np.array([2, IGNORED, 0, 1])}
  measure = LabelAccuracy()
  sums = measure.count(measure.each(Itself(), {**batch, "valid": valid}))
  wanted = -log_softmax(LOGITS)[[0, 2], [2, 0]].sum()
  assert float(sums["seen"]) == 2.0
  assert float(sums["losses"]) == pytest.approx(wanted, rel=1e-6)
