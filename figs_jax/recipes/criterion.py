"""Criteria: the choice of the weights that a mask keeps, at every refresh.

A criterion is a function (kernel, pattern, axis, n) -> mask, frozen and
hashable. `kernel` is a `KernelState`. `n` is None, or a traced count in place
of the pattern's own for criteria with `traced = True`. A criterion with
`looped = True` does not read `kernel.path`, so that the same kernels of all
layers can share one loop. With `separable = True` the mask of whole groups
depends on them alone, so that stacked kernels can be masked one by one. One
with `takes_vnm = True` gives V:N:M masks, too.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from figs_jax.core.groups import Axis, other_axis
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.regrow import SCOPES, regrow_mask
from figs_jax.core.scores import (
  magnitude,
  random_order,
  random_scores,
  saliency,
)
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.core.types import Array, Float

Criterion = Callable[..., Array]


class KernelState(NamedTuple):
  """One kernel at one step, the input of a criterion.

  Attributes:
    path: Path of the kernel in the parameter tree.
    step: Step that the mask is for, an int32 scalar.
    weight: The kernel.
    mask: Previous mask; None at the first refresh.
    grad: Gradient of the previous step; None if the caller has none.
    seed: Seed of the run, an integer scalar.
    path_hash: CRC-32 of the path, uint32; None computes it.
  """

  path: str
  step: Array
  weight: Array
  mask: Array | None = None
  grad: Array | None = None
  seed: Any = 0
  path_hash: Array | None = None

  def key(self, seed: int) -> Array:
    """A random key of this kernel at this step of this run.

    Args:
      seed: Seed of the recipe, combined with that of the run.
    """
    key = jax.random.fold_in(jax.random.key(seed), self.seed)
    key = jax.random.fold_in(key, self.step)
    code = self.path_hash
    return jax.random.fold_in(
      key, path_hash(self.path) if code is None else code
    )


def path_hash(path: str) -> int:
  """CRC-32 of a path, which tells the random keys of kernels apart."""
  return zlib.crc32(path.encode())


@dataclasses.dataclass(frozen=True)
class Magnitude:
  """The largest |w|; with `nested` only among those kept so far."""

  traced: ClassVar[bool] = True
  separable: ClassVar[bool] = True
  looped: ClassVar[bool] = True
  nested: bool = False

  @property
  def takes_vnm(self) -> bool:
    return not self.nested

  def __call__(
    self, kernel: KernelState, pattern: NM, axis: Axis, n: Any = None
  ):
    inside = kernel.mask if self.nested else None
    return nm_mask(magnitude(kernel.weight), pattern, axis, n=n, inside=inside)

  @property
  def is_stateful(self) -> bool:
    return self.nested

  def __str__(self) -> str:
    return "the largest |w|" + (" among those kept before" * self.nested)


@dataclasses.dataclass(frozen=True)
class Saliency:
  """The largest |w g|, g of the previous step; |w| without a gradient.

  Under `masked` gradients a pruned entry has gradient 0 and never returns.
  """

  traced: ClassVar[bool] = True
  separable: ClassVar[bool] = True
  looped: ClassVar[bool] = True
  is_stateful: ClassVar[bool] = True
  needs_grad: ClassVar[bool] = True
  takes_vnm: ClassVar[bool] = True

  def __call__(
    self, kernel: KernelState, pattern: NM, axis: Axis, n: Any = None
  ):
    if kernel.grad is None:
      scores = magnitude(kernel.weight)
    else:
      scores = saliency(kernel.weight, kernel.grad)
    return nm_mask(scores, pattern, axis, n=n)

  def __str__(self) -> str:
    return "the largest |w g|"


@dataclasses.dataclass(frozen=True)
class Random:
  """Any n of m, drawn once from the seed and the kernel's path.

  The draw is the same at every step, so a mask that shrinks is nested.
  """

  traced: ClassVar[bool] = True
  looped: ClassVar[bool] = True
  is_stateful: ClassVar[bool] = False
  takes_vnm: ClassVar[bool] = True
  seed: int = 0

  def __call__(
    self, kernel: KernelState, pattern: NM, axis: Axis, n: Any = None
  ):
    key = kernel._replace(step=jnp.int32(0)).key(self.seed)
    scores = random_scores(key, kernel.weight.shape)
    return nm_mask(scores, pattern, axis, n=n)

  def __str__(self) -> str:
    return f"drawn at random (seed {self.seed})"


@dataclasses.dataclass(frozen=True)
class Transposable:
  """The largest |w| such that the mask is N:M along two axes (2102.08124).

  Blocks lie on the group axis and on the last other axis. The product with the
  transposed kernel, which gives the input gradient, is then N:M as well.
  """

  traced: ClassVar[bool] = False
  separable: ClassVar[bool] = True
  looped: ClassVar[bool] = True
  is_stateful: ClassVar[bool] = False

  def __call__(
    self, kernel: KernelState, pattern: NM, axis: Axis, n: Any = None
  ):
    del n
    scores = magnitude(kernel.weight)
    other = other_axis(kernel.weight.ndim, axis)
    return transposable_nm_mask(scores, pattern, axis, other=other)

  def __str__(self) -> str:
    return "the largest |w|, N:M along both axes"


@dataclasses.dataclass(frozen=True)
class Regrow:
  """Drops small kept weights and grows others; masks are n:m at every step.

  At step t a share start / 2 * (1 + cos(pi t / end)) of the kept is dropped,
  and none from `end` on (RigL's schedule, arXiv 1911.11134, eq. 1).

  Attributes:
    by: Growth, `gradient` (where |g| is largest, RigL) or `random` (SET).
    start: Share of the kept weights that is dropped at step 0.
    end: Step from which masks stay.
    scope: Set in which weights compete, `group` or `leaf`; see `core.regrow`.
    seed: Seed of the rounding and of random growth.
  """

  traced: ClassVar[bool] = False
  looped: ClassVar[bool] = True
  is_stateful: ClassVar[bool] = True

  by: str
  start: float | int
  end: int
  scope: str = SCOPES[0]
  seed: int = 0

  @property
  def needs_grad(self) -> bool:
    return self.by == "gradient"

  def share(self, step: Array) -> Float[Array, ""]:
    """The share of the kept weights that a refresh at `step` drops."""
    t = step.astype(jnp.float32) / max(self.end, 1)
    share = self.start / 2 * (1 + jnp.cos(math.pi * t))
    return jnp.where(step < self.end, share, 0.0)

  def __call__(
    self, kernel: KernelState, pattern: NM, axis: Axis, n: Any = None
  ):
    del n
    weight = kernel.weight
    if kernel.mask is None:
      return nm_mask(magnitude(weight), pattern, axis)
    key = kernel.key(self.seed)
    if kernel.grad is not None:
      growth = jnp.abs(kernel.grad)
    else:
      growth = random_order(key, weight.shape, pattern.m, axis)
    share = self.share(kernel.step)
    return regrow_mask(
      key, weight, growth, kernel.mask, share, pattern, axis, scope=self.scope
    )

  def __str__(self) -> str:
    where = "where |g| is largest" if self.needs_grad else "at random"
    return (
      f"{self.start:.3g} of the kept (falling to 0 at step {self.end}) give way"
      f" to pruned ones {where}"
    )


def is_stateful(criterion: Criterion) -> bool:
  """Whether a mask depends on earlier steps, so that it must be carried on.

  Args:
    criterion: Choice of kept weights.

  >>> is_stateful(Magnitude()), is_stateful(Regrow("random", 0.3, 75))
  (False, True)
  """
  return bool(getattr(criterion, "is_stateful", False))


def needs_grad(criterion: Criterion) -> bool:
  """Whether a refresh needs gradients.

  Args:
    criterion: Choice of kept weights.

  >>> needs_grad(Magnitude()), needs_grad(Saliency())
  (False, True)
  """
  return bool(getattr(criterion, "needs_grad", False))


def is_looped(criterion: Criterion) -> bool:
  """Whether the same kernels of several layers can share one loop.

  Args:
    criterion: Choice of kept weights.

  >>> of_one_layer = lambda kernel, pattern, axis, n=None: kernel.weight > 0
  >>> is_looped(Magnitude()), is_looped(of_one_layer)
  (True, False)
  """
  return bool(getattr(criterion, "looped", False))


def is_separable(criterion: Criterion) -> bool:
  """Whether the mask of some groups follows from their entries alone.

  The kernels of a stack are then masked one after the other.

  Args:
    criterion: Choice of kept weights.

  >>> is_separable(Magnitude()), is_separable(Random())
  (True, False)
  """
  return bool(getattr(criterion, "separable", False))


def takes_count(criterion: Criterion) -> bool:
  """Whether the criterion takes a traced count `n`.

  Args:
    criterion: Choice of kept weights.

  >>> takes_count(Magnitude()), takes_count(Transposable())
  (True, False)
  """
  return bool(getattr(criterion, "traced", False))


def takes_vnm(criterion: Criterion) -> bool:
  """Whether the criterion takes V:N:M patterns (arXiv 2310.02065).

  Args:
    criterion: Choice of kept weights.

  >>> takes_vnm(Magnitude()), takes_vnm(Transposable())
  (True, False)
  """
  return bool(getattr(criterion, "takes_vnm", False))
