"""Statistics of masks and gradients, per masked layer, inside the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from figs_jax.core.masks import density, flip_rate, kept_magnitude
from figs_jax.core.tree import flatten
from figs_jax.core.types import Array

Layers = dict[str, dict[str, Array]]


def gradient_variance(grad: Array, mask: Array) -> tuple[Array, Array]:
  """Variance of the gradient's kept and of its pruned entries (float32).

  Population variance over the entries of one leaf; 0 for an empty class.

  >>> g, m = jnp.array([1., 3., 5., 5.]), jnp.array([True, True, False, False])
  >>> [float(v) for v in gradient_variance(g, m)]
  [1.0, 0.0]
  """
  g = grad.astype(jnp.float32)

  def variance(where):
    count = jnp.maximum(where.sum(dtype=jnp.float32), 1.0)
    mean = jnp.sum(g, where=where) / count
    return jnp.sum(jnp.square(g - mean), where=where) / count

  return variance(mask), variance(~mask)


def layer_statistics(old: Any, new: Any, params: Any, grads: Any) -> Layers:
  """{path: {density, flip_rate, kept_magnitude, grad_var_kept, _pruned}}.

  Args:
    old: the mask tree of the forward pass that gave `grads`.
    new: the mask tree after the update.
    params: after the update.
    grads: of that forward pass, before the optimizer.
  """
  old, params, grads = flatten(old), flatten(params), flatten(grads)
  out = {}
  for path, mask in flatten(new).items():
    if mask is None:
      continue
    kept, pruned = gradient_variance(grads[path], old[path])
    out[path] = {
      "density": density(mask),
      "flip_rate": flip_rate(old[path], mask),
      "kept_magnitude": kept_magnitude(params[path], mask),
      "grad_var_kept": kept,
      "grad_var_pruned": pruned,
    }
  return out


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
