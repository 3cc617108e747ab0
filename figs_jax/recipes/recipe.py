"""A recipe: masks, leak and gradient as pure functions of the step.

A recipe is data. Its parts are functions that anyone may write: a timeline, a
pattern schedule, a leak, a criterion and the requirements on the optimizer.
`Recipe` puts them together; `bind` adds the kernels of a model.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from figs_jax.core._flow import Flow, GradMode
from figs_jax.core.groups import axis_length, other_axis
from figs_jax.core.pattern import NM, VNM
from figs_jax.core.rules import Rules, check_groups
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array, Bool
from figs_jax.optim import ScaleByStepAdamState, pass_masks
from figs_jax.optim.masked import Scalar
from figs_jax.recipes.bibliography import bibtex
from figs_jax.recipes.bound_leaf import BoundLeaf
from figs_jax.recipes.bound_recipe import BoundRecipe
from figs_jax.recipes.criterion import (
  Criterion,
  Magnitude,
  Transposable,
  is_stateful,
  takes_vnm,
)
from figs_jax.recipes.leak_schedule import Hard, Leak
from figs_jax.recipes.optimizer_requirements import (
  OptimizerRequirement,
  StepAdam,
  check_gradients_suffice,
  states_of,
)
from figs_jax.recipes.pattern_schedule import Direct, PatternSchedule
from figs_jax.recipes.points import Points
from figs_jax.recipes.stage_schedule import Once, Stairs
from figs_jax.recipes.timeline import Flag, Step, Timeline

_log = logging.getLogger(__name__)


class Moment(NamedTuple):
  """A recipe at one step.

  Attributes:
    stage: int32 scalar, 0 in the dense phase, then 1..S (of the pattern with
      the most stages, if rules have several).
    leak: float32 scalar, the D of `flow`.
    refresh: Boolean scalar, True where masks are recomputed.
  """

  stage: Array
  leak: Array
  refresh: Array


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The N:M masks of a run over its steps. Frozen, hashable, printable.

  Made by the functions of `figs_jax.recipes`, such as `recipes.sr_ste`.

  Attributes:
    name: Name under which the recipe is registered.
    pattern: Target, an `NM` or `Rules` of them.
    timeline: Phases, mask refreshes and the limits of STEP's switch.
    pattern_schedule: Function (target, group length or None) -> the patterns of
      the stages.
    leak: Function step -> D, called in the decay phase only.
    flow: Forward and backward pass of a masked kernel.
    adapter_rank: Rank of the low-rank adapters beside masked kernels; 0 for
      none.
    criterion: Choice of the weights that a mask keeps.
    optimizer_requirements: Transforms that the optimizer must have.
    points: Nested patterns that each step trains several of, see
      `BoundRecipe.over_points`; None trains the pattern of the step alone.
    sources: Sources of the method: arXiv numbers, DOIs or keys of
      bibliography.bib, or whole BibTeX entries.
  """

  name: str
  pattern: NM | Rules
  timeline: Timeline
  pattern_schedule: PatternSchedule = Direct()
  leak: Leak = Hard()
  flow: Flow = Flow()
  adapter_rank: int = 0
  criterion: Criterion = Magnitude()
  optimizer_requirements: tuple[OptimizerRequirement, ...] = ()
  points: Points | None = None
  sources: tuple[str, ...] = ()

  def __post_init__(self):
    if self.timeline.switch is None:
      for stages in self.lengths:
        self.timeline.boundaries(stages)  # raises if they do not fit
    for target in self.targets:
      if isinstance(target, VNM) and (reason := self._no_vnm(target)):
        raise ValueError(
          f"expected an N:M pattern, got {target}: {reason}; take"
          f" {target.pattern}, or V:N:M with a recipe such as sr_ste or asp"
        )

  @property
  def grad_mode(self) -> GradMode:
    """The gradient of pruned entries."""
    return self.flow.grad_mode

  @property
  def transposable(self) -> bool:
    """Whether masks are N:M along both axes of a kernel."""
    return isinstance(self.criterion, Transposable)

  @property
  def is_stateful(self) -> bool:
    """Whether masks depend on more than the step and the weights."""
    fixed = isinstance(self.timeline.due, (Once, Stairs))
    return is_stateful(self.criterion) or fixed

  @property
  def total_steps(self) -> int:
    """Optimizer steps of the whole run."""
    return self.timeline.total_steps

  @property
  def sparse(self) -> bool:
    """False for a recipe that never masks anything."""
    return max(self.lengths) > 0

  @property
  def ends_dense(self) -> bool:
    """Whether the last stage of every kernel keeps all of its weights."""
    stages = (self.pattern_schedule(nm, None) for nm in self.targets)
    return self.sparse and all(each[-1].is_dense for each in stages)

  def at(self, step: Step | int, switched: Flag = False) -> Moment:
    """Stage, leak and refresh of a step's forward pass, for use under jit.

    D is 1 in the dense phase and exactly 0 in the fine-tune phase.

    Args:
      step: Step, an int32 scalar that may be traced.
      switched: STEP's flag; other recipes ignore it.
    """
    step = jnp.asarray(step, jnp.int32)
    stage = self.timeline.stage(max(self.lengths), step, switched)
    leak = jnp.where(stage == 0, 1.0, self.leak(step))
    if self.sparse:
      leak = jnp.where(step >= self.timeline.finetune_start, 0.0, leak)
    due = [self.timeline.refresh(s, step, switched) for s in self.lengths]
    return Moment(stage, leak.astype(jnp.float32), jnp.stack(due).any())

  def pattern_at(
    self, step: Step | int, switched: Flag | None = None
  ) -> NM | Rules:
    """The pattern of a step's forward pass; m:m in the dense phase.

    `Rules` if the recipe's pattern is `Rules`, else an `NM`.

    Args:
      step: Step of the run.
      switched: STEP's flag; None assumes that it switches as late as it can.
    """
    step, line = int(step), self.timeline
    flag = line.switched_by(step) if switched is None else bool(switched)

    def now(target: NM) -> NM:
      patterns = self.pattern_schedule(target, None)
      stage = line.stage(len(patterns), jnp.asarray(step), flag)
      return (NM(target.m, target.m), *patterns)[int(stage)]

    if isinstance(self.pattern, Rules):
      return self.pattern.map(now)
    return now(self.pattern)

  def leak_at(self, step: Step | int, switched: Flag | None = None) -> float:
    """D in a step's forward pass, as training computes it.

    Args:
      step: Step of the run.
      switched: STEP's flag; None assumes that it switches as late as it can.
    """
    step, line = int(step), self.timeline
    flag = line.switched_by(step) if switched is None else bool(switched)
    return float(_jitted_at(self, step, flag).leak)

  def describe(self) -> str:
    """The run as a table: steps, phase, pattern, leak, gradient.

    A range of leaks goes from the first to the last step of its line.
    """
    return "\n".join([*_table(self), *_remarks(self)])

  def bind(
    self, leaves: Mapping[str, MaskedKernel], mask_storage: str = "bool"
  ) -> BoundRecipe:
    """The recipe for the kernels of one model.

    Every kernel gets the stages that its group axis can hold. Stages that had
    to be left out are reported through `logging`, once per kernel.

    Args:
      leaves: Every masked kernel by path.
      mask_storage: How masks are kept: "bool", one byte per weight, or "bits",
        one bit (`core.pack_mask`, along the group axis). Kernels whose group
        axis 8 does not divide keep a byte per weight.

    Raises:
      ValueError: If a kernel's pattern is not among the recipe's, m does not
        divide its group axis, or `mask_storage` is unknown.
    """
    return _bind(self, tuple(sorted(leaves.items())), mask_storage)

  def _bind(
    self, leaves: tuple[tuple[str, MaskedKernel], ...], mask_storage: str
  ) -> BoundRecipe:
    bound = []
    shortened: dict[tuple[int, NM, NM], list[str]] = {}
    for path, leaf in leaves:
      self._check_pattern(path, leaf)
      check_groups(path, leaf.shape, leaf.pattern, leaf.axis)
      length = axis_length(leaf.shape, leaf.axis)
      if self.transposable or self.flow.double_pruned:
        other = other_axis(len(leaf.shape), leaf.axis)
        check_groups(path, leaf.shape, leaf.pattern, other)
        if self.transposable:
          length = math.gcd(length, leaf.shape[other])
      wanted = self.pattern_schedule(leaf.pattern, None)
      stages = self.pattern_schedule(leaf.pattern, length)
      if stages != wanted:
        key = length, wanted[0], stages[0]
        shortened.setdefault(key, []).append(path)
      bound.append(BoundLeaf(path, leaf, stages, mask_storage))
    for (length, first, start), paths in shortened.items():
      _log.warning(
        "group axis of length %d cannot hold %s, so stages start at %s: %s",
        length,
        first,
        start,
        paths[0]
        if len(paths) == 1
        else f"{paths[0]} and {len(paths) - 1} more",
      )
    return BoundRecipe(self, tuple(bound))

  def adamw(
    self,
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Scalar | optax.Schedule = 1e-4,
    mask: Any = None,
    *,
    before: optax.GradientTransformation | None = None,
  ) -> optax.GradientTransformationExtraArgs:
    """`optax.adamw` with what the recipe needs, STEP's Adam included.

    Args:
      learning_rate: Number or schedule.
      b1, b2, eps, eps_root, mu_dtype, weight_decay: As in `optax.adamw`.
      mask: Tree of Booleans, or a function of the params that gives one: which
        leaves are decayed, as in `optax.adamw`. This is not an N:M mask.
      before: Transform in front, such as clipping, which must not see the term
        that SR-STE adds to the gradient.

    >>> from figs_jax.recipes import create
    >>> tx = create("step", "2:4", 100).adamw(1e-3)
    >>> type(tx.init({})[0]).__name__
    'ScaleByStepAdamState'
    """
    tx = optax.chain(
      self.scale_by_adam(b1, b2, eps, eps_root, mu_dtype),
      optax.add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(learning_rate),
    )
    return self.transform(tx, before=before, learning_rate=learning_rate)

  def scale_by_adam(
    self,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
  ) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, or the one that the recipe puts in its place.

    Use it in a chain of your own and pass the chain to `transform`.

    Args:
      b1, b2, eps, eps_root, mu_dtype: As in `optax.scale_by_adam`.
    """
    make = optax.scale_by_adam
    for requirement in self.optimizer_requirements:
      if isinstance(requirement, StepAdam):
        make = requirement.scale_by_adam
    return make(b1, b2, eps, eps_root, mu_dtype=mu_dtype)

  def transform(
    self,
    tx: optax.GradientTransformation,
    *,
    before: optax.GradientTransformation | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
  ) -> optax.GradientTransformationExtraArgs:
    """An optimizer of your own with what the recipe needs.

    The order is chain(before, needs, tx). For AdamW use `adamw`.

    Args:
      tx: Any optimizer, `optax.MultiSteps` included; for STEP one with
        `scale_by_adam` of this recipe.
      before: Transform in front, such as clipping, which must not see the term
        that SR-STE adds to the gradient.
      learning_rate: Learning rate of `tx`, required for `sr_ste` with mode
        `decoupled`.

    Raises:
      ValueError: If `tx` does not fit what the recipe needs. Where that depends
        on the params, `init` of the result raises it.
    """
    tx = pass_masks(tx)
    for requirement in self.optimizer_requirements:
      tx = requirement.compose(tx, learning_rate)
    if before is not None:
      tx = optax.chain(before, tx)
    return pass_masks(tx)

  @property
  def cited(self) -> tuple[str, ...]:
    """The sources, with those of transposable masks and mvue if in use."""
    options = {"2102.08124": self.transposable, "2203.10991": self.flow.mvue}
    used = tuple(source for source, on in options.items() if on)
    return tuple(dict.fromkeys(self.sources + used))

  def cite(self) -> str:
    """BibTeX of the papers this recipe comes from; empty if it has none.

    >>> from figs_jax.recipes import create
    >>> "2102.04010" in create("sr_ste", "2:4", 100).cite()
    True
    """
    return bibtex(*self.cited)

  def check(self, opt_state: Any) -> None:
    """Checks that an optimizer meets the recipe's requirements.

    Args:
      opt_state: State of the optimizer.

    Raises:
      ValueError: If a required transform is missing, or the optimizer needs
        more than gradients (`optax.lookahead`, `optax.contrib.sophia`).
    """
    check_gradients_suffice(opt_state)
    for requirement in self.optimizer_requirements:
      if not states_of(requirement.state, opt_state):
        raise ValueError(
          f"Recipe {self.name!r} needs {requirement.name} in its optimizer, and"
          " the optimizer state has none: build it with"
          " recipe.adamw(learning_rate) or recipe.transform(tx)."
        )

  def switched(self, opt_state: Any) -> Bool[Array, "*shape"]:
    """STEP's flag in an optimizer state, found by its type; else False.

    Args:
      opt_state: State of an optimizer that `transform` returned.

    Raises:
      ValueError: If the state holds several of STEP's Adam.
    """
    states = states_of(ScaleByStepAdamState, opt_state)
    if len(states) > 1:
      raise ValueError(
        f"expected one scale_by_step_adam in the optimizer state, got"
        f" {len(states)}, whose flags may differ: use one for all masked leaves"
      )
    return states[0].switched if states else jnp.zeros([], jnp.bool)

  @property
  def targets(self) -> tuple[NM, ...]:
    """The different target patterns, in the order of the rules."""
    if isinstance(self.pattern, NM):
      return (self.pattern,)
    patterns = (nm for _, nm in self.pattern.rules if nm is not None)
    return tuple(dict.fromkeys(patterns))

  @property
  def lengths(self) -> tuple[int, ...]:
    """The numbers of stages of the targets, each once, ascending."""
    lengths = {len(self.pattern_schedule(nm, None)) for nm in self.targets}
    return tuple(sorted(lengths)) or (0,)

  def _no_vnm(self, target: VNM) -> str:
    """Why the recipe cannot have a V:N:M pattern; "" if it can."""
    stages = self.pattern_schedule(target, None)
    if not all(nm.is_dense or nm == target for nm in stages):
      return "the stages of this recipe are N:M"
    if not takes_vnm(self.criterion):
      return f"the masks of this recipe are not ({_named(self.criterion)})"
    if self.flow.soft or self.flow.double_pruned:
      return "its forward or backward pass prunes the groups of one output"
    return ""

  def _check_pattern(self, path: str, leaf: MaskedKernel) -> None:
    if leaf.pattern not in self.targets:
      known = ", ".join(str(nm) for nm in self.targets) or "dense only"
      raise ValueError(
        f"{path}: the model masks it {leaf.pattern}, but recipe {self.name!r}"
        f" was created for {known}; give both the same pattern or rules"
      )


# Cached, so that binding again does not report missing stages again.
_bind = functools.lru_cache(maxsize=64)(Recipe._bind)
_jitted_at = jax.jit(Recipe.at, static_argnums=0)


def _table(recipe: Recipe) -> list[str]:
  """Lines of the table that `Recipe.describe` prints."""
  rows = [("steps", "phase", "pattern", "leak", "gradient")]
  edges = _edges(recipe)
  spans: list[tuple[int, int, tuple[str, ...]]] = []
  for first, end in zip(edges, edges[1:]):
    cells = _row(recipe, first, end - 1)
    if spans and spans[-1][2] == cells:  # nothing changes at this edge
      spans[-1] = (spans[-1][0], end - 1, cells)
    else:
      spans.append((first, end - 1, cells))
  rows += [(f"{first}..{last}", *cells) for first, last, cells in spans]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = [f"{recipe.name}: {recipe.pattern}, {recipe.total_steps} steps"]
  for *cells, last in rows:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths))
    lines.append("  ".join(("", *padded, last)))
  return lines


def _edges(recipe: Recipe) -> list[int]:
  """Steps at which a row of the table begins, and the end of the run."""
  line = recipe.timeline
  edges = {0, line.dense_end, line.finetune_start, line.total_steps}
  if line.switch is not None:
    edges = {0, line.switch.t_max + 1, line.finetune_start, line.total_steps}
  else:
    edges |= {at for s in recipe.lengths for at in line.boundaries(s)}
    edges.add(getattr(recipe.leak, "end", 0))
  return sorted(edge for edge in edges if edge <= line.total_steps)


def _row(recipe: Recipe, first: int, last: int) -> tuple[str, str, str, str]:
  leaks = [f"{recipe.leak_at(step):.4g}" for step in (first, last)]
  moment = recipe.at(first, recipe.timeline.switched_by(first))
  dense = int(moment.stage) == 0
  tuning = first >= recipe.timeline.finetune_start
  phase = "dense" if dense else "fine-tune" if tuning else "sparse"
  all_kept = dense or (recipe.ends_dense and tuning)
  return (
    phase,
    str(recipe.pattern_at(first)),
    leaks[0] if leaks[0] == leaks[1] else "..".join(leaks),
    "all kept" if all_kept else recipe.grad_mode,
  )


def _remarks(recipe: Recipe) -> list[str]:
  """Lines below the table: masks, gradient, optimizer and STEP's switch."""
  due, flow, switch = recipe.timeline.due, recipe.flow, recipe.timeline.switch
  lines = []
  if recipe.sparse:
    often = "" if due == Once() else f"{_named(due)} and "
    lines.append(f"masks: {_named(recipe.criterion)}")
    lines.append(f"masks are recomputed {often}at each new stage")
    if flow.soft:
      lines.append("kept weights are soft-thresholded and rescaled (S-STE)")
    if flow.decay is not None:
      lines.append(f"backward pass: {flow.decay:g} * pruned w added")
    if flow.double_pruned:
      lines.append("input gradient: from the kernel pruned along both axes")
    if flow.mvue is not None:
      lines.append(f"weight gradient: from an unbiased {flow.mvue} estimate")
    lines += [f"optimizer: {part}" for part in recipe.optimizer_requirements]
  if recipe.points is not None:
    lines += recipe.points.remarks
  if recipe.ends_dense:
    lines.append("finished: dense, all masks True")
  if switch is not None:
    lines.append(
      "the optimizer switches; the first masked step lies in"
      f" {switch.t_min + 1}..{switch.t_max + 1} (shown: the last)"
    )
  return [f"  {line}" for line in lines]


def _named(part: Any) -> str:
  """A part of a recipe in words; a plain function by its name."""
  name = getattr(part, "__name__", None)
  return str(part) if name is None else f"by {name}()"
