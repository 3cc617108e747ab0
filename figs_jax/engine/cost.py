"""One pure function from layers and an engine to cycles, accesses and bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from figs_jax.engine import systolic
from figs_jax.engine.exact import array_dataclass, exact
from figs_jax.engine.spec import Systolic, parse
from figs_jax.engine.workload import Layers


@array_dataclass()
@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
  """What one instance of each layer costs; `total` weighs by count.

  Fields broadcast against each other; the layers are the last axis.

  Attributes:
    cycles: int64.
    utilisation: useful MACs / (cycles x multipliers), float64 in (0, 1].
    ifmap_reads: activation words read on chip.
    filter_reads: weight words read on chip.
    ofmap_writes: words written on chip, partial sums included.
    dram_bytes: every operand moved once (compulsory traffic), with metadata.
    metadata_bits: ceil(log2 m) for each kept weight of a compressed layer.
    count: how often the model runs the layer.
  """

  cycles: Any
  utilisation: Any
  ifmap_reads: Any
  filter_reads: Any
  ofmap_writes: Any
  dram_bytes: Any
  metadata_bits: Any
  count: Any

  def total(self, field: str) -> Any:
    """Sum of count x an integer field over the layers, int64.

    Raises:
      ValueError: the sum does not fit int64.
    """
    return _total(getattr(self, field), self.count)["total"]


def cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Systolic | str,
  itemsize: int = 2,
) -> Cost:
  """The cost of each layer on the engine.

  Pure: sides of shape (E, 1) give E designs at once, and it runs under jit and
  vmap. There, sizes past 2^31 - 1 need the caller's own `jax.enable_x64`, and
  overflow goes unchecked.

  Args:
    layers: a table, or its rows.
    engine: an engine, or its spec.
    itemsize: bytes per value, of every operand off chip.

  Raises:
    ValueError: a bad row or spec, or a result past int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> cost([row], "ws:32x32").cycles
  array([316])
  """
  table, engine = Layers.of(layers), parse(engine)
  sizes = (table.M, table.N, table.K)
  found = systolic.counts(*sizes, engine, table.n, table.m, itemsize)
  names = [field.name for field in dataclasses.fields(Cost)]
  return Cost(**{k: found[k] for k in names if k in found}, count=table.count)


def _weighed(value, count):
  return {"total": (value * count).sum(-1)}


_total = exact(_weighed, least=0)
