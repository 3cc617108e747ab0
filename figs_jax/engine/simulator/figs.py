"""Programs of the FIGS array: where weights lie, and when registers swap.

Outputs take their places in order, as `blocks.exchanges` describes: s beta
neighbours share a column, beta of them the PEs of one slot. Within a block, the
kept indices of an output take the n PEs of its slot from the top down. Where
registers swap, the values that PEs want form a bipartite graph. Every cycle
shows a matching of it, and as many matchings as its largest degree cover it
(Koenig's theorem).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.figs import Figs
from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.simulator.array import ArrayProgram, extended


class _Shape(NamedTuple):
  """How a weight lies in the array."""

  R: int  # rows of registers
  C: int  # columns of PEs
  beta: int  # MACs of a PE
  block: int  # B, rows of a block
  run: int  # n, PEs of an output in a block
  D: int  # blocks
  s: int  # slots of a column
  down: int  # folds along the contraction
  across: int  # folds along the outputs


def program_of(
  x: np.ndarray, w: np.ndarray, mask: np.ndarray, engine: Figs, pattern: NM
) -> ArrayProgram:
  """Writes the program of x @ w.

  Args:
    x: Activations, (M, K).
    w: Weights, (K, N), zero outside the mask.
    mask: Kept weights, Bool (K, N).
    engine: FIGS array of a single design.
    pattern: Pattern that the mask obeys.
  """
  packed = engine.packing(pattern.n, pattern.m, [mask])
  block, run = (int(value[0]) for value in packed)
  R, C, beta = int(engine.rows), int(engine.cols), int(engine.beta)
  D, s = R // block, block // run
  (M, K), N = x.shape, w.shape[1]
  down, across = ceil_div(K, D * block), ceil_div(N, C * s * beta)
  shape = _Shape(R, C, beta, block, run, D, s, down, across)
  fold = np.arange(down * across)
  parts = extended(x, M, down * D * block).reshape(M, down, D * block)
  real = extended(np.ones(K, bool), down * D * block).reshape(down, -1)
  output = extended(np.ones(N, bool), across * C * s * beta)
  return ArrayProgram(
    overlap=engine.overlap,
    blocks=D,
    hop=1 + int(engine.sigma),
    edge=0,
    stage=0,
    begin=0,
    finish=0,
    units=D * block,
    width=int(engine.load),
    inputs=D * block,
    bw_in=int(engine.bw_in),
    results=C * s * beta,
    bw_out=int(engine.bw_out),
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
  """The block, sum and row of weights of each register and MAC.

  MAC p is lane p % beta of the PE in row p // beta. Of the R beta sums,
  D s beta are used: block by block, slot by slot.
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
  """The kept weights at their MACs, and how each MAC gets its value."""
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
  table = {"weights": values * kept, "stored": kept}
  if exchange == "swap":
    reads = np.broadcast_to(own, kept.shape)
    return table | {"reads": reads} | _exchange(wanted, kept, a)
  once = np.ones(len(kept), int)
  return table | {"reads": wanted, "when": None, "swaps": None, "kappa": once}


def _exchange(
  wanted: np.ndarray, kept: np.ndarray, a: _Shape
) -> dict[str, np.ndarray]:
  """When each MAC multiplies, and which registers swap before it does.

  Args:
    wanted: Row whose value each MAC multiplies, (F, P, C).
    kept: MACs that hold a weight, Bool (F, P, C).
    a: Shape of the array.
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
      # Places in the block as it stands after the previous swaps.
      swaps[f, step, start : start + a.block, c] = (
        start + np.argsort(shown)[source]
      )
      shown = source
  return {"when": when, "swaps": swaps, "kappa": kappa}


def _permutation(partial: np.ndarray) -> np.ndarray:
  """Completes a matching: PEs with -1 are shown the remaining values."""
  full = partial.copy()
  full[full < 0] = np.setdiff1d(np.arange(full.size), partial)
  return full


def matchings(edges: np.ndarray, size: int) -> list[np.ndarray]:
  """Splits a bipartite graph into as few matchings as its largest degree.

  Each edge takes a matching that is free at its PE. If the value already has an
  edge in that matching, this edge and those that alternate with it between this
  matching and one that is free at the value trade matchings; such a path never
  leads back to the PE.

  Args:
    edges: Pairs of a PE and the value it wants, (edges, 2); duplicates count
      once.
    size: Number of PEs, and of values.

  Returns:
    Matchings, each with the value of every PE, or -1.

  >>> wants = np.array([[0, 1], [1, 1], [1, 0]])
  >>> [match.tolist() for match in matchings(wants, 2)]
  [[1, 0], [-1, 1]]
  """
  ends = np.unique(edges, axis=0) + [0, size]
  colours = np.bincount(ends.ravel(), minlength=1).max()
  # The other end of each end's edge of each colour; PEs come before values.
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
