"""An N:M pattern: n of every group of m weights are kept.

`NM` has no axis. The group axis belongs to the layer or the rule, because one
pattern serves kernels of many layouts.
"""

from __future__ import annotations

import dataclasses
import operator
import re

_TEXT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


@dataclasses.dataclass(frozen=True, order=True)
class NM:
  """n kept of every m, where n = m is dense. Hashable, ordered by (n, m).

  >>> NM.parse("1:8").density
  0.125
  >>> str(NM(2, 4)), NM(2, 4).metadata_bits
  ('2:4', 2)

  Raises:
    ValueError: If n and m are not integers with 1 <= n <= m.
  """

  n: int
  m: int

  def __post_init__(self):
    try:
      n, m = operator.index(self.n), operator.index(self.m)
    except TypeError:
      n = m = None
    flags = isinstance(self.n, bool) or isinstance(self.m, bool)
    if n is None or m is None or flags or not 1 <= n <= m:
      raise ValueError(
        f"Invalid N:M pattern NM({self.n!r}, {self.m!r}): expected integers"
        " with 1 <= n <= m (n = m is dense), for example NM(2, 4)."
      )
    object.__setattr__(self, "n", n)
    object.__setattr__(self, "m", m)

  @classmethod
  def parse(cls, text: str | NM) -> NM:
    """Reads "n:m"; an `NM` is returned unchanged.

    Raises:
      ValueError: If the text is not two integers with 1 <= n <= m.
    """
    if isinstance(text, cls):
      return text
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    invalid = f"Invalid N:M pattern {text!r}: expected"
    if match is None:
      raise ValueError(f"{invalid} 'n:m', for example '2:4'.")
    n, m = int(match[1]), int(match[2])
    if not 1 <= n <= m:
      raise ValueError(f"{invalid} 1 <= n <= m, for example '2:4'.")
    return cls(n, m)

  @property
  def density(self) -> float:
    """The share of kept weights, n / m."""
    return self.n / self.m

  @property
  def is_dense(self) -> bool:
    """Whether nothing is pruned."""
    return self.n == self.m

  @property
  def metadata_bits(self) -> int:
    """Bits for the position of one kept value in its group: ceil(log2 m)."""
    return (self.m - 1).bit_length()

  def __str__(self) -> str:
    return f"{self.n}:{self.m}"
