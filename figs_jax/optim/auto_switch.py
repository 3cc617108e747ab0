"""STEP's AutoSwitch, which detects a settled second moment (2302.01172)."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax.core.types import Array, Bool, Float, Int
from figs_jax.optim.masked import map_leaves

CRITERIA = ("absolute", "relative")
MEANS = ("arithmetic", "geometric")


@dataclasses.dataclass(frozen=True)
class AutoSwitch:
  """The rule that ends STEP's first phase; see `scale_by_step_adam`.

  Attributes:
    t_min: First update at which the criterion counts.
    t_max: Last update before the switch.
    window: Number of values of Z in the average.
    threshold: Bound below which the criterion is met.
    b2: Decay of the second moment.
    criterion: `absolute` or `relative`.
    mean: `arithmetic` or `geometric`.

  Raises:
    ValueError: If the limits are not 0 <= t_min <= t_max, criterion or mean is
      unknown, or the window is below 1.
  """

  t_min: int
  t_max: int
  window: int
  threshold: Any
  b2: Any
  criterion: str
  mean: str

  def __post_init__(self):
    if not 0 <= self.t_min <= self.t_max:
      raise ValueError(
        "scale_by_step_adam: expected 0 <= t_min <= t_max (in updates), got"
        f" t_min={self.t_min}, t_max={self.t_max}"
      )
    for what, got, known in (
      ("criterion", self.criterion, CRITERIA),
      ("mean", self.mean, MEANS),
    ):
      if got not in known:
        raise ValueError(
          f"scale_by_step_adam: unknown {what} {got!r}. Known:"
          f" {', '.join(known)}"
        )
    if self.window < 1:
      raise ValueError(
        f"scale_by_step_adam: expected a window of at least 1, got"
        f" {self.window}"
      )

  def watch(
    self,
    t: Int[Array, ""],
    ring: Float[Array, " window"],
    masks: Any,
    grads: Any,
    nu: Any,
  ) -> tuple[Float[Array, " window"], Bool[Array, ""]]:
    """The ring with Z_t stored in it, and whether the criterion is met at t.

    Z_t is the mean of |v_t - v_{t-1}| = (1 - b2) |g² - v_{t-1}| over all
    coordinates of all masked leaves. It is computed by the right side, which
    needs no second copy of v.

    Args:
      t: Number of the update, from 1.
      ring: Last values of Z.
      masks: Tree of masks, None at leaves that are not watched.
      grads: Gradients of update t.
      nu: Second moment v_{t-1}.
    """
    if not jax.tree.leaves(masks):  # nothing to watch
      return ring, jnp.zeros([], bool)
    b2 = self.b2

    def moved(g, v):
      return (1 - b2) * jnp.abs(g * g - v)

    if self.mean == "arithmetic":
      z = _mean(moved, masks, grads, nu)
    else:
      tiny = jnp.finfo(jnp.float32).tiny
      logs = lambda g, v: jnp.log(moved(g, v) + tiny)  # noqa: E731
      z = jnp.exp(_mean(logs, masks, grads, nu))
    ring = ring.at[(t - 1) % self.window].set(z)
    level = ring.mean()
    full = (t >= self.window) & (t > self.t_min)
    if self.criterion == "relative":
      second = lambda g, v: b2 * v + (1 - b2) * (g * g)  # noqa: E731
      # XLA fuses this pass in a branch of its own; beside that of Z it would
      # store the common g².
      level = jax.lax.cond(
        full,
        lambda: level / _mean(second, masks, grads, nu),
        lambda: level,
      )
    return ring, full & (level < self.threshold)


def steps(name: str, value: Any) -> int:
  """A number of updates as an int.

  Raises:
    TypeError: If it is not an integer, for example because
      `optax.inject_hyperparams` has made it an array.
  """
  try:
    return operator.index(value)
  except TypeError as error:
    raise TypeError(
      f"scale_by_step_adam: expected {name} as a Python integer, got {value!r};"
      " under optax.inject_hyperparams use static_args=('t_min', 't_max',"
      " 'window', 'b2')"
    ) from error


def _mean(
  fn: Callable[..., Array], masks: Any, *trees: Any
) -> Float[Array, ""]:
  """The mean of fn over all coordinates of all masked leaves, in float32."""
  sums = map_leaves(
    lambda _, *x: jnp.sum(fn(*(a.astype(jnp.float32) for a in x))),
    masks,
    *trees,
  )
  size = sum(mask.size for mask in jax.tree.leaves(masks))
  return jnp.stack(jax.tree.leaves(sums)).sum() / float(size)  # over 2^31
