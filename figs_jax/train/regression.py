"""Errors of predicted scores, which the loss and the evaluation share."""

from __future__ import annotations

import jax.numpy as jnp

from figs_jax.core.types import Array, Float

# Largest error of a prediction that counts as right.
NEAR = 0.5


def squared_errors(
  outputs: Float[Array, "batch outputs"], scores: Float[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """((output - score)², whether the error is at most 1/2), float32.

  Args:
    outputs: The only output of a model for each text.
    scores: Scores.

  Raises:
    ValueError: If there is not one output for each score.

  >>> losses, near = squared_errors(jnp.array([[1.0], [3.0]]), jnp.ones(2))
  >>> losses.tolist(), near.tolist()
  ([0.0, 4.0], [1.0, 0.0])
  """
  if outputs.shape != (*jnp.shape(scores), 1):
    raise ValueError(
      f"expected one output for each score, [batch, 1], got outputs"
      f" {list(outputs.shape)} and scores {list(jnp.shape(scores))}; give the"
      " model num_classes=1"
    )
  error = outputs[:, 0].astype(jnp.float32) - jnp.asarray(scores, jnp.float32)
  return error**2, (jnp.abs(error) <= NEAR).astype(jnp.float32)
