"""A recipe's run on one model as few phases of equal arithmetic.

In every phase each matrix product costs the same at every step: no kernel
changes its stage, and pruned weights leak either at all steps or at none. So a
run of a million steps is a dozen phases, and what it costs can be summed
exactly.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.core.pattern import NM
from figs_jax.models import gemms_of
from figs_jax.recipes import BoundLeaf, Recipe
from figs_jax.recipes.leak_schedule import Hard


class Phase(NamedTuple):
  """Steps of equal arithmetic, as plain data for `figs_jax.engine.training`.

  Attributes:
    steps: Number of steps.
    layers: Rows of `figs_jax.models.gemms_of` with the patterns of the phase:
      m:m for a masked kernel in its dense stage, None for one without a mask.
    forward: Whether the forward pass is sparse (no leak).
    input_gradient: Whether the input gradient is sparse, by masks that are N:M
      along both axes, or by pruning the kernel again along the other one.
    weight_gradient: Pattern of the pruned operand of the weight gradient in
      masked layers, or None.
  """

  steps: int
  layers: tuple[Mapping[str, Any], ...]
  forward: bool
  input_gradient: bool
  weight_gradient: NM | None


def phases_of(
  model: nnx.Module,
  recipe: Recipe,
  *,
  batch: int = 1,
  steps: int | None = None,
  switched_at: int | None = None,
  example: Any = None,
) -> tuple[Phase, ...]:
  """Splits a run into phases, in order; their steps sum to `steps`.

  If a stage has steps with and without a leak, those with it form one phase and
  those without it the next. The recipe `nested` has a phase per point, and each
  of its passes counts as a step; points that are drawn share theirs equally.

  Args:
    model: Any NNX model, sparsified as for training, possibly abstract.
    recipe: Recipe that decides which kernels are sparse at which step.
    batch: Number of images (or sequences) per optimizer step.
    steps: Number of first steps to split. Defaults to all steps.
    switched_at: STEP's first masked step. Defaults to the last possible one.
    example: Input of a model of another class than ours, with the batch as its
      leading axis; see `figs_jax.models.products_of`.

  Raises:
    ValueError: If `steps` or `switched_at` is out of range, or as in
      `figs_jax.models.gemms_of` and `recipe.bind`.

  >>> from figs_jax import models, recipes
  >>> sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  >>> model = nn.sparsify(models.create("vit", "Ti/4", **sizes), "ff: 1:4")
  >>> recipe = recipes.create("sdgf_stepwise", "ff: 1:4", total_steps=1000)
  >>> [(p.steps, str(p.layers[7]["pattern"])) for p in phases_of(model, recipe)]
  [(12, '4:4'), (296, '3:4'), (296, '2:4'), (396, '1:4')]
  """
  line = recipe.timeline
  if steps is None:
    steps = line.total_steps
  if not 0 <= steps <= line.total_steps:
    raise ValueError(
      f"Expected steps from 0 to total_steps={line.total_steps}, got {steps}"
    )
  recipe = _switching(recipe, switched_at)
  bound = recipe.bind(nn.masked_leaves(model))
  rows = gemms_of(model, batch, example=example)
  kernels = {k.path.removesuffix("/kernel"): k for k in bound.kernels}
  unknown = kernels.keys() - {row["name"] for row in rows}
  if unknown:
    raise ValueError(
      f"{min(unknown)}/kernel: expected a product with this masked kernel, got"
      f" none in a call of {type(model).__name__}"
    )
  starts = {name: _starts(recipe, k) for name, k in kernels.items()}
  begin = _begin(recipe)
  cuts = {0, steps, begin, *itertools.chain(*starts.values())}
  phases = []
  for first, end in itertools.pairwise(sorted(c for c in cuts if c <= steps)):
    now = {
      name: _pattern(kernel, sum(s <= first for s in starts[name]))
      for name, kernel in kernels.items()
    }
    # A row without a pattern contracts other axes than the groups.
    layers = tuple(
      row | {"pattern": row["pattern"] and now.get(row["name"])} for row in rows
    )
    hard = _hard_steps(recipe, first, end) if first >= begin else 0
    for count, sparse in ((end - first - hard, False), (hard, True)):
      along_both = recipe.transposable or recipe.flow.double_pruned
      inputs = sparse and along_both
      for passes, at_point in _passes(recipe, count, layers, kernels):
        phases.append(Phase(passes, at_point, sparse, inputs, recipe.flow.mvue))
  return tuple(phases)


def _passes(
  recipe: Recipe,
  steps: int,
  layers: tuple[Mapping[str, Any], ...],
  kernels: Mapping[str, BoundLeaf],
) -> list[tuple[int, tuple[Mapping[str, Any], ...]]]:
  """Number of passes and rows of each point that some steps train."""
  points = recipe.points
  if points is None:
    return [(steps, layers)] if steps else []
  between = len(points.patterns) - 2
  passes = [steps] * len(points.patterns)
  for i in range(between):  # they add up to steps * sampled
    passes[i + 1] = (steps * points.sampled + i) // between
  dense = all(
    row["pattern"] is None or row["pattern"].is_dense for row in layers
  )
  result = []
  for count, nm in zip(passes, points.patterns):
    rows = tuple(
      {**row, "pattern": nm}
      if row["name"] in kernels and row["pattern"] and not dense
      else row
      for row in layers
    )
    result += [(count, rows)] if count else []
  return result


def _pattern(kernel: BoundLeaf, stage: int) -> NM:
  m = kernel.leaf.pattern.m
  return kernel.stages[stage - 1] if stage else NM(m, m)


def _starts(recipe: Recipe, kernel: BoundLeaf) -> tuple[int, ...]:
  """The first step of each of a kernel's stages."""
  line, stages = recipe.timeline, len(kernel.stages)
  if not stages:
    return ()
  if line.switch is None:
    return line.boundaries(stages)
  return (line.switch.t_max + 1,) * stages  # STEP goes to the target at once


def _begin(recipe: Recipe) -> int:
  """The first step of the first stage of any kernel; before it D is 1."""
  line, stages = recipe.timeline, max(recipe.lengths)
  if not stages:
    return line.total_steps
  if line.switch is not None:
    return line.switch.t_max + 1
  return line.boundaries(stages)[0]


def _switching(recipe: Recipe, at: int | None) -> Recipe:
  """The recipe with its switch, if it has one, fixed to a step."""
  line = recipe.timeline
  if at is None:
    return recipe
  if line.switch is None:
    raise ValueError(
      f"switched_at={at}: recipe {recipe.name!r} never switches; leave it out"
    )
  first, last = line.switch.t_min + 1, line.switch.t_max + 1
  if not first <= at <= last:
    raise ValueError(
      f"Expected switched_at in {first}..{last}, the range of the first masked"
      f" step, got {at}"
    )
  switch = dataclasses.replace(line.switch, t_max=at - 1)
  line = dataclasses.replace(line, switch=switch)
  return dataclasses.replace(recipe, timeline=line)


def _hard_steps(recipe: Recipe, first: int, end: int) -> int:
  """Number of sparse steps in [first, end) with D = 0."""
  cut = recipe.timeline.finetune_start
  after = max(end - max(first, cut), 0)  # D is 0 from the cut on
  return after + _without_leak(recipe, first, min(end, cut))


def _without_leak(recipe: Recipe, first: int, end: int) -> int:
  """Number of steps in [first, end), before fine-tuning, with D = 0."""
  leak = recipe.leak
  if first >= end or leak == Hard():
    return max(end - first, 0)
  over = getattr(leak, "end", None)
  if isinstance(over, int):
    return max(end - max(first, over), 0)
  # A user's leak without an `end`: evaluate it at every step.
  count, chunk = 0, 2**20
  ask = jax.jit(jax.vmap(leak))
  for at in range(first, end, chunk):
    leaks = ask(jnp.arange(at, min(at + chunk, end), dtype=jnp.int32))
    count += int(np.count_nonzero(np.asarray(leaks) == 0))
  return count
