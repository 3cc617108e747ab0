"""A recipe bound to the kernels of one model: the masks of a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from figs_jax.core import tree
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.tree import Leaf
from figs_jax.core.types import Array, Bool, Shaped
from figs_jax.recipes.timeline import Flag, Step, Timeline

# Up to this group length nm_mask ranks by comparison and n may be traced, so
# one kernel serves all stages; wider groups want a static n.
_TRACED_M = 16


@dataclasses.dataclass(frozen=True)
class BoundLeaf:
  """One masked kernel with its chain; the dense stage 0 is not listed."""

  path: str
  leaf: Leaf
  chain: tuple[NM, ...]

  @property
  def traced(self) -> bool:
    """True where the stages differ in n only, and groups are narrow."""
    lengths = {self.leaf.pattern.m, *(stage.m for stage in self.chain)}
    return len(lengths) == 1 and max(lengths) <= _TRACED_M

  def all_kept(self) -> Bool[Array, "*shape"]:
    return jnp.ones(self.leaf.shape, jnp.bool)

  def mask(
    self,
    weight: Shaped[Array, "*shape"],
    pattern: NM,
    n: Array | None = None,
    inside: Bool[Array, "*shape"] | None = None,
  ) -> Bool[Array, "*shape"]:
    """The n largest |w| of each group, if wanted only among `inside`."""
    scores = jnp.abs(weight)
    if inside is None:
      return nm_mask(scores, pattern, self.leaf.axis, n=n)
    scores = jnp.where(inside, scores, jnp.nan)  # NaN ranks last
    return nm_mask(scores, pattern, self.leaf.axis, n=n) & inside


@dataclasses.dataclass(frozen=True)
class BoundRecipe:
  """What `Recipe.bind` makes: masks as a function of step and parameters.

  Invariants: static and hashable; every kernel has its own chain, spread over
  the same decay phase; at every refresh a mask keeps exactly n of m at that
  kernel's stage (with `nested` at most n).
  """

  recipe: Any  # a Recipe, whose module imports this one
  kernels: tuple[BoundLeaf, ...]

  @property
  def leaves(self) -> dict[str, Leaf]:
    """path -> `Leaf` of every masked kernel."""
    return {kernel.path: kernel.leaf for kernel in self.kernels}

  def masks(
    self,
    step: Step | int,
    params: Any,
    masks: Any = None,
    switched: Flag = False,
    was_switched: Flag = False,
  ) -> Any:
    """The masks for the forward pass of `step`.

    Call it at every step: a mask is recomputed from |w| when the step is a
    multiple of `refresh_every`, when its kernel enters a new stage, and when
    STEP has just switched; otherwise the given one is carried on. Works under
    jit, scan and vmap, with one compilation for a whole run; under vmap keep
    `step` unbatched, so that what is not due is not computed.

    Args:
      step: int32 scalar; it may be traced.
      params: the parameter tree.
      masks: those of the step before; None computes all of them afresh.
      switched: STEP's flag (`recipe.switched(opt_state)`).
      was_switched: the flag of the step before. Left False after the switch,
        masks are recomputed at every step.

    Returns:
      A tree like `params`: Boolean masks, None at dense leaves.

    Raises:
      ValueError: a masked kernel is missing or has another shape.
    """
    step = jnp.asarray(step, jnp.int32)
    weights = self._pick(params, "params")
    carried = None if masks is None else self._pick(masks, "masks")
    timeline: Timeline = self.recipe.timeline
    new: dict[str, Array] = {}
    for stages, group in self._by_stages().items():
      stage = timeline.stage(stages, step, switched)
      if carried is None or timeline.refresh_every == 1:
        new |= self._computed(group, stage, weights, carried)
        continue
      new |= lax.cond(
        timeline.refresh(stages, step, switched, was_switched),
        lambda old, group=group, stage=stage: self._computed(
          group, stage, weights, old
        ),
        lambda old: old,
        {kernel.path: carried[kernel.path] for kernel in group},
      )
    return tree.map_paths(lambda mask, _: mask, params, new)

  def final(
    self,
    params: Any,
    masks: Any,
    step: Step | int,
    switched: Flag = False,
  ) -> Any:
    """The hard target masks of a finished model at `step`.

    The carried mask where a kernel already is in its last stage, else one
    recomputed from |w| at the target pattern. (A recipe without sparse stages
    finishes dense: all True.) Arguments and errors as in `masks`.
    """
    step = jnp.asarray(step, jnp.int32)
    carried = self._pick(masks, "masks")
    new = self._targets(self._pick(params, "params"), carried)
    for kernel in self.kernels:
      path, stages = kernel.path, len(kernel.chain)
      arrived = self.recipe.timeline.stage(stages, step, switched) == stages
      new[path] = jnp.where(arrived, carried[path], new[path])
    return tree.map_paths(lambda mask, _: mask, params, new)

  def target(self, params: Any) -> Any:
    """Masks taken from |w| at the target patterns, whatever the step."""
    new = self._targets(self._pick(params, "params"), None)
    return tree.map_paths(lambda mask, _: mask, params, new)

  def _targets(
    self, weights: Mapping[str, Array], carried: Mapping[str, Array] | None
  ) -> dict[str, Array]:
    inside = self._inside(carried)
    return {
      k.path: k.mask(weights[k.path], k.chain[-1], inside=inside.get(k.path))
      if k.chain
      else k.all_kept()
      for k in self.kernels
    }

  def _computed(
    self,
    group: tuple[BoundLeaf, ...],
    stage: Step,
    weights: Mapping[str, Array],
    carried: Mapping[str, Array] | None,
  ) -> dict[str, Array]:
    """Masks of kernels with equally many stages, at a (traced) stage."""
    inside = self._inside(carried)
    if not group[0].chain:
      return {k.path: k.all_kept() for k in group}

    new = {}
    for k in group:
      if k.traced:
        counts = [k.leaf.pattern.m, *(nm.n for nm in k.chain)]
        n = jnp.asarray(counts, jnp.int32)[stage]
        weight, within = weights[k.path], inside.get(k.path)
        new[k.path] = k.mask(weight, k.leaf.pattern, n, within)
    rest = [k for k in group if not k.traced]
    if not rest:
      return new

    def at(i: int) -> dict[str, Array]:
      return {
        k.path: k.mask(weights[k.path], k.chain[i], inside=inside.get(k.path))
        for k in rest
      }

    branches = [lambda: {k.path: k.all_kept() for k in rest}]
    branches += [lambda i=i: at(i) for i in range(len(rest[0].chain))]
    return new | lax.switch(stage, branches)

  def _inside(self, carried: Mapping[str, Array] | None) -> Mapping[str, Array]:
    """The masks that new ones must not leave: those before, if nested."""
    return carried if self.recipe.nested and carried is not None else {}

  def _by_stages(self) -> dict[int, tuple[BoundLeaf, ...]]:
    """Kernels that change stage together: those with equally many stages."""
    return {
      count: tuple(k for k in self.kernels if len(k.chain) == count)
      for count in sorted({len(k.chain) for k in self.kernels})
    }

  def _pick(self, whole: Any, what: str) -> dict[str, Array]:
    """The masked kernels' leaves of a tree, by path, their shapes checked."""
    found = tree.flatten(whole)
    for path, leaf in self.leaves.items():
      got = None if found.get(path) is None else jnp.shape(found[path])
      if got != leaf.shape:
        raise ValueError(
          f"{what} at {path}: the recipe is bound to a kernel of shape"
          f" {leaf.shape}, got {got or 'nothing'}; bind it to this model's"
          " masked leaves, and vmap over a leading seed axis"
        )
    return {path: jnp.asarray(found[path]) for path in self.leaves}


def length_of(leaf: Leaf) -> int:
  """The length of a leaf's (flattened) group axis."""
  axes = (leaf.axis,) if isinstance(leaf.axis, int) else leaf.axis
  return math.prod(leaf.shape[axis] for axis in axes)
