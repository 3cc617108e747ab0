"""Recipes that have the target pattern from the start."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from figs_jax.core.pattern import VNM
from figs_jax.recipes.checks import (
  check_not_negative,
  with_criterion,
  with_grad_mode,
)
from figs_jax.recipes.criterion import Random
from figs_jax.recipes.optimizer_requirements import (
  LazyAdapters,
  MaskedUpdates,
  OptimizerRequirement,
  PrunedDecay,
  Ramp,
  StepAdam,
)
from figs_jax.recipes.pattern_schedule import Never, ThenDense
from figs_jax.recipes.points import Points
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.stage_schedule import Every, LastAtEnd
from figs_jax.recipes.timeline import Switch, check_fraction

Mode = Literal["into_grad", "decoupled"]


@register("dense")
def dense(plain: Recipe) -> Recipe:
  """No sparsity: the whole run is one dense phase, every mask all True."""
  if plain.flow.mvue is not None:
    raise ValueError(
      "mvue prunes the gradients of sparse layers, and a dense model has none:"
      " leave it out"
    )
  end = plain.total_steps
  line = replace(plain.timeline, dense_end=end, finetune_start=end)
  return replace(plain, timeline=line, pattern_schedule=Never())


@register("ste")
def ste(plain: Recipe) -> Recipe:
  """Hard N:M masks from |w|, straight-through gradients, nothing else."""
  return replace(plain, sources=("1308.3432",))


@register("sr_ste")
def sr_ste(
  plain: Recipe,
  *,
  decay: float | int = 2e-4,
  mode: Literal["into_grad", "decoupled", "backward"] = "into_grad",
) -> Recipe:
  """STE with a decay of pruned weights towards zero (arXiv 2102.04010).

  Args:
    decay: λ of the term λ * not m * w.
    mode: Place of the term: `into_grad` adds it to the gradient before Adam's
      moments; `decoupled` subtracts lr * λ * not m * w from the weights, like
      AdamW's decay (`recipe.transform` then needs `learning_rate`);
      `backward` adds it inside the backward pass, before any clipping or
      unscaling.
  """
  check_not_negative("decay", decay)
  plain = replace(plain, sources=("2102.04010",))
  if mode == "backward":
    return replace(plain, flow=replace(plain.flow, decay=decay))
  return replace(plain, optimizer_requirements=(PrunedDecay(decay, mode),))


@register("annealed_decay")
def annealed_decay(
  plain: Recipe,
  *,
  decay: float | int = 2e-4,
  until: float | int = 0.5,
  mode: Mode = "into_grad",
) -> Recipe:
  """SR-STE whose decay grows, α t up to T0, then stays (arXiv 2407.20584).

  Args:
    decay: λ from T0 on, so that α = decay / T0.
    until: T0 as a share of all steps.
    mode: Place of the term: `into_grad` or `decoupled`, as in `sr_ste`.
  """
  check_not_negative("decay", decay)
  if not 0 <= until <= 1:
    raise ValueError(f"until: expected a share in [0, 1], got {until}")
  ramp = Ramp(round(until * plain.total_steps))
  return replace(
    plain,
    optimizer_requirements=(PrunedDecay(decay, mode, ramp),),
    sources=("2407.20584", "2102.04010"),
  )


@register("transposable", transposable=True, refresh_every=40)
def transposable(
  plain: Recipe, *, decay: float | int = 2e-4, mode: Mode = "into_grad"
) -> Recipe:
  """Masks N:M along both axes, with SR-STE's decay (arXiv 2404.01847).

  Args:
    decay: λ of SR-STE's term, as in `sr_ste`.
    mode: Place of the term: `into_grad` or `decoupled`, as in `sr_ste`.
  """
  check_not_negative("decay", decay)
  if not plain.transposable:
    raise ValueError(
      "transposable=False leaves only SR-STE's decay: use the recipe sr_ste"
    )
  return replace(
    plain,
    optimizer_requirements=(PrunedDecay(decay, mode),),
    sources=("2404.01847", "2102.08124"),
  )


@register("step")
def step(
  plain: Recipe,
  *,
  t_min: float | int = 0.10,
  t_max: float | int = 0.50,
  criterion: Literal["absolute", "relative"] = "absolute",
  mean: Literal["arithmetic", "geometric"] = "arithmetic",
  threshold: float | int | None = None,
  bias_correct: bool = True,
  window: int | None = None,
  eps_in_root: bool = False,
) -> Recipe:
  """STEP: dense until Adam's second moment has settled (arXiv 2302.01172).

  The masks start when the optimizer's flag is set, never before the end of the
  dense phase and never after the start of fine-tuning.

  Args:
    t_min: Share of all steps before which the switch cannot come.
    t_max: Share of all steps at which the switch comes at the latest.
    criterion: Measure of the second moment's change: `absolute` or `relative`.
    mean: Mean of the change over all weights: `arithmetic` or `geometric`.
    threshold: Value below which the second moment counts as settled; None is
      Adam's eps.
    bias_correct: Whether the frozen second moment is corrected for its bias.
    window: Steps over which the change is averaged; None is 1 / (1 - β2), at
      most t_min.
    eps_in_root: Whether the frozen moment divides by sqrt(v* + eps), as the
      paper writes, instead of sqrt(v*) + eps. At the switch the paper's form
      shrinks updates: 1.4 times for gradients of 1e-4, 99 times for 1e-6.
  """
  check_fraction("t_min", t_min)
  check_fraction("t_max", t_max)
  if t_min > t_max:
    raise ValueError(f"t_min={t_min} must not exceed t_max={t_max}")
  line = plain.timeline
  latest = max(line.finetune_start - 1, 0)
  first = min(max(round(t_min * line.total_steps), line.dense_end), latest)
  last = min(max(round(t_max * line.total_steps), line.dense_end), latest)
  adam = {
    "t_min": first,
    "t_max": last,
    "criterion": criterion,
    "mean": mean,
    "threshold": threshold,
    "bias_correct": bias_correct,
    "window": window,
    "eps_in_root": eps_in_root,
  }
  return replace(
    plain,
    timeline=replace(line, switch=Switch(first, last)),
    optimizer_requirements=(StepAdam(tuple(adam.items())),),
    sources=("2302.01172",),
  )


@register("s_ste", dense=0.0)
def s_ste(plain: Recipe) -> Recipe:
  """Kept weights are soft-thresholded and rescaled (arXiv 2409.09099).

  The scale β is taken from the initial kernel and stays.
  """
  if plain.transposable:
    raise ValueError(
      "transposable=True does not fit: the soft threshold belongs to one group"
      " along one axis"
    )
  soft = replace(plain.flow, soft=True)
  return replace(plain, flow=soft, sources=("2409.09099",))


@register("slope", dense=0.0, finetune=0.0, refresh_every=0)
def slope(
  plain: Recipe,
  *,
  double_pruned: bool = True,
  rank: int = 8,
  lazy: float | int = 0.01,
) -> Recipe:
  """Fixed masks, a double-pruned backward pass, late adapters (2405.16325).

  The masks of the initial |w| stay. The input gradient takes the masked kernel,
  pruned again along its other axis, so that both of its products are N:M; the
  second mask is that of each step's weights, while the paper fixes it too.
  Pruned weights get no gradient and stay 0.

  Args:
    double_pruned: Whether the input gradient takes the double-pruned kernel.
    rank: Rank of the adapters; 0 for none.
    lazy: Share of the steps at the end in which the adapters learn.
  """
  check_fraction("lazy", lazy)
  if rank < 0:
    raise ValueError(f"rank: expected at least 0, got {rank}")
  plain = with_grad_mode(plain, "masked")
  flow = replace(plain.flow, double_pruned=double_pruned)
  total = plain.total_steps
  late = (LazyAdapters(total - round(lazy * total)),) if rank else ()
  return replace(
    plain,
    flow=flow,
    adapter_rank=rank,
    optimizer_requirements=(MaskedUpdates(clear=True), *late),
    sources=("2405.16325",),
  )


@register("sparse_then_dense", dense=0.0, finetune=0.2, refresh_every=0)
def sparse_then_dense(
  plain: Recipe,
  *,
  criterion: Literal["random", "magnitude"] = "random",
  grad_mode: Literal["masked", "ste"] = "masked",
  decay: float | int = 0.0,
) -> Recipe:
  """Sparse pre-training, then dense fine-tuning (arXiv 2303.10464).

  The fine-tune phase trains all weights, and the finished model is dense. By
  default masks are fixed and pruned weights are 0 until then, as in SPDF; with
  `criterion="magnitude", grad_mode="ste"`, a decay and `refresh_every=40` masks
  are trained as well, as in 2:4 pre-training (arXiv 2404.01847).

  Args:
    criterion: Choice of the weights of the sparse phase: `random`, drawn once,
      or `magnitude`.
    grad_mode: Gradient of pruned entries: `masked`, which keeps them at 0, or
      `ste`, which trains them behind the mask.
    decay: λ of SR-STE's term on pruned weights, for `ste` only.
    finetune: Share of the steps at the end that train all weights.
  """
  check_not_negative("decay", decay)
  if decay and grad_mode == "masked":
    raise ValueError(
      "decay: expected 0 with grad_mode='masked', which keeps pruned weights at"
      f" 0, got {decay}; set grad_mode='ste'"
    )
  plain = with_grad_mode(plain, grad_mode)
  if criterion == "random":
    plain = with_criterion(plain, Random(), "criterion='random'")
  needs: OptimizerRequirement = MaskedUpdates(clear=True)
  if grad_mode == "ste":
    needs = PrunedDecay(decay, "into_grad")
  return replace(
    plain,
    timeline=replace(plain.timeline, stage_schedule=LastAtEnd()),
    pattern_schedule=ThenDense(),
    optimizer_requirements=(needs,),
    sources=("2303.10464", "2404.01847"),
  )


@register("nested", dense=0.0)
def nested(
  plain: Recipe,
  *,
  patterns: str = "",
  sampled: int = 1,
  distill: bool = False,
) -> Recipe:
  """One model for several n:m, by the sandwich rule (arXiv 1903.05134).

  A step takes the mean gradient of a pass at the densest pattern, one at the
  sparsest, and one at each of `sampled` patterns between, drawn anew. Weights
  are ranked by |w| at every step, so that the masks are nested. The paper adds
  the losses; their mean has the same direction.

  Args:
    patterns: Patterns of one m in ascending order, such as "1:8,2:8,8:8"; the
      first one is the target. "" doubles n from the target up to m.
    sampled: Number of patterns between the first and the last that each step
      trains as well, at most all of them.
    distill: Whether the sparser patterns learn from the outputs of the densest
      of the same step, in place of the labels (in-place distillation). The loss
      must be a `LogitLoss`, as all of figs_jax but that of a teacher.
  """
  if len(plain.targets) != 1:
    targets = ", ".join(map(str, plain.targets)) or "dense"
    raise ValueError(
      f"expected one pattern for all masked kernels, got {targets}"
    )
  if isinstance(plain.targets[0], VNM):
    raise ValueError(
      f"expected an N:M pattern, got {plain.targets[0]}: masks of several n are"
      " ranked by output"
    )
  if plain.transposable:
    raise ValueError(
      "transposable=True does not fit: masks along both axes are not nested"
    )
  if plain.timeline.due != Every(1):
    raise ValueError(
      "refresh_every: expected 1, since all points are ranked at every step"
    )
  if sampled < 0:
    raise ValueError(f"sampled: expected a number from 0, got {sampled}")
  (target,) = plain.targets
  if patterns:
    points = Points.parse(patterns, 0)
  else:
    points = Points.doubled(target, 0)
  if points.patterns[0] != target:
    raise ValueError(
      f"patterns: expected the target {target} first, got {patterns!r}"
    )
  sampled = min(sampled, len(points.patterns) - 2)
  points = replace(points, sampled=sampled, distill=distill)
  return replace(plain, points=points, sources=("1903.05134",))
