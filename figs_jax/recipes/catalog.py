"""The published recipes, one builder each.

A builder gets the plain recipe (hard N:M from the end of the dense phase on,
straight-through gradients) and returns it with its own parts. The options
`dense`, `finetune` and `refresh_every` of `create` hold for all of them.
"""

from __future__ import annotations

from dataclasses import replace

from figs_jax.core.flow import GradMode
from figs_jax.core.rules import nearest
from figs_jax.optim.decay_pruned import MODES
from figs_jax.recipes import leak
from figs_jax.recipes.chain import Geometric, Never, Stepwise
from figs_jax.recipes.needs import PrunedDecay, StepAdam
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.timeline import Switch, check_fraction


@register("dense")
def dense(plain: Recipe) -> Recipe:
  """No sparsity: the whole run is one dense phase, every mask all True."""
  end = plain.total_steps
  line = replace(plain.timeline, dense_end=end, finetune_start=end)
  return replace(plain, timeline=line, chain=Never())


@register("ste")
def ste(plain: Recipe) -> Recipe:
  """Hard N:M masks from |w|, straight-through gradients, nothing else."""
  return plain


@register("sr_ste")
def sr_ste(
  plain: Recipe, *, decay: float | int = 2e-4, mode: str = "into_grad"
) -> Recipe:
  """STE, and pruned weights are pulled towards zero (arXiv 2102.04010).

  Options:
    decay: λ of the term λ * not m * w.
    mode: `into_grad` adds it to the gradient before Adam's moments; `decoupled`
      subtracts lr * λ * not m * w from the weights, like AdamW's decay, and
      needs `recipe.transform(tx, learning_rate=...)`.
  """
  if mode not in MODES:
    raise ValueError(
      f"sr_ste: mode={mode!r} is unknown, {nearest(mode, MODES)}"
    )
  if not decay >= 0:
    raise ValueError(f"sr_ste: decay={decay!r} must be at least 0")
  return replace(plain, needs=(PrunedDecay(decay, mode),))


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
  mode = _grad_mode(plain.name, grad_mode, "damped")
  decay = leak.linear(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, grad_mode=mode)


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
  mode = _grad_mode(plain.name, grad_mode, "damped")
  decay = leak.exponential(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, grad_mode=mode)


@register("sdgf_stepwise")
def sdgf_stepwise(plain: Recipe, *, grad_mode: str = "ste") -> Recipe:
  """Structure decay, (M-1):M, M/2:M, M/4:M, ..., N:M (arXiv 2402.04744).

  Options:
    grad_mode: `ste` or `masked`.
  """
  mode = _grad_mode(plain.name, grad_mode, "masked")
  return replace(plain, chain=Stepwise(), grad_mode=mode)


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
  mode = _grad_mode(plain.name, grad_mode, "masked")
  return replace(plain, chain=Geometric(k), grad_mode=mode, nested=nested)


@register("figs")
def figs(
  plain: Recipe, *, k: int = 8, grad_mode: str = "ste", nested: bool = False
) -> Recipe:
  """`sdgf_geometric` with k = 8: 8:32, 4:16, 2:8, 1:4. Options as there."""
  return sdgf_geometric(plain, k=k, grad_mode=grad_mode, nested=nested)


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
  )


def _grad_mode(name: str, grad_mode: str, other: GradMode) -> GradMode:
  """The mode, which is straight-through or the other one that makes sense."""
  if grad_mode == "ste":
    return "ste"
  if grad_mode != other:
    raise ValueError(
      f"{name}: grad_mode={grad_mode!r} must be 'ste' or {other!r}"
    )
  return other
