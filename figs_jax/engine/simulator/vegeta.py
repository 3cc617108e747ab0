"""What VEGETA's array is told to run a GEMM.

A row of K_c holds one weight of each of M_c outputs; beta rows are a row of
PEs. Of every block of 4 an S engine runs h = 1 or 2 weights in h rows, each of
which is fed the 4 values of the block for a multiplexer to choose from; what
needs more runs dense, as everything does on a D engine. PEs register their
inputs and their products, and control takes a cycle before the first input and
one after the last result: that is why a tile takes WL + mode + 2 cycles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.simulator.program import Program, extended
from figs_jax.engine.spec import OVERLAPS
from figs_jax.engine.vegeta import BLOCK, Vegeta


class _Shape(NamedTuple):
  """How a weight lies in the array.

  Attributes:
    R: rows of multipliers, K_c.
    C: columns of PEs, M_c / alpha.
    alpha: PUs of a PE.
    beta: rows of a PE.
    lanes: values that a row is fed.
    block: rows of the weight that share rows of the array: 4, or 1 if dense.
    held: h, the rows of the array that they share.
    down: folds along the contraction.
    across: folds along the outputs.
  """

  R: int
  C: int
  alpha: int
  beta: int
  lanes: int
  block: int
  held: int
  down: int
  across: int

  @property
  def groups(self) -> int:
    """Blocks that a fold holds."""
    return self.R // self.held


def vegeta_program(
  x: np.ndarray, w: np.ndarray, mask: np.ndarray, engine: Vegeta, held: int
) -> Program:
  """The program of x @ w.

  Args:
    x: (M, K).
    w: (K, N), zero where the mask is not set.
    mask: Bool (K, N).
    engine: the array, of one design.
    held: weights of a block of 4 that run; no block of the mask holds more.
  """
  R, cols = int(engine.rows), int(engine.cols)
  alpha, beta = int(engine.alpha), int(engine.beta)
  (M, K), N = x.shape, w.shape[1]
  sparse = held < BLOCK and held <= R
  block, held = (BLOCK, held) if sparse else (1, 1)
  down, across = ceil_div(K, R // held * block), ceil_div(N, cols)
  lanes, C = BLOCK if engine.sparse else 1, cols // alpha
  shape = _Shape(R, C, alpha, beta, lanes, block, held, down, across)
  folds = _folds(M, down, across, engine)
  register = np.arange(R * lanes)[:, None]
  weights = across * down
  output = extended(np.ones(N, bool), across * cols)
  return Program(
    overlap=OVERLAPS.index(engine.overlap),
    blocks=R // beta,
    hop=1,
    edge=1,
    stage=1,
    begin=1,
    finish=1,
    units=R // beta,
    width=1,
    inputs=R * lanes,
    bw_in=engine.bw_in,
    results=cols,
    bw_out=engine.bw_out,
    **folds,
    kappa=np.ones(folds["folds"], int),
    when=np.zeros((weights, R * alpha, C), int),
    swaps=np.broadcast_to(register, (weights, 1, R * lanes, C)),
    output=output.reshape(across, C, alpha),
    **_places(shape),
    **_inputs(x, shape),
    **_weights(w, mask, shape),
  )


def _places(a: _Shape) -> dict[str, np.ndarray]:
  """Which row of PEs and sum each register and multiplier belongs to.

  Multiplier p is that of PU p % alpha in row p // alpha.
  """
  mac, total = np.arange(a.R * a.alpha), np.arange(a.R // a.beta * a.alpha)
  pe = mac // a.alpha // a.beta
  return {
    "row_block": np.arange(a.R * a.lanes) // a.lanes // a.beta,
    "mac_block": pe,
    "mac_sum": pe * a.alpha + mac % a.alpha,
    "mac_unit": pe,
    "sum_block": total // a.alpha,
    "sum_above": np.where(total < a.alpha, -1, total - a.alpha),
    "bottom": total[-a.alpha :],
  }


def _first(a: _Shape) -> np.ndarray:
  """The first row of the weight's block that each row holds, (down, R)."""
  group = np.arange(a.down * a.groups).reshape(a.down, a.groups)
  return extended(group.repeat(a.held, 1) * a.block, a.down, a.R)


def _inputs(x: np.ndarray, a: _Shape) -> dict[str, np.ndarray]:
  """What each row is fed; its block's first row alone counts as read."""
  M, K = x.shape
  row, lane = np.arange(a.R)[:, None], np.arange(a.lanes)
  source = _first(a)[:, :, None] + lane
  fed = (row < a.groups * a.held) & (lane < a.block) & (source < K)
  values = np.where(fed, x[:, np.minimum(source, K - 1)], 0)
  return {
    "x": values.transpose(1, 0, 2, 3).reshape(a.down, M, -1),
    "real": (fed & (row % a.held == 0)).reshape(a.down, -1),
  }


def _weights(
  w: np.ndarray, mask: np.ndarray, a: _Shape
) -> dict[str, np.ndarray]:
  """The weights of each block that run, the kept ones first."""
  K, N = w.shape
  kept = extended(mask, a.down * a.groups * a.block, N)
  kept = kept.reshape(a.down, a.groups, a.block, N)
  lane = np.argsort(~kept, 2, kind="stable")[:, :, : a.held]
  lane = lane.reshape(a.down, a.groups * a.held, N)
  row = _first(a)[:, : a.groups * a.held, None] + lane
  values = w[np.minimum(row, K - 1), np.arange(N)]

  def at_macs(array):
    """From (down, rows, N) to (W, P, C)."""
    array = extended(array, a.down, a.R, a.across * a.C * a.alpha)
    array = array.reshape(a.down, a.R, a.across, a.C, a.alpha)
    array = array.transpose(2, 0, 1, 4, 3)
    return array.reshape(a.across * a.down, a.R * a.alpha, a.C)

  stored = at_macs(row < K)
  feed = np.arange(a.R * a.alpha)[:, None] // a.alpha * a.lanes
  return {
    "weights": at_macs(values) * stored,
    "stored": stored,
    "reads": feed + at_macs(lane),
  }


def _folds(
  M: int, down: int, across: int, engine: Vegeta
) -> dict[str, np.ndarray | int]:
  """The order of folds: groups of outputs, each through all of K.

  An output is a tile of activation rows of M_c columns; whole tiles come first.
  With `interleave` d there are d outputs in a group, and a fold waits until its
  output's last sums have left; with 0 they are forwarded.
  """
  tile, d = int(engine.tile), int(engine.interleave)
  tile = min(tile, M)
  starts = [(t, min(tile, M - t)) for t in range(0, M, tile)]
  outputs = [(*part, c) for part in starts for c in range(across)]
  whole = M // tile * across
  groups = [
    part[i : i + max(d, 1)]
    for part in (outputs[:whole], outputs[whole:])
    for i in range(0, len(part), max(d, 1))
  ]
  rows = []
  for group in groups:
    for k in range(down):
      for first, vectors, c in group:
        # As many folds must have left as there were up to the same output's.
        after = len(rows) - len(group) + 1 if k and d else 0
        rows.append((vectors, first, k, c, c * down + k, after))
  names = "vectors", "first", "down", "across", "weight", "after"
  return {"folds": len(rows)} | dict(zip(names, np.array(rows).T))
