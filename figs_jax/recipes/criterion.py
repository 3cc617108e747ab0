"""Which weights a mask keeps: what a recipe asks at every refresh.

A criterion is a function (view, pattern, axis, n) -> mask, frozen and hashable.
`View` holds what may be looked at; `n` is None, or a traced count instead of
the pattern's own for criteria that say `traced`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from figs_jax.core.groups import Axis
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.regrow import SCOPES, regrow_mask
from figs_jax.core.scores import magnitude, random_scores, saliency
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.core.types import Array, Float

Criterion = Callable[..., Array]


class View(NamedTuple):
  """What a criterion sees of one kernel.

  path: its path. step: int32 scalar, the step the mask is for. weight: the
  kernel. mask: the one before, None at the first. grad: the gradient of the
  step before, None where the caller has none. seed: of the run, an integer
  scalar.
  """

  path: str
  step: Array
  weight: Array
  mask: Array | None = None
  grad: Array | None = None
  seed: Any = 0

  def key(self, seed: int) -> Array:
    """A random key of this kernel at this step of this run.

    Args:
      seed: the recipe's own, beside that of the run.
    """
    key = jax.random.fold_in(jax.random.key(seed), self.seed)
    key = jax.random.fold_in(key, self.step)
    return jax.random.fold_in(key, zlib.crc32(self.path.encode()))


@dataclasses.dataclass(frozen=True)
class Magnitude:
  """The largest |w|; with `nested` only among what the mask before kept."""

  traced: ClassVar[bool] = True
  nested: bool = False

  def __call__(self, view: View, pattern: NM, axis: Axis, n: Any = None):
    inside = view.mask if self.nested else None
    return nm_mask(magnitude(view.weight), pattern, axis, n=n, inside=inside)

  @property
  def remembers(self) -> bool:
    return self.nested

  def __str__(self) -> str:
    return "the largest |w|" + (" among those kept before" * self.nested)


@dataclasses.dataclass(frozen=True)
class Saliency:
  """The largest |w g|, g of the step before; |w| where no gradient is given.

  Under `masked` gradients a pruned entry has none and never returns.
  """

  traced: ClassVar[bool] = True
  remembers: ClassVar[bool] = True
  needs_grad: ClassVar[bool] = True

  def __call__(self, view: View, pattern: NM, axis: Axis, n: Any = None):
    if view.grad is None:
      scores = magnitude(view.weight)
    else:
      scores = saliency(view.weight, view.grad)
    return nm_mask(scores, pattern, axis, n=n)

  def __str__(self) -> str:
    return "the largest |w g|"


@dataclasses.dataclass(frozen=True)
class Random:
  """Any n of m, drawn once from the seed and the kernel's path.

  The draw is the same at every step, so a mask that shrinks is nested.
  """

  traced: ClassVar[bool] = True
  remembers: ClassVar[bool] = False
  seed: int = 0

  def __call__(self, view: View, pattern: NM, axis: Axis, n: Any = None):
    key = view._replace(step=jnp.int32(0)).key(self.seed)
    scores = random_scores(key, view.weight.shape)
    return nm_mask(scores, pattern, axis, n=n)

  def __str__(self) -> str:
    return f"drawn at random (seed {self.seed})"


@dataclasses.dataclass(frozen=True)
class Transposable:
  """The largest |w| such that the mask is N:M along two axes (2102.08124).

  Blocks lie on the group axis and on the last other one, so that the product
  with the transposed kernel, which gives the input gradient, is N:M as well.
  """

  traced: ClassVar[bool] = False
  remembers: ClassVar[bool] = False

  def __call__(self, view: View, pattern: NM, axis: Axis, n: Any = None):
    del n
    scores = magnitude(view.weight)
    other = other_axis(view.weight.ndim, axis)
    return transposable_nm_mask(scores, pattern, axis, other=other)

  def __str__(self) -> str:
    return "the largest |w|, N:M along both axes"


@dataclasses.dataclass(frozen=True)
class Regrow:
  """Drops small kept weights and grows others, n:m all the time.

  At step t a share start / 2 * (1 + cos(pi t / end)) of the kept is dropped,
  and none from `end` on (RigL's schedule, arXiv 1911.11134, eq. 1).

  Attributes:
    by: `gradient` grows where |g| is largest (RigL), `random` anywhere (SET).
    start, end: the share at step 0, and the step from which masks stay.
    scope: `group` or `leaf`, see `core.regrow`.
    seed: of everything random.
  """

  traced: ClassVar[bool] = False
  remembers: ClassVar[bool] = True

  by: str
  start: float | int
  end: int
  scope: str = SCOPES[0]
  seed: int = 0

  @property
  def needs_grad(self) -> bool:
    return self.by == "gradient"

  def share(self, step: Array) -> Float[Array, ""]:
    t = step.astype(jnp.float32) / max(self.end, 1)
    share = self.start / 2 * (1 + jnp.cos(math.pi * t))
    return jnp.where(step < self.end, share, 0.0)

  def __call__(self, view: View, pattern: NM, axis: Axis, n: Any = None):
    del n
    weight = view.weight
    if view.mask is None:
      return nm_mask(magnitude(weight), pattern, axis)
    rounding, growing = jax.random.split(view.key(self.seed))
    if view.grad is not None:
      growth = jnp.abs(view.grad)
    else:
      growth = random_scores(growing, weight.shape)
    share = self.share(view.step)
    return regrow_mask(
      rounding, weight, growth, view.mask, share, pattern, axis,
      scope=self.scope,
    )  # fmt: skip

  def __str__(self) -> str:
    where = "|g| is largest" if self.needs_grad else "chance has it"
    return (
      f"{self.start:.3g} of the kept (falling to 0 at step {self.end}) give way"
      f" to pruned ones where {where}"
    )


def other_axis(ndim: int, axis: Axis) -> int:
  """The last axis that is no group axis, negative.

  Raises:
    ValueError: there is none.

  >>> other_axis(2, -2), other_axis(4, (-1, 0))
  (-1, -2)
  """
  taken = {a % ndim for a in ((axis,) if isinstance(axis, int) else axis)}
  free = [a for a in range(ndim) if a not in taken]
  if not free:
    raise ValueError(
      f"a mask along two axes needs a kernel with an axis beside {axis}"
    )
  return free[-1] - ndim


def remembers(criterion: Criterion) -> bool:
  """Whether a mask depends on more than the weights: it must be carried on."""
  return bool(getattr(criterion, "remembers", False))


def needs_grad(criterion: Criterion) -> bool:
  """Whether a refresh needs gradients."""
  return bool(getattr(criterion, "needs_grad", False))


def takes_count(criterion: Criterion) -> bool:
  """Whether a traced count may be given."""
  return bool(getattr(criterion, "traced", False))
