"""Recipes in which masks, patterns or both decay to the target."""

from __future__ import annotations

from dataclasses import replace

from figs_jax.recipes import leak_schedule
from figs_jax.recipes.checks import (
  one_of,
  with_criterion,
  with_grad_mode,
)
from figs_jax.recipes.criterion import Magnitude
from figs_jax.recipes.pattern_schedule import (
  Chain,
  Geometric,
  Halving,
  Stepwise,
)
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.stage_schedule import Fixed

_PAPER = "2402.04744"


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
