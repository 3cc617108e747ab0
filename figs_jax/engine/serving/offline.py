"""The order of a push-in first-out queue for a whole sequence of operations.

`drain` answers all pops of a known sequence at once, without a loop over
operations: it finds the item of every pop one bit of its place at a time.
"""

from __future__ import annotations

import numpy as np


def drain(
  ranks: np.ndarray | list, pops: np.ndarray | list | None = None
) -> np.ndarray:
  """The items that leave a `Pifo`, in order.

  Items are numbered by their push and sorted by (rank, number). The n smallest
  of a set of items answer exactly those pops that find one of them waiting,
  whatever the others do. So the smaller half of the items takes its pops first,
  the other half shares the rest, and each half is halved again. One level is a
  few passes over the operations: O((p + q) log p) for p pushes and q pops, all
  halves of a level at once.

  Args:
    ranks: Rank of each item, in the order of the pushes, `[p]`, real.
    pops: Number of pops right after each push, `[p]`, or None to pop all items
      after the last push.

  Returns:
    The number of the item that each pop returns, int64, or -1 for a pop from an
    empty queue, `[sum(pops)]`.

  Raises:
    ValueError: If the ranks are not a vector of real numbers without NaN, or
      `pops` is not a vector of as many integers of at least 0.

  >>> drain([5, 1, 3, 4], pops=[0, 1, 0, 4]).tolist()
  [1, 2, 3, 0, -1]
  """
  ranks = np.asarray(ranks)
  if ranks.ndim != 1 or (ranks.size and ranks.dtype.kind not in "iuf"):
    raise ValueError(
      f"Expected a vector of real ranks, got {ranks.dtype} of shape"
      f" {ranks.shape}"
    )
  if np.isnan(ranks).any():
    raise ValueError(
      f"Expected ranks that can be ordered, got NaN for item"
      f" {int(np.flatnonzero(np.isnan(ranks))[0])}"
    )
  order = np.argsort(ranks, kind="stable")
  if pops is None:
    return order
  pops = np.asarray(pops)
  if (
    pops.shape != ranks.shape
    or (pops.size and pops.dtype.kind not in "iu")
    or (pops < 0).any()
  ):
    raise ValueError(
      f"Expected pops as {ranks.size} integers of at least 0, one for each"
      f" rank, got {pops.dtype} of shape {pops.shape}"
    )
  count = int(pops.sum())
  answers = np.full(count, -1)
  pushes = np.zeros(ranks.size + count, bool)
  pushes[np.arange(ranks.size) + np.cumsum(pops) - pops] = True
  # The queue's length: steps of one up and down, reflected at zero.
  walk = np.cumsum(np.where(pushes, 1, -1))
  lowest = np.minimum(np.minimum.accumulate(walk), 0)
  empty = np.zeros(walk.size, bool)
  empty[1:] = lowest[1:] < lowest[:-1]
  empty[:1] = walk[:1] < 0
  # Between two moments at which the queue is empty all items leave it.
  idle = walk == lowest
  period = np.cumsum(idle) - idle
  item_period = period[pushes]
  order = order[np.argsort(item_period[order], kind="stable")]
  sizes = np.bincount(item_period)
  first = np.cumsum(sizes) - sizes
  bits = int(max(sizes, default=1) - 1).bit_length()
  place = np.empty(ranks.size, np.int64)
  place[order] = np.arange(ranks.size)

  # Of every operation: its period, and the bits of its item's place in it.
  code = period << bits
  code[pushes] += place - first[item_period]
  served = ~empty
  pop_of = np.where(pushes, -1, np.cumsum(~pushes) - 1)[served]
  code = code[served]
  for bit in reversed(range(bits)):
    code, pop_of = _halve(code, pop_of, bit)
  is_pop = pop_of >= 0
  code = code[is_pop]
  answers[pop_of[is_pop]] = order[
    first[code >> bits] + (code & ((1 << bits) - 1))
  ]
  return answers


def _halve(
  code: np.ndarray, pop_of: np.ndarray, bit: int
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each pop one more bit, and sorts the operations by it, stably.

  Args:
    code: Place of each operation's item, known above `bit` for pops. Operations
      with equal known bits are a segment, in the order of time.
    pop_of: Number of each pop; -1 for a push.
    bit: Bit to determine.
  """
  known = code >> (bit + 1)
  starts = np.flatnonzero(np.append(True, known[1:] != known[:-1]))
  lengths = np.diff(np.append(starts, code.size))
  is_pop = pop_of >= 0
  small = ~is_pop & ((code >> bit) & 1 == 0)
  step = small.astype(np.int64) - is_pop
  walk = np.cumsum(step)
  # The walks of all segments start at 0, each far below the last one.
  level = -(2 * code.size + 1) * np.arange(starts.size)
  walk -= np.repeat(walk[starts] - step[starts] - level, lengths)
  floor = np.repeat(level, lengths)
  lowest = np.minimum.accumulate(np.minimum(walk, floor))
  before = np.append(0, lowest[:-1])
  # A pop that finds no small item waiting takes a large one.
  left = small | (is_pop & (walk >= before))
  code = code + (np.where(is_pop & ~left, 1, 0) << bit)
  lefts = np.add.reduceat(left, starts, dtype=np.int64)
  rights = lengths - lefts
  turned = np.empty(code.size, np.int64)
  shift = np.repeat(np.cumsum(rights) - rights, lefts)
  turned[np.arange(shift.size) + shift] = np.flatnonzero(left)
  shift = np.repeat(np.cumsum(lefts), rights)
  turned[np.arange(shift.size) + shift] = np.flatnonzero(~left)
  return code[turned], pop_of[turned]
