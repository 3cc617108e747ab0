"""What tables of layers cost on engines; those of one kind in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine._cost import Cost, cost, operands
from figs_jax.engine.layers import Layers
from figs_jax.engine.non_gemm import non_gemm_cycles
from figs_jax.engine.spec import Engine
from figs_jax.engine.studies.attention import (
  Fusion,
  attention_pairs,
  fused_cost,
)
from figs_jax.engine.timing import PARTS

SUMMED = ("cycles", "dram_bytes", *PARTS)


class Priced(NamedTuple):
  """A table on one engine.

  Attributes:
    cost: Cost per layer.
    sums: Sums of its fields, weighed by count.
    fused: Whether each pair of attention's products is fused.
    non_gemm: Cycles beside the products, by kind.
  """

  cost: Cost
  sums: dict[str, int]
  fused: np.ndarray
  non_gemm: dict[str, int]


def costs_on(
  table: Layers,
  engines: Sequence[Engine],
  options: dict[str, Any],
  fusion: Fusion,
) -> list[Priced]:
  """The cost on each engine; those of one kind in one call."""
  groups: dict[Any, list[int]] = {}
  for place, engine in enumerate(engines):
    if any(map(np.ndim, engine.leaves)):
      raise ValueError(
        f"report: engine {engine} has an array of values; report designs singly"
      )
    groups.setdefault(_kind(engine), []).append(place)
  priced: dict[int, Priced] = {}
  for places in groups.values():
    several = [engines[place] for place in places]
    priced |= zip(places, _together(table, several, options, fusion))
  return [priced[place] for place in range(len(engines))]


def _kind(engine: Engine) -> tuple[Any, ...]:
  """What engines must share to be computed together: all but numbers."""
  numbers = {field.name for field in engine.numeric()}
  fields = (field.name for field in dataclasses.fields(engine))
  names = set(fields) - numbers - set(engine.LABELS)
  return type(engine), *(getattr(engine, name) for name in sorted(names))


def _together(
  table: Layers,
  engines: Sequence[Engine],
  options: dict[str, Any],
  fusion: Fusion,
) -> list[Priced]:
  first = engines[0]
  columns: dict[str, Any] = {
    field.name: np.array([[getattr(each, field.name)] for each in engines])
    for field in first.numeric()
  }
  all_at_once = dataclasses.replace(first, name="all", **columns)
  try:
    whole, fused = _priced(table, all_at_once, options, fusion)
    sums = {name: np.asarray(whole.total(name)).tolist() for name in SUMMED}
  except ValueError:
    # Again one by one, so that the error names its engine.
    for engine in engines:
      try:
        alone, _ = _priced(table, engine, options, fusion)
        _ = [alone.total(name) for name in SUMMED]
      except ValueError as error:
        raise ValueError(f"engine {engine}: {error}") from error
    raise
  names = [field.name for field in dataclasses.fields(Cost)]
  fields = {name: getattr(whole, name) for name in names if name != "count"}
  fused = np.broadcast_to(fused, (len(engines), fused.shape[-1]))
  given = operands(all_at_once, **options)
  beside = _non_gemms(table, given.engine, given.itemsize, fused)
  return [
    Priced(
      Cost(**{k: v[place] for k, v in fields.items()}, count=whole.count),
      {name: column[place] for name, column in sums.items()},
      fused[place],
      {kind: int(column[place]) for kind, column in beside.items()},
    )
    for place in range(len(engines))
  ]


def _priced(
  table: Layers, engine: Engine, options: dict[str, Any], fusion: Fusion
) -> tuple[Cost, np.ndarray]:
  """The cost of the layers, and which of attention's pairs are fused."""
  price = cost(table, engine, **options)
  if fusion.fuse == "none":
    return price, np.zeros((1, 0), bool)
  given = operands(engine, **options)
  sizes = {"itemsize": given.itemsize, "energy": given.energy}
  return fused_cost(table, given.engine, price, fusion, **sizes)


def _non_gemms(
  table: Layers, engine: Engine, itemsize: int | Fraction, fused: np.ndarray
) -> dict[str, np.ndarray]:
  """Kind -> cycles on each design; fused attention has no softmax of its own.

  Args:
    table: Layers, of a whole model or not.
    engine: Engine of several designs.
    itemsize: Bytes per value.
    fused: Whether each pair of attention's products is fused, (designs, pairs).
  """
  if table.forward is None:
    return {}
  passes = table.forward.non_gemms
  cycles = np.array(non_gemm_cycles(passes, engine, itemsize))
  cycles = np.broadcast_to(cycles, (len(fused), len(passes))).copy()
  if fused.size:
    qk, _ = attention_pairs(table)
    pairs = {table.names[i].rpartition("/")[0]: p for p, i in enumerate(qk)}
    for place, one in enumerate(passes):
      pair = pairs.get(one.name.rpartition("/")[0])
      if one.kind == "softmax" and pair is not None:
        cycles[:, place] *= ~fused[:, pair]
  kinds = dict.fromkeys(one.kind for one in passes)
  return {
    kind: cycles[:, [one.kind == kind for one in passes]].sum(-1)
    for kind in kinds
  }
