"""Exact FLOPs of a forward pass and of a training run under a recipe.

A multiplication and an addition are two FLOPs. A product (M x K)(K x N) takes
2 M K N of them in the forward pass, and as many for the input gradient and for
the weight gradient. A kernel masked to n:m takes these shares of them:

* forward: s = n/m
* input gradient: s if masks are N:M along both axes (2102.08124) or the kernel
  is pruned again along the other one (2405.16325), else 1
* weight gradient: 1, or n/m of the unbiased estimate that prunes the output's
  gradient (2203.10991)

with s = 1 in the dense phase and while pruned weights leak (D > 0). The forward
pass agrees with total = SA + N/M FF of arXiv 2402.04744, appendix D, whose
tables count two FLOPs per multiplication; its SA has the projections q, k, v, o
and both attention products, but neither patches nor head. The paper prints no
formula for training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from figs_jax.core.pattern import NM
from figs_jax.models.phases import phases_of
from figs_jax.recipes import Recipe


class TrainFlops(NamedTuple):
  """FLOPs of a run as Python integers.

  Attributes:
    forward: FLOPs of the forward passes.
    input_gradient: FLOPs of the gradients by the inputs of the layers.
    weight_gradient: FLOPs of the gradients by their weights.
    dense: All three without masks.

  >>> flops = TrainFlops(
  ...   forward=1, input_gradient=1, weight_gradient=4, dense=12)
  >>> flops.total, flops.share
  (6, 0.5)
  """

  forward: int
  input_gradient: int
  weight_gradient: int
  dense: int

  @property
  def total(self) -> int:
    """FLOPs of forward passes and gradients."""
    return self.forward + self.input_gradient + self.weight_gradient

  @property
  def share(self) -> float:
    """The total as a share of the dense one."""
    return self.total / self.dense if self.dense else 1.0


def forward_flops(rows: Iterable[Mapping[str, Any]]) -> int:
  """FLOPs of one forward pass that exploits every pattern.

  Args:
    rows: Rows of `figs_jax.models.gemms_of`.

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
  example: Any = None,
) -> TrainFlops:
  """FLOPs of all matrix products of a training run, forward and backward.

  Sums over the phases of the run (`figs_jax.models.phases`). Norms, softmax,
  mask updates, the optimizer and the forward pass that rematerialization
  repeats are not counted. The input gradient of the first layer is counted like
  any other.

  Args:
    model: Any NNX model, sparsified as for training, possibly abstract.
    recipe: Recipe that decides which kernels are sparse at which step.
    batch: Number of images (or sequences) per optimizer step.
    steps: Number of first steps to count. Defaults to all steps.
    switched_at: STEP's first masked step. Defaults to the last possible one.
    example: Input of a model of another class than ours, with the batch as its
      leading axis; see `figs_jax.models.products_of`.

  Raises:
    ValueError: If `steps` or `switched_at` is out of range, or as in
      `figs_jax.models.gemms_of` and `recipe.bind`.

  >>> from figs_jax import models, nn, recipes
  >>> sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  >>> model = nn.sparsify(models.create("vit", "Ti/4", **sizes), "ff: 1:4")
  >>> recipe = recipes.create("ste", "ff: 1:4", total_steps=1000)
  >>> round(train_flops(model, recipe).share, 3)
  0.839
  """
  forward = inputs = weights = dense = 0
  options = {"steps": steps, "switched_at": switched_at, "example": example}
  phases = phases_of(model, recipe, batch=batch, **options)
  for phase in phases:
    for row in phase.layers:
      pattern = row["pattern"]
      sparse = pattern if phase.forward else None
      forward += phase.steps * _product(row, sparse)
      sparse = pattern if phase.input_gradient else None
      inputs += phase.steps * _product(row, sparse)
      sparse = None if pattern is None else phase.weight_gradient
      weights += phase.steps * _weight_gradient(row, sparse)
      dense += 3 * phase.steps * _product(row, None)
  return TrainFlops(forward, inputs, weights, dense)


def _product(row: Mapping[str, Any], pattern: NM | None) -> int:
  """2 M K N, with n of every m kept along K."""
  kept = _kept(row["K"], pattern)
  return 2 * row["M"] * row["N"] * kept * row["count"]


def _weight_gradient(row: Mapping[str, Any], mvue: NM | None) -> int:
  """2 M K N, with n of every m kept along M."""
  kept = _kept(row["M"], mvue)
  return 2 * kept * row["N"] * row["K"] * row["count"]


def _kept(length: int, pattern: NM | None) -> int:
  """n of every m, and at most n of a last group that the length cuts."""
  if pattern is None:
    return length
  groups, rest = divmod(length, pattern.m)
  return groups * pattern.n + min(rest, pattern.n)
