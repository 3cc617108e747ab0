"""Clocked FIGS and VEGETA arrays that multiply real operands.

`simulate` writes the program of a GEMM, with the weights packed according to
their mask, and clocks the array (`figs_jax.engine.simulator.array`). The closed
forms of `figs_jax.engine.figs` and `figs_jax.engine.vegeta` must give the same
cycles and words. Both take the length of blocks and the weights run per block
from the same functions (`Figs.packing`, `blocks.fit`), but share nothing about
folds, streams and waits.

The FIGS array is a reconstruction from the FiGS slides, of which only alpha,
beta, the swap registers and their aim are known. The simulator shows that the
closed form describes an array that computes the right product; it is not
evidence about the array that the authors of the slides built.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.blocks import block_counts
from figs_jax.engine.figs import Figs
from figs_jax.engine.simulator import figs, vegeta
from figs_jax.engine.simulator.array import clock
from figs_jax.engine.spec import UNLIMITED, Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.vegeta import Vegeta

# Each maps (x, w, mask, engine, pattern) to the program of x @ w.
_PROGRAMS: dict[type, Any] = {
  Figs: figs.program_of,
  Vegeta: vegeta.program_of,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
  """Result of a simulated GEMM.

  Attributes:
    product: x @ w, (M, N), int64 or float64.
    cycles: Cycles from the first load to the last result.
    ifmap_reads: Activation words that entered, without padding and copies.
    filter_reads: Weight words loaded.
    ofmap_writes: Words that left, partial sums included.
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
  outside the array is not clocked, so `dram_bw` must be unlimited.

  Args:
    x: Activations, (M, K).
    w: Weights, (K, N).
    engine: FIGS or VEGETA array of a single design, or its spec.
    pattern: Pattern of the weights along K. None, "dense" and n = m are dense.
    mask: Kept weights, Bool (K, N). Defaults to the non-zero ones.

  Raises:
    ValueError: If the engine is of another kind, describes several designs or
      bounds the memory, shapes do not match, a group keeps more than the
      pattern allows, `w` is not zero outside the mask, or the engine cannot run
      the pattern (see their `counts`).

  >>> x, w = np.arange(12).reshape(3, 4), np.array([[0, 2], [1, 0]] * 2)
  >>> result = simulate(x, w, "figs:4x1", "1:2")
  >>> result.product.tolist() == (x @ w).tolist(), result.cycles
  (True, 9)
  """
  array = _clockable(parse(engine))
  x, w = np.asarray(x), np.asarray(w)
  if x.ndim != 2 or w.ndim != 2 or x.shape[1:] != w.shape[:1]:
    raise ValueError(
      f"simulate: expected x (M, K) and w (K, N), got {x.shape} and {w.shape}"
    )
  kinds = {x.dtype.kind, w.dtype.kind}
  if not kinds <= set("biuf"):
    raise ValueError(
      f"simulate: expected integers or floats, got {x.dtype} and {w.dtype}"
    )
  x, w = (a.astype(np.float64 if "f" in kinds else np.int64) for a in (x, w))
  nm = NM(1, 1) if pattern in (None, "dense") else NM.parse(pattern)
  kept = _kept(w, nm, mask)
  program = _PROGRAMS[type(array)](x, w, kept, array, nm)
  out, counts = clock(program)
  # Columns hold the results of neighbouring outputs.
  (M, _), N = x.shape, w.shape[1]
  per_column = program.results // out.shape[2]
  product = out[..., :per_column].transpose(1, 0, 2, 3).reshape(M, -1)[:, :N]
  return Simulation(product, **counts)


def _kept(w: np.ndarray, nm: NM, mask: np.ndarray | None) -> np.ndarray:
  """The mask of w, checked against w and the pattern."""
  if nm.is_dense:
    return np.ones(w.shape, bool)
  kept = w != 0 if mask is None else np.asarray(mask)
  if kept.dtype != np.bool_ or kept.shape != w.shape:
    raise ValueError(
      f"mask: expected bool (K, N) = {w.shape}, got {kept.dtype} {kept.shape}"
    )
  if (w[~kept] != 0).any():
    raise ValueError(
      "mask: w is not zero outside the mask; pass np.where(mask, w, 0)"
    )
  counts = block_counts(kept, nm.m)
  if counts.max() > nm.n:
    row, column = np.argwhere(counts > nm.n)[0]
    raise ValueError(
      f"mask: column {column} keeps {counts[row, column]} of the {nm.m} rows"
      f" from {row * nm.m} on, but pattern {nm} allows {nm.n}; prune w or pass"
      " its own pattern"
    )
  return kept


def _clockable(engine: Engine) -> Any:
  """The engine, if it can be clocked."""
  if type(engine) not in _PROGRAMS:
    raise ValueError(f"simulate: expected a FIGS or VEGETA array, got {engine}")
  if any(np.ndim(leaf) for leaf in engine.leaves):
    raise ValueError(
      f"simulate: expected a single design, got several in {engine}; clock one"
      " at a time"
    )
  if engine.memory_bandwidth != UNLIMITED:
    raise ValueError(
      f"simulate: {engine} bounds the memory, which is not clocked; leave"
      " dram_bw out"
    )
  if getattr(engine, "granularity", "layer") != "layer":
    raise ValueError(
      f"simulate: {engine} gives rows their own patterns, which is not clocked;"
      " leave granularity out"
    )
  return engine
