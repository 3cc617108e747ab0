"""A recipe's run as a table of arrays, and as a picture.

Everything comes from the recipe: stage, leak and refresh from `recipe.at`,
patterns from `recipe.pattern_at`, λ and RigL's share from its parts. Step s is
the forward pass after s updates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.recipes.criterion import Regrow
from figs_jax.recipes.optimizer_requirements import PrunedDecay
from figs_jax.recipes.recipe import Recipe

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

PHASES = ("dense", "sparse", "fine-tune")
_MOST = 4096  # steps of a table by default
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_DENSITY = ("#0072B2", "#56B4E9", "#332288", "#009E73")
_LEAK, _PULL, _SHARE = "#D55E00", "#B0468C", "#8A6D00"
_DENSE_BAND, _TUNE_BAND, _INK = "#E6E6E6", "#F3EBD3", "#333333"


class TimelineTable(NamedTuple):
  """A run by step; T steps, P target patterns.

  Attributes:
    step: int[T], the steps.
    phase: str[T], one of `PHASES`; `dense` until something is masked.
    targets: The P target patterns, or the points of a nested recipe.
    n: int[P, T], n of each target's pattern at a step.
    m: int[P, T], m of each target's pattern at a step.
    leak: float32[T], D.
    refresh: bool[T], True where masks are recomputed.
    pull: float32[T], λ of the decay of pruned weights, 0 if there is none.
    share: float32[T], share of kept weights that a refresh drops (RigL, SET),
      0 for other recipes.

  >>> from figs_jax.recipes import create
  >>> timeline_table(create("ste", "1:4", 2)).density.tolist()
  [[0.25, 0.25]]
  """

  step: np.ndarray
  phase: np.ndarray
  targets: tuple[NM, ...]
  n: np.ndarray
  m: np.ndarray
  leak: np.ndarray
  refresh: np.ndarray
  pull: np.ndarray
  share: np.ndarray

  @property
  def density(self) -> np.ndarray:
    """n / m, float64[P, T]."""
    return self.n / self.m


def timeline_table(
  recipe: Recipe, steps: np.ndarray | None = None
) -> TimelineTable:
  """A recipe's run as arrays over its steps.

  STEP is assumed to switch as late as it can.

  Args:
    recipe: Recipe for one pattern or for rules.
    steps: Ascending integers in [0, total_steps). Defaults to all steps, or to
      4096 evenly spaced ones of a longer run.

  Raises:
    ValueError: If a step lies outside the run.

  >>> from figs_jax.recipes import create
  >>> table = timeline_table(create("figs", "1:4", 100, k=2), np.arange(3))
  >>> table.phase.tolist(), table.m.tolist(), table.leak.tolist()
  (['dense', 'sparse', 'sparse'], [[4, 8, 8]], [1.0, 0.0, 0.0])
  """
  total, line = recipe.total_steps, recipe.timeline
  if steps is None:
    steps = np.linspace(0, total - 1, min(total, _MOST)).round().astype(int)
  steps = np.asarray(steps)
  if steps.size and not 0 <= steps.min() <= steps.max() < total:
    raise ValueError(
      f"steps: expected integers in 0..{total - 1}, got"
      f" {steps.min()}..{steps.max()}"
    )
  flags = np.array([line.switched_by(step) for step in steps.tolist()], bool)
  stage, leak, refresh = _ask(recipe, steps, flags)
  tuning = (stage > 0) & (steps >= line.finetune_start)
  phase = np.where(stage == 0, 0, np.where(tuning, 2, 1))
  points = recipe.points
  targets = points.patterns if points else recipe.targets
  counts = np.array([_patterns(recipe, nm, steps, flags) for nm in targets])
  counts = counts.reshape(len(targets), 2, len(steps))
  return TimelineTable(
    steps,
    np.array(PHASES)[phase],
    targets,
    counts[:, 0],
    counts[:, 1],
    leak,
    refresh,
    _pull(recipe, steps),
    _share(recipe, steps),
  )


def draw(recipe: Recipe, ax: Axes | None = None) -> Axes:
  """Density, leak and phases of a run over its steps, on matplotlib axes.

  The blue line is the density n / m, with the patterns written along it; the
  dashed orange one is D. Grey and yellow bands are the dense and the fine-tune
  phase. Ticks at the bottom are mask refreshes, if there are few. Dotted lines
  are λ over its largest value, and the share of kept weights that RigL and SET
  drop. STEP's switch may come anywhere in the hatched range.

  Args:
    recipe: Recipe for one pattern or for rules.
    ax: Axes to draw on. Defaults to those of a new figure with a legend,
      `draw(recipe).figure`.

  Raises:
    ValueError: If matplotlib is not installed.
  """
  if ax is None:
    ax = draw(recipe, _figure().subplots())
    ax.set_xlabel("step", fontsize=8, color=_INK)
    ax.legend(
      handles=ax.get_lines(), loc="lower center", bbox_to_anchor=(0.5, 0.97),
      ncols=3, frameon=False, fontsize=8, handlelength=2.4, columnspacing=1.2,
    )  # fmt: skip
    return ax
  table = timeline_table(recipe)
  end = recipe.total_steps
  _bands(ax, table, end)
  _curves(ax, table)
  _stages(ax, table, end)
  _refreshes(ax, recipe, table)
  switch = recipe.timeline.switch
  if switch is not None:
    span = (switch.t_min + 1, switch.t_max + 1)
    ax.axvspan(*span, fill=False, hatch="///", edgecolor="0.75", lw=0, zorder=0)
    middle = sum(span) / 2
    ax.text(middle, 0.5, "switch", ha="center", va="center", fontsize=8)
  ax.set_xlim(0, end)
  ax.set_ylim(-0.12, 1.12)
  ax.set_yticks([0, 0.5, 1])
  ax.set_xticks(np.linspace(0, end, 5).round())
  ax.tick_params(labelsize=8, length=3, colors=_INK)
  ax.spines[["top", "right"]].set_visible(False)
  ax.set_title(recipe.name, loc="left", fontsize=9, fontweight="bold")
  if recipe.sparse:
    mode = f"gradient: {recipe.grad_mode}"
    ax.set_title(mode, loc="right", fontsize=8, color=_INK)
  return ax


def _figure() -> Figure:
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ValueError(
      "drawing needs matplotlib: pip install 'figs_jax[plots]'"
    ) from error
  return Figure(figsize=(6.4, 2.1), dpi=160, layout="constrained")


def _ask(
  recipe: Recipe, steps: np.ndarray, flags: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Stage, leak and refresh of many steps, by `recipe.at`."""
  ask = jax.jit(jax.vmap(recipe.at))
  moment = ask(jnp.asarray(steps, jnp.int32), jnp.asarray(flags))
  stage, leak, refresh = map(np.asarray, moment)
  return stage, leak, refresh


def _patterns(
  recipe: Recipe, target: NM, steps: np.ndarray, flags: np.ndarray
) -> np.ndarray:
  """n and m of one target, int[2, T], evaluated where its stage changes."""
  alone = dataclasses.replace(recipe, pattern=target, points=None)
  stage = _ask(alone, steps, flags)[0]
  new = np.flatnonzero(np.diff(stage, prepend=-1))
  patterns = [cast(NM, alone.pattern_at(int(steps[i]))) for i in new]
  lasts = np.diff(new, append=len(steps))
  return np.repeat([(nm.n, nm.m) for nm in patterns], lasts, axis=0).T


def _pull(recipe: Recipe, steps: np.ndarray) -> np.ndarray:
  pull = np.full(len(steps), recipe.flow.decay or 0.0, np.float32)
  for part in recipe.optimizer_requirements:
    if isinstance(part, PrunedDecay):
      factor = jnp.ones_like if part.schedule is None else part.schedule
      pull += part.weight * np.asarray(factor(jnp.asarray(steps)), np.float32)
  return pull


def _share(recipe: Recipe, steps: np.ndarray) -> np.ndarray:
  if not isinstance(recipe.criterion, Regrow):
    return np.zeros(len(steps), np.float32)
  return np.asarray(jax.vmap(recipe.criterion.share)(jnp.asarray(steps)))


def _bands(ax: Axes, table: TimelineTable, end: int) -> None:
  for phase, colour in (("dense", _DENSE_BAND), ("fine-tune", _TUNE_BAND)):
    inside = table.step[table.phase == phase]
    if inside.size:
      after = table.step[table.step > inside[-1]]
      stop = after[0] if after.size else end
      ax.axvspan(
        inside[0], stop, color=colour, lw=0, zorder=0, label=f"{phase} phase"
      )


def _curves(ax: Axes, table: TimelineTable) -> None:
  masked = table.phase != "dense"
  for row, (target, density) in enumerate(zip(table.targets, table.density)):
    colour = _DENSITY[row % len(_DENSITY)]
    name = "density n/m" + f", {target}" * (len(table.targets) > 1)
    ax.step(table.step, density, where="post", color=colour, lw=2, label=name)
  ax.step(
    table.step, table.leak, "--", where="post", color=_LEAK, lw=1.5,
    label="leak D",
  )  # fmt: skip
  for values, colour, name in (
    (table.pull / max(table.pull.max(), 1e-30), _PULL, "λ / max λ"),
    (table.share, _SHARE, "share dropped"),
  ):
    if values.any() and masked.any():
      seen = np.where(masked, values, np.nan)
      ax.plot(table.step, seen, ":", color=colour, lw=1.8, label=name)


def _stages(ax: Axes, table: TimelineTable, end: int) -> None:
  """Writes the patterns along the density, where there is room."""
  inches = ax.get_window_extent().width / ax.figure.dpi
  letter = end * 0.062 / inches  # a letter's width in steps
  for row, colour in zip(range(len(table.targets)), _DENSITY):
    n, m, density = table.n[row], table.m[row], table.density[row]
    new = np.flatnonzero(
      np.any([np.diff(x, prepend=0) != 0 for x in (n, m)], axis=0)
    )
    for first, stop in zip(new, (*new[1:], len(table.step))):
      text, start = f"{n[first]}:{m[first]}", table.step[first]
      room = table.step[min(stop, len(table.step) - 1)] - start
      if n[first] == m[first] or room < letter * (len(text) + 0.5):
        continue
      place = (start + room / 2, density[first])
      above = density[first] < 0.85
      ax.annotate(
        text, place, xytext=(0, 2.5 if above else -2.5),
        textcoords="offset points", ha="center",
        va="bottom" if above else "top", fontsize=7.5, color=colour,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.3},
      )  # fmt: skip


def _refreshes(ax: Axes, recipe: Recipe, table: TimelineTable) -> None:
  """Draws ticks at the bottom, unless they would merge into a bar."""
  new = table.step[table.refresh & (table.phase != "dense")]
  if 0 < new.size <= 60:
    ax.vlines(new, -0.12, -0.05, color=_INK, lw=1.2)
