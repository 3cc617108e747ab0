"""Latencies measured on a machine, fitted: what a roofline leaves out.

  t = t0 + 2 M N K / P + (bytes of A, B) / B + (bytes of the output) / B_o   (1)

with M, N and K of the second term padded to the matrix unit: a call, an FLOP
and a byte in or out each have a cost that is never negative. Beside it stands a
line through the cycles of a systolic array,

  t = t0 + cycles / f                                                        (2)

Both minimise the sum of squared relative errors, so that short calls count as
much as long ones. `cross_validated` judges both on calls that the fit has not
seen. Times are in microseconds. Everything is NumPy, and deterministic.
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

# Sides to which M, N and K are padded: 8 rows stream past 128 x 128 weights.
# Bytes are those of the unpadded operands, which predict short calls better.
TPU_PADS = (8, 128, 128)


@dataclasses.dataclass(frozen=True)
class LatencyModel:
  """The latency (1) of a GEMM from its size alone; see `fit_latency`.

  Attributes:
    overhead: Microseconds of any call, t0.
    per_flop: Microseconds per FLOP, padding included, 1 / P.
    per_byte_in: Microseconds per byte of A and B, 1 / B.
    per_byte_out: Microseconds per byte of the output, 1 / B_o.
    itemsize: Bytes per value.
    pads: Sides to which M, N and K are padded when FLOPs are counted.

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
    """P in TFLOP/s; infinite if FLOPs are fitted as free."""
    return _rate(self.per_flop, 1e-6)

  @property
  def gbytes_in(self) -> float:
    """B in GB/s; infinite if reading operands is fitted as free."""
    return _rate(self.per_byte_in, 1e-3)

  @property
  def gbytes_out(self) -> float:
    """B_o in GB/s; infinite if writing results is fitted as free."""
    return _rate(self.per_byte_out, 1e-3)


@dataclasses.dataclass(frozen=True)
class CycleModel:
  """The line (2) through cycles; see `fit_cycles`.

  Attributes:
    overhead: Microseconds of any call, t0; a line may put it below 0.
    per_cycle: Microseconds per cycle, 1 / f.

  >>> float(CycleModel(1.0, 0.5).predict(4))
  3.0
  """

  overhead: float
  per_cycle: float

  def predict(self, cycles: Any) -> Any:
    """Microseconds of a number of cycles."""
    return self.overhead + self.per_cycle * np.asarray(cycles, np.float64)


def fit_latency(
  M: Any,
  N: Any,
  K: Any,
  measured: Any,
  itemsize: int = 2,
  pads: tuple[int, int, int] = TPU_PADS,
) -> LatencyModel:
  """The non-negative costs of (1) that fit measured GEMMs best.

  Args:
    M: Rows of the activations, (calls,).
    N: Columns of the weight, (calls,).
    K: Length of the contraction, (calls,).
    measured: Microseconds, (calls,).
    itemsize: Bytes per value.
    pads: Sides to which M, N and K are padded when FLOPs are counted.

  Raises:
    ValueError: If there are fewer than four calls, columns have different
      lengths, or a time is not positive.

  >>> true = LatencyModel(1.0, 1e-8, 1e-6, 2e-6)
  >>> M, N, K = np.array([[128, 512, 256, 1024], [8, 64, 256, 128], [64] * 4])
  >>> model = fit_latency(M, N, K, true.predict(M, N, K))
  >>> round(model.tflops), round(model.gbytes_out)
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
  """The line (2) through cycles that fits measured latencies best.

  Args:
    cycles: Cycles of each call, (calls,).
    measured: Microseconds, (calls,).

  Raises:
    ValueError: If there are fewer than two calls, columns have different
      lengths, or a time is not positive.

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

  The calls are shuffled and dealt into folds; each fold is predicted by a fit
  of all others. The mean of the result, times 100, is the cross-validated MAPE.

  Args:
    fit: Function from `(*columns, measured)` to a model whose `predict` takes
      the columns.
    columns: Predictors, (calls,) each.
    measured: Microseconds, (calls,).
    folds: Number of parts, at most the number of calls.
    seed: Seed of the shuffle.

  Returns:
    |predicted / measured - 1| of each call, in the order given.

  Raises:
    ValueError: If `folds` is below 2 or above the number of calls, or as `fit`.

  >>> cycles = np.arange(10, 30)
  >>> errors = cross_validated(fit_cycles, [cycles], 3.0 + 0.1 * cycles)
  >>> errors.shape, bool(errors.max() < 1e-9)
  ((20,), True)
  """
  columns = [np.asarray(column) for column in columns]
  measured = np.asarray(measured, np.float64)
  calls = len(measured)
  if not 2 <= folds <= calls:
    raise ValueError(
      f"folds: expected 2 to {calls}, the number of calls, got {folds}"
    )
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
  """Terms per measured time; weighted by costs they should add up to 1."""
  measured = np.asarray(measured, np.float64)
  calls, least = terms.shape
  if measured.shape != (calls,) or calls < least:
    raise ValueError(
      f"fit: expected at least {least} calls and one time for each, got"
      f" {calls} calls and times of shape {measured.shape}"
    )
  bad = np.flatnonzero(~(measured > 0))
  if len(bad):
    raise ValueError(
      f"fit: expected times above 0, got measured[{bad[0]}] ="
      f" {measured[bad[0]]}"
    )
  return terms / measured[:, None]


def _least_squares(terms: np.ndarray) -> np.ndarray:
  """The x for which terms @ x comes closest to 1."""
  # Columns differ by 10 orders of magnitude.
  scale = np.abs(terms).max(0)
  costs, *_ = np.linalg.lstsq(terms / scale, np.ones(len(terms)), rcond=None)
  return costs / scale


def _non_negative(terms: np.ndarray) -> np.ndarray:
  """`_least_squares` over x >= 0.

  Where some x are 0, the others solve the problem without those terms; there
  are few sets of terms, so all of them are tried.
  """
  count = terms.shape[1]
  best, least = np.zeros(count), float(len(terms))
  for size in range(1, count + 1):
    for chosen in itertools.combinations(range(count), size):
      costs = _least_squares(terms[:, chosen])
      misfit = np.square(terms[:, chosen] @ costs - 1).sum()
      if costs.min() >= 0 and misfit < least:
        best, least = np.zeros(count), misfit
        best[list(chosen)] = costs
  return best


def _rate(per_unit: float, scale: float) -> float:
  return scale / per_unit if per_unit else float("inf")
