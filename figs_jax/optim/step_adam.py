"""STEP's Adam: learn the second moment dense, then freeze it (2302.01172).

Phase 1 is plain Adam on a dense forward pass. When the second moment has
settled, or T_max has passed, phase 2 begins: the forward pass is masked (that
is the recipe's part) and the second moment of masked leaves is frozen at v*.

When the switch takes effect. t counts updates from 1. Update t is always made
in the phase that the state held before it; at its end the switch is decided,
v* := v_t / (1 - b2^t) is stored in place of `nu`, and `switched` is set. So the
flag in the state after update t decides both the masks of the forward pass and
the denominator of update t + 1. With steps counted from 0, step s runs after s
updates: switching at T_max (the first t > T_max) makes step T_max + 1 the first
masked one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.types import Array, Float
from figs_jax.optim.masked import MISSING, aligned, map_leaves

CRITERIA = ("absolute", "relative")
MEANS = ("arithmetic", "geometric")


class ScaleByStepAdamState(NamedTuple):
  """State of `scale_by_step_adam`.

  count: int32 scalar, updates so far. mu, nu: the moments, shaped like the
  params; `nu` of a masked leaf is v* after the switch. window: float32[Tw], a
  ring of the last values of Z. switched: Boolean scalar, True in phase 2.
  """

  count: Array
  mu: Any
  nu: Any
  window: Array
  switched: Array


def scale_by_step_adam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  eps_root: float | int = 0.0,
  *,
  t_min: int,
  t_max: int,
  criterion: str = "absolute",
  mean: str = "arithmetic",
  threshold: float | int | None = None,
  bias_correct: bool = True,
  window: int | None = None,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Adam whose second moment is frozen by AutoSwitch (arXiv 2302.01172).

  Phase 1 is `optax.scale_by_adam`, bit for bit. Z_t is the mean of
  |v_t - v_{t-1}| over all coordinates of all masked leaves. The switch comes
  when the window is full, mean(window) < threshold and t > t_min, or when
  t > t_max (see the module for what changes at which step). In phase 2 masked
  leaves are divided by sqrt(v* + eps), their first moment goes on as before;
  leaves without a mask stay on ordinary Adam, with sqrt(v) + eps.

  The absolute criterion depends on the gradients' scale: with Gaussian
  gradients, b2 = .999 and eps = 1e-8, it fires at once at a standard deviation
  of 3e-3 and never at 1e-2. So both limits matter. The relative one divides by
  mean |v_t| over the same coordinates; for such gradients it settles near
  .97 * (1 - b2), so give it a `threshold` above that, as in 1.1 * (1 - b2).

  Args:
    b1, b2, eps, eps_root: as in `optax.scale_by_adam`. `eps_root` is used in
      the ordinary denominator only.
    t_min, t_max: updates before which the criterion is ignored, and after which
      the switch comes in any case; 0 <= t_min <= t_max.
    criterion: `absolute`, or `relative` (mean(window) / mean |v_t|).
    mean: `arithmetic`, or `geometric`, exp(mean(log(|v_t - v_{t-1}| + tiny))).
    threshold: what the criterion must fall below; None is `eps`.
    bias_correct: v* = v_t / (1 - b2^t); False keeps the raw v_t, which makes
      every later step 1 / sqrt(1 - b2^t) too large.
    window: values of Z that are averaged; None is
      min(round(1 / (1 - b2)), t_min), so that a short run can switch early.
    mu_dtype: dtype of the stored first moment; None is that of the params. The
      second moment has the params' dtype: in bfloat16 v may stop moving from
      rounding alone, which the criterion takes for convergence.

  Returns:
    A transform whose `update(updates, state, params=None, *, masks)` needs the
    masks. Without any masked leaf only t_max can set the flag.

  Raises:
    ValueError: illegal limits, an unknown criterion or mean, a window below 1;
      on update, `masks=` is missing.

  >>> tx = scale_by_step_adam(t_min=1, t_max=2)
  >>> grads, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
  >>> state = tx.init(grads)
  >>> for _ in range(3):
  ...   updates, state = tx.update(grads, state, masks=masks)
  >>> bool(state.switched), int(state.count)
  (True, 3)
  """
  t_min, t_max = operator.index(t_min), operator.index(t_max)
  if not 0 <= t_min <= t_max:
    raise ValueError(
      f"scale_by_step_adam: t_min={t_min}, t_max={t_max}: they must satisfy"
      " 0 <= t_min <= t_max, in updates"
    )
  for what, got, known in (
    ("criterion", criterion, CRITERIA),
    ("mean", mean, MEANS),
  ):
    if got not in known:
      raise ValueError(
        f"scale_by_step_adam: {what} {got!r} is unknown: use"
        f" {' or '.join(known)}"
      )
  if window is None:
    window = max(1, min(round(1 / (1 - b2)), t_min))
  if window < 1:
    raise ValueError(f"scale_by_step_adam: window={window} must be at least 1")
  limit = eps if threshold is None else threshold
  mu_dtype = (
    None if mu_dtype is None else jax.dtypes.canonicalize_dtype(mu_dtype)
  )

  def init(params: Any) -> ScaleByStepAdamState:
    return ScaleByStepAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=optax.tree.zeros_like(params, dtype=mu_dtype),
      nu=optax.tree.zeros_like(params),
      window=jnp.zeros([window], jnp.float32),
      switched=jnp.zeros([], jnp.bool),
    )

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del params, extra
    masks = aligned(masks, updates, "scale_by_step_adam")
    t = jnp.asarray(optax.safe_increment(state.count))
    mu = map_leaves(lambda g, m: _moment(g, m, b1), updates, state.mu)
    nu = map_leaves(lambda g, v: _moment(g**2, v, b2), updates, state.nu)
    # optax's own division, so that phase 1 rounds as its Adam does; the count
    # is a float because promotion may be strict.
    count = t.astype(jnp.result_type(float))
    mu_hat = optax.tree.bias_correction(mu, b1, count)
    nu_hat = optax.tree.bias_correction(nu, b2, count)

    ring, settled = state.window, jnp.zeros([], jnp.bool)
    if jax.tree.leaves(masks):  # with no masked leaf there is nothing to watch
      z = _change(mean, masks, nu, state.nu)
      ring = ring.at[(t - 1) % window].set(z)
      ring = jnp.where(state.switched, state.window, ring)
      level = ring.mean()
      if criterion == "relative":
        level = level / _mean(jnp.abs, masks, nu)
      settled = (t >= window) & (t > t_min) & (level < limit)
    switched = state.switched | settled | (t > t_max)

    def direction(m_hat, v_hat, mask, v_star):
      ordinary = jnp.sqrt(v_hat + eps_root) + eps
      if mask is not None:
        frozen = jnp.sqrt(v_star + eps).astype(ordinary.dtype)
        ordinary = jnp.where(state.switched, frozen, ordinary)
      return _promoted(jnp.divide, m_hat, ordinary)

    def second(v, v_hat, mask, old):
      if mask is not None:
        v = jnp.where(switched, v_hat if bias_correct else v, v)
        v = jnp.where(state.switched, old.astype(v.dtype), v)
      return v.astype(old.dtype)

    updates = map_leaves(direction, mu_hat, nu_hat, masks, state.nu)
    nu = map_leaves(second, nu, nu_hat, masks, state.nu)
    mu = optax.tree.cast(mu, mu_dtype)
    return updates, ScaleByStepAdamState(t, mu, nu, ring, switched)

  return optax.GradientTransformationExtraArgs(init, update)


def step_adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float | int | optax.Schedule = 1e-4,
  mask: Any = None,
  **step_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """`optax.adamw` with STEP's Adam inside (arXiv 2302.01172).

  Args:
    learning_rate, b1, b2, eps, weight_decay, mask: as in `optax.adamw`; `mask`
      says which leaves get weight decay and is no N:M mask.
    **step_options: of `scale_by_step_adam`; `t_min` and `t_max` are required.

  Returns:
    chain(scale_by_step_adam, add_decayed_weights, scale_by_learning_rate), the
    object that `recipe.transform(optax.adamw(...))` makes of the recipe `step`.

  Raises:
    ValueError: see `scale_by_step_adam`.

  >>> tx = step_adamw(1e-3, t_min=100, t_max=500)
  >>> state = tx.init({"w": jnp.ones(4)})
  >>> state[0].window.shape
  (100,)
  """
  return optax.chain(
    scale_by_step_adam(b1, b2, eps, **step_options),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def _promoted(fn: Callable, x: Array, y: Array) -> Array:
  """fn(x, y) in their common dtype, also where promotion is strict."""
  with jax.numpy_dtype_promotion("standard"):
    dtype = jnp.promote_types(x.dtype, y.dtype)
  return fn(x.astype(dtype), y.astype(dtype))


def _moment(x: Array, old: Array, decay: float) -> Array:
  """(1 - decay) * x + decay * old, rounded as optax does."""
  return _promoted(jnp.add, (1 - decay) * x, decay * old)


def _mean(
  fn: Callable[..., Array], masks: Any, *trees: Any
) -> Float[Array, ""]:
  """The mean of fn over all coordinates of all masked leaves, in float32."""
  sums = map_leaves(
    lambda _, *x: jnp.sum(fn(*x).astype(jnp.float32)), masks, *trees
  )
  size = sum(mask.size for mask in jax.tree.leaves(masks))
  return jnp.stack(jax.tree.leaves(sums)).sum() / size


def _change(mean: str, masks: Any, nu: Any, old: Any) -> Float[Array, ""]:
  """Z_t: how far the second moment of the masked leaves moved, on average."""

  def moved(v, v_old):
    return jnp.abs(_promoted(jnp.subtract, v, v_old)).astype(jnp.float32)

  if mean == "arithmetic":
    return _mean(moved, masks, nu, old)
  tiny = jnp.finfo(jnp.float32).tiny
  return jnp.exp(_mean(lambda *v: jnp.log(moved(*v) + tiny), masks, nu, old))
