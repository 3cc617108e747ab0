"""Energy of a GEMM from counted operations and moved bytes, in picojoules.

  E = MACs (add + mult) + SRAM bytes e_S + DRAM bytes e_D

Only useful multiplications count: idle and padded multipliers are assumed to be
gated. Leakage and clocks are left out.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from numbers import Real
from typing import Any, TypeVar

_F = TypeVar("_F")


@dataclasses.dataclass(frozen=True)
class Energy:
  """Picojoules per operation; by default 16-bit operands at 45 nm.

  The defaults are Horowitz's table (ISSCC 2014): a 16-bit product, added in 32
  bits; 10 pJ per 64 bits of an 8 KB SRAM, 640 pJ per 32 bits of DRAM.

  Attributes:
    mult: One multiplication.
    add: One addition.
    sram_byte: One byte to or from on-chip memory.
    dram_byte: One byte to or from off-chip memory.

  Raises:
    ValueError: If a value is negative or not a number.

  >>> Energy.of("int8").add
  0.1
  """

  mult: float = 1.1
  add: float = 0.9
  sram_byte: float = 10 / 8
  dram_byte: float = 640 / 4

  def __post_init__(self):
    check_factors(self, "picojoules")

  @classmethod
  def of(cls, dtype: str) -> Energy:
    """The operations on operands of a type, from the table.

    Raises:
      ValueError: If the table lacks the type.
    """
    if dtype not in _MACS:
      raise ValueError(
        f"Energy of {dtype!r}: expected one of {', '.join(sorted(_MACS))}"
      )
    mult, add = _MACS[dtype]
    return cls(mult, add)

  @classmethod
  def at_least(cls, dtype: str) -> Energy:
    """The operations on one of `figs_jax.engine.chips.DTYPES`.

    Types that the table lacks count as the next wider one: tf32 as float32, fp8
    and fp4 as float16.

    >>> Energy.at_least("fp8") == Energy.of("float16")
    True
    """
    return cls.of(_WIDER.get(dtype, dtype))

  @classmethod
  def parse(cls, text: str) -> Energy:
    """Reads "int8", "mult=2,add=1", or both, the type first.

    Raises:
      ValueError: If a type or an operation is unknown, or a value is not a
        number.

    >>> Energy.parse("int8,dram_byte=100").dram_byte
    100.0
    """
    return read_factors(cls, text, "picojoules")


def check_factors(factors: Any, unit: str) -> None:
  """Raises ValueError unless all fields of a dataclass are 0 or more."""
  for field in dataclasses.fields(factors):
    value = getattr(factors, field.name)
    if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
      raise ValueError(
        f"{type(factors).__name__} {field.name}: expected {unit}, 0 or more,"
        f" got {value!r}"
      )


def read_factors(cls: type[_F], text: str, unit: str) -> _F:
  """Reads a type that `cls.of` knows, field=number pairs, or both.

  Args:
    cls: Dataclass of numbers.
    text: Text such as "int8,add=2", the type first.
    unit: What the numbers are, for messages.

  Raises:
    ValueError: If a type or a field is unknown, or a value is not a number.
  """
  factory: Any = cls
  parts = [part.strip() for part in text.split(",")]
  base = factory.of(parts.pop(0)) if "=" not in parts[0] else factory()
  known = {field.name for field in dataclasses.fields(factory)}
  values: dict[str, float] = {}
  for part in parts:
    name, _, value = (word.strip() for word in part.partition("="))
    where = f"{cls.__name__} {part!r}"
    if name not in known:
      raise ValueError(
        f"{where}: expected name={unit}, the name one of"
        f" {', '.join(sorted(known))}"
      )
    try:
      values[name] = float(value)
    except ValueError:
      raise ValueError(f"{where}: expected {unit}, got {value!r}") from None
  return dataclasses.replace(base, **values)


def picojoules(
  macs: Any,
  words: Any,
  dram_bytes: Any,
  *,
  energy: Energy,
  itemsize: int | Fraction,
) -> Any:
  """Energy of counted operations, float64.

  Args:
    macs: Useful multiplications.
    words: Words of `itemsize` bytes read and written on chip.
    dram_bytes: Bytes to and from memory.
    energy: Picojoules per operation.
    itemsize: Bytes per word.

  >>> round(picojoules(100, 10, 8, energy=Energy(), itemsize=2), 6)
  1505.0
  """
  # Dividing by one turns integers of any kind into floats.
  return (
    macs / 1 * (energy.mult + energy.add)
    + words / 1 * (float(itemsize) * energy.sram_byte)
    + dram_bytes / 1 * energy.dram_byte
  )


_WIDER = {
  **{"tf32": "float32", "bf16": "bfloat16"},
  **dict.fromkeys(("fp16", "fp8", "fp4"), "float16"),
}
# type -> picojoules of a product and of its addition to a sum.
_MACS = {
  "int8": (0.2, 0.1),
  "float16": (1.1, 0.4),
  "bfloat16": (1.1, 0.9),
  "float32": (3.7, 0.9),
}
