"""V:N:M masks (VENOM, arXiv 2310.02065): N:M for M that the hardware lacks.

V neighbouring outputs share the 2N of every M inputs that they may use, and
each output keeps N of those: 64:2:8 is 2:4 on a quarter of its own size, so
that sparse tensor cores run it. Each output is N:M, too.
"""

from __future__ import annotations

import dataclasses
import re

import jax.numpy as jnp

from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Bool, Float

_TEXT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*:\s*(\d+)\s*")


@dataclasses.dataclass(frozen=True, order=True)
class VNM:
  """n of every m inputs, from 2n that v outputs share. Hashable.

  Attributes:
    v: Number of outputs that share a choice of inputs.
    n: Inputs that an output keeps of every m.
    m: Size of a group of inputs.

  Raises:
    ValueError: If v or n is below 1, or m below 2n.

  >>> str(VNM.parse("64:2:8")), VNM(64, 2, 8).pattern, VNM(64, 2, 8).columns
  ('64:2:8', NM(n=2, m=8), 4)
  """

  v: int
  n: int
  m: int

  def __post_init__(self):
    if self.v < 1 or self.n < 1 or self.m < 2 * self.n:
      raise ValueError(
        f"Invalid V:N:M pattern '{self}': expected 1 <= v, 1 <= n and 2n <= m,"
        " for example '64:2:8'."
      )

  @classmethod
  def parse(cls, text: str | VNM) -> VNM:
    """Reads "v:n:m"; a `VNM` is returned unchanged.

    Raises:
      ValueError: If the text is not three integers that fit.
    """
    if isinstance(text, cls):
      return text
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
      raise ValueError(
        f"Invalid V:N:M pattern {text!r}: expected 'v:n:m', for example"
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


def vnm_mask(
  scores: Float[Array, "inputs outputs"], pattern: VNM | str
) -> Bool[Array, "inputs outputs"]:
  """True at the entries that V:N:M keeps.

  In every block of m inputs and v outputs, the 2n inputs with the largest sums
  of scores are chosen; each output then keeps its n largest scores among them.
  Of equal sums or scores the lowest index wins.

  Args:
    scores: Scores of a kernel [in, out]; larger is kept. Pass |w|.
    pattern: `VNM` or "v:n:m".

  Raises:
    ValueError: If m does not divide the inputs, or v the outputs.

  >>> scores = jnp.array([[9., 0.], [1., 2.], [0., 3.], [0., 0.]])
  >>> vnm_mask(scores, "2:1:4").astype(int)  # the inputs 0 and 1 are shared
  Array([[1, 0],
         [0, 1],
         [0, 0],
         [0, 0]], dtype=int32)
  """
  vnm = VNM.parse(pattern)
  inputs, outputs = scores.shape
  for axis, length, size, name in (
    (-2, inputs, vnm.m, "m"),
    (-1, outputs, vnm.v, "v"),
  ):
    if length % size:
      raise ValueError(
        f"axis {axis} has length {length}, not a multiple of {name}={size} of"
        f" the pattern {vnm}"
      )
  sums = scores.reshape(inputs, outputs // vnm.v, vnm.v).sum(-1)
  chosen = nm_mask(sums, NM(vnm.columns, vnm.m))
  return nm_mask(scores, vnm.pattern, inside=jnp.repeat(chosen, vnm.v, axis=1))
