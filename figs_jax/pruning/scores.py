"""Scores that choose a mask without an update of the weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from figs_jax.core.types import Array, Float


def magnitude_scores(
  kernel: Float[Array | np.ndarray, "k n"],
) -> Float[Array, "k n"]:
  """|W|.

  Args:
    kernel: W.

  >>> magnitude_scores(jnp.array([[-2.0], [1.0]])).tolist()
  [[2.0], [1.0]]
  """
  return jnp.abs(kernel)


def wanda_scores(
  kernel: Float[Array | np.ndarray, "k n"],
  moment: Float[Array | np.ndarray, "k k"],
) -> Float[Array, "k n"]:
  """|W_ij| ||X_i|| (arXiv 2306.11695, eq. 1), with ||X_i||^2 = H_ii.

  Args:
    kernel: W.
    moment: H.

  >>> w = jnp.array([[-2.0], [1.0]])
  >>> wanda_scores(w, jnp.diag(jnp.array([1.0, 9.0]))).tolist()
  [[2.0], [3.0]]
  """
  return jnp.abs(kernel) * _norms(moment)


def ria_scores(
  kernel: Float[Array | np.ndarray, "k n"],
  moment: Float[Array | np.ndarray, "k k"],
  exponent: float = 0.5,
) -> Float[Array, "k n"]:
  """Relative importance and activations (RIA).

  |W_ij| (1 / sum_i |W_ij| + 1 / sum_j |W_ij|) ||X_i||^exponent, of Zhang et
  al., "Plug-and-Play" (ICLR 2024). A weight that is large among those of its
  input or of its output counts more, so that no channel is lost altogether.

  Args:
    kernel: W.
    moment: H.
    exponent: Power of the norm of an input.

  >>> w = jnp.array([[3.0, 1.0], [1.0, 1.0]])
  >>> ria_scores(w, jnp.eye(2)).tolist()
  [[1.5, 0.75], [0.75, 1.0]]
  """
  size = jnp.abs(kernel)
  columns, rows = size.sum(0, keepdims=True), size.sum(1, keepdims=True)
  relative = sum(
    jnp.where(total > 0, size / jnp.where(total > 0, total, 1), 0)
    for total in (columns, rows)
  )
  return relative * _norms(moment) ** exponent


def _norms(moment: Float[Array | np.ndarray, "k k"]) -> Float[Array, "k 1"]:
  """||X_i|| of every input."""
  return jnp.sqrt(jnp.maximum(jnp.diagonal(moment), 0))[:, None]
