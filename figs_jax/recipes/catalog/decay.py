"""Recipes in which the mask, the pattern or both decay to the target."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from figs_jax.recipes import leak_schedule
from figs_jax.recipes.checks import with_criterion, with_grad_mode
from figs_jax.recipes.criterion import Magnitude
from figs_jax.recipes.pattern_schedule import Geometric, Halving, Stepwise
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.stage_schedule import Fixed, Once, Stairs

_PAPER = "2402.04744"


@register("mask_decay", refresh_every=0)
def mask_decay(
  plain: Recipe,
  *,
  omega: float | int = 1 / 16,
  freq: int | None = None,
  grad_mode: Literal["damped", "ste"] = "damped",
) -> Recipe:
  """Mask decay by stairs, D = max(1 - d ω, 0) (arXiv 2209.07617).

  Args:
    refresh_every: Steps between two updates of the masks; 0 updates them where
      a stair begins, and as often afterwards, as AQT does.
    omega: ω, by which D falls at each stair.
    freq: Steps per stair; None shares the decay phase equally.
    grad_mode: Gradient of pruned entries: `damped` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode)
  leak = leak_schedule.staircase(plain.timeline, omega, freq)
  plain = _at_stairs(plain, freq, len(leak.starts))
  return replace(plain, leak=leak, sources=("2209.07617",))


@register("structure_decay", refresh_every=0)
def structure_decay(
  plain: Recipe,
  *,
  freq: int | None = None,
  grad_mode: Literal["masked", "ste"] = "masked",
) -> Recipe:
  """Structure decay, 15:16, 4:16, 2:16, 1:16 (arXiv 2209.07617).

  Args:
    refresh_every: Steps between two updates of the masks; 0 updates them where
      a stage begins, and as often afterwards, as AQT does.
    freq: Steps per stage; None shares the decay phase equally.
    grad_mode: Gradient of pruned entries: `masked` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode)
  if freq is not None:
    line = replace(plain.timeline, stage_schedule=Fixed(freq))
    plain = replace(plain, timeline=line)
  plain = replace(plain, pattern_schedule=Halving(), sources=("2209.07617",))
  return _at_stairs(plain, freq, max(plain.lengths))


def _at_stairs(plain: Recipe, freq: int | None, stairs: int) -> Recipe:
  """The recipe with masks that are due at stairs, unless they are oftener."""
  line = plain.timeline
  if line.due != Once():
    return plain
  if freq is not None:
    due = Stairs(line.dense_end, freq)
  else:
    due = Stairs(line.dense_end, line.finetune_start - line.dense_end, stairs)
  return replace(plain, timeline=replace(line, due=due))


@register("mdgf_linear")
def mdgf_linear(
  plain: Recipe,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped"] = "ste",
) -> Recipe:
  """Mask decay, D = max(1 - β j, 0), j steps after dense (arXiv 2402.04744).

  Args:
    beta: β per step; None takes it from `zero_at`.
    zero_at: Share of all steps at which D reaches 0 (at the start of
      fine-tuning at the latest); None is .70.
    grad_mode: Gradient of pruned entries: `ste` or `damped`.
  """
  plain = with_grad_mode(plain, grad_mode)
  decay = leak_schedule.linear(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, sources=(_PAPER,))


@register("mdgf_exp")
def mdgf_exp(
  plain: Recipe,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped"] = "ste",
) -> Recipe:
  """Mask decay, D = exp(-β j), cut to 0 below 1e-3 (arXiv 2402.04744).

  Args:
    beta: β per step; None takes it from `zero_at`.
    zero_at: Share of all steps at which D has fallen to 1e-3, its last value
      before 0; None is .70. Fine-tuning starts with D = 0 in any case.
    grad_mode: Gradient of pruned entries: `ste` or `damped`.
  """
  plain = with_grad_mode(plain, grad_mode)
  decay = leak_schedule.exponential(plain.timeline, beta, zero_at)
  return replace(plain, leak=decay, sources=(_PAPER,))


@register("sdgf_stepwise")
def sdgf_stepwise(
  plain: Recipe, *, grad_mode: Literal["ste", "masked"] = "ste"
) -> Recipe:
  """Structure decay, (M-1):M, M/2:M, M/4:M, ..., N:M (arXiv 2402.04744).

  Args:
    grad_mode: Gradient of pruned entries: `ste` or `masked`.
  """
  plain = with_grad_mode(plain, grad_mode)
  return replace(plain, pattern_schedule=Stepwise(), sources=(_PAPER,))


@register("sdgf_geometric")
def sdgf_geometric(
  plain: Recipe,
  *,
  k: int = 16,
  grad_mode: Literal["ste", "masked"] = "ste",
  nested: bool = False,
) -> Recipe:
  """Structure decay, kN:kM, ..., 2N:2M, N:M (arXiv 2402.04744).

  Args:
    k: Factor of the first stage, a power of two. A kernel whose group axis kM
      does not divide starts at the largest smaller factor that does.
    grad_mode: Gradient of pruned entries: `ste` or `masked`.
    nested: Whether a mask keeps only weights that the previous one kept, so
      that a pruned weight never returns and density falls below N:M (the paper
      recomputes masks).
  """
  plain = with_grad_mode(plain, grad_mode)
  plain = with_criterion(plain, Magnitude(nested), "nested=True")
  return replace(plain, pattern_schedule=Geometric(k), sources=(_PAPER,))


@register("figs")
def figs(
  plain: Recipe,
  *,
  k: int = 8,
  grad_mode: Literal["ste", "masked"] = "ste",
  nested: bool = False,
) -> Recipe:
  """`sdgf_geometric` with k = 8: 1:4 is reached by 8:32, 4:16, 2:8, 1:4.

  Args:
    k: Factor of the first stage, as in `sdgf_geometric`.
    grad_mode: Gradient of pruned entries: `ste` or `masked`.
    nested: Whether pruned weights never return, as in `sdgf_geometric`.
  """
  plain = sdgf_geometric.builder(plain, k=k, grad_mode=grad_mode, nested=nested)
  return replace(plain, sources=("figsdeck", _PAPER))


@register("mdgf_sdgf")
def mdgf_sdgf(
  plain: Recipe,
  *,
  structure: Literal["geometric", "stepwise"] = "geometric",
  k: int = 16,
  decay: Literal["exponential", "linear"] = "exponential",
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped", "masked"] = "ste",
) -> Recipe:
  """MdGf and SdGf at once: a sequence of patterns under a falling D.

  Args:
    structure: Sequence of patterns: `geometric`, with factor k, or `stepwise`,
      as in `sdgf_geometric` and `sdgf_stepwise`.
    k: Factor of the first stage, as in `sdgf_geometric`.
    decay: Form of D: `exponential` or `linear`, as in `mdgf_exp` and
      `mdgf_linear`.
    zero_at: Share of all steps at which D ends, as in `mdgf_exp` and
      `mdgf_linear`.
    grad_mode: Gradient of pruned entries: `ste`, `damped` or `masked`.
  """
  plain = with_grad_mode(plain, grad_mode)
  patterns = {"geometric": Geometric(k), "stepwise": Stepwise()}
  leaks = {
    "exponential": leak_schedule.exponential,
    "linear": leak_schedule.linear,
  }
  return replace(
    plain,
    pattern_schedule=patterns[structure],
    leak=leaks[decay](plain.timeline, None, zero_at),
    sources=(_PAPER,),
  )
