"""What n:m keeps of a contraction, and of the blocks that an engine has.

An engine with blocks of B runs n:m if B divides m. The largest count of any
block then decides: the real one where the mask is known, else the worst case,
min(n, B). It also runs n:m if m divides B, as n B / m of every B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from figs_jax.engine.int64 import (
  LayerError,
  ceil_div,
  exact,
  is_traced,
  larger,
  smaller,
)

# The real mask of each layer, Bool (K, N), or None where it is not known.
Masks = Sequence[np.ndarray | None]


def kept_depth(K: Any, n: Any, m: Any) -> Any:
  """Weights kept along K: n of each whole group, at most n of a last part."""
  return K // m * n + smaller(K % m, n)


def index_bits(n: Any, m: Any) -> Any:
  """ceil(log2 m) bits per kept weight; 0 if all are kept.

  >>> int(index_bits(2, 4)), int(index_bits(1, 5)), int(index_bits(4, 4))
  (2, 3, 0)
  """
  # The bit length of m - 1, by halves. Booleans do not add up with integers
  # under strict promotion, hence the minima.
  left, bits = m - 1, 0
  for half in (16, 8, 4, 2, 1):
    high = left // 2**half
    is_longer = smaller(high, 1)
    bits = bits + half * is_longer
    left = high + left % 2**half * (1 - is_longer)
  return (bits + left) * smaller(m - n, 1)


def fit(
  n: Any,
  m: Any,
  block: Any,
  masks: Masks | None = None,
  *,
  check: bool = True,
) -> Any:
  """How many weights of each block an engine must run; all of them if n = m.

  Args:
    n: Weights kept of every m along K; the layers are the last axis.
    m: Length of a group.
    block: Rows B of the engine's blocks; broadcasts.
    masks: The layers' real masks.
    check: Whether to refuse patterns that do not fit.

  Raises:
    LayerError: If neither B divides m nor m divides B. Traced patterns go
      unchecked, and masks are ignored for them.

  >>> int(fit(1, 2, 4)), int(fit(1, 16, 4)), int(fit(6, 8, 4))
  (2, 1, 4)
  """
  if is_traced(n, m, block):
    return _exact_worst(n, m, block)["run"]
  n, m, block = np.broadcast_arrays(n, m, block)
  if check:
    _check(n, m, block)
  run = worst_fit(n, m, block)
  if masks is None or all(mask is None for mask in masks):
    return run
  run = run.copy()
  for layer, mask in enumerate(masks):
    if mask is None:
      continue
    for size in np.unique(block[..., layer]).tolist():
      here = (block[..., layer] == size) & (n < m)[..., layer]
      # A block runs at least one weight, even if it is a zero.
      run[..., layer][here] = max(block_counts(mask, size).max(), 1)
  return run


def worst_fit(n: Any, m: Any, block: Any) -> Any:
  """The largest count of a block under n:m, in numbers of any kind.

  n B / m where m divides B, min(n, B) where B divides m.

  >>> int(worst_fit(2, 4, 8)), int(worst_fit(3, 16, 8)), int(worst_fit(4, 4, 1))
  (4, 3, 1)
  """
  return larger(n * block // m, smaller(n, block))


_exact_worst = exact(lambda n, m, block: {"run": worst_fit(n, m, block)})


def block_counts(mask: np.ndarray, block: int) -> np.ndarray:
  """Kept entries per block of rows, (ceil(K / block), N), the last one padded.

  >>> block_counts(np.eye(4, dtype=bool), 2).tolist()
  [[1, 1, 0, 0], [0, 0, 1, 1]]
  """
  K, N = mask.shape
  padded = np.zeros((ceil_div(K, block) * block, N), bool)
  padded[:K] = mask
  return padded.reshape(-1, block, N).sum(1)


def row_cover(mask: np.ndarray, depth: int, block: int = 4) -> np.ndarray:
  """The least n of {1, 2, ..., block} that covers each output's blocks.

  An output takes its own n:block in every slice of the contraction.

  Args:
    mask: Bool (K, N).
    depth: Rows of a slice, a multiple of the block's.
    block: Rows of a block, a power of two.

  Returns:
    Integers (ceil(K / depth), N), powers of two. An empty slice takes 1.

  >>> mask = np.zeros((16, 2), bool)
  >>> mask[[0, 9, 10, 11], [0, 1, 1, 1]] = True
  >>> row_cover(mask, depth=8).tolist()
  [[1, 1], [1, 4]]
  """
  counts = block_counts(mask, block)
  each = depth // block
  padded = np.zeros((ceil_div(len(counts), each) * each, mask.shape[1]), int)
  padded[: len(counts)] = counts
  most = padded.reshape(-1, each, mask.shape[1]).max(1)
  return 2 ** np.ceil(np.log2(np.maximum(most, 1))).astype(int)


def worst_exchange(run: Any, block: Any, lanes: Any) -> Any:
  """kappa of the worst mask: the most cycles of swapping that blocks may need.

  In a cycle, a block of B registers shows each of its values to one PE. A block
  has s = floor(B / n) slots of n = `run` PEs, and a PE has `lanes` MACs with
  masks of their own, beta / mask_group. An index that all outputs keep has at
  most min(n, B - n + 1) places among the n of an output, so that
  s min(n, lanes, B - n + 1) PEs want it; and a PE wants min(lanes, B - n + 1)
  values.

  >>> [int(worst_exchange(1, 4, 1)), int(worst_exchange(2, 4, 4))]
  [4, 4]
  """
  places = larger(block - run + 1, 1)
  wanted = block // run * smaller(smaller(run, lanes), places)
  return larger(wanted, smaller(lanes, places))


def exchanges(
  mask: np.ndarray,
  *,
  block: int,
  run: int,
  rows: int,
  cols: int,
  beta: int,
  mask_group: int,
) -> np.ndarray:
  """kappa of each fold of a weight on swap registers, (down, across).

  Outputs take their places in order, so that s beta neighbours share a column
  and beta of them a PE. Within a block, an output's kept indices take its PEs
  from the top down. An index that d PEs want takes d cycles to show, and so
  does a PE that wants d indices; by Koenig's theorem the largest of all these d
  suffices for the block. The array runs in lock step: the largest kappa of a
  fold's blocks is the fold's.

  Args:
    mask: Bool (K, N).
    block: Rows of a block, B.
    run: MACs of an output in a block, n; the most that a block keeps.
    rows: Rows of the array, R.
    cols: Columns of the array, C.
    beta: MACs of a PE.
    mask_group: Outputs that share a mask, 1 or beta; see `check_shared_masks`.

  >>> sizes = {"block": 2, "run": 1, "rows": 4, "cols": 1}
  >>> mask = np.array([[1, 1], [0, 0], [0, 1], [1, 0]], bool)
  >>> exchanges(mask, **sizes, beta=1, mask_group=1).tolist()
  [[2]]
  """
  used, packed = rows // block * block, block // run
  lanes = beta // mask_group
  if mask_group > 1:
    mask = mask[:, ::mask_group]
  K, N = mask.shape
  down, across = ceil_div(K, used), ceil_div(N, cols * packed * lanes)
  padded = np.zeros((down * used, across * cols * packed * lanes), bool)
  padded[:K, :N] = mask
  kept = padded.reshape(down, used // block, block, across, cols, packed, lanes)
  if lanes == 1:
    return np.maximum(kept.sum((5, 6)).max((1, 2, 4)), 1)
  place = kept.cumsum(2) - 1
  shown, wants = 0, 1
  for pe in range(run):
    edges = (kept & (place == pe)).any(-1)
    shown = shown + edges.sum(-1)
    wants = np.maximum(wants, edges.sum(2).max((1, 3, 4)))
  return np.maximum(np.max(shown, (1, 2, 4)), wants)


def check_shared_masks(mask: np.ndarray, group: int) -> None:
  """Raises ValueError unless `group` neighbouring outputs share each mask."""
  first = mask[:, ::group].repeat(group, 1)[:, : mask.shape[1]]
  differs = (mask != first).any(0)
  if differs.any():
    at = int(differs.argmax())
    raise ValueError(
      f"mask_group={group}: output {at} has another mask than output"
      f" {at // group * group}; share masks among {group} neighbouring outputs"
      " or set mask_group=1"
    )


def fits_blocks(n: Any, m: Any, block: Any) -> Any:
  """Whether blocks of B run n:m: B divides m, m divides B, or n = m.

  >>> fits_blocks(1, np.array([2, 3, 4, 6, 8]), 4).tolist()
  [True, False, True, False, True]
  """
  n, m, block = (np.asarray(x) for x in (n, m, block))
  return np.asarray((n == m) | (m % block == 0) | (block % m == 0))


def _check(n, m, block) -> None:
  bad = ~fits_blocks(n, m, block)
  if not bad.any():
    return
  at = tuple(np.argwhere(bad)[0])
  size = int(block[at])
  raise LayerError(
    f"pattern {n[at]}:{m[at]} does not fit the engine's blocks of {size};"
    f" choose m = {size} times an integer, or a divisor of {size}",
    int(at[-1]) if at else 0,
  )
