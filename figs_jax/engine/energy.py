"""Energy of a GEMM from counted operations and moved bytes, in picojoules.

  E = MACs (add + mult) + SRAM bytes e_S + DRAM bytes e_D

Only useful multiplications count: an idle or padded multiplier is taken to be
gated. Leakage and clocks are left out.
"""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import Any


@dataclasses.dataclass(frozen=True)
class Energy:
  """Picojoules per operation; by default 16-bit operands at 45 nm.

  The defaults are Horowitz's table (ISSCC 2014): a 16-bit product, added in 32
  bits; 10 pJ per 64 bits of an 8 KB SRAM, 640 pJ per 32 bits of DRAM.

  Attributes:
    mult: one multiplication.
    add: one addition.
    sram_byte: one byte to or from on-chip memory.
    dram_byte: one byte to or from off-chip memory.

  >>> Energy.of("int8").add
  0.1

  Raises:
    ValueError: a value is negative or no number.
  """

  mult: float = 1.1
  add: float = 0.9
  sram_byte: float = 10 / 8
  dram_byte: float = 640 / 4

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise ValueError(
          f"Energy {field.name}={value!r}: give picojoules, 0 or more"
        )

  @classmethod
  def of(cls, dtype: str) -> Energy:
    """The table's operations for a type of operands.

    Raises:
      ValueError: a type that the table lacks.
    """
    if dtype not in _MACS:
      raise ValueError(f"Energy of {dtype!r}: give one of {sorted(_MACS)}")
    mult, add = _MACS[dtype]
    return cls(mult, add)

  @classmethod
  def parse(cls, text: str) -> Energy:
    """Reads "int8", "mult=2,add=1", or both, the type first.

    Raises:
      ValueError: an unknown type or operation, or a value that is no number.

    >>> Energy.parse("int8,dram_byte=100").dram_byte
    100.0
    """
    parts = [part.strip() for part in text.split(",")]
    base = cls.of(parts.pop(0)) if "=" not in parts[0] else cls()
    known = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, float] = {}
    for part in parts:
      name, _, value = (word.strip() for word in part.partition("="))
      if name not in known:
        raise ValueError(
          f"Energy of {part!r}: give operation=picojoules, the operation one of"
          f" {sorted(known)}"
        )
      try:
        values[name] = float(value)
      except ValueError:
        raise ValueError(
          f"Energy {part!r}: {value!r} is no number; give picojoules"
        ) from None
    return dataclasses.replace(base, **values)


def picojoules(
  macs: Any,
  words: Any,
  dram_bytes: Any,
  *,
  energy: Energy,
  itemsize: int,
) -> Any:
  """float64 energy of counted operations, as above.

  Args:
    macs: useful multiplications.
    words: read and written on chip, of `itemsize` bytes.
    dram_bytes: to and from memory.

  >>> round(picojoules(100, 10, 8, energy=Energy(), itemsize=2), 6)
  1505.0
  """
  # Dividing by one turns integers of any kind into floats.
  return (
    macs / 1 * (energy.mult + energy.add)
    + words / 1 * (itemsize * energy.sram_byte)
    + dram_bytes / 1 * energy.dram_byte
  )


# type -> picojoules of a product and of the addition to its sum.
_MACS = {
  "int8": (0.2, 0.1),
  "float16": (1.1, 0.4),
  "bfloat16": (1.1, 0.9),
  "float32": (3.7, 0.9),
}
