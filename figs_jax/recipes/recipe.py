"""A recipe: what masks, leak and gradient are, as a function of the step.

A recipe is data. Its parts are functions that anyone may write: a timeline, a
chain of patterns, a leak, and what the optimizer must do. `Recipe` puts them
together; `bind` adds the kernels of a model.
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
from figs_jax.core.groups import axis_length
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, check_groups
from figs_jax.core.transposable import WIDEST
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array, Bool
from figs_jax.optim import ScaleByStepAdamState
from figs_jax.optim.masked import Scalar
from figs_jax.recipes.bibliography import bibtex
from figs_jax.recipes.bound_recipe import BoundLeaf, BoundRecipe
from figs_jax.recipes.criterion import (
  Criterion,
  Magnitude,
  Transposable,
  other_axis,
  remembers,
)
from figs_jax.recipes.describe import described
from figs_jax.recipes.leak_schedule import Hard, Leak
from figs_jax.recipes.optimizer_requirements import Need, StepAdam, states_of
from figs_jax.recipes.pattern_schedule import Chain, Direct
from figs_jax.recipes.stage_schedule import Once
from figs_jax.recipes.timeline import Flag, Step, Timeline

_log = logging.getLogger(__name__)


class Moment(NamedTuple):
  """What a recipe says about one step.

  stage: int32 scalar, 0 in the dense phase, then 1..S of the requested chain
  (the longest one where rules give several). leak: float32 scalar, the D of
  `flow`. refresh: Boolean scalar, True where masks are recomputed.
  """

  stage: Array
  leak: Array
  refresh: Array


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How N:M masks come about during a run. Frozen, hashable, printable.

  Make one with `recipes.create`.

  Attributes:
    name: the name it was created under.
    pattern: the target, an `NM` or `Rules` of them.
    timeline: phases, refreshes and, for STEP, the limits of its switch.
    chain: (pattern, group length or None) -> the patterns on the way to it.
    leak: step -> D, asked in the decay phase only.
    flow: what a masked kernel does with mask, leak and gradient.
    criterion: which weights a mask keeps.
    needs: what the optimizer must do.
    sources: of the method: arXiv ids, keys of `recipes.bibliography`, or
      BibTeX entries.
  """

  name: str
  pattern: NM | Rules
  timeline: Timeline
  chain: Chain = Direct()
  leak: Leak = Hard()
  flow: Flow = Flow()
  criterion: Criterion = Magnitude()
  needs: tuple[Need, ...] = ()
  sources: tuple[str, ...] = ()

  def __post_init__(self):
    if self.timeline.switch is None:
      for stages in self.lengths:
        self.timeline.boundaries(stages)  # raises if they do not fit

  @property
  def grad_mode(self) -> GradMode:
    """What pruned entries get as gradient."""
    return self.flow.grad_mode

  @property
  def transposable(self) -> bool:
    """Whether masks are N:M along both axes of a kernel."""
    return isinstance(self.criterion, Transposable)

  @property
  def remembers(self) -> bool:
    """Whether masks are more than a function of step and weights."""
    return remembers(self.criterion) or self.timeline.due == Once()

  @property
  def total_steps(self) -> int:
    """Optimizer steps of the whole run."""
    return self.timeline.total_steps

  @property
  def sparse(self) -> bool:
    """False for a recipe that never masks anything."""
    return max(self.lengths) > 0

  def at(self, step: Step | int, switched: Flag = False) -> Moment:
    """Stage, leak and refresh at a step; the form to use under jit.

    D is 1 in the dense phase and exactly 0 in the fine-tune phase.

    Args:
      step: int32 scalar, may be traced: the step whose forward pass is meant.
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
    """The pattern at a step: an `NM`, or `Rules` of them, as was given.

    In the dense phase that is m:m.

    Args:
      step: the step whose forward pass is meant.
      switched: STEP's flag; None assumes that it switches as late as it can.
    """
    step, line = int(step), self.timeline
    flag = line.switched_by(step) if switched is None else bool(switched)

    def now(target: NM) -> NM:
      chain = self.chain(target, None)
      stage = line.stage(len(chain), jnp.asarray(step), flag)
      return (NM(target.m, target.m), *chain)[int(stage)]

    if isinstance(self.pattern, Rules):
      return self.pattern.map(now)
    return now(self.pattern)

  def leak_at(self, step: Step | int, switched: Flag | None = None) -> float:
    """D at a step, as training sees it.

    Args:
      step: as in `pattern_at`.
      switched: as in `pattern_at`.
    """
    step, line = int(step), self.timeline
    flag = line.switched_by(step) if switched is None else bool(switched)
    return float(_jitted_at(self, step, flag).leak)

  def describe(self) -> str:
    """The run as a table: steps, phase, pattern, leak, gradient.

    A range of leaks is that of the first and the last step of the line.
    """
    return described(self)

  def bind(self, leaves: Mapping[str, MaskedKernel]) -> BoundRecipe:
    """The recipe for the kernels of one model.

    Every leaf gets its own chain, as long as its group axis can hold; a chain
    that had to be shortened is reported through `logging`, once per leaf.

    Args:
      leaves: path -> `MaskedKernel` of every masked kernel.

    Raises:
      ValueError: a leaf's pattern is not (among) the recipe's, or its m does
        not divide the group axis.
    """
    return _bind(self, tuple(sorted(leaves.items())))

  def _bind(self, leaves: tuple[tuple[str, MaskedKernel], ...]) -> BoundRecipe:
    bound = []
    shortened: dict[tuple[int, NM, NM], list[str]] = {}
    for path, leaf in leaves:
      self._check_pattern(path, leaf)
      check_groups(path, leaf.shape, leaf.pattern, leaf.axis)
      length = axis_length(leaf.shape, leaf.axis)
      if self.transposable:
        other = other_axis(len(leaf.shape), leaf.axis)
        check_groups(path, leaf.shape, leaf.pattern, other)
        length = math.gcd(length, leaf.shape[other])
      wanted = self.chain(leaf.pattern, None)
      chain = self.chain(leaf.pattern, length)
      if self.transposable and max((nm.m for nm in chain), default=0) > WIDEST:
        raise ValueError(
          f"{path}: masks along two axes go up to m={WIDEST}, but the chain of"
          f" recipe {self.name!r} starts at {chain[0]}; give it a smaller k"
        )
      if chain != wanted:
        key = length, wanted[0], chain[0]
        shortened.setdefault(key, []).append(path)
      bound.append(BoundLeaf(path, leaf, chain))
    for (length, first, start), paths in shortened.items():
      _log.warning(
        "group axis of length %d cannot hold %s, so the chain starts at %s: %s",
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
    for need in self.needs:
      if isinstance(need, StepAdam):
        make = need.scale_by_adam
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
      tx: Any optimizer; for STEP one with `scale_by_adam` of this recipe.
      before: Transform in front, such as clipping, which must not see the term
        that SR-STE adds to the gradient.
      learning_rate: Learning rate of `tx`, required for `sr_ste` with mode
        `decoupled`.

    Raises:
      ValueError: If `tx` does not fit what the recipe needs. Where that depends
        on the params, `init` of the result raises it.
    """
    for need in self.needs:
      tx = need.compose(tx, learning_rate)
    if before is not None:
      tx = optax.chain(before, tx)
    return optax.with_extra_args_support(tx)

  @property
  def cited(self) -> tuple[str, ...]:
    """The sources, and those of transposable masks and of mvue if in use."""
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
    """Raises ValueError unless an optimizer state holds what is needed."""
    for need in self.needs:
      if not states_of(need.state, opt_state):
        raise ValueError(
          f"Recipe {self.name!r} needs {need.name} in its optimizer, and the"
          " optimizer state has none: build it with recipe.adamw(learning_rate)"
          " or recipe.transform(tx)."
        )

  def switched(self, opt_state: Any) -> Bool[Array, "*shape"]:
    """STEP's flag, found in an optimizer state by its type; else False.

    Args:
      opt_state: of a transform that `transform` made.

    Raises:
      ValueError: it holds several of STEP's Adam.
    """
    states = states_of(ScaleByStepAdamState, opt_state)
    if len(states) > 1:
      raise ValueError(
        f"the optimizer state holds {len(states)} scale_by_step_adam, whose"
        " flags may differ: use one for all masked leaves"
      )
    return states[0].switched if states else jnp.zeros([], jnp.bool)

  @property
  def targets(self) -> tuple[NM, ...]:
    """The different target patterns, in the order of the rules."""
    if isinstance(self.pattern, NM):
      return (self.pattern,)
    found = (nm for _, nm in self.pattern.rules if nm is not None)
    return tuple(dict.fromkeys(found))

  @property
  def lengths(self) -> tuple[int, ...]:
    """The numbers of stages that the targets' chains have."""
    lengths = {len(self.chain(nm, None)) for nm in self.targets}
    return tuple(sorted(lengths)) or (0,)

  def _check_pattern(self, path: str, leaf: MaskedKernel) -> None:
    if leaf.pattern not in self.targets:
      known = ", ".join(str(nm) for nm in self.targets) or "dense only"
      raise ValueError(
        f"{path}: the model masks it {leaf.pattern}, but recipe {self.name!r}"
        f" was created for {known}; give both the same pattern or rules"
      )


# Remembered, so that binding again does not report a shortened chain again.
_bind = functools.lru_cache(maxsize=64)(Recipe._bind)
_jitted_at = jax.jit(Recipe.at, static_argnums=0)
