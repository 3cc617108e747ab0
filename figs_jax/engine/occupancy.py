"""Patterns that an engine does not have, in terms of the blocks that it has.

An engine of block B runs n:m if B divides m, and then the largest count that a
B-block holds decides: the real one where the mask is known, else the worst,
min(n, B). It also runs n:m if m divides B, as n B / m of every B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.engine.exact import ceil_div, is_traced, smaller

Masks = Sequence[np.ndarray | None]


def fit(
  n: Any,
  m: Any,
  block: Any,
  masks: Masks | None = None,
  names: Sequence[str] = (),
) -> Any:
  """How many of each block an engine must run; all of them if n = m.

  Args:
    n: kept of every m along K; the layers are the last axis.
    m: group length.
    block: B, rows of the engine's blocks; broadcasts.
    masks: the layers' masks, Bool (K, N), or None for a layer without.
    names: the layers' names, for the error.

  Raises:
    ValueError: neither B divides m nor m divides B. Traced patterns go
      unchecked, and masks are of no use to them.

  >>> int(fit(1, 2, 4)), int(fit(1, 16, 4)), int(fit(6, 8, 4))
  (2, 1, 4)
  """
  if is_traced(n, m, block):
    n, m, block = (jnp.asarray(x) for x in (n, m, block))
    return _worst(n, m, block)
  n, m, block = np.broadcast_arrays(n, m, block)
  _check(n, m, block, names)
  found = _worst(n, m, block)
  if masks is None or all(mask is None for mask in masks):
    return found
  found = found.copy()
  for layer, mask in enumerate(masks):
    if mask is None:
      continue
    for size in np.unique(block[..., layer]).tolist():
      here = (block[..., layer] == size) & (n < m)[..., layer]
      found[..., layer][here] = block_counts(mask, size).max()
  return found


def block_counts(mask: np.ndarray, block: int) -> np.ndarray:
  """Kept entries per block of rows, (ceil(K / block), N); the last is padded.

  >>> block_counts(np.eye(4, dtype=bool), 2).tolist()
  [[1, 1, 0, 0], [0, 0, 1, 1]]
  """
  K, N = mask.shape
  padded = np.zeros((ceil_div(K, block) * block, N), bool)
  padded[:K] = mask
  return padded.reshape(-1, block, N).sum(1)


def _worst(n: Any, m: Any, block: Any) -> Any:
  where = jnp.where if isinstance(m, jax.Array) else np.where
  return where(m <= block, n * block // m, smaller(n, block))


def _check(n, m, block, names) -> None:
  bad = (n < m) & (m % block != 0) & (block % m != 0)
  if not bad.any():
    return
  at = tuple(np.argwhere(bad)[0])
  layer = f"layer {names[at[-1]]!r}: " if at and len(names) > at[-1] else ""
  size = int(block[at])
  raise ValueError(
    f"{layer}pattern {n[at]}:{m[at]} does not fit the engine's blocks of"
    f" {size}; choose m = {size} times a whole number, or a divisor of {size}"
  )
