"""What training costs on an engine: one step, and a run of several phases.

A layer's step is three products, of which masks make some sparse:

  forward          Y  = X W      (M x K)(K x N)   W is N:M along K
  input gradient   dX = dY W'    (M x N)(N x K)   W is N:M along N too, if masks
                                                  are transposable (2102.08124)
  weight gradient  dW = X' dY    (K x M)(M x N)   dY is pruned to n:m along M by
                                                  an unbiased estimate
                                                  (2203.10991), else dense

All run on the same engine one after the other, each with its right operand in
the weight's place. Both operands of attention's products are activations; each
of them takes a product in the backward pass too. The first layer's input
gradient counts like any other. What is no product of matrices is left out:
norms, softmax, the choice of masks, the packing of operands, the optimizer.
Real masks are not looked at, since they change from step to step: a pattern
that the engine lacks costs its worst case.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine._cost import AT_45_NM, Cost, cost
from figs_jax.engine.blocks import kept_depth
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse


class Phase(NamedTuple):
  """Steps of equal arithmetic.

  steps: how many. layers: a table or its rows; one with m > 1 is a masked
  kernel, m:m one in a dense stage. forward: whether the forward pass runs
  sparse; not while pruned weights leak. input_gradient: whether that product
  does. weight_gradient: the pattern, along M, of its pruned operand in masked
  layers; None runs it dense.
  """

  steps: int
  layers: Any
  forward: bool = True
  input_gradient: bool = False
  weight_gradient: NM | str | None = None


class Parts(NamedTuple):
  """A number for each of the three products."""

  forward: Any
  input_gradient: Any
  weight_gradient: Any

  @property
  def total(self) -> Any:
    return self.forward + self.input_gradient + self.weight_gradient


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What one step costs, summed over the layers; exact integers, but energy.

  Attributes:
    cycles: by product; nanoseconds of a roofline.
    flops: by product, of kept values.
    dram_bytes: by product, every operand moved once.
    energy_pj: by product, floats.
    layers: the cost of each product of each layer, (3 layers,).
  """

  cycles: Parts
  flops: Parts
  dram_bytes: Parts
  energy_pj: Parts
  layers: Cost


@dataclasses.dataclass(frozen=True)
class TrainCost:
  """What a run costs.

  Attributes:
    engine: on which.
    steps: of each phase.
    phases: the cost of one step of each phase.
    dense: the same without any pattern.
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

  def seconds(self, clock_ghz: float | int = 1.0) -> float:
    """The time of the run.

    Args:
      clock_ghz: of an array; a roofline counts nanoseconds and has none.

    Raises:
      ValueError: a clock that is not positive, or one for a roofline.
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
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
) -> StepCost:
  """What one training step costs; arguments as of `Phase`.

  Args:
    layers: a table, or its rows.
    engine: an engine with scalar sides, or its spec.
    forward: whether the forward pass runs sparse.
    input_gradient: whether the input gradient does.
    weight_gradient: the pattern of the weight gradient's pruned operand.
    itemsize: bytes per value off chip.
    energy: picojoules per operation.

  Raises:
    ValueError: a bad row or spec, a pattern that the engine cannot run, or a
      result past int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> step_cost([row], "ws:32x32").cycles
  Parts(forward=316, input_gradient=632, weight_gradient=632)
  """
  table = products(
    layers,
    forward=forward,
    input_gradient=input_gradient,
    weight_gradient=weight_gradient,
  )
  return _cost_of(table, parse(engine), itemsize, energy)


def products(
  layers: Layers | Iterable[Mapping[str, Any]],
  *,
  forward: bool = True,
  input_gradient: bool = False,
  weight_gradient: NM | str | None = None,
) -> Layers:
  """The three products of each layer: all forward ones, then the others.

  Arguments as of `step_cost`.

  >>> row = {"name": "ff", "M": 2, "N": 4, "K": 8, "pattern": "1:8"}
  >>> table = products([row])
  >>> table.names
  ('ff', 'ff/input_gradient', 'ff/weight_gradient')
  >>> table.M.tolist(), table.N.tolist(), table.K.tolist()
  ([2, 2, 8], [4, 8, 4], [8, 4, 2])
  """
  table = Layers.of(layers)
  ones = np.ones(len(table), np.int64)
  masked = table.m > 1
  of_dy = NM(1, 1) if weight_gradient is None else NM.parse(weight_gradient)
  patterns = [
    (table.n, table.m) if forward else (ones, ones),
    (table.n, table.m) if input_gradient else (ones, ones),
    (np.where(masked, of_dy.n, 1), np.where(masked, of_dy.m, 1)),
  ]
  names = [
    table.names,
    *(
      tuple(f"{name}/{product}" for name in table.names)
      for product in Parts._fields[1:]
    ),
  ]
  M, N, K = table.M, table.N, table.K
  return Layers(
    sum(names, ()),
    M=np.concatenate([M, M, K]),
    N=np.concatenate([N, K, N]),
    K=np.concatenate([K, N, M]),
    n=np.concatenate([n for n, _ in patterns]),
    m=np.concatenate([m for _, m in patterns]),
    count=np.tile(table.count, 3),
  )


def train_cost(
  phases: Iterable[Any],
  engine: Engine | str,
  *,
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
) -> TrainCost:
  """What a run of several phases costs, beside the same run dense.

  Args:
    phases: `Phase`s, or tuples of the same fields.
    engine: an engine with scalar sides, or its spec.
    itemsize: bytes per value off chip.
    energy: picojoules per operation.

  Raises:
    ValueError: no phases, one without steps, or as `step_cost`.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> run = train_cost([(10, [row], False), (90, [row])], "ws:32x32")
  >>> run.total("cycles"), round(run.share("flops"), 2)
  (161160, 0.85)
  """
  engine = parse(engine)
  run: list[Phase] = [Phase(*phase) for phase in phases]
  if not run:
    raise ValueError("train_cost: no phases; give at least one (steps, layers)")
  known: dict[bytes, StepCost] = {}

  def cost_of(phase: Phase) -> StepCost:
    table = products(
      phase.layers,
      forward=phase.forward,
      input_gradient=phase.input_gradient,
      weight_gradient=phase.weight_gradient,
    )
    columns = (table.M, table.N, table.K, table.n, table.m, table.count)
    key = np.stack(columns).tobytes()
    if key not in known:
      known[key] = _cost_of(table, engine, itemsize, energy)
    return known[key]

  steps = tuple(operator.index(phase.steps) for phase in run)
  if min(steps) < 1:
    at = steps.index(min(steps))
    raise ValueError(f"train_cost: phase {at} has {steps[at]} steps; give >= 1")
  dense = [
    Phase(phase.steps, Layers.of(phase.layers).dense(), False) for phase in run
  ]
  return TrainCost(
    engine, steps, tuple(map(cost_of, run)), tuple(map(cost_of, dense))
  )


def nanoseconds(
  cycles: Any, engine: Engine, clock_ghz: float | int = 1.0
) -> Any:
  """The time of an engine's cycles; arguments as of `TrainCost.seconds`."""
  if not isinstance(clock_ghz, Real) or not 0 < clock_ghz < float("inf"):
    raise ValueError(f"clock_ghz={clock_ghz!r}: give a positive number")
  if engine.unit == "ns" and clock_ghz != 1:
    raise ValueError(
      f"clock_ghz={clock_ghz!r}: {engine} counts nanoseconds; leave it at 1"
    )
  return cycles / clock_ghz


def _cost_of(
  table: Layers, engine: Engine, itemsize: int, energy: Energy
) -> StepCost:
  found = cost(table, engine, itemsize, energy)
  # In Python's integers: a product of sizes may pass int64.
  columns = (table.M, table.N, table.K, table.n, table.m)
  M, N, K, n, m = (column.astype(object) for column in columns)
  return StepCost(
    cycles=_parts(found.cycles, found.count),
    flops=_parts(2 * M * N * kept_depth(K, n, m), found.count),
    dram_bytes=_parts(found.dram_bytes, found.count),
    energy_pj=_parts(found.energy_pj, found.count),
    layers=found,
  )


def _parts(values: np.ndarray, count: np.ndarray) -> Parts:
  """Sums of count x value over the layers, in Python's numbers."""
  each = np.asarray(values).astype(object) * np.asarray(count).astype(object)
  return Parts(*(sum(part.tolist()) for part in np.split(each, 3)))
