"""What a FIGS array is told to run a GEMM: where weights, indices, swaps go.

Outputs take their places in order, as `occupancy.exchanges` says: s beta
neighbours share a column, beta of them the PEs of one slot. Within a block an
output's kept indices take the slot's n PEs from the top down. Where registers
swap, the wants of a block are a bipartite graph from PEs to values. Every cycle
shows a matching of it, and as many matchings as its largest degree hold all of
it (Koenig).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine.figs import Figs
from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.simulator.program import Program, extended
from figs_jax.engine.spec import OVERLAPS


class _Shape(NamedTuple):
  """How a weight lies in the array.

  Attributes:
    R: rows of registers.
    C: columns of PEs.
    beta: MACs of a PE.
    block: B, rows of a block.
    run: n, PEs of an output in a block.
    D: blocks.
    s: slots of a column.
    down: folds along the contraction.
    across: folds along the outputs.
  """

  R: int
  C: int
  beta: int
  block: int
  run: int
  D: int
  s: int
  down: int
  across: int


def figs_program(
  x: np.ndarray,
  w: np.ndarray,
  mask: np.ndarray,
  engine: Figs,
  block: int,
  run: int,
) -> Program:
  """The program of x @ w.

  Args:
    x: (M, K).
    w: (K, N), zero where the mask is not set.
    mask: Bool (K, N).
    engine: the array, of one design.
    block: B, rows of a block.
    run: n, MACs of an output in a block; no block of the mask holds more.
  """
  R, C, beta = int(engine.rows), int(engine.cols), int(engine.beta)
  D, s = R // block, block // run
  (M, K), N = x.shape, w.shape[1]
  down, across = ceil_div(K, D * block), ceil_div(N, C * s * beta)
  shape = _Shape(R, C, beta, block, run, D, s, down, across)
  fold = np.arange(down * across)
  parts = extended(x, M, down * D * block).reshape(M, down, D * block)
  real = extended(np.ones(K, bool), down * D * block).reshape(down, -1)
  output = extended(np.ones(N, bool), across * C * s * beta)
  return Program(
    overlap=OVERLAPS.index(engine.overlap),
    blocks=D,
    hop=1 + engine.sigma,
    edge=0,
    stage=0,
    begin=0,
    finish=0,
    units=D * block,
    width=engine.load,
    inputs=D * block,
    bw_in=engine.bw_in,
    results=C * s * beta,
    bw_out=engine.bw_out,
    folds=fold.size,
    vectors=np.full_like(fold, M),
    first=0 * fold,
    down=fold % down,
    across=fold // down,
    weight=fold,
    after=0 * fold,
    x=extended(parts.transpose(1, 0, 2), down, M, R),
    real=extended(real, down, R),
    output=extended(
      output.reshape(across, C, s * beta), across, C, R * beta
    ),
    **_places(shape),
    **_weights(w, mask, shape, engine.exchange),
  )  # fmt: skip


def _places(a: _Shape) -> dict[str, np.ndarray]:
  """Which block, sum and row of weights each register and MAC belongs to.

  MAC p is lane p % beta of the PE in row p // beta. There are R beta sums too,
  of which D s beta are used: slot by slot of block by block.
  """
  row, mac = np.arange(a.R), np.arange(a.R * a.beta)
  place, width = mac // a.beta, a.s * a.beta
  block = np.minimum(place // a.block, a.D - 1)
  slot = np.minimum(place % a.block // a.run, a.s - 1)
  return {
    "row_block": np.minimum(row // a.block, a.D - 1),
    "mac_block": block,
    "mac_sum": (block * a.s + slot) * a.beta + mac % a.beta,
    "mac_unit": place,
    "sum_block": np.minimum(mac // width, a.D - 1),
    "sum_above": np.where(mac < width, -1, mac - width),
    "bottom": np.minimum((a.D - 1) * width + mac, mac[-1]),
  }


def _weights(
  w: np.ndarray, mask: np.ndarray, a: _Shape, exchange: str
) -> dict[str, Any]:
  """The kept weights at their MACs, and how each comes to its value."""
  shape = a.down, a.D, a.block, a.across, a.C, a.s, a.beta
  sides = a.down * a.D * a.block, a.across * a.C * a.s * a.beta
  kept, values = (extended(x, *sides).reshape(shape) for x in (mask, w))
  # The kept indices first.
  index = np.argsort(~kept, 2, kind="stable")[:, :, : a.run]
  kept, values = (np.take_along_axis(x, index, 2) for x in (kept, values))

  def at_macs(x):
    """From (down, D, n, across, C, s, beta) to (F, P, C)."""
    x = x.transpose(3, 0, 1, 5, 2, 6, 4)
    folds = a.across * a.down
    x = x.reshape(folds, a.D, a.s * a.run, a.beta, a.C)
    x = extended(x, folds, a.D, a.block, a.beta, a.C)
    return extended(x.reshape(folds, -1, a.C), folds, a.R * a.beta, a.C)

  kept, values, index = at_macs(kept), at_macs(values), at_macs(index)
  own = np.arange(a.R * a.beta)[:, None] // a.beta
  wanted = np.where(kept, own // a.block * a.block + index, own)
  found = {"weights": values * kept, "stored": kept}
  if exchange == "swap":
    reads = np.broadcast_to(own, kept.shape)
    return found | {"reads": reads} | _exchange(wanted, kept, a)
  folds, still = len(kept), np.arange(a.R)[:, None]
  return found | {
    "reads": wanted,
    "when": np.zeros_like(wanted),
    "swaps": np.broadcast_to(still, (folds, 1, a.R, a.C)),
    "kappa": np.ones(folds, int),
  }


def _exchange(
  wanted: np.ndarray, kept: np.ndarray, a: _Shape
) -> dict[str, np.ndarray]:
  """When each MAC multiplies, and what registers swap before it does.

  Args:
    wanted: (F, P, C), the row whose value each MAC multiplies.
    kept: Bool (F, P, C), whether it holds a weight.
    a: the array.
  """
  folds, macs, _ = wanted.shape
  when = np.zeros((folds, macs, a.C), int)
  still = np.arange(a.R)[:, None]
  swaps = np.array(np.broadcast_to(still, (folds, a.block, a.R, a.C)))
  kappa = np.ones(folds, int)
  for f, d, c in np.ndindex(folds, a.D, a.C):
    start = d * a.block
    here = np.arange(start * a.beta, (start + a.block) * a.beta)
    here = here[kept[f, here, c]]
    edges = np.stack([here // a.beta, wanted[f, here, c]], 1) - start
    steps = matchings(edges, a.block)
    kappa[f] = max(kappa[f], len(steps))
    shown = np.arange(a.block)  # by each PE so far
    for step, partial in enumerate(steps):
      when[f, here[partial[edges[:, 0]] == edges[:, 1]], c] = step
      source = _permutation(partial)
      # From where in the block, as it stands after the swaps before.
      swaps[f, step, start : start + a.block, c] = (
        start + np.argsort(shown)[source]
      )
      shown = source
  return {"when": when, "swaps": swaps, "kappa": kappa}


def _permutation(partial: np.ndarray) -> np.ndarray:
  """A matching, -1 where a PE wants nothing, with the rest shown to these."""
  full = partial.copy()
  rest = np.setdiff1d(np.arange(full.size), partial)
  full[full < 0] = rest
  return full


def matchings(edges: np.ndarray, size: int) -> list[np.ndarray]:
  """Splits a bipartite graph into as few matchings as its largest degree.

  Edge by edge takes a matching that is free at its PE. Where the value has an
  edge in it, that edge and all that follow by turns between this matching and
  one that is free at the value change sides; they never lead back to the PE.

  Args:
    edges: (edges, 2), pairs of a PE and the value it wants; repeated pairs
      count once.
    size: PEs, and values.

  Returns:
    Matchings: for each PE its value, or -1.

  >>> wants = np.array([[0, 1], [1, 1], [1, 0]])
  >>> [match.tolist() for match in matchings(wants, 2)]
  [[1, 0], [-1, 1]]
  """
  ends = np.unique(edges, axis=0) + [0, size]
  colours = np.bincount(ends.ravel(), minlength=1).max()
  # Across each end's edge of each colour, PEs before values.
  across = np.full((2 * size, colours), -1)
  for pe, value in ends:
    free, wish = across[pe].argmin(), across[value].argmin()
    path, colour = [value], free
    while across[path[-1], colour] >= 0:
      path.append(across[path[-1], colour])
      colour = free + wish - colour
    across[np.ix_(path, [free, wish])] = -1
    for i, (p, q) in enumerate(zip(path, path[1:])):
      across[p, (wish, free)[i % 2]], across[q, (wish, free)[i % 2]] = q, p
    across[pe, free], across[value, free] = value, pe
  return list(np.maximum(across[:size] - size, -1).T)
