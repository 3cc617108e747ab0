"""SparseSwaps: masks improved by exchanging one kept and one pruned weight.

Zimmer, Roux, Wagner, Hendrych and Pokutta, arXiv 2512.10922. The weights stay,
and the mask of every column minimizes r^T H r, where r holds its pruned
weights. To prune p and to keep q of the same group changes it by

  2 w_p (H r)_p - 2 w_q (H r)_q + w_p^2 H_pp + w_q^2 H_qq - 2 w_p w_q H_pq,

so that H r is all that must be kept up to date.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float
from figs_jax.pruning.choice import Choice
from figs_jax.pruning.moments import product
from figs_jax.pruning.scores import magnitude_scores, wanda_scores
from figs_jax.pruning.sparse_gpt import obs_scores

# Limit on the swaps that are compared at once: they stay in a CPU's cache, and
# columns wait for few others.
_HELD = 2**18


@functools.partial(
  jax.jit, static_argnums=2, static_argnames=("starts", "escapes")
)
def sparseswaps(
  kernel: Float[Array, "k n"],
  moment: Float[Array, "k k"],
  choice: Choice,
  *,
  damping: Float[Array, ""] | float = 0.01,
  starts: tuple[str, ...] = ("wanda", "obs", "magnitude"),
  escapes: int = 4,
) -> tuple[Float[Array, "k n"], Bool[Array, "k n"]]:
  """The kernel on its mask, and the mask, which no swap improves.

  Every column takes its best swap again and again until none helps, from each
  start, and keeps the best of the masks. Departing from the paper, which has
  one start and stops there, each result is also left by its cheapest swaps, one
  at a time: of 8 x 8 layers at 2:4, that raises the share of best masks from
  86-98 % to 99-100 % (benchmarks/prune.py).

  Args:
    kernel: W.
    moment: H.
    choice: Pattern of the mask, along the inputs only.
    damping: Share of the mean of H's diagonal that is added to it for the
      start "obs".
    starts: First masks: "wanda", "obs" or "magnitude".
    escapes: Number of swaps by which each result is left.

  Raises:
    ValueError: If masks have to be transposable, or a start is unknown.

  >>> w, h = jnp.array([[2.0], [1.5]]), jnp.array([[1.0, 0.0], [0.0, 4.0]])
  >>> from figs_jax.core.pattern import NM
  >>> sparseswaps(w, h, Choice(NM(1, 2)), starts=("magnitude",))[0].tolist()
  [[0.0], [1.5]]
  """
  if choice.transposable:
    raise ValueError(
      "sparseswaps: expected masks along one axis, got transposable=True: a"
      " swap within a group breaks the groups of the other axis; choose"
      " sparsegpt or alps"
    )
  scores = {
    "wanda": lambda: wanda_scores(kernel, moment),
    "obs": lambda: obs_scores(kernel, moment, damping),
    "magnitude": lambda: magnitude_scores(kernel),
  }
  for start in starts or ("none",):
    if start not in scores:
      raise ValueError(
        f"sparseswaps: expected starts of {', '.join(scores)}, got {start!r}"
      )
  masks, errors = lax.map(
    lambda score: swapped(kernel, moment, choice(score), choice, escapes),
    jnp.stack([scores[start]() for start in starts]),
  )
  first = jnp.argmin(errors, 0)[None, None]
  best = jnp.take_along_axis(masks, first, 0)[0]
  return jnp.where(best, kernel, 0), best


def swapped(
  kernel: Float[Array, "k n"],
  moment: Float[Array, "k k"],
  mask: Bool[Array, "k n"],
  choice: Choice,
  escapes: int = 0,
) -> tuple[Bool[Array, "k n"], Float[Array, " n"]]:
  """The mask that no swap improves, and r^T H r of every column.

  Columns are taken in portions, since all swaps of a portion are held at once.

  Args:
    kernel: W.
    moment: H.
    mask: First mask.
    choice: Pattern of the mask.
    escapes: Number of swaps by which the result is left.

  >>> from figs_jax.core.pattern import NM
  >>> w, mask = jnp.array([[2.0], [1.0]]), jnp.array([[False], [True]])
  >>> mask, error = swapped(w, jnp.eye(2), mask, Choice(NM(1, 2)))
  >>> mask.tolist(), error.tolist()
  ([[True], [False]], [1.0])
  """
  m, (k, n) = choice.pattern.m, kernel.shape
  portion = min(n, max(1, _HELD // (k * m)))
  fill = ((0, 0), (0, -n % portion))  # columns of zeros, which no swap improves

  def portions(x: Array) -> Array:
    """[k, n] as [portions, columns, m, groups]: vectors run over groups."""
    x = jnp.pad(x, fill).reshape(k // m, m, -1, portion)
    return jnp.transpose(x, (2, 3, 1, 0))

  moments = jnp.transpose(moment.reshape(k // m, m, -1, m), (1, 0, 3, 2))
  masks, errors = lax.map(
    lambda x: _swapped(x[0], x[1], moments, choice.pattern, escapes),
    (portions(kernel), portions(mask)),
  )
  masks = jnp.transpose(masks, (3, 2, 0, 1)).reshape(k, -1)
  return masks[:, :n], errors.reshape(-1)[:n]


def _swapped(
  w: Float[Array, "n m groups"],
  mask: Bool[Array, "n m groups"],
  moment: Float[Array, "m groups m groups"],
  pattern: NM,
  escapes: int,
) -> tuple[Bool[Array, "n m groups"], Float[Array, " n"]]:
  n, m, count = w.shape
  flat = moment.reshape(m * count, -1)
  within = jnp.einsum("agbg->abg", moment)[None]  # H of every group
  squares = w**2 * jnp.einsum("zaag->zag", within)
  columns = jnp.arange(n)
  order = jnp.arange(m * m * count, dtype=jnp.int32).reshape(count, m, m)
  order = jnp.moveaxis(order, 0, 2)[None]

  def changes(mask, hr, barred):
    """What each swap of p for q adds to r^T H r: [n, p, q, groups]."""
    force = 2 * w * hr
    prune = jnp.where(mask, squares + force, jnp.inf)[:, :, None]
    keep = jnp.where(mask, jnp.inf, squares - force)[:, None]
    change = prune + keep - 2 * within * w[:, :, None] * w[:, None]
    return jnp.where(order == barred[:, None, None, None], jnp.inf, change)

  def swap(mask, hr, index, active):
    group, pair = index // (m * m), index % (m * m)
    p, q = (columns, pair // m, group), (columns, pair % m, group)
    up = jnp.where(active, w[p], 0)[:, None]
    down = jnp.where(active, w[q], 0)[:, None]
    of_p, of_q = (flat[place[1] * count + group] for place in (p, q))
    change = up * of_p - down * of_q
    mask = mask.at[p].set(mask[p] & ~active)
    return mask.at[q].set(mask[q] | active), hr + change.reshape(hr.shape)

  def unfinished(state):
    return jnp.any(state[-1])

  def improve(state):
    mask, hr, barred, active = state
    change = changes(mask, hr, barred)
    of_groups = change.min((1, 2))
    group = jnp.argmin(of_groups, 1)
    least = of_groups[columns, group]
    # Computed again for one group, so that XLA need not keep all changes.
    pairs = changes(mask, hr, barred)[columns, :, :, group].reshape(n, -1)
    index = group * m * m + jnp.argmin(pairs, 1)
    # Below the rounding of r^T H r, swaps could return without end.
    scale = jnp.sum(jnp.abs(jnp.where(mask, 0, w) * hr), (1, 2))
    active &= least < -16 * jnp.finfo(w.dtype).eps * scale
    return *swap(mask, hr, index, active), nothing, active

  # The swap of an entry with itself is never allowed.
  nothing = jnp.zeros(n, jnp.int32)

  def force_of(mask):
    return product(jnp.where(mask, 0, w).reshape(n, -1), flat).reshape(w.shape)

  def descend(mask, hr, barred):
    state = (mask, hr, barred, jnp.ones(n, bool))
    mask, _, _, _ = lax.while_loop(unfinished, improve, state)
    hr = force_of(mask)  # without the rounding
    return mask, hr, jnp.sum(jnp.where(mask, 0, w) * hr, (1, 2))

  first = descend(mask, force_of(mask), nothing)
  # Every group has n (m - n) swaps, so that there are as many.
  escapes = min(escapes, count * pattern.n)
  if pattern.is_dense or not escapes:
    return first[0], first[-1]
  cost = jnp.moveaxis(changes(*first[:2], nothing), 3, 1).reshape(n, -1)
  _, cheapest = lax.top_k(-cost, escapes)

  def escape(k, best):
    index = cheapest[:, k]
    group, pair = index // (m * m), index % (m * m)
    back = group * m * m + pair % m * m + pair // m
    new = descend(*swap(*first[:2], index, jnp.ones(n, bool)), back)
    better = new[-1] < best[-1]
    return jax.tree.map(
      lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b),
      new,
      best,
    )

  best = lax.fori_loop(0, escapes, escape, first)
  return best[0], best[-1]
