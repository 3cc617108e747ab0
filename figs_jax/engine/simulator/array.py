"""A weight-stationary array of blocks, clocked register by register.

An array has D blocks of input registers down and C columns of MACs across. In
every cycle

  the loader      sends weights towards the shadow registers of the MACs;
  a buffer        collects the next input vector, `bw_in` values per cycle;
  the corner      holds a vector until the next one may take its place: its
                  values have been exchanged, the next vector is in the buffer,
                  and the previous results have left at `bw_out` per cycle; the
                  first vector of a fold also waits for its weights;
  orders, inputs  and weights reach block d of column c d + c hop cycles later;
  MACs            multiply what the registers of their block show;
  sums            move down one block as their vector makes room, and leave
                  below the last block.

Except for the rule below, no closed form is used here: a GEMM takes as long as
its last result needs to leave. Where loads and streams overlap fully, the very
last vector waits for a load that no fold follows, as the closed forms charge.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class ArrayProgram(NamedTuple):
  """Everything an array needs to run a GEMM: its shape, tables and operands.

  D blocks, C columns, R input registers, P MACs per column, Q sums per column
  (over all blocks), S results per column; F folds, W distinct weights.
  """

  overlap: str  # "none", "weights" or "full"
  blocks: int  # D
  hop: int  # cycles from one column to the next
  edge: int  # cycles in registers before the first column
  stage: int  # cycles in a register behind each multiplier, 0 or 1
  begin: int  # cycles of control before an empty array streams
  finish: int  # cycles of control after the last result
  units: int  # rows of weights in a fold
  width: int  # rows of weights loaded per cycle
  inputs: int  # values of a vector, padding included
  bw_in: int  # values that enter per cycle
  results: int  # sums of a vector that leave the array
  bw_out: int  # sums that leave per cycle
  # Per fold, (F,).
  vectors: np.ndarray  # number of vectors
  first: np.ndarray  # first row of the activations
  down: np.ndarray  # part of the contraction
  across: np.ndarray  # part of the outputs
  weight: np.ndarray  # index among the W weights
  after: np.ndarray  # folds that must have left before this one starts
  kappa: np.ndarray  # cycles that the exchange of a vector takes
  # Operands and what each MAC does with them.
  x: np.ndarray  # (parts, M, R) activations as they enter the registers
  real: np.ndarray  # (parts, R) registers whose value is a read, not padding
  weights: np.ndarray  # (W, P, C)
  stored: np.ndarray  # (W, P, C) weights that are reads, not padding
  reads: np.ndarray  # (W, P, C) the register that a MAC reads
  # (W, P, C) the cycle of the exchange in which it reads; None: the first.
  when: np.ndarray | None
  # (W, kappa, R, C) the register whose value each takes; None: its own.
  swaps: np.ndarray | None
  # Places in a column.
  row_block: np.ndarray  # (R,) block of a register
  mac_block: np.ndarray  # (P,) block of a MAC
  mac_sum: np.ndarray  # (P,) sum that a MAC adds to
  mac_unit: np.ndarray  # (P,) row of weights that holds a MAC's weight
  sum_block: np.ndarray  # (Q,) block of a sum
  sum_above: np.ndarray  # (Q,) sum of the block above that it adds to, or -1
  bottom: np.ndarray  # (S,) sums that leave
  output: np.ndarray  # (outputs, C, S) results that are outputs, not padding


class _Order(NamedTuple):
  """What travels with a vector; each field is a number, or an array of them."""

  live: Any  # a vector is in place
  fold: Any
  vector: Any  # its index within the fold
  held: Any  # cycles that it has been in place
  over: Any  # it makes room at the end of this cycle
  loading: Any  # rows of weights are on their way
  target: Any  # the fold they belong to
  unit: Any  # the first of these rows


def clock(p: ArrayProgram) -> tuple[np.ndarray, dict[str, int]]:
  """Clocks the array until its last result has left.

  Args:
    p: Program of a GEMM whose operands share a dtype, int64 or float64.

  Returns:
    The results, (outputs, M, C, S), and `cycles`, `ifmap_reads`,
    `filter_reads` and `ofmap_writes`.
  """
  P, C = p.weights.shape[1:]
  Q, M = p.sum_block.size, p.x.shape[1]
  column, row = np.arange(C), np.arange(p.row_block.size)[:, None]
  mac = np.arange(P)[:, None]
  # Cycles after which an order arrives.
  at_rows, at_macs, at_sums = (
    p.edge + late + block[:, None] + p.hop * column
    for late, block in (
      (0, p.row_block), (0, p.mac_block), (p.stage, p.sum_block)
    )
  )  # fmt: skip
  at_bottom = p.edge + p.stage + p.blocks + p.hop * column
  add_to = (p.mac_sum[:, None] * C + column).ravel()

  # Delay lines, written in a circle.
  length = int(at_bottom[-1]) + 1
  orders = np.zeros((length, len(_Order._fields)), np.int64)
  line = np.zeros((length, row.size), p.x.dtype)
  values = np.zeros((row.size, C), p.x.dtype)
  shadow, active, products = np.zeros((3, P, C), p.x.dtype)
  partial, sums = np.zeros((2, Q, C), p.x.dtype)
  out = np.zeros((len(p.output), M, C, p.bottom.size), p.x.dtype)
  ifmap_reads = filter_reads = ofmap_writes = cycle = 0

  for cycle, (order, buffer, reads) in enumerate(_corner(p, length)):
    ifmap_reads += reads
    orders[cycle % length], line[cycle % length] = order, buffer

    def arriving(late, now=cycle):
      return _Order(*np.moveaxis(orders[(now - late) % length], -1, 0))

    # Registers take new values, or exchange those that they hold.
    here = arriving(at_rows)
    fresh = (here.live > 0) & (here.held == 0)
    values = np.where(fresh, line[(cycle - at_rows) % length, row], values)
    if p.swaps is not None:
      step = np.minimum(here.held, p.swaps.shape[1] - 1)
      source = p.swaps[p.weight[here.fold], step, row, column]
      swaps = (here.live > 0) & (here.held < p.kappa[here.fold])
      values = values[np.where(swaps, source, row), column]

    # MACs take the loaded weights with the first vector, and multiply.
    here = arriving(at_macs)
    live = here.live > 0
    opens = live & (here.held == 0) & (here.vector == 0)
    active = np.where(opens, shadow, active)
    at = p.weight[here.fold], mac, column
    due = live & (here.held == (0 if p.when is None else p.when[at]))
    before = products
    products = np.where(due, active * values[p.reads[at], column], 0)

    # Weights for the next fold enter.
    ahead = p.mac_unit[:, None] - here.unit
    enters = (here.loading > 0) & (ahead >= 0) & (ahead < p.width)
    at = p.weight[here.target], mac, column
    shadow = np.where(enters, p.weights[at], shadow)
    filter_reads += int((enters & p.stored[at]).sum())

    # Sums at the bottom leave.
    here = arriving(at_bottom)
    over, across = here.over > 0, p.across[here.fold]
    leaving = np.where(over[:, None], sums[p.bottom].T, 0)
    out[across, p.first[here.fold] + here.vector, column] += leaving
    ofmap_writes += int((over[:, None] & p.output[across, column]).sum())

    # The others grow, and move down where their vector makes room.
    here = arriving(at_sums)
    added = np.zeros(Q * C, p.x.dtype)
    np.add.at(added, add_to, (before if p.stage else products).ravel())
    partial = np.where(here.held == 0, 0, partial) + added.reshape(Q, C)
    above = np.where(p.sum_above[:, None] < 0, 0, sums[p.sum_above])
    sums = np.where(here.over > 0, above + partial, sums)

  return out, {
    "cycles": cycle + 1,
    "ifmap_reads": ifmap_reads,
    "filter_reads": filter_reads,
    "ofmap_writes": ofmap_writes,
  }


def _corner(
  p: ArrayProgram, length: int
) -> Iterator[tuple[_Order, np.ndarray, int]]:
  """Gives an order per cycle until the last result has left.

  Args:
    p: Program of the array.
    length: Cycles from an order until its results have left every column.

  Yields:
    The order, the input vector that enters with it, and the words read.
  """
  full, folds = p.overlap == "full", len(p.vectors)
  vectors, after, kappa = (x.tolist() for x in (p.vectors, p.after, p.kappa))
  fold = vector = held = waited = credit = 0  # of the vector in place
  busy = False
  opened = left = drained = 0  # folds that stream, have left, were closed
  loads = unit = 0  # folds whose weights are loaded, rows of the next one
  next_fold = next_vector = 0  # the vector in the buffer
  filled, buffer = p.inputs, p.x[p.down[0], p.first[0]].copy()
  reads = int(p.real[p.down[0]].sum())
  ends = collections.deque([False] * (length + p.finish), length + p.finish)

  while drained < folds:
    # Block 0 of column 0 takes the vector in the buffer.
    ready = (
      not busy
      and fold < min(loads, folds)
      and filled >= p.inputs
      and left >= after[fold]
      and (full or drained >= fold)
    )
    # Control takes its cycles where the array was empty.
    begins = ready and ((full and fold > 0) or waited >= p.begin)
    waited = waited + 1 if ready and not begins else 0
    busy = busy or begins
    fresh = busy and held == 0
    if fresh and vector == 0:
      opened = fold + 1
    entering = buffer.copy()

    # Values of the next vector enter the buffer.
    if fresh:
      filled, credit, next_vector = 0, 0, next_vector + 1
      if next_vector >= vectors[next_fold]:
        next_fold, next_vector = next_fold + 1, 0
    part = slice(filled, min(filled + p.bw_in, p.inputs))
    filled = part.stop
    if next_fold < folds:
      down = p.down[next_fold]
      buffer[part] = p.x[down, p.first[next_fold] + next_vector, part]
      reads += int(p.real[down, part].sum())

    # The loader works on the next fold.
    free = (drained if p.overlap == "none" else opened) >= loads
    loading = free and loads < folds + full
    load = loading and loads < folds, min(loads, folds - 1), unit
    unit += p.width * loading
    if unit >= p.units:
      loads, unit = loads + 1, 0

    # The vector in place makes room if the next one may follow.
    credit = min(credit + p.bw_out, p.results)
    over = (
      busy
      and held + 1 >= kappa[fold]
      and filled >= p.inputs
      and credit >= p.results
    )
    last = busy and vector + 1 >= vectors[fold]
    # The closed forms charge a load after the last fold.
    over = over and not (full and last and fold + 1 == folds >= loads)
    yield (
      _Order(busy, min(fold, folds - 1), vector, held, over, *load),
      entering,
      reads,
    )
    reads = 0
    ends.appendleft(over and last)
    held = 0 if over or not busy else held + 1
    vector += over
    if ends[0]:
      fold, vector, busy = fold + 1, 0, False
    left, drained = left + ends[length - 1], drained + ends[-1]


def extended(x: np.ndarray, *shape: int) -> np.ndarray:
  """An array padded with zeros at the end of each axis, up to a shape.

  >>> extended(np.ones((1, 2), int), 2, 3).tolist()
  [[1, 1, 0], [0, 0, 0]]
  """
  return np.pad(x, [(0, to - size) for size, to in zip(x.shape, shape)])
