"""STEP's Adam: learn the second moment dense, then freeze it (2302.01172).

Phase 1 is plain Adam on a dense forward pass. When the second moment has
settled, or T_max has passed, phase 2 begins: the forward pass is masked (that
is the recipe's part) and the second moment of masked leaves is frozen at v*.

When the switch takes effect. t counts updates from 1. Update t is always made
in the phase that the state held before it; at its end the switch is decided,
v* := v_t / (1 - b2^t) is fixed (`nu` and `correction` hold its two parts), and
`switched` is set. So the flag in the state after update t decides both the
masks of the forward pass and the denominator of update t + 1. With steps
counted from 0, step s runs after s updates: switching at T_max (the first
t > T_max) makes step T_max + 1 the first masked one.
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

  count: int32 scalar, updates so far. mu, nu: the moments, shaped like the
  params; `nu` of a masked leaf stays as it is after the switch. window:
  float32[Tw], a ring of the last values of Z. switched: Boolean scalar, True in
  phase 2. correction: float32 scalar, 1 until the switch; v* = nu / correction.
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
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Adam whose second moment is frozen by AutoSwitch (arXiv 2302.01172).

  Phase 1 is `optax.scale_by_adam`, bit for bit (under jit, what stands in front
  of it may be fused in another way and then rounds differently). Z_t is the
  mean of |v_t - v_{t-1}| over all coordinates of all masked leaves. The switch
  comes when the window is full, mean(window) < threshold and t > t_min, or when
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
      rounding alone; the criterion is not deceived by that, see `AutoSwitch`.

  Returns:
    A transform whose `update(updates, state, params=None, *, masks)` needs the
    masks. Without any masked leaf only t_max can set the flag.

  Raises:
    TypeError: a limit or the window is no Python integer.
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
  t_min, t_max = steps("t_min", t_min), steps("t_max", t_max)
  if window is None:
    if isinstance(b2, Array):
      raise TypeError(
        "scale_by_step_adam: window=None is computed from b2, which is an"
        " array: pass window=, or under optax.inject_hyperparams name 'b2' in"
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
      mu=optax.tree.zeros_like(params, dtype=mu_dtype),
      nu=optax.tree.zeros_like(params),
      window=jnp.zeros([length], jnp.float32),
      switched=jnp.zeros([], jnp.bool),
      correction=jnp.ones([], jnp.float32),
    )

  def update(updates, state, params=None, *, masks=MISSING, **extra):
    del params, extra
    masks = aligned(masks, updates, "scale_by_step_adam")
    t = jnp.asarray(optax.safe_increment(state.count))
    # Decided from the old v, one pass over gradients and v more than Adam makes
    # and none after the switch. The flag goes through, so that v is written
    # afterwards, in place, and not copied before.
    ring, settled, frozen = jax.lax.cond(
      state.switched,
      lambda: (state.window, jnp.zeros([], bool), jnp.ones([], bool)),
      lambda: (
        *rule.watch(t, state.window, masks, updates, state.nu),
        jnp.zeros([], bool),
      ),
    )
    switched = frozen | settled | (t > t_max)
    # optax's own arithmetic, so that phase 1 rounds as its Adam does; the count
    # is a float because promotion may be strict.
    count = t.astype(jnp.result_type(float))
    mu = map_leaves(lambda g, m: _moment(g, m, b1), updates, state.mu)
    mu_hat = optax.tree.bias_correction(mu, b1, count)

    def second(g, old, mask):
      v = _moment(g**2, old, b2)
      return v if mask is None else jnp.where(frozen, old.astype(v.dtype), v)

    def direction(m_hat, v, v_hat, mask):
      if mask is None:
        root = jnp.sqrt(v_hat + eps_root) + eps
      else:  # scalars choose the phase, so that there is one square root
        v_star = v / state.correction.astype(v.dtype)
        v_hat = jnp.where(frozen, v_star, v_hat)
        root = jnp.sqrt(v_hat + _either(frozen, eps, eps_root, v))
        root = root + _either(frozen, 0.0, eps, v)
      return _promoted(jnp.divide, m_hat, root)

    nu = map_leaves(second, updates, state.nu, masks)
    nu_hat = optax.tree.bias_correction(nu, b2, count)
    out = map_leaves(direction, mu_hat, nu, nu_hat, masks)
    nu = map_leaves(lambda v, old: v.astype(old.dtype), nu, state.nu)
    mu = optax.tree.cast(mu, mu_dtype)
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
  mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`optax.adamw` with STEP's Adam inside (arXiv 2302.01172).

  Args:
    learning_rate, b1, b2, eps, weight_decay, mask, eps_root, mu_dtype: as in
      `optax.adamw`; `mask` says which leaves get weight decay and is no N:M
      mask.
    t_min, t_max, criterion, mean, threshold, bias_correct, window: as in
      `scale_by_step_adam`. Under `optax.inject_hyperparams` put `t_min`,
      `t_max`, `window` and `b2` into `static_args`.

  Returns:
    chain(scale_by_step_adam, add_decayed_weights, scale_by_learning_rate), as
    `recipe.adamw(...)` of the recipe `step` does.

  Raises:
    TypeError, ValueError: see `scale_by_step_adam`.

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
    mu_dtype=mu_dtype,
  )
  return optax.chain(
    adam,
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def _promoted(fn: Callable, x: Array, y: Array) -> Array:
  """fn(x, y) in their common dtype, also where promotion is strict."""
  dtype = promoted_dtype(x, y)
  return fn(x.astype(dtype), y.astype(dtype))


def _either(flag: Array, yes: Any, no: Any, like: Array) -> Array:
  """A scalar of `like`'s dtype: `yes` where the flag is set, else `no`."""
  return jnp.where(
    flag, jnp.asarray(yes, like.dtype), jnp.asarray(no, like.dtype)
  )


def _moment(x: Array, old: Array, decay: Any) -> Array:
  """(1 - decay) * x + decay * old, rounded as optax does."""
  return _promoted(jnp.add, (1 - decay) * x, decay * old)
