"""STEP's Adam: the second moment is learned dense, then frozen (2302.01172).

Phase 1 is plain Adam on a dense forward pass. When the second moment has
settled, or after T_max updates, phase 2 begins: the forward pass is masked (by
the recipe), and the second moment of masked leaves is frozen at v*.

Timing. t counts updates from 1. Update t always belongs to the phase of the
state before it. At its end the switch is decided, v* := v_t / (1 - b2^t) is
fixed (`nu` and `correction` hold its two parts), and `switched` is set. So the
flag in the state after update t decides both the masks of the forward pass and
the denominator of update t + 1. With steps counted from 0, step s runs after s
updates: a switch at T_max (the first t > T_max) makes step T_max + 1 the first
masked one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.types import Array
from figs_jax.optim.auto_switch import AutoSwitch, steps
from figs_jax.optim.masked import (
  MISSING,
  Scalar,
  aligned,
  map_leaves,
  promoted_dtype,
)


class ScaleByStepAdamState(NamedTuple):
  """State of `scale_by_step_adam`.

  Attributes:
    count: Number of updates, int32 scalar.
    mu: First moment, shaped like the params.
    nu: Second moment, shaped like the params; constant for a masked leaf after
      the switch. Both are float32 for params of 16 bits.
    window: Ring of the last Tw values of Z, float32.
    switched: Boolean scalar, True in phase 2.
    correction: float32 scalar, 1 until the switch; v* = nu / correction.
  """

  count: Array
  mu: Any
  nu: Any
  window: Array
  switched: Array
  correction: Array


def scale_by_step_adam(
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  eps_root: Scalar = 0.0,
  *,
  t_min: int,
  t_max: int,
  criterion: str = "absolute",
  mean: str = "arithmetic",
  threshold: Scalar | None = None,
  bias_correct: bool = True,
  window: int | None = None,
  eps_in_root: bool = False,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Adam whose second moment is frozen by AutoSwitch (arXiv 2302.01172).

  Phase 1 is `optax.scale_by_adam`, bit for bit (under jit, operations in front
  of it may be fused differently and round differently). For params of 16 bits
  it is Adam with float32 moments: in bfloat16 v stops at a wrong value once
  (1 - b2) g² is below half a unit in its last place, and in float16 eps = 1e-8
  is 0. Z_t is the mean of |v_t
  - v_{t-1}| over all coordinates of all masked leaves. The switch happens when
  the window is full, mean(window) < threshold and t > t_min, or when t > t_max
  (the module explains the timing). In phase 2 masked leaves are divided by
  sqrt(v*) + eps, while their first moment continues. Leaves without a mask stay
  on ordinary Adam.

  The paper writes sqrt(v* + eps), which `eps_in_root=True` restores. It is not
  continuous at the switch: a gradient of constant size g is then divided by
  sqrt(g² + eps) instead of g + eps, so that with eps = 1e-8 updates shrink 1.4
  times at g = 1e-4, 10 times at 1e-5 and 99 times at 1e-6.

  The absolute criterion depends on the scale of the gradients: for Gaussian
  gradients, b2 = .999 and eps = 1e-8, it fires at once at a standard deviation
  of 3e-3 and never at 1e-2, so set both limits. The relative criterion divides
  by mean |v_t| over the same coordinates. For such gradients it settles near
  .97 * (1 - b2), so use a higher `threshold`, for example 1.1 * (1 - b2).

  Args:
    b1: Decay rate of the first moment.
    b2: Decay rate of the second moment.
    eps: Term added outside the square root.
    eps_root: Term added inside the square root.
    t_min: Number of updates during which the criterion is ignored.
    t_max: Number of updates after which the switch happens in any case, at
      least `t_min`.
    criterion: `absolute`, or `relative` (mean(window) / mean |v_t|).
    mean: `arithmetic`, or `geometric`: exp(mean(log(|v_t - v_{t-1}| + tiny))).
    threshold: Bound below which the criterion is met. Defaults to `eps`.
    bias_correct: Whether v* = v_t / (1 - b2^t). False keeps the raw v_t, which
      makes every later step larger by 1 / sqrt(1 - b2^t).
    window: Number of values of Z in the average. Defaults to
      min(round(1 / (1 - b2)), t_min), so that a short run can switch early.
    eps_in_root: Whether masked leaves are divided by sqrt(v* + eps) in phase 2,
      without `eps_root`, as in the paper.
    mu_dtype: Dtype of the stored first moment. Defaults to that of the second:
      the dtype of the params, or float32 if that has 16 bits.

  Returns:
    A transform with `update(updates, state, params=None, *, masks)`, which
    requires the masks. Without a masked leaf only t_max can set the flag.

  Raises:
    TypeError: If a limit or the window is not a Python integer.
    ValueError: If the limits are not 0 <= t_min <= t_max, criterion or mean is
      unknown, or the window is below 1; on update, if `masks=` is missing.

  >>> tx = scale_by_step_adam(t_min=1, t_max=2)
  >>> grads, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
  >>> state = tx.init(grads)
  >>> for _ in range(3):
  ...   updates, state = tx.update(grads, state, masks=masks)
  >>> bool(state.switched), int(state.count)
  (True, 3)
  """
  t_min, t_max = steps("t_min", t_min), steps("t_max", t_max)
  if window is None:
    if isinstance(b2, Array):
      raise TypeError(
        "scale_by_step_adam: expected b2 as a number with window=None, got an"
        " array; pass window=, or under optax.inject_hyperparams name 'b2' in"
        " static_args"
      )
    window = max(1, min(round(1 / (1 - b2)), t_min))
  length = steps("window", window)
  limit = eps if threshold is None else threshold
  rule = AutoSwitch(t_min, t_max, length, limit, b2, criterion, mean)
  mu_dtype = (
    None if mu_dtype is None else jax.dtypes.canonicalize_dtype(mu_dtype)
  )

  def init(params: Any) -> ScaleByStepAdamState:
    return ScaleByStepAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=map_leaves(lambda p: _zeros(p, mu_dtype), params),
      nu=map_leaves(_zeros, params),
      window=jnp.zeros([length], jnp.float32),
      switched=jnp.zeros([], jnp.bool),
      correction=jnp.ones([], jnp.float32),
    )

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del params, extra
    masks = aligned(masks, updates, "scale_by_step_adam")
    grads = map_leaves(lambda g: g.astype(_wide(g)), updates)
    t = jnp.asarray(optax.safe_increment(state.count))
    # Decided from the old v: one more pass over gradients and v than Adam, and
    # none after the switch. The flag passes through the cond, so that v is
    # written after it, in place, and not copied before.
    ring, settled, frozen = jax.lax.cond(
      state.switched,
      lambda: (state.window, jnp.zeros([], bool), jnp.ones([], bool)),
      lambda: (
        *rule.watch(t, state.window, masks, grads, state.nu),
        jnp.zeros([], bool),
      ),
    )
    switched = frozen | settled | (t > t_max)
    # The arithmetic of optax, so that phase 1 rounds as its Adam does; the
    # count is a float for strict promotion.
    count = t.astype(jnp.result_type(float))
    mu = map_leaves(lambda g, m: _moment(g, m, b1), grads, state.mu)
    mu_hat = optax.tree.bias_correction(mu, b1, count)

    def second(g, old, mask):
      v = _moment(g**2, old, b2)
      return v if mask is None else jnp.where(frozen, old.astype(v.dtype), v)

    def direction(g, m_hat, v, v_hat, mask):
      inside, outside = eps_root, eps
      if mask is not None:  # scalars select the phase: one square root
        v_star = v / state.correction.astype(v.dtype)
        v_hat = jnp.where(frozen, v_star, v_hat)
        if eps_in_root:
          inside = _either(frozen, eps, eps_root, v)
          outside = _either(frozen, 0.0, eps, v)
      root = jnp.sqrt(v_hat + inside) + outside
      return _promoted(jnp.divide, m_hat, root).astype(g.dtype)

    nu = map_leaves(second, grads, state.nu, masks)
    nu_hat = optax.tree.bias_correction(nu, b2, count)
    out = map_leaves(direction, updates, mu_hat, nu, nu_hat, masks)
    mu, nu = (
      map_leaves(lambda new, old: new.astype(old.dtype), *pair)
      for pair in ((mu, state.mu), (nu, state.nu))
    )
    correction = state.correction
    if bias_correct:
      now = (1 - b2**count).astype(jnp.float32)
      correction = jnp.where(switched & ~frozen, now, correction)
    return out, ScaleByStepAdamState(t, mu, nu, ring, switched, correction)

  return optax.GradientTransformationExtraArgs(init, update)


def step_adamw(
  learning_rate: optax.ScalarOrSchedule,
  b1: Scalar = 0.9,
  b2: Scalar = 0.999,
  eps: Scalar = 1e-8,
  weight_decay: Scalar | optax.Schedule = 1e-4,
  mask: Any = None,
  *,
  t_min: int,
  t_max: int,
  eps_root: Scalar = 0.0,
  criterion: str = "absolute",
  mean: str = "arithmetic",
  threshold: Scalar | None = None,
  bias_correct: bool = True,
  window: int | None = None,
  eps_in_root: bool = False,
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`optax.adamw` with STEP's Adam inside (arXiv 2302.01172).

  Args:
    learning_rate: Number or schedule.
    b1: Decay rate of the first moment.
    b2: Decay rate of the second moment.
    eps: Term beside the square root, see `scale_by_step_adam`.
    weight_decay: Strength of the weight decay, a number or schedule.
    mask: Tree of Booleans, or a function of the params that returns one: which
      leaves are decayed (not an N:M mask).
    t_min: Number of updates during which the criterion is ignored.
    t_max: Number of updates after which the switch happens in any case.
    eps_root: Term added inside the square root.
    criterion: `absolute` or `relative`.
    mean: `arithmetic` or `geometric`.
    threshold: Bound below which the criterion is met. Defaults to `eps`.
    bias_correct: Whether v* is bias-corrected.
    window: Number of values of Z in the average.
    eps_in_root: Whether phase 2 divides by sqrt(v* + eps), as in the paper.
    mu_dtype: Dtype of the stored first moment.

  Under `optax.inject_hyperparams` put `t_min`, `t_max`, `window` and `b2` into
  `static_args`. `scale_by_step_adam` explains STEP's arguments.

  Returns:
    chain(scale_by_step_adam, add_decayed_weights, scale_by_learning_rate), as
    `recipe.adamw(...)` of the recipe `step` does.

  Raises:
    TypeError: If a limit or the window is not a Python integer.
    ValueError: If an argument is invalid, see `scale_by_step_adam`.

  >>> tx = step_adamw(1e-3, t_min=100, t_max=500)
  >>> state = tx.init({"w": jnp.ones(4)})
  >>> state[0].window.shape
  (100,)
  """
  adam = scale_by_step_adam(
    b1,
    b2,
    eps,
    eps_root,
    t_min=t_min,
    t_max=t_max,
    criterion=criterion,
    mean=mean,
    threshold=threshold,
    bias_correct=bias_correct,
    window=window,
    eps_in_root=eps_in_root,
    mu_dtype=mu_dtype,
  )
  return optax.chain(
    adam,
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def _wide(x: Any) -> Any:
  """The dtype of an array, or float32 if that has 16 bits."""
  return promoted_dtype(x, jnp.float32)


def _zeros(param: Array, dtype: Any = None) -> Array:
  """A moment of a parameter at the start."""
  return jnp.zeros_like(param, dtype=_wide(param) if dtype is None else dtype)


def _promoted(fn: Callable, x: Array, y: Array) -> Array:
  """fn(x, y) in their common dtype, even under strict promotion."""
  dtype = promoted_dtype(x, y)
  return fn(x.astype(dtype), y.astype(dtype))


def _either(flag: Array, yes: Any, no: Any, like: Array) -> Array:
  """A scalar in the dtype of `like`: `yes` if the flag is set, else `no`."""
  return jnp.where(
    flag, jnp.asarray(yes, like.dtype), jnp.asarray(no, like.dtype)
  )


def _moment(x: Array, old: Array, decay: Any) -> Array:
  """(1 - decay) * x + decay * old, rounded as in optax."""
  return _promoted(jnp.add, (1 - decay) * x, decay * old)
