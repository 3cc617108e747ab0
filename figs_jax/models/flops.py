"""The arithmetic that a whole training run costs under a recipe, exactly.

One multiplication and one addition are two FLOPs. Of a product (M x K)(K x N)
the forward pass needs 2 M K N of them, the input gradient and the weight
gradient as many each. A masked kernel of n:m saves in

  forward          s = n/m
  input gradient   s if masks are N:M along both axes (2102.08124), else 1
  weight gradient  1, or n/m of the unbiased estimate that prunes the output's
                   gradient (2203.10991)

with s = 1 in the dense phase and while pruned weights leak, D > 0. In the
forward pass this is total = SA + N/M FF of arXiv 2402.04744, appendix D, whose
tables count two FLOPs per multiplication and in SA the projections q, k, v, o
with both attention products, but neither patches nor head; the paper prints no
formula for training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.core.pattern import NM
from figs_jax.models import layers_of
from figs_jax.recipes import BoundLeaf, BoundRecipe, Recipe
from figs_jax.recipes.leak import Hard


class TrainFlops(NamedTuple):
  """FLOPs of a run, Python integers; `dense` is the total without any mask."""

  forward: int
  input_gradient: int
  weight_gradient: int
  dense: int

  @property
  def total(self) -> int:
    return self.forward + self.input_gradient + self.weight_gradient

  @property
  def share(self) -> float:
    """The total as a share of the dense one."""
    return self.total / self.dense if self.dense else 1.0


def forward_flops(rows: Iterable[Mapping[str, Any]]) -> int:
  """FLOPs of one forward pass in which every pattern is exploited.

  Args:
    rows: of `figs_jax.models.layers_of`.

  >>> row = {"name": "ff", "M": 2, "N": 3, "K": 8, "count": 1}
  >>> forward_flops([row | {"pattern": NM(1, 4)}, row | {"pattern": None}])
  120
  """
  return sum(_product(row, row["pattern"]) for row in rows)


def train_flops(
  model: nnx.Module,
  recipe: Recipe,
  *,
  batch: int = 1,
  steps: int | None = None,
  switched_at: int | None = None,
) -> TrainFlops:
  """FLOPs of a training run: of all matrix products, forward and backward.

  Counted stage by stage, not step by step. Not counted: what is no product of
  matrices (norms, softmax, the masks themselves, the optimizer), and the
  forward pass that rematerialisation repeats. The input gradient of the first
  layer is counted like any other.

  Args:
    model: of one of our families, sparsified as for training; abstract will do.
    recipe: decides when which kernel is sparse.
    batch: images (or sequences) per optimizer step.
    steps: only the first so many; default all.
    switched_at: STEP's first masked step; default the last possible.

  Raises:
    ValueError: `steps` or `switched_at` is out of range, or as `layers_of` and
      `recipe.bind`.

  >>> from figs_jax import models, recipes
  >>> sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  >>> model = nn.sparsify(models.create("vit", "Ti/4", **sizes), "ff: 1:4")
  >>> recipe = recipes.create("ste", "ff: 1:4", total_steps=1000)
  >>> round(train_flops(model, recipe).share, 3)
  0.839
  """
  line = recipe.timeline
  if steps is None:
    steps = line.total_steps
  if not 0 <= steps <= line.total_steps:
    raise ValueError(f"steps={steps}: give 0 to total_steps={line.total_steps}")
  recipe = _switching(recipe, switched_at)
  bound = recipe.bind(nn.masked_leaves(model))
  rows = layers_of(model, batch)
  kernels = {k.path.removesuffix("/kernel"): k for k in bound.kernels}
  strange = kernels.keys() - {row["name"] for row in rows}
  if strange:
    raise ValueError(f"no matrix product is known for {min(strange)}/kernel")
  longest = max((_stages(recipe, k) for k in bound.kernels), default=0)
  forward = inputs = weights = dense = 0
  for row in rows:
    whole = _product(row, None)
    dense += 3 * whole * steps
    kernel = kernels.get(row["name"])
    if kernel is None:
      forward, inputs = forward + whole * steps, inputs + whole * steps
      weights += whole * steps
      continue
    spared = sum(
      (whole - _product(row, pattern)) * count
      for pattern, count in _sparse_steps(bound, kernel, longest, steps)
    )
    forward += whole * steps - spared
    inputs += whole * steps - spared * recipe.transposable
    weights += _weight_gradient(row, recipe.flow.mvue) * steps
  return TrainFlops(forward, inputs, weights, dense)


def _product(row: Mapping[str, Any], pattern: NM | None) -> int:
  """2 M K N, with n of every m along K."""
  k = row["K"] if pattern is None else row["K"] // pattern.m * pattern.n
  return 2 * row["M"] * row["N"] * k * row["count"]


def _weight_gradient(row: Mapping[str, Any], mvue: NM | None) -> int:
  """2 M K N, with n of every m along M, which is filled up with zeros."""
  kept = row["M"]
  if mvue is not None:
    kept = min(kept, -(-kept // mvue.m) * mvue.n)
  return 2 * kept * row["N"] * row["K"] * row["count"]


def _switching(recipe: Recipe, at: int | None) -> Recipe:
  """The recipe whose switch, if it has one, comes at a known step."""
  line = recipe.timeline
  if at is None:
    return recipe
  if line.switch is None:
    raise ValueError(
      f"switched_at={at}: recipe {recipe.name!r} has no switch; leave it out"
    )
  first, last = line.switch.t_min + 1, line.switch.t_max + 1
  if not first <= at <= last:
    raise ValueError(
      f"switched_at={at}: the first masked step lies in {first}..{last}"
    )
  switch = dataclasses.replace(line.switch, t_max=at - 1)
  line = dataclasses.replace(line, switch=switch)
  return dataclasses.replace(recipe, timeline=line)


def _stages(recipe: Recipe, kernel: BoundLeaf) -> int:
  """The stages of the kernel's chain as it was requested."""
  return len(recipe.chain(kernel.leaf.pattern, None))


def _sparse_steps(
  bound: BoundRecipe, kernel: BoundLeaf, longest: int, steps: int
) -> list[tuple[NM, int]]:
  """(pattern, how many of the first `steps` have it while D = 0) per stage.

  Before the longest chain begins, D is 1 for all.
  """
  recipe, chain = bound.recipe, kernel.chain
  line = recipe.timeline
  if not chain:
    return []
  if line.switch is not None:
    begin = line.switch.t_max + 1
    return [(chain[-1], _hard_steps(recipe, begin, steps))]
  starts = line.boundaries(len(chain))
  begin = line.boundaries(longest)[0]
  ends = (*starts[1:], steps)
  return [
    (pattern, _hard_steps(recipe, max(first, begin), min(end, steps)))
    for pattern, first, end in zip(chain, starts, ends)
  ]


def _hard_steps(recipe: Recipe, first: int, end: int) -> int:
  """How many sparse steps of [first, end) have D = 0."""
  if first >= end:
    return 0
  cut = recipe.timeline.finetune_start
  after = max(end - max(first, cut), 0)  # D is 0 from the cut on
  return after + _without_leak(recipe, first, min(end, cut))


def _without_leak(recipe: Recipe, first: int, end: int) -> int:
  """How many steps of [first, end), before fine-tuning, have D = 0."""
  leak = recipe.leak
  if first >= end or leak == Hard():
    return max(end - first, 0)
  over = getattr(leak, "end", None)
  if isinstance(over, int):
    return max(end - max(first, over), 0)
  # A leak of one's own that does not say where it ends: ask it.
  count, chunk = 0, 2**20
  ask = jax.jit(jax.vmap(leak))
  for at in range(first, end, chunk):
    leaks = ask(jnp.arange(at, min(at + chunk, end), dtype=jnp.int32))
    count += int(np.count_nonzero(np.asarray(leaks) == 0))
  return count
