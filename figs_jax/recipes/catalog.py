"""The recipes whose masks follow |w| during training, one builder each.

A builder gets the plain recipe (hard N:M from the end of the dense phase on,
straight-through gradients) and returns it with its own parts. The options that
`create` describes hold for all of them. Others are in `pruning`.
"""

from __future__ import annotations

from dataclasses import replace

from figs_jax.optim._decay_pruned import MODES
from figs_jax.recipes import leak_schedule
from figs_jax.recipes.checks import (
  not_negative,
  one_of,
  with_criterion,
  with_grad_mode,
)
from figs_jax.recipes.criterion import Magnitude
from figs_jax.recipes.optimizer_requirements import PrunedDecay, Ramp, StepAdam
from figs_jax.recipes.pattern_schedule import (
  Chain,
  Geometric,
  Halving,
  Never,
  Stepwise,
)
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.stage_schedule import Fixed
from figs_jax.recipes.timeline import Switch, check_fraction

PLACEMENTS = (*MODES, "backward")
_PAPER = "2402.04744"


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


@register("mask_decay")
def mask_decay(
  plain: Recipe,
  *,
  omega: float | int = 1 / 16,
  freq: int | None = None,
  grad_mode: str = "damped",
) -> Recipe:
  """Mask decay by stairs, D = max(1 - d ω, 0) (arXiv 2209.07617).

  Options:
    omega: ω, by which D falls at each stair.
    freq: steps per stair; None shares the decay phase equally.
    grad_mode: `damped` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode, ("damped", "ste"))
  stairs = leak_schedule.staircase(plain.timeline, omega, freq)
  return replace(plain, leak=stairs, sources=("2209.07617",))


@register("structure_decay")
def structure_decay(
  plain: Recipe, *, freq: int | None = None, grad_mode: str = "masked"
) -> Recipe:
  """Structure decay, 15:16, 4:16, 2:16, 1:16 (arXiv 2209.07617).

  Options:
    freq: steps per stage; None shares the decay phase equally.
    grad_mode: `masked` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode, ("masked", "ste"))
  if freq is not None:
    line = replace(plain.timeline, pace=Fixed(freq))
    plain = replace(plain, timeline=line)
  return replace(plain, chain=Halving(), sources=("2209.07617",))


@register("mdgf_linear")
def mdgf_linear(
  plain: Recipe,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: str = "ste",
) -> Recipe:
  """Mask decay, D = max(1 - β j, 0), j steps after dense (arXiv 2402.04744).

  Options:
    beta: β per step; None takes it from `zero_at`.
    zero_at: share of all steps at which D reaches 0 (at the start of
      fine-tuning at the latest); .70 unless given.
    grad_mode: `ste` or `damped`.
  """
  plain = with_grad_mode(plain, grad_mode, ("ste", "damped"))
  decay = leak_schedule.linear(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, sources=(_PAPER,))


@register("mdgf_exp")
def mdgf_exp(
  plain: Recipe,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: str = "ste",
) -> Recipe:
  """Mask decay, D = exp(-β j), cut to 0 below 1e-3 (arXiv 2402.04744).

  Options:
    beta: β per step; None takes it from `zero_at`.
    zero_at: share of all steps at which D has fallen to 1e-3, its last value
      before 0; .70 unless given. Fine-tuning starts with D = 0 in any case.
    grad_mode: `ste` or `damped`.
  """
  plain = with_grad_mode(plain, grad_mode, ("ste", "damped"))
  decay = leak_schedule.exponential(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, sources=(_PAPER,))


@register("sdgf_stepwise")
def sdgf_stepwise(plain: Recipe, *, grad_mode: str = "ste") -> Recipe:
  """Structure decay, (M-1):M, M/2:M, M/4:M, ..., N:M (arXiv 2402.04744).

  Options:
    grad_mode: `ste` or `masked`.
  """
  plain = with_grad_mode(plain, grad_mode, ("ste", "masked"))
  return replace(plain, chain=Stepwise(), sources=(_PAPER,))


@register("sdgf_geometric")
def sdgf_geometric(
  plain: Recipe, *, k: int = 16, grad_mode: str = "ste", nested: bool = False
) -> Recipe:
  """Structure decay, kN:kM, ..., 2N:2M, N:M (arXiv 2402.04744).

  Options:
    k: the first stage's factor, a power of two. A leaf whose group axis kM does
      not divide starts at the largest smaller factor that does.
    grad_mode: `ste` or `masked`.
    nested: keep only weights that the mask before kept, so that a pruned weight
      never returns; density then falls below N:M (the paper recomputes masks).
  """
  plain = with_grad_mode(plain, grad_mode, ("ste", "masked"))
  plain = with_criterion(plain, Magnitude(nested), f"nested={nested}")
  return replace(plain, chain=Geometric(k), sources=(_PAPER,))


@register("figs")
def figs(
  plain: Recipe, *, k: int = 8, grad_mode: str = "ste", nested: bool = False
) -> Recipe:
  """`sdgf_geometric` with k = 8: 8:32, 4:16, 2:8, 1:4. Options as there."""
  plain = sdgf_geometric(plain, k=k, grad_mode=grad_mode, nested=nested)
  return replace(plain, sources=("figs-deck", _PAPER))


@register("mdgf_sdgf")
def mdgf_sdgf(
  plain: Recipe,
  *,
  structure: str = "geometric",
  k: int = 16,
  decay: str = "exponential",
  zero_at: float | int | None = None,
  grad_mode: str = "ste",
) -> Recipe:
  """MdGf and SdGf at once: a chain of patterns under a falling D.

  Options:
    structure: `geometric` (with factor k) or `stepwise`, as in the two sdgf.
    k: as in `sdgf_geometric`.
    decay: `exponential` or `linear`, as in the two mdgf.
    zero_at: as there.
    grad_mode: `ste`, `damped` or `masked`.
  """
  plain = with_grad_mode(plain, grad_mode, ("ste", "damped", "masked"))
  chains: dict[str, Chain] = {"geometric": Geometric(k), "stepwise": Stepwise()}
  leaks = {
    "exponential": leak_schedule.exponential,
    "linear": leak_schedule.linear,
  }
  one_of(plain.name, "structure", structure, chains)
  one_of(plain.name, "decay", decay, leaks)
  falling = leaks[decay](plain.timeline, None, zero_at)
  plain = replace(plain, chain=chains[structure], leak=falling)
  return replace(plain, sources=(_PAPER,))


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
