"""Parameters in few bits, updated in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.precision import cast_like, wide


class MastersState(NamedTuple):
  """State of `keep_masters`.

  Attributes:
    masters: Parameters in float32 (or wider).
    inner: State of the optimizer.
  """

  masters: Any
  inner: Any


def keep_masters(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """An optimizer of parameters in 16 bits that moves their float32 masters.

  A step of less than half the distance between two numbers in bfloat16, 2^-9 of
  a weight, would be rounded away; in the masters it adds up (arXiv 1710.03740,
  section 3.1). The updates lead from the given parameters to the masters, so
  that `optax.apply_updates` rounds these to the dtype of the parameters.

  Args:
    tx: Optimizer, which sees the masters as its parameters.

  Returns:
    The optimizer. `init` takes the parameters before they are rounded.

  Raises:
    ValueError: If `update` is called without `params`.

  >>> params = {"w": jnp.array([1.0])}
  >>> tx = keep_masters(optax.sgd(0.001))
  >>> state, w = tx.init(params), {"w": jnp.array([1.0], jnp.bfloat16)}
  >>> for _ in range(3):
  ...   updates, state = tx.update({"w": jnp.array([1.0])}, state, w)
  ...   w = optax.apply_updates(w, updates)
  >>> w["w"], state.masters["w"]
  (Array([0.996094], dtype=bfloat16), Array([0.99700004], dtype=float32))
  """
  inner = optax.with_extra_args_support(tx)

  def init(params: Any) -> MastersState:
    masters = wide(params)
    return MastersState(masters, inner.init(masters))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise ValueError(
        "keep_masters: expected the parameters; call tx.update(updates, state,"
        " params)"
      )
    moved, new = inner.update(updates, state.inner, state.masters, **extra)
    masters = optax.apply_updates(state.masters, moved)
    rounded = wide(cast_like(masters, params))
    updates = jax.tree.map(jnp.subtract, rounded, wide(params))
    return updates, MastersState(masters, new)

  return optax.GradientTransformationExtraArgs(init, update)


def masters_of(opt_state: Any, params: Any) -> Any:
  """The masters in a state of `keep_masters`; in another, the parameters.

  Args:
    opt_state: State of an optimizer.
    params: Its parameters.

  >>> params = {"w": jnp.array([1.0], jnp.bfloat16)}
  >>> masters_of(keep_masters(optax.sgd(0.1)).init(params), params)
  {'w': Array([1.], dtype=float32)}
  """
  return opt_state.masters if isinstance(opt_state, MastersState) else params
