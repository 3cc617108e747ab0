"""An N:M pattern: n of every group of m weights are kept.

`NM` has no axis. The group axis belongs to the layer or the rule, because one
pattern serves kernels of many layouts. `VNM` is an N:M pattern whose choice
several outputs share in part.
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


_SHARED = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*:\s*(\d+)\s*")


@dataclasses.dataclass(frozen=True, order=True, init=False)
class VNM(NM):
  """V:N:M (VENOM, arXiv 2310.02065): N:M for M that the hardware lacks.

  V neighbouring outputs share the 2n of every m inputs that they may use, and
  each output keeps n of those: 64:2:8 is 2:4 in a kernel of half the inputs, so
  that sparse tensor cores run it. Each output is n:m, which is what all code
  that reads n and m alone sees.

  Attributes:
    n: Inputs that an output keeps of every m.
    m: Size of a group of inputs.
    v: Number of outputs that share a choice of inputs.

  Args:
    v, n, m: As above, in the order of the text.

  Raises:
    ValueError: If they are not integers with 1 <= v, 1 <= n and 2n <= m.

  >>> pattern = VNM.parse("64:2:8")
  >>> str(pattern), pattern == VNM(64, 2, 8), pattern.pattern, pattern.columns
  ('64:2:8', True, NM(n=2, m=8), 4)
  """

  v: int

  def __init__(self, v: int, n: int, m: int):
    for name, value in (("n", n), ("m", m), ("v", v)):
      object.__setattr__(self, name, value)
    try:
      NM(n, m)
      fits = not isinstance(v, bool) and operator.index(v) >= 1 and 2 * n <= m
    except (ValueError, TypeError):
      fits = False
    if not fits:
      raise ValueError(
        f"Invalid V:N:M pattern '{self}': expected 1 <= v, 1 <= n and 2n <= m,"
        " for example '64:2:8'."
      )

  @classmethod
  def parse(cls, text: str | NM) -> VNM:
    """Reads "v:n:m"; a `VNM` is returned unchanged.

    Raises:
      ValueError: If the text is not three integers that fit.
    """
    if isinstance(text, cls):
      return text
    match = _SHARED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
      raise ValueError(
        f"Invalid V:N:M pattern {str(text)!r}: expected 'v:n:m', for example"
        " '64:2:8'."
      )
    return cls(*map(int, match.groups()))

  @property
  def columns(self) -> int:
    """Inputs of every m that v outputs may use: 2n, hence 4 for n = 2."""
    return 2 * self.n

  @property
  def pattern(self) -> NM:
    """The N:M pattern that each output has."""
    return NM(self.n, self.m)

  def __str__(self) -> str:
    return f"{self.v}:{self.n}:{self.m}"


def parse_pattern(text: str | NM) -> NM:
  """Reads "n:m" or "v:n:m"; a pattern is returned unchanged.

  Raises:
    ValueError: If the text is neither, or the numbers do not fit.

  >>> parse_pattern("2:4"), parse_pattern("64:2:8")
  (NM(n=2, m=4), VNM(n=2, m=8, v=64))
  """
  if isinstance(text, str) and _SHARED.fullmatch(text):
    return VNM.parse(text)
  return NM.parse(text)
