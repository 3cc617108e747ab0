"""A whole model's forward pass, attention included, fused or not.

What stays dense dilutes the gain of a sparse layer (Amdahl's law). Rows named
`.../qk` and `.../av` are attention's products, `count` of them, one per head
and image; together they run as in `figs_jax.engine.studies.attention`. All
other rows run as in `figs_jax.engine.cost`, on the same memory, and so do the
passes beside the products (`figs_jax.engine.non_gemm`) where the table has
them; the softmax is attention's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from figs_jax.engine._cost import cost, operands
from figs_jax.engine.layers import Layers
from figs_jax.engine.non_gemm import non_gemm_cycles
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.attention import (
  AttentionShape,
  Memory,
  attention_cost,
  attention_pairs,
)


@dataclasses.dataclass(frozen=True)
class ModelCost:
  """What a forward pass costs, beside the same pass without patterns.

  Attributes:
    linear_cycles: Cycles of all rows except attention's products.
    attention_cycles: Cycles of attention's products and softmax.
    non_gemm_cycles: Cycles of norms, activations and the like; 0 if the table
      has none.
    dense_cycles: Cycles of the whole pass without patterns.
    dram_bytes: Bytes to and from memory.
    energy_pj: Energy in picojoules.
  """

  linear_cycles: int
  attention_cycles: int
  non_gemm_cycles: int
  dense_cycles: int
  dram_bytes: int
  energy_pj: float

  @property
  def cycles(self) -> int:
    """Cycles of the whole pass."""
    products = self.linear_cycles + self.attention_cycles
    return products + self.non_gemm_cycles

  @property
  def speedup(self) -> float:
    """Speed-up over the dense pass with the same attention."""
    return self.dense_cycles / self.cycles


def model_cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  memory: Memory,
  fused: bool = True,
  itemsize: int | Fraction | None = None,
  dtype: str | None = None,
) -> ModelCost:
  """What a whole forward pass costs on an array.

  Args:
    layers: Table of layers or its rows, as from `figs_jax.layers_of`. A table
      with `forward` brings its other passes too.
    engine: Array with scalar sides, or its spec; `memory` gives its bandwidth
      off chip.
    memory: Buffer and bandwidths, scalars.
    fused: Whether attention is fused.
    itemsize: Bytes per value. Defaults to those of the data type, else to 2.
    dtype: Data type of the operands; see `cost`.

  Raises:
    ValueError: If a product of attention has no partner or one of another size,
      and as `cost` and `attention_cost`.

  >>> head = {"M": 196, "count": 12}
  >>> rows = [
  ...   {"name": "ff", "M": 196, "N": 3072, "K": 768, "pattern": "1:8"},
  ...   {"name": "attn/qk", "N": 196, "K": 64, **head},
  ...   {"name": "attn/av", "N": 64, "K": 196, **head},
  ... ]
  >>> chip = Memory(buffer=2**19, dram_bw=50)
  >>> both = [model_cost(rows, "ws:32x32", chip, on) for on in (False, True)]
  >>> both[0].attention_cycles > both[1].attention_cycles
  True
  """
  table = Layers.of(layers)
  array: Any = parse(engine)
  if not array.is_array:
    raise ValueError(
      f"engine: expected an array, as in 'ws:128x128', got {array}"
    )
  array = dataclasses.replace(array, dram_bw=memory.dram_bw)
  given = operands(array, itemsize, None, dtype)
  qk, av = attention_pairs(table)
  rest = np.setdiff1d(np.arange(len(table)), qk + av)
  linear = dense = attention = other = dram_bytes = 0
  energy_pj = 0.0
  if rest.size:
    part = _take(table, rest)
    linear_cost = cost(part, *given)
    linear = int(linear_cost.total("cycles"))
    dense = int(cost(part.dense(), *given).total("cycles"))
    dram_bytes = int(linear_cost.total("dram_bytes"))
    energy_pj = float(linear_cost.total("energy_pj"))
  if qk:
    sizes = (column[qk] for column in (table.M, table.N, table.K))
    shape = AttentionShape(1, table.count[qk], *sizes)
    both = attention_cost(
      shape, array, memory, fused, given.itemsize, given.energy
    )
    attention = int(both.cycles.sum())
    dram_bytes += int(both.dram_bytes.sum())
    energy_pj += float(both.energy_pj.sum())
  if table.forward is not None:
    passes = [x for x in table.forward.non_gemms if x.kind != "softmax"]
    other = int(non_gemm_cycles(passes, array, given.itemsize).sum())
    values = sum((x.reads + x.writes) * x.count for x in passes)
    dram_bytes += math.ceil(given.itemsize * values)
  dense += attention + other
  return ModelCost(linear, attention, other, dense, dram_bytes, energy_pj)


def _take(table: Layers, indices: np.ndarray) -> Layers:
  columns = (table.M, table.N, table.K, table.n, table.m, table.count)
  masks = table.masks
  return Layers(
    tuple(table.names[i] for i in indices),
    *(np.asarray(column)[indices] for column in columns),
    masks=None if masks is None else tuple(masks[i] for i in indices),
    v=None if table.v is None else table.v[indices],
  )
