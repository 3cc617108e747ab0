"""ALPS: the mask by ADMM, then the best weights of the mask.

Meng, Behdin, Wang and Mazumder, arXiv 2406.07831. The problem min ||X W' - X
W||^2 over W' with an allowed mask is split: W' solves a ridge regression, D has
an allowed mask, and V makes them agree (eq. 4). The penalty rho grows while the
support of D still changes (eq. 7), until it no longer does.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.types import Array, Bool, Float
from figs_jax.pruning.choice import Choice
from figs_jax.pruning.least_squares import refit
from figs_jax.pruning.moments import damped, dead_inputs, product

# Steps between two looks at the support, and how rho grows by the share of the
# kept entries that changed: 1.3 from 10 % on, 1.2 from .5 % on, else 1.1.
_EVERY = 3
_SHARES, _GROWTH = (0.1, 0.005), (1.3, 1.2, 1.1)


@functools.partial(jax.jit, static_argnums=2, static_argnames="steps")
def alps(
  kernel: Float[Array, "k n"],
  moment: Float[Array, "k k"],
  choice: Choice,
  *,
  damping: Float[Array, ""] | float = 0.01,
  rho: Float[Array, ""] | float = 0.1,
  steps: int = 300,
) -> tuple[Float[Array, "k n"], Bool[Array, "k n"]]:
  """The pruned kernel with the best weights of its mask, and the mask.

  Inputs are first scaled to diag(H) = 1, so that one rho suits all of them.

  Args:
    kernel: W.
    moment: H.
    choice: Pattern of the mask.
    damping: Share of the mean of H's diagonal that is added to it.
    rho: First penalty.
    steps: Largest number of ADMM steps.

  >>> w, h = jnp.array([[2.0], [1.0]]), jnp.array([[2.0, 1.0], [1.0, 1.0]])
  >>> from figs_jax.core.pattern import NM
  >>> pruned, mask = alps(w, h, Choice(NM(1, 2)), damping=0.0)
  >>> pruned.tolist()
  [[2.5], [0.0]]
  """
  h = damped(moment, damping)
  scale = jnp.sqrt(jnp.diagonal(h))[:, None]
  # Weights of dead inputs are the first to go.
  dead = dead_inputs(moment)[:, None]
  scaled, w = h / (scale * scale.T), jnp.where(dead, 0, kernel * scale)
  values, vectors = jnp.linalg.eigh(scaled)
  values = jnp.maximum(values, 0)[:, None]
  target = product(scaled, w)

  def project(x):
    mask = choice(jnp.abs(x))
    return jnp.where(mask, x, 0), mask

  def step(state):
    count, rho, d, v, mask, before, changed = state
    # (H + rho I)^-1 (H W - V + rho D), eq. 5.
    right = product(vectors.T, target - v + rho * d)
    x = product(vectors, right / (values + rho))
    d, mask = project(x + v / rho)
    v = v + rho * (x - d)
    count = count + 1
    looks = count % _EVERY == 0
    share = jnp.sum(mask ^ before) / jnp.sum(mask)
    growth = jnp.select([share >= s for s in _SHARES], _GROWTH[:2], _GROWTH[2])
    rho = jnp.where(looks, rho * growth, rho)
    changed = jnp.where(looks, share > 0, changed)
    before = jnp.where(looks, mask, before)
    return count, rho, d, v, mask, before, changed

  def unfinished(state):
    return (state[0] < steps) & state[-1]

  d, mask = project(w)
  rho = jnp.asarray(rho, w.dtype)
  none, yes = jnp.zeros_like(mask), jnp.asarray(True)
  state = (jnp.asarray(0), rho, d, jnp.zeros_like(w), mask, none, yes)
  _, _, d, _, mask, _, _ = lax.while_loop(unfinished, step, state)
  return refit(kernel, moment, mask, damping=damping, start=d / scale), mask
