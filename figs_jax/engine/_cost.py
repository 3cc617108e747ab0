"""One pure function from layers and an engine to cycles, traffic and energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.engine import figs, roofline, systolic, vegeta
from figs_jax.engine.blocks import Masks
from figs_jax.engine.energy import Energy, picojoules
from figs_jax.engine.flops import kept_depth
from figs_jax.engine.int64 import LayerError, array_dataclass, exact, is_traced
from figs_jax.engine.layers import LIMITS, Layers
from figs_jax.engine.spec import Csr, Engine, Figs, Roofline, Systolic, Vegeta
from figs_jax.engine.spec_text import parse

AT_45_NM = Energy()
# Each maps (M, N, K, engine, n, m, itemsize, masks) to named results.
_COUNTS: dict[type, Any] = {
  Systolic: systolic.counts,
  Vegeta: vegeta.counts,
  Figs: figs.counts,
  Roofline: roofline.counts,
  Csr: roofline.csr_counts,
}


@array_dataclass()
@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
  """What one instance of each layer costs; `total` weighs by count.

  All fields but `count` have one shape; the layers are the last axis. The seven
  from `compute` to `stall_dram` add up to `cycles`.

  Attributes:
    cycles: int64; nanoseconds of a roofline.
    compute: cycles in which vectors stream, or arithmetic bounds a roofline.
    fill: filling and draining, or what a roofline's call costs.
    stall_weights: loading of the stationary operand that nothing hides.
    stall_exchange: waiting for swap registers.
    stall_in: waiting for the input ports.
    stall_out: waiting for the output ports.
    stall_dram: waiting for the memory.
    utilisation: useful MACs / (cycles x multipliers), float64 in (0, 1]; the n
      of m that a pattern stores are useful, whatever their values.
    ifmap_reads: activation words read on chip.
    filter_reads: weight words read on chip.
    ofmap_writes: words written on chip, partial sums included.
    metadata_bytes: ceil(log2 m) bits for each kept weight, in bytes; of CSR its
      indices and row pointers.
    dram_bytes: every operand moved once (compulsory traffic), with metadata; of
      CSR what each of its rows gathers, see `roofline.csr_counts`.
    energy_pj: float64.
    count: how often the model runs the layer.
  """

  cycles: Any
  compute: Any
  fill: Any
  stall_weights: Any
  stall_exchange: Any
  stall_in: Any
  stall_out: Any
  stall_dram: Any
  utilisation: Any
  ifmap_reads: Any
  filter_reads: Any
  ofmap_writes: Any
  metadata_bytes: Any
  dram_bytes: Any
  energy_pj: Any
  count: Any

  def total(self, field: str) -> Any:
    """Sum of count x a field over the layers: int64, or float64 picojoules.

    Raises:
      ValueError: the sum does not fit int64.
    """
    value = getattr(self, field)
    if field == "energy_pj":
      return (value * (self.count / 1)).sum(-1)
    return _total(value, self.count)["total"]


def cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
) -> Cost:
  """The cost of each layer on the engine.

  Pure: sides of shape (E, 1) give E designs at once, and it runs under jit and
  vmap. There, sizes past 2^31 - 1 need the caller's own `jax.enable_x64`, and
  overflow goes unchecked.

  Args:
    layers: a table, or its rows.
    engine: an engine, or its spec.
    itemsize: bytes per value, of every operand off chip.
    energy: picojoules per operation.

  Raises:
    ValueError: a bad row or spec, a pattern that the engine cannot run, or a
      result past int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> cost([row], "ws:32x32").cycles
  array([316])
  """
  table, engine = Layers.of(layers), parse(engine)
  gemms = table.M, table.N, table.K, table.n, table.m
  if table.masks is not None and is_traced(*gemms, *engine.leaves):
    raise ValueError(
      "cost: masks are read on the host and these sizes are traced; close over"
      " the layers, or pass dataclasses.replace(layers, masks=None)"
    )
  try:
    found = evaluate(*gemms, engine, itemsize, energy, table.masks)
  except LayerError as error:
    name = table.names[error.layer % len(table)]
    raise ValueError(f"layer {name!r}: {error}") from error
  names = {field.name for field in dataclasses.fields(Cost)} - {"count"}
  values = {name: found[name] for name in names}
  shape = np.broadcast_shapes(*(np.shape(x) for x in values.values()))
  broadcast = (
    jnp.broadcast_to if is_traced(*values.values()) else np.broadcast_to
  )
  aligned = {name: broadcast(x, shape) for name, x in values.items()}
  return Cost(**aligned, count=table.count)


def evaluate(
  M: Any,
  N: Any,
  K: Any,
  n: Any,
  m: Any,
  engine: Engine,
  itemsize: int = 2,
  energy: Energy = AT_45_NM,
  masks: Masks | None = None,
) -> dict[str, Any]:
  """The counts of an engine and `energy_pj`, in the numbers of the sizes.

  What an engine counts beyond the fields of `Cost` is there too.

  >>> found = evaluate(8, 8, 8, 1, 4, parse("ws"))
  >>> int(found["cycles"]), float(found["mapping_efficiency"])
  (86, 0.03125)
  """
  count = _COUNTS[type(engine)]
  found = count(M, N, K, engine, n, m, itemsize, masks)
  names = ("ifmap_reads", "filter_reads", "ofmap_writes", "dram_bytes")
  moved = [found[name] for name in names]
  options = {"energy": energy, "itemsize": itemsize}
  return found | _energy(M, N, K, n, m, *moved, **options)


def _picojoules(
  M, N, K, n, m, ifmap, weights, ofmap, dram_bytes, *, energy, itemsize
):
  macs = M * N / 1 * (kept_depth(K, n, m) / 1)
  words = ifmap / 1 + weights / 1 + ofmap / 1
  options = {"energy": energy, "itemsize": itemsize}
  return {"energy_pj": picojoules(macs, words, dram_bytes, **options)}


_energy = exact(_picojoules, LIMITS, least=0)


def _weighed(value, count):
  return {"total": (value * count).sum(-1)}


_total = exact(_weighed, least=0, elementwise=False)
