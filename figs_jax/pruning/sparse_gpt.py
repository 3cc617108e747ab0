"""SparseGPT: pruning input by input, with the optimal update of the rest.

Frantar and Alistarh, arXiv 2301.00774. Weights are removed input by input. The
error (OBS, Hassibi and Stork 1993) of removing w_i, after the best change of
the weights of later inputs, is w_i^2 / [H_F^-1]_ii, where H_F is H of the
inputs that are left. With the upper Cholesky factor U of H^-1 = U^T U,
[H_F^-1]_ii = U_ii^2, and that change is -(w_i / U_ii) U_i.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from figs_jax.core.types import Array, Bool, Float
from figs_jax.pruning.choice import Choice
from figs_jax.pruning.moments import damped, dead_inputs, product


@functools.partial(jax.jit, static_argnums=2, static_argnames="block")
def sparsegpt(
  kernel: Float[Array, "k n"],
  moment: Float[Array, "k k"],
  choice: Choice,
  *,
  damping: Float[Array, ""] | float = 0.01,
  mask: Bool[Array, "k n"] | None = None,
  block: int = 128,
) -> tuple[Float[Array, "k n"], Bool[Array, "k n"]]:
  """The pruned and updated kernel, and its mask.

  The mask of a group is chosen when its first input is reached, by the error
  w_i^2 / [H_F^-1]_ii of its weights (arXiv 2301.00774, section 3.3).

  Args:
    kernel: W.
    moment: H.
    choice: Pattern of the mask.
    damping: Share of the mean of H's diagonal that is added to it.
    mask: Mask to use in place of the chosen one.
    block: Number of inputs whose effect on later ones is applied at once. It
      changes the speed only.

  >>> w, h = jnp.array([[2.0], [1.0]]), jnp.array([[2.0, 1.0], [1.0, 1.0]])
  >>> from figs_jax.core.pattern import NM
  >>> pruned, mask = sparsegpt(w, h, Choice(NM(1, 2)), damping=0.0)
  >>> pruned.tolist(), mask.tolist()  # the second weight is not yet updated
  ([[2.0], [0.0]], [[True], [False]])
  """
  m = choice.pattern.m
  length, width = kernel.shape
  # As long as `block`, a multiple of m, and a divisor of the length.
  groups = length // m
  size = m * max(
    d
    for d in range(1, groups + 1)
    if groups % d == 0 and d * m <= max(block, m)
  )
  factor = upper_factor(damped(moment, damping))
  diagonal = jnp.diagonal(factor)

  def one_block(b, state):
    weights, kept = state
    start = b * size
    part = lax.dynamic_slice_in_dim(weights, start, size)
    corner = lax.dynamic_slice(factor, (start, start), (size, size))
    scale = lax.dynamic_slice_in_dim(diagonal, start, size)
    given = lax.dynamic_slice_in_dim(kept, start, size)

    def one_group(g, state):
      part, given, errors = state
      first = g * m
      if mask is None:
        group = lax.dynamic_slice_in_dim(part, first, m)
        own = lax.dynamic_slice_in_dim(scale, first, m)
        chosen = choice((group / own[:, None]) ** 2)
        given = lax.dynamic_update_slice_in_dim(given, chosen, first, 0)

      def one_input(i, state):
        part, errors = state
        w = lax.dynamic_index_in_dim(part, i, 0, False)
        keeps = lax.dynamic_index_in_dim(given, i, 0, False)
        error = jnp.where(keeps, 0, w) / scale[i]
        row = lax.dynamic_index_in_dim(corner, i, 0, False)
        row = jnp.where(jnp.arange(size) > i, row, 0)
        part = part - row[:, None] * error[None]
        part = lax.dynamic_update_index_in_dim(
          part, jnp.where(keeps, w, 0), i, 0
        )
        return part, lax.dynamic_update_index_in_dim(errors, error, i, 0)

      part, errors = lax.fori_loop(first, first + m, one_input, (part, errors))
      return part, given, errors

    errors = jnp.zeros_like(part)
    part, given, errors = lax.fori_loop(
      0, size // m, one_group, (part, given, errors)
    )
    rows = lax.dynamic_slice_in_dim(factor, start, size)
    later = jnp.arange(length) >= start + size
    weights = weights - product(jnp.where(later[None], rows, 0).T, errors)
    weights = lax.dynamic_update_slice_in_dim(weights, part, start, 0)
    return weights, lax.dynamic_update_slice_in_dim(kept, given, start, 0)

  kept = jnp.zeros((length, width), bool) if mask is None else mask
  # Weights of dead inputs are the first to go.
  dead = dead_inputs(moment)[:, None]
  start = jnp.where(dead, 0, kernel), kept
  pruned, kept = lax.fori_loop(0, length // size, one_block, start)
  return jnp.where(dead & kept, kernel, pruned), kept


def upper_factor(moment: Float[Array, "k k"]) -> Float[Array, "k k"]:
  """The upper triangular U with H^-1 = U^T U.

  With rows and columns in reverse order, H = C C^T and U is the inverse of C.
  H is never inverted, which would lose digits.

  >>> upper_factor(jnp.diag(jnp.array([4.0, 1.0]))).tolist()
  [[0.5, 0.0], [0.0, 1.0]]
  """
  lower = jnp.linalg.cholesky(moment[::-1, ::-1])[::-1, ::-1]
  eye = jnp.eye(len(moment), dtype=moment.dtype)
  return jax.scipy.linalg.solve_triangular(lower, eye, lower=False)


def obs_scores(
  kernel: Float[Array | np.ndarray, "k n"],
  moment: Float[Array | np.ndarray, "k k"],
  damping: Float[Array, ""] | float,
) -> Float[Array, "k n"]:
  """w_i^2 / [H^-1]_ii, the error of removing one weight with the best update.

  For a diagonal H it is the square of `wanda_scores`.

  Args:
    kernel: W.
    moment: H.
    damping: Share of the mean of H's diagonal that is added to it.

  >>> obs_scores(jnp.array([[3.0]]), jnp.array([[4.0]]), 0.0).tolist()
  [[36.0]]
  """
  factor = upper_factor(damped(moment, damping))
  return jnp.square(kernel) / jnp.sum(factor**2, 0)[:, None]
