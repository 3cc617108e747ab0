"""The best weights of a mask, by preconditioned conjugate gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.types import Array, Bool, Float
from figs_jax.pruning.moments import damped, product


@functools.partial(jax.jit, static_argnames="steps")
def refit(
  kernel: Float[Array, "k n"],
  moment: Float[Array, "k k"],
  mask: Bool[Array, "k n"],
  *,
  damping: Float[Array, ""] | float = 0.01,
  steps: int = 1000,
  tolerance: Float[Array, ""] | float = 1e-6,
  start: Float[Array, "k n"] | None = None,
) -> Float[Array, "k n"]:
  """The W' on the mask with the least ||X W - X W'||^2.

  All columns are solved at once: conjugate gradients on the entries of the
  mask, with the diagonal of H as preconditioner (ALPS, arXiv 2406.07831,
  algorithm 2). With damping, the damped H is used on both sides, so that W'
  minimizes ||X W - X W'||^2 + damping mean(diag H) ||W - W'||^2.

  Args:
    kernel: W.
    moment: H.
    mask: Support of W'.
    damping: Share of the mean of H's diagonal that is added to it.
    steps: Largest number of steps.
    tolerance: Largest norm of a column's residual, as a share of its right-hand
      side.
    start: First guess. Defaults to W on the mask.

  >>> w, h = jnp.array([[2.0], [1.0]]), jnp.array([[2.0, 1.0], [1.0, 1.0]])
  >>> refit(w, h, jnp.array([[True], [False]]), damping=0.0).tolist()
  [[2.5], [0.0]]
  """
  h = damped(moment, damping)
  inverse = 1 / jnp.diagonal(h)[:, None]
  target = jnp.where(mask, product(h, kernel), 0)

  def dot(a, b):
    return jnp.sum(a * b, 0, keepdims=True)

  limit = tolerance**2 * dot(target, target)

  def ratio(a, b):  # a column that is solved stays as it is
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

  def unfinished(state):
    step, _, residual, _, _ = state
    return (step < steps) & jnp.any(dot(residual, residual) > limit)

  def advance(state):
    step, x, residual, direction, size = state
    image = jnp.where(mask, product(h, direction), 0)
    length = ratio(size, dot(direction, image))
    x, residual = x + length * direction, residual - length * image
    preconditioned = inverse * residual
    new = dot(residual, preconditioned)
    direction = preconditioned + ratio(new, size) * direction
    return step + 1, x, residual, direction, new

  x = jnp.where(mask, kernel if start is None else start, 0)
  residual = target - jnp.where(mask, product(h, x), 0)
  direction = inverse * residual
  size = dot(residual, direction)
  state = (jnp.asarray(0), x, residual, direction, size)
  return lax.while_loop(unfinished, advance, state)[1]
