"""Programs of VEGETA's array: where weights lie, and the order of folds.

A row of multipliers (K_c of them) holds one weight of each of M_c outputs; beta
rows make a row of PEs. Of every block of 4, an S engine runs h = 1 or 2 weights
in h rows, each of which is fed the 4 values of the block for a multiplexer to
choose from; fuller blocks run dense, as everything does on a D engine. PEs
register their inputs and their products, and control takes a cycle before the
first input and one after the last result, so that a tile takes WL + mode + 2
cycles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.blocks import fit
from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.simulator.array import ArrayProgram, extended
from figs_jax.engine.vegeta import Vegeta


class _Shape(NamedTuple):
  """How a weight lies in the array."""

  R: int  # rows of multipliers, K_c
  C: int  # columns of PEs, M_c / alpha
  alpha: int  # PUs of a PE
  beta: int  # rows of a PE
  lanes: int  # values that a row is fed
  block: (
    int  # rows of the weight that share rows of the array: 4, or 1 if dense
  )
  held: int  # h, the rows of the array that they share
  down: int  # folds along the contraction
  across: int  # folds along the outputs

  @property
  def groups(self) -> int:
    """Blocks that a fold holds."""
    return self.R // self.held


def program_of(
  x: np.ndarray, w: np.ndarray, mask: np.ndarray, engine: Vegeta, pattern: NM
) -> ArrayProgram:
  """Writes the program of x @ w.

  Args:
    x: Activations, (M, K).
    w: Weights, (K, N), zero outside the mask.
    mask: Kept weights, Bool (K, N).
    engine: VEGETA array of a single design.
    pattern: Pattern that the mask obeys.
  """
  R, cols = int(engine.rows), int(engine.cols)
  alpha, beta = int(engine.alpha), int(engine.beta)
  (M, K), N = x.shape, w.shape[1]
  block, held = _packing(mask, engine, pattern)
  down, across = ceil_div(K, R // held * block), ceil_div(N, cols)
  lanes, C = Vegeta.BLOCK if engine.sparse else 1, cols // alpha
  shape = _Shape(R, C, alpha, beta, lanes, block, held, down, across)
  folds = _folds(M, down, across, engine)
  output = extended(np.ones(N, bool), across * cols)
  return ArrayProgram(
    overlap=engine.overlap,
    blocks=R // beta,
    hop=1,
    edge=1,
    stage=1,
    begin=1,
    finish=1,
    units=R // beta,
    width=1,
    inputs=R * lanes,
    bw_in=int(engine.bw_in),
    results=cols,
    bw_out=int(engine.bw_out),
    **folds,
    kappa=np.ones_like(folds["vectors"]),
    when=None,
    swaps=None,
    output=output.reshape(across, C, alpha),
    **_places(shape),
    **_inputs(x, shape),
    **_weights(w, mask, shape),
  )


def _packing(mask: np.ndarray, engine: Vegeta, pattern: NM) -> tuple[int, int]:
  """Rows of the weight in a block, and the rows of the array they take."""
  if engine.sparse:
    n, m = np.array([pattern.n]), np.array([pattern.m])
    held = int(fit(n, m, Vegeta.BLOCK, [mask])[0])
    if held < 3 and held <= int(engine.rows):
      return Vegeta.BLOCK, held
  return 1, 1  # dense


def _places(a: _Shape) -> dict[str, np.ndarray]:
  """The row of PEs and the sum of each register and multiplier.

  Multiplier p belongs to PU p % alpha in row p // alpha.
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
  """The values each row is fed; only those of a block's first row are reads."""
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
) -> dict[str, np.ndarray]:
  """The order of folds: groups of outputs, each through all of K.

  An output is a tile of activation rows by M_c columns; whole tiles come first.
  With `interleave` d, a group has d outputs, and a fold waits until the last
  sums of its output have left; with 0, sums are forwarded.
  """
  tile, d = min(int(engine.tile), M), int(engine.interleave)
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
        # All folds up to the previous one of the same output must have left.
        after = len(rows) - len(group) + 1 if k and d else 0
        rows.append((vectors, first, k, c, c * down + k, after))
  names = "vectors", "first", "down", "across", "weight", "after"
  return dict(zip(names, np.array(rows).T))
