"""Latencies that a machine measured, fitted: what a roofline leaves out.

  t = t0 + 2 M N K / P + (bytes of A and B) / B + (bytes of the output) / B_o

with M, N and K of the second term padded to the matrix unit, so that a call, an
FLOP and a byte in or out each cost something that is never negative. Beside it
stands a line through cycles of a systolic array,

  t = t0 + cycles / f

Both minimise the sum of squared relative errors, so that short calls count as
much as long ones; both are judged by `cross_validated`, on calls that the fit
has not seen. Times are in microseconds. NumPy only, and deterministic.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.spec import Gemm
from figs_jax.engine.systolic import Systolic

# What M, N and K are padded to: 8 rows stream past 128 x 128 weights. The bytes
# are those of the operands themselves: padded ones predict short calls worse.
TPU_PADS = (8, 128, 128)


@dataclasses.dataclass(frozen=True)
class LatencyModel:
  """A GEMM's latency from its size alone; see `fit_latency`.

  Attributes:
    overhead: t0, microseconds of any call.
    per_flop: 1 / P, microseconds per FLOP, padding included.
    per_byte_in: 1 / B, microseconds per byte of A and B.
    per_byte_out: 1 / B_o, microseconds per byte of the output.
    itemsize: bytes per value.
    pads: what M, N and K are padded to where FLOPs are counted.

  >>> model = LatencyModel(1.0, 1e-8, 1e-6, 2e-6)
  >>> round(float(model.predict(128, 128, 128)), 4)
  1.173
  >>> round(model.tflops), round(model.gbytes_in), round(model.gbytes_out)
  (100, 1000, 500)
  """

  overhead: float
  per_flop: float
  per_byte_in: float
  per_byte_out: float
  itemsize: int = 2
  pads: tuple[int, int, int] = TPU_PADS

  def predict(self, M: Any, N: Any, K: Any) -> Any:
    """Microseconds of (M x K) times (K x N)."""
    terms = _terms(M, N, K, self.itemsize, self.pads)
    costs = (self.overhead, self.per_flop, self.per_byte_in, self.per_byte_out)
    return terms @ np.array(costs)

  @property
  def tflops(self) -> float:
    """P in TFLOP/s; infinite where FLOPs are fitted as free."""
    return _rate(self.per_flop, 1e-6)

  @property
  def gbytes_in(self) -> float:
    """B in GB/s; infinite where reading operands is fitted as free."""
    return _rate(self.per_byte_in, 1e-3)

  @property
  def gbytes_out(self) -> float:
    """B_o in GB/s; infinite where writing results is fitted as free."""
    return _rate(self.per_byte_out, 1e-3)


@dataclasses.dataclass(frozen=True)
class CycleModel:
  """A line through cycles; see `fit_cycles`.

  Attributes:
    overhead: t0, microseconds; a line may put it below 0.
    per_cycle: microseconds per cycle.

  >>> float(CycleModel(1.0, 0.5).predict(4))
  3.0
  """

  overhead: float
  per_cycle: float

  def predict(self, cycles: Any) -> Any:
    """Microseconds of so many cycles."""
    return self.overhead + self.per_cycle * np.asarray(cycles, np.float64)


def fit_latency(
  M: Any,
  N: Any,
  K: Any,
  measured: Any,
  itemsize: int = 2,
  pads: tuple[int, int, int] = TPU_PADS,
) -> LatencyModel:
  """The model whose costs, none of them negative, fit measured GEMMs best.

  Args:
    M: rows of the activations, (calls,).
    N: columns of the weight, (calls,).
    K: the contraction, (calls,).
    measured: microseconds, (calls,).
    itemsize: bytes per value.
    pads: what M, N and K are padded to where FLOPs are counted.

  Raises:
    ValueError: fewer than four calls, columns of different lengths, or a time
      that is not positive.

  >>> true = LatencyModel(1.0, 1e-8, 1e-6, 2e-6)
  >>> M, N, K = np.array([[128, 512, 256, 1024], [8, 64, 256, 128], [64] * 4])
  >>> found = fit_latency(M, N, K, true.predict(M, N, K))
  >>> round(found.tflops), round(found.gbytes_out)
  (100, 500)
  """
  terms = _terms(M, N, K, itemsize, pads)
  call, flop, byte_in, byte_out = _non_negative(_relative(terms, measured))
  return LatencyModel(
    *(float(call), float(flop), float(byte_in), float(byte_out)),
    itemsize=itemsize,
    pads=pads,
  )


def fit_cycles(cycles: Any, measured: Any) -> CycleModel:
  """The line through cycles that fits measured latencies best.

  Args:
    cycles: of each call, (calls,).
    measured: microseconds, (calls,).

  Raises:
    ValueError: fewer than two calls, columns of different lengths, or a time
      that is not positive.

  >>> round(float(fit_cycles([0, 2], [1.0, 2.0]).predict(4)), 6)
  3.0
  """
  cycles = np.asarray(cycles, np.float64)
  terms = np.stack([np.ones_like(cycles), cycles], -1)
  overhead, per_cycle = _least_squares(_relative(terms, measured))
  return CycleModel(float(overhead), float(per_cycle))


def systolic_cycles(M: Any, N: Any, K: Any, side: int = 128) -> Any:
  """Cycles of a side x side array that holds whichever operand costs less.

  Weights ("ws") or inputs ("is") stay, as a compiler would transpose a GEMM.

  >>> int(systolic_cycles(112, 128, 48)), int(systolic_cycles(128, 112, 48))
  (494, 494)
  """
  gemm = Gemm(np.asarray(M), np.asarray(N), np.asarray(K))
  return np.minimum(
    Systolic("ws", side, side).counts(gemm)["cycles"],
    Systolic("is", side, side).counts(gemm)["cycles"],
  )


def cross_validated(
  fit: Callable[..., Any],
  columns: Sequence[Any],
  measured: Any,
  folds: int = 5,
  seed: int = 0,
) -> np.ndarray:
  """Relative errors of calls by fits that have not seen them.

  The calls are shuffled by the seed and dealt into folds; each fold is
  predicted by a fit of all others. The mean of the result, times 100, is the
  cross-validated MAPE.

  Args:
    fit: `(*columns, measured)` -> a model whose `predict` takes the columns.
    columns: what the model predicts from, (calls,) each.
    measured: microseconds, (calls,).
    folds: parts of the calls; at most as many as there are.
    seed: of the shuffle.

  Returns:
    |predicted / measured - 1| of each call, in the order given.

  Raises:
    ValueError: folds below 2 or above the number of calls; what `fit` raises.

  >>> cycles = np.arange(10, 30)
  >>> errors = cross_validated(fit_cycles, [cycles], 3.0 + 0.1 * cycles)
  >>> errors.shape, bool(errors.max() < 1e-9)
  ((20,), True)
  """
  columns = [np.asarray(column) for column in columns]
  measured = np.asarray(measured, np.float64)
  calls = len(measured)
  if not 2 <= folds <= calls:
    raise ValueError(f"folds={folds}: give 2 to {calls}, the number of calls")
  order = np.random.default_rng(seed).permutation(calls)
  errors = np.empty(calls)
  for fold in range(folds):
    held = np.zeros(calls, bool)
    held[order[fold::folds]] = True
    model = fit(*(column[~held] for column in columns), measured[~held])
    predicted = model.predict(*(column[held] for column in columns))
    errors[held] = np.abs(predicted / measured[held] - 1)
  return errors


def _terms(M: Any, N: Any, K: Any, itemsize: int, pads: Any) -> np.ndarray:
  """A call, its FLOPs, its bytes in and out: (calls, 4)."""
  M, N, K = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (M, N, K)))
  padded = [ceil_div(size, pad) * pad for size, pad in zip((M, N, K), pads)]
  flops = 2 * padded[0] * padded[1] * padded[2]
  moved = itemsize * (M * K + K * N), itemsize * (M * N)
  return np.stack([np.ones_like(M), flops, *moved], -1)


def _relative(terms: np.ndarray, measured: Any) -> np.ndarray:
  """Terms per measured time, which a fit should add up to 1."""
  measured = np.asarray(measured, np.float64)
  calls, least = terms.shape
  if measured.shape != (calls,) or calls < least:
    raise ValueError(
      f"fit: {calls} calls, measured of shape {measured.shape}; give at least"
      f" {least} calls and one time for each"
    )
  bad = np.flatnonzero(~(measured > 0))
  if len(bad):
    raise ValueError(
      f"fit: measured[{bad[0]}] = {measured[bad[0]]}; give times above 0"
    )
  return terms / measured[:, None]


def _least_squares(terms: np.ndarray) -> np.ndarray:
  """The x that brings terms @ x closest to 1."""
  # Columns differ by 10 orders of magnitude.
  scale = np.abs(terms).max(0)
  found, *_ = np.linalg.lstsq(terms / scale, np.ones(len(terms)), rcond=None)
  return found / scale


def _non_negative(terms: np.ndarray) -> np.ndarray:
  """`_least_squares` over x >= 0: the best of all sets of terms.

  Where some x are 0, the others solve the problem without those terms. There
  are few sets, so all of them are tried.
  """
  count = terms.shape[1]
  best, least = np.zeros(count), float(len(terms))
  for size in range(1, count + 1):
    for chosen in itertools.combinations(range(count), size):
      found = _least_squares(terms[:, chosen])
      misfit = np.square(terms[:, chosen] @ found - 1).sum()
      if found.min() >= 0 and misfit < least:
        best, least = np.zeros(count), misfit
        best[list(chosen)] = found
  return best


def _rate(per_unit: float, scale: float) -> float:
  return scale / per_unit if per_unit else float("inf")
