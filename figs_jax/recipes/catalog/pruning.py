"""Recipes that prune a trained network, once or gradually, or regrow."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from figs_jax.recipes.checks import with_criterion, with_grad_mode
from figs_jax.recipes.criterion import (
  Criterion,
  Magnitude,
  Random,
  Regrow,
  Saliency,
)
from figs_jax.recipes.optimizer_requirements import MaskedMoments, MaskedUpdates
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
  plain: Recipe,
  *,
  criterion: Literal["magnitude", "saliency", "random"] = "magnitude",
  grad_mode: Literal["masked", "ste"] = "masked",
) -> Recipe:
  """Gradual pruning, n falls from M to N along a cubic (arXiv 1710.01878).

  The last weight to go does so at the end of the decay phase.

  Args:
    criterion: Score of the weights: `magnitude`, `saliency` or `random`, as in
      `one_shot`.
    grad_mode: Gradient of pruned entries: `masked` or `ste`.
  """
  plain = with_grad_mode(plain, grad_mode)
  line = replace(plain.timeline, stage_schedule=Cubic())
  plain = replace(plain, timeline=line, pattern_schedule=Countdown())
  plain = replace(plain, sources=("1710.01878",))
  return with_criterion(plain, _CRITERIA[criterion], f"criterion={criterion!r}")


@register("asp", dense=0.5, refresh_every=0)
def asp(plain: Recipe) -> Recipe:
  """Prune the trained network once, then train it again (arXiv 2104.08378).

  Half of the steps train the dense network, unless `dense` differs. The masks
  of |w| taken then stay; pruned weights get no gradient and are set to 0 after
  every update.
  """
  plain = with_grad_mode(plain, "masked")
  clear = MaskedUpdates(clear=True)
  return replace(
    plain, optimizer_requirements=(clear,), sources=("2104.08378",)
  )


@register("one_shot", dense=0.90, refresh_every=0)
def one_shot(
  plain: Recipe,
  *,
  criterion: Literal["magnitude", "saliency", "random"] = "magnitude",
  grad_mode: Literal["masked", "ste"] = "masked",
) -> Recipe:
  """Prune the trained network once, and fine-tune a little or not at all.

  With dense + finetune = 1, as by default, the mask comes with the fine-tune
  phase; with dense=1.0 and finetune=0 it comes after the last step.

  Args:
    criterion: Score of the weights: `magnitude`, `saliency` (|w g| with the
      last gradient) or `random`.
    grad_mode: Gradient of pruned entries: `masked` or `ste`.
  """
  plain = replace(plain, sources=("1506.02626",))
  plain = with_grad_mode(plain, grad_mode)
  return with_criterion(plain, _CRITERIA[criterion], f"criterion={criterion!r}")


@register("rigl", dense=0.0, refresh_every=0)
def rigl(
  plain: Recipe,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: Literal["group", "leaf"] = "group",
  seed: int = 0,
) -> Recipe:
  """Sparse from the start, grows by the gradient (arXiv 1911.11134).

  Args:
    refresh_every: Steps between two updates of the masks; 0 is 100, as in the
      paper, or a twentieth of a shorter run.
    share: Share of the kept weights that is dropped at step 0; it falls to 0
      along a cosine.
    until: Share of all steps after which masks stay.
    scope: Set of weights among which the smallest are dropped: `group` (each
      group of m) or `leaf` (a whole kernel).
    seed: Seed of the random rounding.
  """
  plain = _regrown(plain, "gradient", share, until, scope, seed)
  return replace(plain, sources=("1911.11134",))


@register("set", dense=0.0, refresh_every=0)
def set(  # hides the built-in class in this file
  plain: Recipe,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: Literal["group", "leaf"] = "group",
  seed: int = 0,
) -> Recipe:
  """Sparse from the start, grows at random (arXiv 1707.04780).

  Args:
    refresh_every: Steps between two updates of the masks; 0 is 100, or a
      twentieth of a shorter run.
    share: Share of the kept weights that is dropped at step 0; it falls to 0
      along a cosine.
    until: Share of all steps after which masks stay.
    scope: Set of weights among which the smallest are dropped: `group` (each
      group of m) or `leaf` (a whole kernel).
    seed: Seed of the random rounding and growth.
  """
  plain = _regrown(plain, "random", share, until, scope, seed)
  return replace(plain, sources=("1707.04780",))


def _regrown(
  plain: Recipe,
  by: Literal["gradient", "random"],
  share: float | int,
  until: float | int,
  scope: Literal["group", "leaf"],
  seed: int,
) -> Recipe:
  """RigL and SET but for their sources.

  Gradients are straight-through, since pruned entries are ranked by theirs. The
  optimizer's part keeps those entries at 0 and without moments.
  """
  check_fraction("share", share)
  if not 0 < until <= 1:
    raise ValueError(f"until: expected a share in (0, 1], got {until}")
  line = plain.timeline
  end = round(until * line.total_steps)
  if line.due == Once():
    line = replace(line, due=Every(min(100, max(line.total_steps // 20, 1))))
  due = line.due
  if (
    isinstance(due, Every)
    and end <= (line.dense_end // due.steps + 1) * due.steps
  ):
    raise ValueError(
      f"refresh_every={due.steps} leaves no refresh between the dense phase and"
      f" step {end}, from which masks stay, so nothing would ever grow: lower"
      " refresh_every or raise until"
    )
  plain = replace(plain, timeline=line)
  criterion = Regrow(by, share, end, scope, seed)
  plain = with_criterion(plain, criterion, "regrowth")
  requirements = (MaskedMoments("zero"), MaskedUpdates(clear=True))
  return replace(plain, optimizer_requirements=requirements)
