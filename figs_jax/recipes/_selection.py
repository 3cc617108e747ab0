"""Masks of kernels at a stage: which share a loop, a selection or a branch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core.mask_bits import unpack_mask
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array
from figs_jax.recipes.bound_leaf import BoundLeaf
from figs_jax.recipes.criterion import (
  Criterion,
  KernelState,
  is_looped,
  is_separable,
  path_hash,
  takes_count,
)
from figs_jax.recipes.timeline import Step


def selected(
  criterion: Criterion,
  kernel: BoundLeaf,
  state: KernelState,
  stage: Step | None = None,
) -> Array:
  """The mask of a kernel at a stage, as it is kept.

  Args:
    criterion: Choice of kept weights.
    kernel: Kernel.
    state: What the criterion sees of it.
    stage: Number of the stage, possibly traced. Defaults to the last one.
  """
  at = functools.partial(_chosen, criterion, kernel, state)

  def all_kept() -> Array:
    return kernel.keep(kernel.all_kept())

  if stage is None:
    return at(kernel.stages[-1]) if kernel.stages else all_kept()
  branches = [functools.partial(at, pattern) for pattern in kernel.stages]
  return lax.switch(stage, [all_kept, *branches])


def _chosen(
  criterion: Criterion,
  kernel: BoundLeaf,
  state: KernelState,
  pattern: NM,
  n: Any = None,
) -> Array:
  """The criterion's mask of a kernel, as it is kept.

  Those of a stack are chosen one after the other, so that no more than one
  kernel's scores are in memory.
  """
  axis = kernel.leaf.axis

  def one(arrays: tuple[Array, Array | None, Array | None]) -> Array:
    weight, mask, grad = arrays
    mask = None if mask is None else unpack_mask(mask, weight.shape)
    own = state._replace(weight=weight, mask=mask, grad=grad)
    return kernel.keep(criterion(own, pattern, axis, n))

  arrays = (state.weight, state.mask, state.grad)
  stacked = len(kernel.leaf.shape) == 3 and axis == -2
  if stacked and is_separable(criterion):
    return lax.map(one, arrays)
  return one(arrays)


def each(
  kernels: tuple[BoundLeaf, ...],
  states: Mapping[str, KernelState],
  select: Callable[[KernelState], Array],
) -> dict[str, Array]:
  """`select` for alike kernels, in a loop that is compiled once.

  A kernel is copied to the loop by a switch, and its mask joins the others by
  rotating them. A stack of all kernels would leave the cache, and its slices
  would be compiled one by one.

  Args:
    kernels: Kernels of one entry of `alike`.
    states: What the criterion sees of each kernel, by path.
    select: Function of that to the mask.
  """
  paths = [k.path for k in kernels]
  every = [states[path] for path in paths]
  if len(every) == 1:
    return {paths[0]: select(every[0])}
  codes = jnp.asarray([path_hash(path) for path in paths], jnp.uint32)
  arrays = [(state.weight, state.mask, state.grad) for state in every]

  def one(i: Array, masks: list[Array]) -> list[Array]:
    weight, mask, grad = lax.switch(i, [lambda a=a: a for a in arrays])
    state = every[0]._replace(
      weight=weight, mask=mask, grad=grad, path_hash=codes[i]
    )
    return [*masks[1:], select(state)]

  start = [
    k.keep(jnp.zeros_like(state.weight, jnp.bool))
    for k, state in zip(kernels, every)
  ]
  return dict(zip(paths, lax.fori_loop(0, len(every), one, start)))


def alike(
  criterion: Criterion,
  kernels: Sequence[BoundLeaf],
  states: Mapping[str, KernelState],
) -> list[tuple[BoundLeaf, ...]]:
  """Kernels that differ in the numbers of their paths alone, together.

  Layers that differ otherwise may be sharded along other axes.

  Args:
    criterion: Choice of kept weights.
    kernels: Kernels.
    states: What the criterion sees of each kernel, by path.
  """
  groups: dict[Any, list[BoundLeaf]] = {}
  for k in kernels:
    name: Any = k.path
    if is_looped(criterion):
      name = re.sub(r"\d+", "*", k.path)
    state = states[k.path]
    types = jax.tree.map(jax.typeof, (state.weight, state.mask, state.grad))
    groups.setdefault((name, k.leaf, k.stages, types), []).append(k)
  return [tuple(group) for group in groups.values()]


def computed(
  criterion: Criterion,
  group: tuple[BoundLeaf, ...],
  stage: Step,
  states: Mapping[str, KernelState],
) -> dict[str, Array]:
  """Masks of kernels with equally many stages, at a stage, by path.

  Args:
    criterion: Choice of kept weights.
    group: The kernels.
    stage: Number of the stage, possibly traced.
    states: What the criterion sees of each kernel, by path.
  """
  stages = len(group[0].stages)
  if not stages:
    return {k.path: k.keep(k.all_kept()) for k in group}

  new: dict[str, Array] = {}
  rest: list[BoundLeaf] = []
  counted = takes_count(criterion)
  for k in group:
    if not (k.traced and counted):
      rest.append(k)
      continue
    # One ranking compiles in no time: a loop would only slow the step.
    counts = [k.leaf.pattern.m, *(nm.n for nm in k.stages)]
    n = jnp.asarray(counts, jnp.int32)[stage]
    new[k.path] = _chosen(criterion, k, states[k.path], k.leaf.pattern, n)

  for kernels in alike(criterion, rest, states):
    select = functools.partial(selected, criterion, kernels[0], stage=stage)
    new |= each(kernels, states, select)
  return new
