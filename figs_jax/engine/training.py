"""What training costs on an engine: one step, and a run of several phases.

A layer's step is three products, some of which masks make sparse:

  forward          Y  = X W      (M x K)(K x N)   W is N:M along K
  input gradient   dX = dY W'    (M x N)(N x K)   W is N:M along N too, if masks
                                                  are transposable (2102.08124)
  weight gradient  dW = X' dY    (K x M)(M x N)   dY is pruned to n:m along M by
                                                  an unbiased estimate
                                                  (2203.10991), else dense

All run on the same engine one after the other, each with its right operand in
the weight's place. Both operands of attention's products are activations; each
takes one product in the backward pass. The first layer's input gradient is
counted. Only products of matrices are: not norms, softmax, the choice of masks,
the packing of operands or the optimizer. Masks change from step to step, so
real ones are ignored: a pattern that the engine has to emulate costs its worst
case.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine._cost import Cost, Operands, cost, operands
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, Gemm
from figs_jax.engine.spec_text import parse


class TrainingPhase(NamedTuple):
  """Steps of equal arithmetic.

  Attributes:
    steps: Number of steps.
    layers: Table of layers or its rows. A row with m > 1 is a masked kernel, in
      a dense stage if its pattern is m:m.
    forward: Whether the forward pass runs sparse; not while pruned weights
      leak.
    input_gradient: Whether the input gradient runs sparse.
    weight_gradient: Pattern along M of the pruned operand of masked layers.
      None runs the weight gradient dense.
  """

  steps: int
  layers: Any
  forward: bool = True
  input_gradient: bool = False
  weight_gradient: NM | str | None = None

  def products(self) -> Layers:
    """The three products of each layer: all forward ones, then the others.

    >>> row = {"name": "ff", "M": 2, "N": 4, "K": 8, "pattern": "1:8"}
    >>> table = TrainingPhase(1, [row]).products()
    >>> table.names
    ('ff', 'ff/input_gradient', 'ff/weight_gradient')
    >>> table.M.tolist(), table.N.tolist(), table.K.tolist()
    ([2, 2, 8], [4, 8, 4], [8, 4, 2])
    """
    table = Layers.of(self.layers)
    M, N, K, ones = table.M, table.N, table.K, np.ones(len(table), np.int64)
    own, dense = (table.n, table.m), (ones, ones)
    masked, nm = table.m > 1, NM.parse(self.weight_gradient or NM(1, 1))
    n, m = zip(
      own if self.forward else dense,
      own if self.input_gradient else dense,
      (np.where(masked, nm.n, 1), np.where(masked, nm.m, 1)),
    )
    # Transposed, a V:N:M weight is n:m at most.
    shared = None
    if table.v is not None and self.forward:
      shared = np.concatenate([table.v, 0 * ones, 0 * ones])
    names = [
      name + suffix
      for suffix in ("", "/input_gradient", "/weight_gradient")
      for name in table.names
    ]
    return Layers(
      tuple(names),
      M=np.concatenate([M, M, K]),
      N=np.concatenate([N, K, N]),
      K=np.concatenate([K, N, M]),
      n=np.concatenate(n),
      m=np.concatenate(m),
      count=np.tile(table.count, 3),
      v=shared,
    )


class PerProduct(NamedTuple):
  """One number for each of the three products."""

  forward: Any
  input_gradient: Any
  weight_gradient: Any

  @property
  def total(self) -> Any:
    """The sum of the three."""
    return self.forward + self.input_gradient + self.weight_gradient


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What one step costs by product, summed over the layers.

  Integers are exact, also beyond int64.

  Attributes:
    cycles: Cycles, or nanoseconds of a roofline.
    flops: Arithmetic on kept values.
    dram_bytes: Bytes moved if every operand moves once.
    energy_pj: Energy in picojoules, as floats.
    layers: Cost of each product of each layer, (3 layers,).
  """

  cycles: PerProduct
  flops: PerProduct
  dram_bytes: PerProduct
  energy_pj: PerProduct
  layers: Cost


@dataclasses.dataclass(frozen=True)
class RunCost:
  """What a run costs.

  Attributes:
    engine: Engine of the run.
    steps: Number of steps of each phase.
    phases: Cost of one step of each phase.
    dense: The same without any pattern.
  """

  engine: Engine
  steps: tuple[int, ...]
  phases: tuple[StepCost, ...]
  dense: tuple[StepCost, ...]

  def total(self, field: str) -> Any:
    """Sum over the run of "cycles", "flops", "dram_bytes" or "energy_pj"."""
    return self._sum(self.phases, field)

  def share(self, field: str) -> float:
    """A total as a share of the dense run's."""
    return self.total(field) / self._sum(self.dense, field)

  def seconds(self, clock_ghz: float | int | None = None) -> float:
    """The duration of the run.

    Args:
      clock_ghz: Clock of an array in place of the engine's own.

    Raises:
      ValueError: If the clock is not positive, or a roofline is given one.
    """
    return nanoseconds(self.total("cycles"), self.engine, clock_ghz) / 1e9

  def _sum(self, costs: Sequence[StepCost], field: str) -> Any:
    each = zip(self.steps, costs, strict=True)
    return sum(steps * getattr(cost, field).total for steps, cost in each)


def step_cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  *,
  forward: bool = True,
  input_gradient: bool = False,
  weight_gradient: NM | str | None = None,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  dtype: str | None = None,
) -> StepCost:
  """What one training step costs.

  Args:
    layers: Table of layers, or its rows.
    engine: Engine with scalar sides, or its spec.
    forward: Whether the forward pass runs sparse.
    input_gradient: Whether the input gradient runs sparse.
    weight_gradient: Pattern of the weight gradient's pruned operand.
    itemsize: Bytes per value off chip; see `cost`.
    energy: Picojoules per operation; see `cost`.
    dtype: Data type of the operands; see `cost`.

  Raises:
    ValueError: If a row or spec is invalid, the engine cannot run a pattern, or
      a result does not fit int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> step_cost([row], "ws:32x32").cycles
  PerProduct(forward=316, input_gradient=632, weight_gradient=632)
  """
  sparsity = forward, input_gradient, weight_gradient
  table = TrainingPhase(1, layers, *sparsity).products()
  return _cost_of(table, operands(parse(engine), itemsize, energy, dtype))


def run_cost(
  phases: Iterable[Any],
  engine: Engine | str,
  *,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  dtype: str | None = None,
) -> RunCost:
  """What a run of several phases costs, beside the same run without patterns.

  Args:
    phases: `TrainingPhase`s, or tuples of the same fields.
    engine: Engine with scalar sides, or its spec.
    itemsize: Bytes per value off chip; see `cost`.
    energy: Picojoules per operation; see `cost`.
    dtype: Data type of the operands; see `cost`.

  Raises:
    ValueError: If phases are missing or without steps, and as `step_cost`.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> run = run_cost([(10, [row], False), (90, [row])], "ws:32x32")
  >>> run.total("cycles"), round(run.share("flops"), 2)
  (161160, 0.85)
  """
  given = operands(parse(engine), itemsize, energy, dtype)
  run = [TrainingPhase(*phase) for phase in phases]
  if not run:
    raise ValueError("run_cost: expected at least one phase (steps, layers)")
  steps = tuple(operator.index(phase.steps) for phase in run)
  for index, count in enumerate(steps):
    if count < 1:
      raise ValueError(
        f"run_cost: expected at least one step in phase {index}, got {count}"
      )
  known: dict[bytes, StepCost] = {}

  def cost_of(table: Layers) -> StepCost:
    columns = (table.M, table.N, table.K, table.n, table.m, table.count)
    shared = 0 * table.M if table.v is None else table.v
    key = np.stack((*columns, shared)).tobytes()
    if key not in known:
      known[key] = _cost_of(table, given)
    return known[key]

  return RunCost(
    given.engine,
    steps,
    tuple(cost_of(phase.products()) for phase in run),
    tuple(
      cost_of(TrainingPhase(1, Layers.of(phase.layers).dense()).products())
      for phase in run
    ),
  )


def nanoseconds(
  cycles: Any, engine: Engine, clock_ghz: float | int | None = None
) -> Any:
  """The duration of an engine's cycles; see `RunCost.seconds`."""
  if clock_ghz is None:
    return engine.nanoseconds(cycles)
  if not isinstance(clock_ghz, Real) or not 0 < clock_ghz < float("inf"):
    raise ValueError(
      f"clock_ghz: expected a positive number, got {clock_ghz!r}"
    )
  if engine.unit == "ns" and clock_ghz != 1:
    raise ValueError(
      f"clock_ghz: expected 1, as {engine} counts nanoseconds, got"
      f" {clock_ghz!r}"
    )
  return cycles / clock_ghz


def _cost_of(table: Layers, given: Operands) -> StepCost:
  layers = cost(table, *given)
  # In Python's integers: a product of sizes may pass int64.
  columns = (table.M, table.N, table.K, table.n, table.m)
  gemm = Gemm(*(column.astype(object) for column in columns))

  def per_product(values: np.ndarray) -> PerProduct:
    each = np.asarray(values).astype(object) * layers.count.astype(object)
    return PerProduct(*(sum(part.tolist()) for part in np.split(each, 3)))

  return StepCost(
    cycles=per_product(layers.cycles),
    flops=per_product(2 * gemm.M * gemm.N * gemm.kept),
    dram_bytes=per_product(layers.dram_bytes),
    energy_pj=per_product(layers.energy_pj),
    layers=layers,
  )
