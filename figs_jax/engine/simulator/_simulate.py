"""Clocked FIGS and VEGETA arrays that multiply real operands.

`simulate` writes the program of a GEMM, weights packed as its mask asks, clocks
the array (`figs_jax.engine.simulator.array`), and returns the product, the
cycles and the words that moved. The closed forms of `figs_jax.engine.figs` and
`figs_jax.engine.vegeta` equal them. How long blocks are and how much of each
runs both take from the same functions (`figs.packing`, `occupancy.fit`); of
folds, streams and waits nothing is shared.

The FIGS array is a reconstruction from the FiGS slides, of which only alpha,
beta, the swap registers and their aim are known. So the simulator shows that
the closed form describes an array that computes the right product; it is no
evidence about the array that the slides' authors built.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.blocks import block_counts, fit
from figs_jax.engine.figs import Figs
from figs_jax.engine.simulator.array import run
from figs_jax.engine.simulator.figs import figs_program
from figs_jax.engine.simulator.vegeta import vegeta_program
from figs_jax.engine.spec import UNLIMITED, Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.vegeta import BLOCK, Vegeta


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
  """What an array did.

  Attributes:
    product: x @ w, (M, N), int64 or float64.
    cycles: from the first load to the last result.
    ifmap_reads: activation words that entered, but for zeros and copies.
    filter_reads: weight words loaded.
    ofmap_writes: words that left, partial sums included.
  """

  product: np.ndarray
  cycles: int
  ifmap_reads: int
  filter_reads: int
  ofmap_writes: int


def simulate(
  x: np.ndarray,
  w: np.ndarray,
  engine: Figs | Vegeta | str,
  pattern: NM | str | None = None,
  mask: np.ndarray | None = None,
) -> Simulation:
  """Runs x @ w on a clocked array.

  Integers are multiplied and added as int64, exactly while they fit. Memory
  outside the array is not clocked: `dram_bw` must be unlimited.

  Args:
    x: (M, K) activations.
    w: (K, N) weights.
    engine: one FIGS or VEGETA array, or its spec.
    pattern: what the weights keep along K; None, "dense" or n = m is dense.
    mask: Bool (K, N), which of them are kept; by default those that are not
      zero.

  Raises:
    ValueError: the engine is of another kind, describes several designs or
      bounds the memory; shapes do not match; a group holds more than the
      pattern allows, or w more than the mask; or the engine cannot run the
      pattern (as `figs.counts` and `vegeta.counts` refuse it).

  >>> x, w = np.arange(12).reshape(3, 4), np.array([[0, 2], [1, 0]] * 2)
  >>> found = simulate(x, w, "figs:4x1", "1:2")
  >>> found.product.tolist() == (x @ w).tolist(), found.cycles
  (True, 9)
  """
  array = _clockable(parse(engine))
  x, w = np.asarray(x), np.asarray(w)
  if x.ndim != 2 or w.ndim != 2 or x.shape[1:] != w.shape[:1]:
    raise ValueError(
      f"simulate: got x {x.shape} and w {w.shape}; give (M, K) and (K, N)"
    )
  nm = NM(1, 1) if pattern in (None, "dense") else NM.parse(pattern)
  kept = _kept(w, nm, mask)
  if isinstance(array, Figs):
    block, held = array.packing(nm.n, nm.m, [kept])
    program = figs_program(x, w, kept, array, int(block[0]), int(held[0]))
  else:
    program = vegeta_program(x, w, kept, array, _held(nm, kept, array))
  state = run(program)
  (M, _), N = x.shape, w.shape[1]
  width = program.results // int(program.output.shape[1])
  product = state.out[: len(program.output), :M, :, :width]
  product = product.transpose(1, 0, 2, 3).reshape(M, -1)[:, :N]
  counted = "cycles", "ifmap_reads", "filter_reads", "ofmap_writes"
  return Simulation(product, *(int(getattr(state, name)) for name in counted))


def _held(nm: NM, kept: np.ndarray, engine: Vegeta) -> int:
  """How many weights of a block of 4 run: 1, 2 or all."""
  if not engine.sparse:
    return BLOCK
  n, m = np.array([nm.n]), np.array([nm.m])
  held = int(fit(n, m, BLOCK, [kept])[0])
  return held if held < 3 else BLOCK


def _kept(w: np.ndarray, nm: NM, mask: np.ndarray | None) -> np.ndarray:
  if nm.is_dense:
    return np.ones(w.shape, bool)
  kept = w != 0 if mask is None else np.asarray(mask)
  if kept.dtype != np.bool_ or kept.shape != w.shape:
    raise ValueError(
      f"mask: got {kept.dtype} {kept.shape}; give bool (K, N) = {w.shape}"
    )
  if (w[~kept] != 0).any():
    raise ValueError(
      "mask: w is not zero outside of it; pass np.where(mask, w, 0)"
    )
  counts = block_counts(kept, nm.m)
  if counts.max() > nm.n:
    row, column = np.argwhere(counts > nm.n)[0]
    raise ValueError(
      f"mask: column {column} keeps {counts[row, column]} of the {nm.m} rows"
      f" from {row * nm.m} on, pattern {nm} at most {nm.n}; prune w or pass the"
      " pattern that it has"
    )
  return kept


def _clockable(engine: Engine) -> Figs | Vegeta:
  if not isinstance(engine, Figs | Vegeta):
    raise ValueError(
      f"simulate: got engine {engine}; only FIGS and VEGETA arrays can be"
      " clocked"
    )
  if any(np.ndim(leaf) for leaf in engine.leaves):
    raise ValueError(
      f"simulate: {engine} describes several designs; clock one at a time"
    )
  if engine.dram_bw != UNLIMITED:
    raise ValueError(
      f"simulate: {engine} bounds the memory, which is not clocked; leave"
      " dram_bw out"
    )
  return engine
