"""Which n of every m are kept, and what a mask looks like."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float, Int, Shaped


def nm_mask(scores, pattern, axis=-2, n=None):
  """Placeholder with the final signature."""
  nm = NM.parse(pattern)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  axes = tuple(a % scores.ndim for a in axes)
  rest = tuple(i for i in range(scores.ndim) if i not in axes)
  x = jnp.transpose(jnp.asarray(scores).astype(jnp.float32), rest + axes)
  shape = x.shape
  x = x.reshape(-1, nm.m)
  x = jnp.where(jnp.isnan(x), -jnp.inf, x)
  i = jnp.arange(nm.m)
  before = i[:, None] > i[None, :]
  beats = (x[:, None, :] > x[:, :, None]) | (
    (x[:, None, :] == x[:, :, None]) & before
  )
  keep = beats.sum(-1) < (nm.n if n is None else n)
  return jnp.transpose(
    keep.reshape(shape), tuple(int(v) for v in jnp.argsort(jnp.array(rest + axes)))
  )
