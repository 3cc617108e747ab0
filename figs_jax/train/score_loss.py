"""The loss of scores of texts: regression, as for similarities of sentences."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from figs_jax.data.batch_checks import entries
from figs_jax.train.losses import Mean
from figs_jax.train.regression import squared_errors


class TextScores:
  """Mean squared error of the scores of texts.

  It has no softmax, which distillation would compare.

  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 9, "length": 4}
  >>> model = models.create("bert", "custom", output="classes", num_classes=1,
  ...                       **sizes)
  >>> ids = jnp.array([[1, 2, 3], [4, 5, 0]])
  >>> batch = {"inputs": ids, "types": 0 * ids, "score": jnp.array([1.0, 2.5])}
  >>> loss, metrics = TextScores()(model, batch, None)
  >>> list(metrics)
  ['accuracy']
  """

  def __call__(
    self, model: nnx.Module, batch: dict[str, Any], key: Any
  ) -> tuple[Mean, dict[str, Mean]]:
    """Loss, and as `accuracy` the share of errors of at most 1/2.

    Args:
      model: Model from (inputs, types) to outputs [batch, 1].
      batch: {"inputs": int [batch, length], "types": token types of the same
        shape, "score": float [batch]}.
      key: Unused, since the model's own streams are seeded already.

    Raises:
      ValueError: If `entries` or `squared_errors` raises it.
    """
    del key
    inputs, types, scores = entries(batch, "inputs", "types", "score")
    losses, near = squared_errors(model(inputs, types), scores)
    count = jnp.float32(len(losses))
    return Mean(losses.sum(), count), {"accuracy": Mean(near.sum(), count)}

  def __eq__(self, other: object) -> bool:
    return type(other) is type(self)

  def __hash__(self) -> int:
    return hash(type(self))
