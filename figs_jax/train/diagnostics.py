"""Statistics of masks and gradients, per masked layer, inside the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from figs_jax.core.diagnostics import Layers, layer_table
from figs_jax.core.types import Array


def layer_statistics(old: Any, new: Any, params: Any, grads: Any) -> Layers:
  """Every statistic of `figs_jax.core.diagnostics.layer_table`, by path.

  Args:
    old: the mask tree of the forward pass that gave `grads`.
    new: the mask tree after the update.
    params: after the update.
    grads: of that forward pass, before the optimizer.
  """
  return layer_table(new, params, grads, old)


def every(
  steps: int, step: Array, old: Any, new: Any, params: Any, grads: Any
) -> Layers:
  """`layer_statistics` when `steps` divides the step, zeros otherwise.

  One compilation serves both, and the statistics cost nothing on the other
  steps.
  """
  args = (old, new, params, grads)
  shapes = jax.eval_shape(layer_statistics, *args)
  return jax.lax.cond(
    step % steps == 0,
    layer_statistics,
    lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    *args,
  )
