"""The patterns that one set of weights is trained at, one pass for each.

Ranked once, the kept sets of a group are nested: the mask of n:m is where the
rank is below n. A step trains the densest and the sparsest of them and some
between (the sandwich rule of universally slimmable networks, 1903.05134).
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Int

# Tells the keys of points from those of dropout at the same step.
_CODE = zlib.crc32(b"points")


@dataclasses.dataclass(frozen=True)
class Points:
  """The nested patterns of a recipe, and which of them a step trains.

  Attributes:
    patterns: Patterns of one m, n ascending.
    sampled: Number of patterns between the first and the last that each step
      trains as well, drawn without replacement.
    distill: Whether all patterns but the last learn from the outputs of the
      last, in the same step, in place of the labels.

  Raises:
    ValueError: If there are fewer than two patterns, their m differ, n does not
      ascend, or `sampled` exceeds the number of patterns between.

  >>> points = Points.parse("1:8,2:8,4:8,8:8")
  >>> points.passes, [str(nm) for nm in points.patterns]
  (3, ['1:8', '2:8', '4:8', '8:8'])
  """

  patterns: tuple[NM, ...]
  sampled: int = 1
  distill: bool = False

  def __post_init__(self):
    text = ",".join(map(str, self.patterns))
    if len(self.patterns) < 2:
      raise ValueError(
        f"patterns: expected at least two, as in '1:8,2:8,8:8', got {text!r}"
      )
    if len({nm.m for nm in self.patterns}) > 1:
      raise ValueError(f"patterns: expected one m for all, got {text!r}")
    if list(self.counts) != sorted(set(self.counts)):
      raise ValueError(
        f"patterns: expected the sparsest first and each n once, got {text!r}"
      )
    between = len(self.patterns) - 2
    if not 0 <= self.sampled <= between:
      raise ValueError(
        f"sampled: expected a number from 0 to {between}, the patterns between"
        f" the first and the last of {text!r}, got {self.sampled}"
      )

  @classmethod
  def parse(cls, text: str, sampled: int = 1) -> Points:
    """The points of a list such as "1:8,2:8,8:8".

    Args:
      text: Patterns, separated by commas.
      sampled: Number of patterns between the ends that each step trains.

    Raises:
      ValueError: If a pattern cannot be read, or as for the class.
    """
    patterns = tuple(NM.parse(part.strip()) for part in text.split(","))
    return cls(patterns, sampled)

  @classmethod
  def doubled(cls, sparsest: NM, sampled: int = 1) -> Points:
    """n:m, 2n:m, 4n:m, ... and m:m.

    Args:
      sparsest: The first pattern.
      sampled: Number of patterns between the ends that each step trains.

    >>> [str(nm) for nm in Points.doubled(NM(1, 6)).patterns]
    ['1:6', '2:6', '4:6', '6:6']
    """
    counts, n = [], sparsest.n
    while n < sparsest.m:
      counts.append(n)
      n *= 2
    return cls(tuple(NM(n, sparsest.m) for n in (*counts, sparsest.m)), sampled)

  @property
  def counts(self) -> tuple[int, ...]:
    """n of each pattern."""
    return tuple(nm.n for nm in self.patterns)

  @property
  def passes(self) -> int:
    """Forward and backward passes of a step."""
    return 2 + self.sampled

  @property
  def shares(self) -> tuple[float, ...]:
    """The share of steps that train each pattern; they add up to `passes`.

    >>> Points.parse("1:8,2:8,4:8,8:8").shares
    (1.0, 0.5, 0.5, 1.0)
    """
    between = len(self.patterns) - 2
    share = self.sampled / max(between, 1)
    return (1.0, *[share] * between, 1.0)

  @property
  def remarks(self) -> list[str]:
    """Lines for `Recipe.describe`."""
    first, *_, last = self.patterns
    drawn = f" and {self.sampled} drawn between" if self.sampled else ""
    lines = [
      f"points: {', '.join(map(str, self.patterns))}",
      f"each step trains {self.passes} of them, a pass each: {last}, {first}"
      f"{drawn}",
    ]
    learn = f"the others learn from the outputs of {last}, not from labels"
    return [*lines, learn] if self.distill else lines

  def draw(self, step: Array | int, seed: Any = 0) -> Int[Array, " passes"]:
    """The patterns of a step, as indices: the last, the first, sampled ones.

    Args:
      step: Step, an integer scalar that may be traced.
      seed: Seed of the run.

    >>> Points.parse("1:8,2:8,8:8").draw(step=5).tolist()
    [2, 0, 1]
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    key = jax.random.fold_in(key, _CODE)
    last = len(self.patterns) - 1
    between = jax.random.permutation(key, last - 1)[: self.sampled] + 1
    ends = jnp.array([last, 0], jnp.int32)
    return jnp.concatenate([ends, between.astype(jnp.int32)])
