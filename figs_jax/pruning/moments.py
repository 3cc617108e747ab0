"""Second moments H = X^T X of a layer's inputs, and what is read from them.

A layer computes X W with inputs X [rows, K] and a kernel W [K, N]. What pruning
needs of the inputs is H [K, K] alone: ||X D||^2 = tr(D^T H D) for every D.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.types import Array, Float


@jax.jit
def layer_error(
  kernel: Float[Array, "k n"],
  pruned: Float[Array, "k n"],
  moment: Float[Array, "k k"],
) -> Float[Array, ""]:
  """||X W - X W'||^2 / ||X W||^2, from H = X^T X; 0 if X W is 0.

  Args:
    kernel: W.
    pruned: W'.
    moment: H.

  >>> x, w = jnp.array([[1., 2.], [0., 1.]]), jnp.array([[3.], [1.]])
  >>> pruned = w.at[1].set(0.0)
  >>> error = layer_error(w, pruned, x.T @ x)  # |(2, 1)|^2 / |(5, 1)|^2
  >>> round(float(error), 4)
  0.1923
  """
  lost, whole = energy(kernel - pruned, moment), energy(kernel, moment)
  return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1), 0.0)


def energy(
  change: Float[Array, "k n"], moment: Float[Array, "k k"]
) -> Float[Array, ""]:
  """||X D||^2 = tr(D^T H D).

  >>> float(energy(jnp.ones((2, 1)), jnp.eye(2)))
  2.0
  """
  return jnp.vdot(change, product(moment, change))


def product(
  left: Float[Array, "a b"], right: Float[Array, "b c"]
) -> Float[Array, "a c"]:
  """The matrix product in full precision, also on accelerators."""
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def dead_inputs(moment: Float[Array | np.ndarray, "k k"]) -> Array:
  """True at inputs that are 0 in every row.

  Args:
    moment: H.

  >>> dead_inputs(jnp.diag(jnp.array([1.0, 0.0]))).tolist()
  [False, True]
  """
  return jnp.diagonal(moment) <= 0


def damped(
  moment: Float[Array | np.ndarray, "k k"], damping: Float[Array, ""] | float
) -> Float[Array, "k k"]:
  """H + damping * mean(diag H) I, with diag 1 at dead inputs.

  Without damping, H is singular if there are fewer rows than inputs, or if
  inputs depend on each other. The mean is over all inputs (arXiv 2301.00774,
  section 4). Then no update changes the weights of a dead input.

  Args:
    moment: H.
    damping: Share of the mean of the diagonal, at least 0.

  >>> damped(jnp.diag(jnp.array([3.0, 0.0])), 0.1).tolist()
  [[3.1500000953674316, 0.0], [0.0, 1.0]]
  """
  diagonal = jnp.diagonal(moment)
  dead = diagonal <= 0
  added = jnp.where(dead, 1.0, damping * jnp.mean(diagonal))
  return jnp.asarray(moment) + jnp.diag(added.astype(moment.dtype))
