"""A whole model's forward pass, attention included, fused or not.

The gain of a sparse layer is diluted by all that stays dense (Amdahl). Rows
named `.../qk` and `.../av` are attention's products, `count` of them, one per
head and image; together they run as `figs_jax.engine.studies.attention` has it.
All other rows run as `figs_jax.engine._cost` has it, on the same memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from figs_jax.engine._cost import cost
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.attention import Attention, Memory, attention_cost

PRODUCTS = ("qk", "av")


@dataclasses.dataclass(frozen=True)
class ModelCost:
  """What a forward pass costs, beside the same pass without patterns.

  Attributes:
    linear_cycles: of all rows but attention's products.
    attention_cycles: of attention's products and softmax.
    dense_cycles: of the whole pass without patterns.
    dram_bytes: of the whole pass.
    energy_pj: of the whole pass.
  """

  linear_cycles: int
  attention_cycles: int
  dense_cycles: int
  dram_bytes: int
  energy_pj: float

  @property
  def cycles(self) -> int:
    """Of the linear layers and of attention."""
    return self.linear_cycles + self.attention_cycles

  @property
  def speedup(self) -> float:
    """Over the dense pass with the same attention."""
    return self.dense_cycles / self.cycles


def model_cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  memory: Memory,
  fused: bool = True,
  itemsize: int = 2,
) -> ModelCost:
  """What a whole forward pass costs on an array.

  Args:
    layers: a table or its rows, as of `figs_jax.layers_of`.
    engine: an array with scalar sides, or its spec; `memory` gives its
      bandwidth off chip.
    memory: buffer and bandwidths, scalars.
    fused: whether attention is fused.
    itemsize: bytes per value.

  Raises:
    ValueError: a product of attention without its partner or of another size,
      or as `cost` and `attention_cost`.

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
  array = parse(engine)
  if not array.is_array:
    raise ValueError(
      f"model_cost: {array} is no array; give one, as in 'ws:128x128'"
    )
  array = dataclasses.replace(array, **{"dram_bw": memory.dram_bw})
  pairs = _pairs(table)
  used = {index for pair in pairs for index in pair}
  rest = [index for index in range(len(table)) if index not in used]
  linear = dense = attention = dram_bytes = 0
  energy_pj = 0.0
  if rest:
    part = _take(table, rest)
    found = cost(part, array, itemsize)
    linear = int(found.total("cycles"))
    dense = int(cost(part.dense(), array, itemsize).total("cycles"))
    dram_bytes = int(found.total("dram_bytes"))
    energy_pj = float(found.total("energy_pj"))
  if pairs:
    qk = [index for index, _ in pairs]
    asked = Attention(1, table.count[qk], table.M[qk], table.N[qk], table.K[qk])
    fusing = attention_cost(asked, array, memory, fused, itemsize)
    attention = int(fusing.cycles.sum())
    dram_bytes += int(fusing.dram_bytes.sum())
    energy_pj += float(fusing.energy_pj.sum())
  return ModelCost(linear, attention, dense + attention, dram_bytes, energy_pj)


def _pairs(table: Layers) -> list[tuple[int, int]]:
  """(index of qk, index of av) of every attention."""
  where = {name: index for index, name in enumerate(table.names)}
  pairs = []
  for name, index in where.items():
    stem, _, last = name.rpartition("/")
    if last not in PRODUCTS:
      continue
    other = f"{stem}/{PRODUCTS[1 - PRODUCTS.index(last)]}".lstrip("/")
    if other not in where:
      raise ValueError(
        f"layer {name!r}: its partner {other!r} is missing; give both products"
        " of attention, or another name"
      )
    if last == PRODUCTS[0]:
      pairs.append((index, where[other]))
  for qk, av in pairs:
    sizes = _sizes(table, qk)
    L, S, D = sizes[:3]
    if _sizes(table, av) != (L, D, S, sizes[3]):
      raise ValueError(
        f"layer {table.names[av]!r}: (M, N, K, count) ="
        f" {_sizes(table, av)} does not follow {table.names[qk]!r};"
        f" give {(L, D, S, sizes[3])}"
      )
  return pairs


def _sizes(table: Layers, index: int) -> tuple[int, int, int, int]:
  columns = (table.M, table.N, table.K, table.count)
  M, N, K, count = (int(column[index]) for column in columns)
  return M, N, K, count


def _take(table: Layers, indices: list[int]) -> Layers:
  columns = (table.M, table.N, table.K, table.n, table.m, table.count)
  masks = table.masks
  return Layers(
    tuple(table.names[i] for i in indices),
    *(np.asarray(column)[indices] for column in columns),
    masks=None if masks is None else tuple(masks[i] for i in indices),
  )
