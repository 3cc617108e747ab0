"""Recipes that prune a trained network, or prune and regrow."""

from __future__ import annotations

from dataclasses import replace

from figs_jax.core.regrow import SCOPES
from figs_jax.recipes.checks import (
  one_of,
  with_criterion,
  with_grad_mode,
)
from figs_jax.recipes.criterion import (
  Criterion,
  Magnitude,
  Random,
  Regrow,
  Saliency,
)
from figs_jax.recipes.optimizer_requirements import (
  MaskedMoments,
  MaskedUpdates,
)
from figs_jax.recipes.pattern_schedule import Countdown
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import register
from figs_jax.recipes.stage_schedule import Cubic, Every, Once
from figs_jax.recipes.timeline import check_fraction

_CRITERIA: dict[str, Criterion] = {
  "magnitude": Magnitude(),
  "saliency": Saliency(),
  "random": Random(),
}


@register("gradual")
def gradual(
  plain: Recipe, *, criterion: str = "magnitude", grad_mode: str = "masked"
) -> Recipe:
  """Gradual pruning, n falls from M to N along a cubic (arXiv 1710.01878).

  The last weight to go does so at the end of the decay phase.

  Options:
    criterion: `magnitude`, `saliency` or `random`, as in `one_shot`.
    grad_mode: `masked` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode, ("masked", "ste"))
  one_of(plain.name, "criterion", criterion, _CRITERIA)
  line = replace(plain.timeline, pace=Cubic())
  plain = replace(plain, timeline=line, chain=Countdown())
  plain = replace(plain, sources=("1710.01878",))
  return with_criterion(plain, _CRITERIA[criterion], f"criterion={criterion!r}")


@register("asp", dense=0.5, refresh_every=0)
def asp(plain: Recipe) -> Recipe:
  """Prune the trained network once, then train it again (arXiv 2104.08378).

  Half of the steps train the dense network, unless `dense` says otherwise; the
  masks of |w| taken then stay, pruned weights get no gradient and are set to 0
  after every update.
  """
  plain = with_grad_mode(plain, "masked", ("masked",))
  clear = MaskedUpdates(clear=True)
  return replace(plain, needs=(clear,), sources=("2104.08378",))


@register("one_shot", dense=0.90, refresh_every=0)
def one_shot(
  plain: Recipe, *, criterion: str = "magnitude", grad_mode: str = "masked"
) -> Recipe:
  """Prune the trained network once, and fine-tune a little or not at all.

  With dense + finetune = 1, as by default, the mask comes with the fine-tune
  phase; with dense=1.0 and finetune=0 it comes after the last step.

  Options:
    criterion: `magnitude`, `saliency` (|w g| at the last gradient) or `random`.
    grad_mode: `masked` or `ste`.
  """
  plain = replace(plain, sources=("1506.02626",))
  plain = with_grad_mode(plain, grad_mode, ("masked", "ste"))
  one_of(plain.name, "criterion", criterion, _CRITERIA)
  return with_criterion(plain, _CRITERIA[criterion], f"criterion={criterion!r}")


@register("rigl", dense=0.0, refresh_every=0)
def rigl(
  plain: Recipe,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: str = "group",
  seed: int = 0,
) -> Recipe:
  """Sparse from the start, grows where gradients are large (arXiv 1911.11134).

  Options:
    refresh_every: masks are renewed at multiples of this many steps; 0 is 100,
      as in the paper, or a twentieth of a shorter run.
    share: of the kept weights, how many are dropped at step 0; it falls to 0
      along a cosine.
    until: share of all steps after which masks stay.
    scope: `group` drops in each group of m, `leaf` the smallest of a kernel.
    seed: of the random rounding.
  """
  plain = _regrown(plain, "gradient", share, until, scope, seed)
  return replace(plain, sources=("1911.11134",))


@register("set", dense=0.0, refresh_every=0)
def set_(
  plain: Recipe,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: str = "group",
  seed: int = 0,
) -> Recipe:
  """Sparse from the start, grows at random (arXiv 1707.04780).

  Options as in `rigl`.
  """
  plain = _regrown(plain, "random", share, until, scope, seed)
  return replace(plain, sources=("1707.04780",))


def _regrown(
  plain: Recipe,
  by: str,
  share: float | int,
  until: float | int,
  scope: str,
  seed: int,
) -> Recipe:
  """What RigL and SET have in common: new weights start at 0, without moments.

  Gradients are straight-through, so that pruned entries have one to be judged
  by; the optimizer's part keeps them from acting on it.
  """
  check_fraction("share", share)
  one_of(plain.name, "scope", scope, SCOPES)
  if not 0 < until <= 1:
    raise ValueError(f"{plain.name}: until={until!r} must lie in (0, 1]")
  line = plain.timeline
  end = round(until * line.total_steps)
  if line.due == Once():
    every = min(100, max(line.total_steps // 20, 1))
    line = replace(line, due=Every(every))
  due = line.due
  if (
    isinstance(due, Every)
    and end <= (line.dense_end // due.steps + 1) * due.steps
  ):
    raise ValueError(
      f"{plain.name}: refresh_every={due.steps} leaves no refresh between the"
      f" dense phase and step {end}, from which masks stay, so nothing would"
      " ever grow; lower refresh_every or raise until"
    )
  plain = replace(plain, timeline=line)
  criterion = Regrow(by, share, end, scope, seed)
  plain = with_criterion(plain, criterion, "regrowth")
  needs = (MaskedMoments("zero"), MaskedUpdates(clear=True))
  return replace(plain, needs=needs)
