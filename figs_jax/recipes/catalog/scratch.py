"""Recipes whose masks have the target pattern from the start."""

from __future__ import annotations

from dataclasses import replace

from figs_jax.optim._decay_pruned import MODES
from figs_jax.recipes.checks import not_negative, one_of
from figs_jax.recipes.optimizer_requirements import PrunedDecay, Ramp, StepAdam
from figs_jax.recipes.pattern_schedule import Never
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.timeline import Switch, check_fraction

PLACEMENTS = (*MODES, "backward")


@register("dense")
def dense(plain: Recipe) -> Recipe:
  """No sparsity: the whole run is one dense phase, every mask all True."""
  if plain.flow.mvue is not None:
    raise ValueError(
      f"{plain.name}: mvue prunes gradients of sparse layers, and there are"
      " none; leave it out"
    )
  end = plain.total_steps
  line = replace(plain.timeline, dense_end=end, finetune_start=end)
  return replace(plain, timeline=line, chain=Never())


@register("ste")
def ste(plain: Recipe) -> Recipe:
  """Hard N:M masks from |w|, straight-through gradients, nothing else."""
  return replace(plain, sources=("1308.3432",))


@register("sr_ste")
def sr_ste(
  plain: Recipe, *, decay: float | int = 2e-4, mode: str = "into_grad"
) -> Recipe:
  """STE, and pruned weights are pulled towards zero (arXiv 2102.04010).

  Options:
    decay: λ of the term λ * not m * w.
    mode: `into_grad` adds it to the gradient before Adam's moments; `decoupled`
      subtracts lr * λ * not m * w from the weights, like AdamW's decay, and
      needs `recipe.transform(tx, learning_rate=...)`; `backward` adds it
      inside the backward pass, before any clipping or unscaling.
  """
  one_of(plain.name, "mode", mode, PLACEMENTS)
  not_negative(plain.name, "decay", decay)
  plain = replace(plain, sources=("2102.04010",))
  if mode == "backward":
    return replace(plain, flow=replace(plain.flow, decay=decay))
  return replace(plain, needs=(PrunedDecay(decay, mode),))


@register("annealed_decay")
def annealed_decay(
  plain: Recipe,
  *,
  decay: float | int = 2e-4,
  until: float | int = 0.5,
  mode: str = "into_grad",
) -> Recipe:
  """SR-STE whose decay grows, α t up to T0, then stays (arXiv 2407.20584).

  Options:
    decay: λ from T0 on, so that α = decay / T0.
    until: T0 as a share of all steps.
    mode: `into_grad` or `decoupled`, as in `sr_ste`.
  """
  one_of(plain.name, "mode", mode, MODES)
  not_negative(plain.name, "decay", decay)
  if not 0 <= until <= 1:
    raise ValueError(f"{plain.name}: until={until!r} must lie in [0, 1]")
  ramp = Ramp(round(until * plain.total_steps))
  need = PrunedDecay(decay, mode, ramp)
  return replace(plain, needs=(need,), sources=("2407.20584", "2102.04010"))


@register("transposable", transposable=True, refresh_every=40)
def transposable(
  plain: Recipe, *, decay: float | int = 2e-4, mode: str = "into_grad"
) -> Recipe:
  """Masks N:M along both axes, with SR-STE's decay (arXiv 2404.01847).

  Options:
    decay: as in `sr_ste`.
    mode: as in `sr_ste`; `into_grad` or `decoupled`.
  """
  one_of(plain.name, "mode", mode, MODES)
  not_negative(plain.name, "decay", decay)
  if not plain.transposable:
    raise ValueError(
      f"{plain.name}: transposable=False leaves the recipe sr_ste: create that"
    )
  plain = replace(plain, needs=(PrunedDecay(decay, mode),))
  return replace(plain, sources=("2404.01847", "2102.08124"))


@register("step")
def step(
  plain: Recipe,
  *,
  t_min: float | int = 0.10,
  t_max: float | int = 0.50,
  criterion: str = "absolute",
  mean: str = "arithmetic",
  threshold: float | int | None = None,
  bias_correct: bool = True,
  window: int | None = None,
) -> Recipe:
  """STEP: dense until Adam's second moment has settled (arXiv 2302.01172).

  The masks start when the optimizer's flag is set, never before the end of the
  dense phase and never after the start of fine-tuning.

  Options:
    t_min, t_max: shares of all steps between which the switch may come.
    criterion, mean, threshold, bias_correct, window: as in
      `figs_jax.optim.scale_by_step_adam`.
  """
  check_fraction("t_min", t_min)
  check_fraction("t_max", t_max)
  if t_min > t_max:
    raise ValueError(f"step: t_min={t_min} must not exceed t_max={t_max}")
  line = plain.timeline
  latest = max(line.finetune_start - 1, 0)
  first = min(max(round(t_min * line.total_steps), line.dense_end), latest)
  last = min(max(round(t_max * line.total_steps), line.dense_end), latest)
  options = {
    "t_min": first,
    "t_max": last,
    "criterion": criterion,
    "mean": mean,
    "threshold": threshold,
    "bias_correct": bias_correct,
    "window": window,
  }
  return replace(
    plain,
    timeline=replace(line, switch=Switch(first, last)),
    needs=(StepAdam(tuple(options.items())),),
    sources=("2302.01172",),
  )


@register("s_ste", dense=0.0)
def s_ste(plain: Recipe) -> Recipe:
  """Kept weights are soft-thresholded and rescaled (arXiv 2409.09099).

  The scale β is taken from the initial kernel and stays.
  """
  soft = replace(plain.flow, soft=True)
  if plain.transposable:
    raise ValueError(
      f"{plain.name}: the threshold is that of one group, so a mask along two"
      " axes does not fit: leave transposable at False"
    )
  return replace(plain, flow=soft, sources=("2409.09099",))
