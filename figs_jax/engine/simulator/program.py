"""What an array of blocks is told before it starts: shape, tables, data.

`figs_jax.engine.simulator.array` clocks a program;
`figs_jax.engine.simulator.figs` and `.vegeta` write them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np


class Program(NamedTuple):
  """What an array is told before it starts: its shape, its tables, its data.

  Blocks D, columns C, input registers R, MACs P per column, sums Q per column
  (those of all blocks), results S per column; F folds, W different weights.

  Attributes:
    overlap: 0 none, 1 weights, 2 full.
    blocks: D.
    hop: cycles from one column to the next.
    edge: cycles in registers before the first column.
    stage: cycles in a register behind each multiplier, 0 or 1.
    begin: cycles of control before an empty array streams.
    finish: cycles of control after its last result.
    units: rows of weights of a fold.
    width: of which so many are loaded per cycle.
    inputs: values of a vector, with those that are zeros.
    bw_in: of which so many enter per cycle.
    results: sums of a vector that leave the array.
    bw_out: of which so many leave per cycle.
    folds: F.
    vectors: (F,) vectors of a fold.
    first: (F,) row of the activations that comes first.
    down: (F,) which part of the contraction.
    across: (F,) which outputs.
    weight: (F,) which of the W weights.
    kappa: (F,) cycles in which a vector's values are exchanged.
    after: (F,) how many folds must have left before this one starts.
    x: (parts, M, R) activations as they enter the registers.
    real: (parts, R) whether a register's value is read, not a zero or a copy.
    weights: (W, P, C).
    stored: (W, P, C) whether a weight is read, not a zero that fills up.
    reads: (W, P, C) the register that a MAC reads.
    when: (W, P, C) the cycle of the exchange in which it does.
    swaps: (W, kappa, R, C) from where each register takes its value in a cycle.
    row_block: (R,) the block of a register.
    mac_block: (P,) the block of a MAC.
    mac_sum: (P,) the sum that it adds to.
    mac_unit: (P,) the row of weights that holds its weight.
    sum_block: (Q,) the block of a sum.
    sum_above: (Q,) the sum of the block above that it adds to, or -1.
    bottom: (S,) the sums that leave.
    output: (outputs, C, S) whether a result is one, not a zero.
  """

  overlap: Any
  blocks: Any
  hop: Any
  edge: Any
  stage: Any
  begin: Any
  finish: Any
  units: Any
  width: Any
  inputs: Any
  bw_in: Any
  results: Any
  bw_out: Any
  folds: Any
  vectors: Any
  first: Any
  down: Any
  across: Any
  weight: Any
  kappa: Any
  after: Any
  x: Any
  real: Any
  weights: Any
  stored: Any
  reads: Any
  when: Any
  swaps: Any
  row_block: Any
  mac_block: Any
  mac_sum: Any
  mac_unit: Any
  sum_block: Any
  sum_above: Any
  bottom: Any
  output: Any


def padded(p: Program) -> Program:
  """Lengths that differ between GEMMs as powers of two: few compilations."""
  longer = {
    name: _lengthen(getattr(p, name), axes)
    for name, axes in {
      **dict.fromkeys(("vectors", "first", "down", "across"), (0,)),
      **dict.fromkeys(("weight", "kappa", "after"), (0,)),
      **dict.fromkeys(("weights", "stored", "reads", "when"), (0,)),
      **{"x": (0, 1), "real": (0,), "swaps": (0, 1), "output": (0,)},
    }.items()
  }
  return jax.tree.map(_wide, p._replace(**longer))


def _lengthen(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  pads = [(0, 0)] * x.ndim
  for axis in axes:
    pads[axis] = (0, power_of_two(x.shape[axis]) - x.shape[axis])
  return np.pad(x, pads)


def power_of_two(length: int) -> int:
  """The least power of two that is not below a length, nor below 16."""
  return max(16, 1 << (int(length) - 1).bit_length())


def _wide(x: Any) -> np.ndarray:
  x = np.asarray(x)
  kinds = {"b": bool, "i": np.int64, "u": np.int64, "f": np.float64}
  return x.astype(kinds[x.dtype.kind])


def extended(x: np.ndarray, *shape: int) -> np.ndarray:
  """An array with zeros behind it on each axis, up to a shape.

  >>> extended(np.ones((1, 2), int), 2, 3).tolist()
  [[1, 1, 0], [0, 0, 0]]
  """
  return np.pad(x, [(0, to - size) for size, to in zip(x.shape, shape)])
