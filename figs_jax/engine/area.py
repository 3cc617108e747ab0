"""Silicon area of an array, from its counted parts: a reconstruction.

  A = multipliers a_mult + adders a_add + value registers b_v a_bit
    + sum registers b_s a_bit + index bits a_bit + 2:1 multiplexers b_v a_mux

with b_v bits per value and b_s per partial sum. A k:1 multiplexer of values is
k - 1 multiplexers of 2:1. `Engine.parts` counts the parts of each kind; no
layout, synthesis or published area stands behind these counts. Buffers, ports,
control, clock trees and wires are left out, so that ratios of areas mean more
than areas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from figs_jax.engine.energy import check_factors, read_factors


class Parts(NamedTuple):
  """How many of each part an array has: integers, or arrays of designs.

  Attributes:
    multipliers: Multipliers.
    adders: Adders of partial sums.
    value_registers: Registers that hold an operand.
    sum_registers: Registers that hold a partial sum.
    muxes: 2:1 multiplexers of operands.
    index_bits: Bits of registers that select operands.
  """

  multipliers: Any
  adders: Any
  value_registers: Any
  sum_registers: Any
  muxes: Any = 0
  index_bits: Any = 0


@dataclasses.dataclass(frozen=True)
class Area:
  """Square micrometres per part; by default 16-bit floats at 45 nm.

  Multipliers and adders are from Horowitz's table (ISSCC 2014) as extended by
  areas in TSMC 45 nm (Dally, NIPS 2015 tutorial): a 16-bit product, added in 32
  bits. A bit of a register is the cell DFF_X1, a 2:1 multiplexer of a bit the
  cell MUX2_X1 of the NanGate 45 nm Open Cell Library.

  Attributes:
    mult: One multiplier.
    add: One adder.
    register_bit: One bit of a register.
    mux_bit: One bit of a 2:1 multiplexer.
    value_bits: Bits of an operand.
    sum_bits: Bits of a partial sum.
    scale: Factor of all areas, such as the shrink to another node.

  Raises:
    ValueError: If a value is negative or not a number.

  >>> Area.of("int8").mult
  282.0
  """

  mult: float = 1640.0
  add: float = 4184.0
  register_bit: float = 4.522
  mux_bit: float = 1.862
  value_bits: float = 16.0
  sum_bits: float = 32.0
  scale: float = 1.0

  def __post_init__(self):
    check_factors(self, _UNIT)

  @classmethod
  def of(cls, dtype: str) -> Area:
    """The multiplier, adder and bits of operands of a type.

    Raises:
      ValueError: If the table lacks the type.
    """
    if dtype not in _MACS:
      raise ValueError(
        f"Area of {dtype!r}: expected one of {', '.join(sorted(_MACS))}"
      )
    mult, add, bits = _MACS[dtype]
    return cls(mult, add, value_bits=bits)

  @classmethod
  def parse(cls, text: str) -> Area:
    """Reads "int8", "mult=2000,scale=0.1", or both, the type first.

    Raises:
      ValueError: If a type or a part is unknown, or a value is not a number.

    >>> Area.parse("int8,scale=0.5").scale
    0.5
    """
    return read_factors(cls, text, _UNIT)

  def square_millimetres(self, parts: Parts) -> dict[str, Any]:
    """The area of each part, float64 in mm².

    >>> area = Area().square_millimetres(Parts(512, 512, 1024, 512))
    >>> round(sum(area.values()), 3)
    3.13
    """
    value = self.value_bits * self.register_bit
    each = Parts(
      multipliers=self.mult,
      adders=self.add,
      value_registers=value,
      sum_registers=self.sum_bits * self.register_bit,
      muxes=self.value_bits * self.mux_bit,
      index_bits=self.register_bit,
    )
    # Dividing by one turns integers of any kind into floats.
    return {
      name: count / 1 * (1e-6 * self.scale * factor)
      for name, count, factor in zip(Parts._fields, parts, each)
    }


_UNIT = "square micrometres (bits, or a factor)"
AT_45_NM = Area()
# type -> a multiplier, the adder of its products, and bits of an operand.
_MACS = {
  "int8": (282.0, 137.0, 8.0),
  "float16": (1640.0, 4184.0, 16.0),
  "float32": (7700.0, 4184.0, 32.0),
}


def area_table(
  engines: Sequence[Any], area: Area
) -> tuple[list[str], list[list[Any]]]:
  """Header and rows of the mm² of each engine, in all and by part.

  Args:
    engines: Engines; those whose parts are unknown have no row.
    area: Square micrometres per part.

  >>> from figs_jax.engine import parse
  >>> header, rows = area_table([parse("ws:32x16"), parse("tpu:v5e")], Area())
  >>> header[:2], [row[0] for row in rows]
  (['area, mm²', 'total'], ['ws:32x16'])
  """
  known = {
    str(engine): area.square_millimetres(parts)
    for engine in engines
    if (parts := engine.parts()) is not None
  }
  names = [x for x in Parts._fields if any(each[x] for each in known.values())]
  rows = [
    [engine, sum(each.values()), *(each[name] for name in names)]
    for engine, each in known.items()
  ]
  return ["area, mm²", "total", *names], rows
