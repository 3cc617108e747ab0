"""One pure function from layers and an engine to cycles, traffic and energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from figs_jax.engine.blocks import Masks
from figs_jax.engine.chips import DTYPES, itemsize_of
from figs_jax.engine.energy import Energy, picojoules
from figs_jax.engine.int64 import LayerError, array_dataclass, exact, is_traced
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import (
  LIMITS,
  Engine,
  Gemm,
  check_itemsize,
  nearest,
  unboxed,
)
from figs_jax.engine.spec_text import parse

AT_45_NM = Energy()


@array_dataclass()
@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
  """What one instance of each layer costs; `total` weighs by count.

  All fields but `count` have one shape; the layers are the last axis. The eight
  from `compute` to `launch` add up to `cycles`.

  Attributes:
    cycles: Cycles, or nanoseconds on a roofline; int64.
    compute: Cycles in which vectors stream, or arithmetic bounds a roofline.
    fill: Cycles of filling and draining an array, or a kernel's pipeline.
    stall_weights: Loading of the stationary operand that nothing hides.
    stall_exchange: Waiting for swap registers.
    stall_input: Waiting for the input ports.
    stall_output: Waiting for the output ports.
    stall_dram: Waiting for the memory.
    launch: Overhead of a processor's call.
    utilisation: Useful MACs / (cycles x multipliers), float64 in (0, 1]; the n
      of m that a pattern stores are useful, whatever their values.
    ifmap_reads: Activation words read on chip.
    filter_reads: Weight words read on chip.
    ofmap_writes: Words written on chip, partial sums included.
    metadata_bytes: Indices of the kept weights, ceil(log2 m) bits each, in
      bytes; on CSR its indices and row pointers.
    dram_bytes: Every operand moved once (compulsory traffic), with metadata; on
      CSR what each of its rows gathers, see `figs_jax.engine.csr`.
    energy_pj: Picojoules, float64.
    count: Number of instances that the model runs.
  """

  cycles: Any
  compute: Any
  fill: Any
  stall_weights: Any
  stall_exchange: Any
  stall_input: Any
  stall_output: Any
  stall_dram: Any
  launch: Any
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

    Of one design it is a Python number.

    Raises:
      ValueError: If the sum does not fit int64.
    """
    value = getattr(self, field)
    if field == "energy_pj":
      return unboxed((value * (self.count / 1)).sum(-1))
    return unboxed(_total(value, self.count)["total"])


def cost(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  *,
  dtype: str | None = None,
) -> Cost:
  """The cost of each layer on the engine.

  Pure: sides of shape (E, 1) give E designs at once, and it runs under jit and
  vmap. There, sizes past 2^31 - 1 need the caller's own `jax.enable_x64`, and
  overflow goes unchecked.

  Args:
    layers: A table, or its rows.
    engine: An engine, or its spec.
    itemsize: Bytes per value of every operand off chip. Defaults to those of
      the data type, else to 2. On a chip 4 stand for float32, 2 for bf16, and 1
      for int8, or fp8 on chips without int8.
    energy: Picojoules per operation. Defaults to those of the data type, else
      to 16-bit operands.
    dtype: Data type of the operands, one of `figs_jax.engine.chips.DTYPES`. It
      decides at which rate a chip runs; to an array it is the size of a value.

  Raises:
    ValueError: If a row or the spec cannot be read, the engine cannot run a
      pattern, the chip lacks the data type, itemsize and data type contradict
      each other, or a result does not fit int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> cost([row], "ws:32x32").cycles
  array([316])
  >>> cube = dict.fromkeys("MNK", 8192) | {"name": "cube"}
  >>> types = ("float32", "tf32", "bf16", "int8")
  >>> [int(cost([cube], "gpu:a100", dtype=x).cycles[0]) for x in types]
  [56385212, 7048152, 3524076, 1762038]
  """
  table, engine = Layers.of(layers), parse(engine)
  engine, itemsize, energy = operands(engine, itemsize, energy, dtype)
  gemm = table.gemm
  if table.masks is not None and is_traced(
    *vars(gemm).values(), *engine.leaves
  ):
    raise ValueError(
      "cost: masks are read on the host and these sizes are traced; close over"
      " the layers, or pass dataclasses.replace(layers, masks=None)"
    )
  try:
    results = gemm_cost(gemm, engine, itemsize, energy, table.masks)
  except LayerError as error:
    name = table.names[error.layer % len(table)]
    raise ValueError(f"layer {name!r}: {error}") from error
  names = {field.name for field in dataclasses.fields(Cost)} - {"count"}
  values = {name: results[name] for name in names}
  shape = np.broadcast_shapes(*(np.shape(x) for x in values.values()))
  broadcast = (
    jnp.broadcast_to if is_traced(*values.values()) else np.broadcast_to
  )
  aligned = {
    name: x if np.shape(x) == shape else broadcast(x, shape)
    for name, x in values.items()
  }
  return Cost(**aligned, count=table.count)


class Operands(NamedTuple):
  """What the data type of the operands decides.

  Attributes:
    engine: The engine, set to the type if it has rates of its own.
    itemsize: Bytes per value.
    energy: Picojoules per operation.
  """

  engine: Engine
  itemsize: int | Fraction
  energy: Energy


def operands(
  engine: Engine,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  dtype: str | None = None,
) -> Operands:
  """The engine, size and energy of operands, of which each may be left out.

  Raises:
    ValueError: If the type is unknown, the chip lacks it, or the size is
      another one than that of the type.

  >>> operands(parse("tpu:v6e"), dtype="int8").itemsize
  1
  """
  if itemsize is not None:
    check_itemsize(itemsize)
  dtype = dtype or getattr(engine, "dtype", "")
  if not dtype:
    size = engine.itemsize if itemsize is None else itemsize
    return Operands(engine, size, energy or AT_45_NM)
  if dtype not in DTYPES:
    raise ValueError(f"unknown dtype {dtype!r}, {nearest(dtype, DTYPES)}")
  size = itemsize_of(dtype)
  if itemsize not in (None, size):
    raise ValueError(
      f"dtype {dtype} has itemsize {size}, got itemsize {itemsize}; give one of"
      " them"
    )
  return Operands(engine.at(dtype), size, energy or Energy.at_least(dtype))


def gemm_cost(
  gemm: Gemm,
  engine: Engine,
  itemsize: int | Fraction = 2,
  energy: Energy = AT_45_NM,
  masks: Masks | None = None,
  run: Any = None,
) -> dict[str, Any]:
  """The counts of an engine and `energy_pj`, in the numbers of the sizes.

  What an engine counts beyond the fields of `Cost` is there too. `run` is the
  engine's `occupancy` where it is known, in place of the masks.

  >>> counts = gemm_cost(Gemm(8, 8, 8, 1, 4), parse("ws"))
  >>> int(counts["cycles"]), float(counts["mapping_efficiency"])
  (86, 0.03125)
  """
  check_itemsize(itemsize)
  if run is None:
    counts = engine.counts(gemm, itemsize, masks)
  else:
    counts = engine.occupied(gemm, run, itemsize)
  names = ("ifmap_reads", "filter_reads", "ofmap_writes", "dram_bytes")
  moved = [counts[name] for name in names]
  options: Any = {"energy": energy, "itemsize": itemsize}
  if "macs" in counts:  # an engine that counts them itself
    return counts | _energy_of(counts["macs"], *moved, **options)
  return counts | _energy(gemm, *moved, **options)


def _picojoules(
  gemm: Gemm,
  ifmap: Any,
  weights: Any,
  ofmap: Any,
  dram_bytes: Any,
  *,
  energy: Energy,
  itemsize: int | Fraction,
) -> dict[str, Any]:
  macs = gemm.M * gemm.N / 1 * (gemm.kept / 1)
  options: Any = {"energy": energy, "itemsize": itemsize}
  return _picojoules_of(macs, ifmap, weights, ofmap, dram_bytes, **options)


def _picojoules_of(
  macs: Any,
  ifmap: Any,
  weights: Any,
  ofmap: Any,
  dram_bytes: Any,
  *,
  energy: Energy,
  itemsize: int | Fraction,
) -> dict[str, Any]:
  words = ifmap / 1 + weights / 1 + ofmap / 1
  options: Any = {"energy": energy, "itemsize": itemsize}
  return {"energy_pj": picojoules(macs, words, dram_bytes, **options)}


_energy = exact(_picojoules, LIMITS, least=0)
_energy_of = exact(_picojoules_of, least=0)


def _weighed(value, count):
  return {"total": (value * count).sum(-1)}


_total = exact(_weighed, least=0, elementwise=False)
