"""Which labels of classes and target tokens count.

One rule holds for losses and measures: `IGNORED` (-100) counts in neither sum
nor weight, nor does padding (token 0). Any other label outside of the classes
raises ValueError; inside a trace, where values are not known, its weight is
NaN, and so is the loss.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

IGNORED = -100


def label_weights(labels: Any, classes: int) -> Array:
  """1 for a label that counts, 0 for `IGNORED`, NaN for others in a trace.

  Args:
    labels: Int [...].
    classes: Number of classes; labels are 0 to classes - 1.

  Raises:
    ValueError: If labels are not integers, or one that is neither is known.

  >>> label_weights(jnp.array([2, -100]), 3).tolist()
  [1.0, 0.0]
  """
  if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
    raise ValueError(
      "expected labels as integers, the indices of classes, got"
      f" {jnp.result_type(labels)}; convert them with astype('int32'), or"
      " one-hot rows with argmax(-1)"
    )
  ignored = jnp.equal(labels, IGNORED)
  known = ignored | ((labels >= 0) & (labels < classes))
  if not isinstance(known, jax.core.Tracer) and not known.all():
    wrong = jnp.asarray(labels)[~known].ravel()[0]
    raise ValueError(
      f"expected labels from 0 to {classes - 1}, or {IGNORED} for those to"
      f" ignore, got {wrong}; set the number of classes (vocab= of T5), or"
      " correct the data"
    )
  return jnp.where(ignored, 0.0, jnp.where(known, 1.0, jnp.nan))


def padded(targets: Any) -> Array:
  """The targets with padding (id 0) in place of `IGNORED`.

  >>> padded(jnp.array([5, -100, 1])).tolist()
  [5, 0, 1]
  """
  return jnp.where(jnp.equal(targets, IGNORED), 0, targets)
