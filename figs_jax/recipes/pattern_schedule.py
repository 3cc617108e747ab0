"""The patterns that a kernel goes through on its way to N:M, one per stage.

A pattern schedule is a function (target, length of the group axis or None) ->
patterns, the target last. Without a length it returns all the stages that were
asked for; with one it may leave out those whose groups do not divide that axis.
Schedules are frozen dataclasses: hashable, and equal if they do the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from figs_jax.core.pattern import NM

PatternSchedule = Callable[[NM, int | None], tuple[NM, ...]]


@dataclasses.dataclass(frozen=True)
class Never:
  """No N:M stage at all: the kernel stays dense."""

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del target, length
    return ()


@dataclasses.dataclass(frozen=True)
class Direct:
  """One stage: the target itself."""

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del length
    return (target,)


@dataclasses.dataclass(frozen=True)
class ThenDense:
  """N:M, then M:M: the last stage keeps everything.

  >>> [str(stage) for stage in ThenDense()(NM(1, 4))]
  ['1:4', '4:4']
  """

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del length
    return (target, NM(target.m, target.m))


@dataclasses.dataclass(frozen=True)
class Stepwise:
  """(M-1):M, then M/2:M, M/4:M, ... while above N, then N:M (2402.04744).

  >>> [str(stage) for stage in Stepwise()(NM(1, 16))]
  ['15:16', '8:16', '4:16', '2:16', '1:16']
  """

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del length
    n, m = target.n, target.m
    halves = [m >> i for i in range(1, m.bit_length())]
    counts = {count for count in (m - 1, *halves) if count > n} | {n}
    return tuple(NM(count, m) for count in sorted(counts, reverse=True))


@dataclasses.dataclass(frozen=True)
class Halving:
  """(M-1):M, then ceil(M/4):M, ceil(M/8):M, ... while above N, then N:M.

  Stage d keeps ceil(M / 2^d), but M - 1 at d = 1, so M/2 does not occur: the
  staircase of Google's AQT (2209.07617).

  >>> [str(stage) for stage in Halving()(NM(1, 16))]
  ['15:16', '4:16', '2:16', '1:16']
  """

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del length
    n, m = target.n, target.m
    counts = [m - 1]
    counts += [-(-m // 2**d) for d in range(2, m.bit_length() + 1)]
    counts = {count for count in counts if count > n} | {n}
    return tuple(NM(count, m) for count in sorted(counts, reverse=True))


@dataclasses.dataclass(frozen=True)
class Countdown:
  """(M-1):M, (M-2):M, ..., N:M: one weight of each group at a time.

  >>> [str(stage) for stage in Countdown()(NM(1, 4))]
  ['3:4', '2:4', '1:4']
  """

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    del length
    n, m = target.n, target.m
    counts = range(max(m - 1, n), n - 1, -1)
    return tuple(NM(count, m) for count in counts)


@dataclasses.dataclass(frozen=True)
class Geometric:
  """kN:kM, ..., 2N:2M, N:M, the density the same throughout (2402.04744).

  >>> [str(stage) for stage in Geometric(8)(NM(1, 4))]
  ['8:32', '4:16', '2:8', '1:4']
  >>> [str(stage) for stage in Geometric(8)(NM(1, 4), length=24)]
  ['2:8', '1:4']

  Raises:
    ValueError: If k is not a power of two.
  """

  k: int = 16

  def __post_init__(self):
    k = self.k
    if not isinstance(k, int) or isinstance(k, bool) or k < 1 or k & (k - 1):
      raise ValueError(
        f"k: expected a power of two (1, 2, 4, 8, ...), got {k!r}"
      )

  def __call__(self, target: NM, length: int | None = None) -> tuple[NM, ...]:
    k = self.k
    while length is not None and k > 1 and length % (k * target.m):
      k //= 2
    factors = [k >> i for i in range(k.bit_length())]
    return tuple(NM(f * target.n, f * target.m) for f in factors)
