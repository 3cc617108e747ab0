"""A recipe bound to the kernels of one model: the masks of a step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core import tree
from figs_jax.core._flow import flow
from figs_jax.core.mask_bits import BITS, unpack_mask
from figs_jax.core.masks import rank_in_group
from figs_jax.core.pattern import VNM
from figs_jax.core.scores import magnitude
from figs_jax.core.soft import kernel_scale, s_ste
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array
from figs_jax.recipes._selection import alike, computed, each, selected
from figs_jax.recipes.bound_leaf import BoundLeaf
from figs_jax.recipes.criterion import (
  KernelState,
  needs_grad,
  other_axis,
)
from figs_jax.recipes.stage_schedule import Every
from figs_jax.recipes.timeline import Flag, Step, Timeline

# Name that the operations of a mask update have in a compiled program.
MASK_UPDATE = "mask_update"


@dataclasses.dataclass(frozen=True)
class BoundRecipe:
  """A recipe for the kernels of one model: masks of a step and parameters.

  Invariants: static and hashable; every kernel has its own stages, spread over
  the same decay phase; at every refresh a mask keeps exactly n of m of that
  kernel's stage (a nested criterion keeps at most n).

  Attributes:
    recipe: The `Recipe`.
    kernels: The masked kernels.
  """

  recipe: Any  # a Recipe; its module imports this one
  kernels: tuple[BoundLeaf, ...]

  @property
  def leaves(self) -> dict[str, MaskedKernel]:
    """path -> `MaskedKernel` of every masked kernel."""
    return {kernel.path: kernel.leaf for kernel in self.kernels}

  @property
  def shard_units(self) -> dict[str, dict[int, int]]:
    """path -> axis -> unit: a shard of whole units splits no group.

    Nor a byte of packed masks. It holds in every stage, and for both axes of
    transposable masks. Axes count from the end, so that they stay valid under
    an axis of seeds.
    """
    units: dict[str, dict[int, int]] = {}
    for kernel in self.kernels:
      leaf, ndim = kernel.leaf, len(kernel.leaf.shape)
      m = math.lcm(leaf.pattern.m, *(stage.m for stage in kernel.stages))
      axes = (leaf.axis,) if isinstance(leaf.axis, int) else leaf.axis
      axes = [axis % ndim - ndim for axis in axes]
      later = [
        math.prod(leaf.shape[a] for a in axes[i + 1 :])
        for i, _ in enumerate(axes)
      ]
      units[kernel.path] = {
        axis: m // math.gcd(m, size) for axis, size in zip(axes, later)
      }
      if self.recipe.transposable:
        other = other_axis(ndim, leaf.axis) % ndim - ndim
        units[kernel.path][other] = m
      if isinstance(leaf.pattern, VNM):
        other = other_axis(ndim, leaf.axis) % ndim - ndim
        units[kernel.path][other] = leaf.pattern.v
      if (byte := kernel.byte_axis) is not None:
        own = units[kernel.path]
        own[byte] = math.lcm(own[byte], BITS)
    return units

  @property
  def mask_shapes(self) -> dict[str, tuple[int, ...]]:
    """path -> shape of the mask as it is kept."""
    return {kernel.path: kernel.mask_shape for kernel in self.kernels}

  def first_masks(self, params: Any, *, seed: Any = 0) -> Any:
    """The masks of step 0; those of a dense phase need no selection.

    Args:
      params: Parameter tree.
      seed: Seed of the run.
    """
    timeline: Timeline = self.recipe.timeline
    if timeline.switch is None and not timeline.dense_end:
      return self.masks(0, params, seed=seed)
    kept = {k.path: k.keep(k.all_kept()) for k in self.kernels}
    return tree.map_paths(lambda mask, _: mask, params, kept)

  def masks(
    self,
    step: Step | int,
    params: Any,
    masks: Any = None,
    switched: Flag = False,
    was_switched: Flag = False,
    *,
    grads: Any = None,
    seed: Any = 0,
  ) -> Any:
    """The masks for the forward pass of `step`.

    To be called at every step. A mask is recomputed when a refresh is due, when
    its kernel enters a new stage, and when STEP has just switched; otherwise
    the given mask is carried on. Works under jit, scan and vmap with one
    compilation for a whole run. Under vmap keep `step` unbatched, so that masks
    that are not due are not computed.

    Args:
      step: Step, an int32 scalar that may be traced.
      params: Parameter tree.
      masks: Masks of the previous step; None computes all of them.
      switched: STEP's flag, `recipe.switched(opt_state)`.
      was_switched: STEP's flag one step before. If it stays False after the
        switch, masks are recomputed at every step.
      grads: Gradients of the previous step, shaped like `params`, for criteria
        that need them.
      seed: Seed of the run, an integer scalar, for criteria that draw random
        numbers.

    Returns:
      A tree like `params`: masks as `mask_storage` says, None at dense leaves.

    Raises:
      ValueError: If a masked kernel is missing or has another shape, or if the
        criterion needs `grads` and there are none.
    """
    with jax.named_scope(MASK_UPDATE):
      return self._masks(
        step, params, masks, switched, was_switched, grads, seed
      )

  def _masks(
    self,
    step: Step | int,
    params: Any,
    masks: Any,
    switched: Flag,
    was_switched: Flag,
    grads: Any,
    seed: Any,
  ) -> Any:
    step = jnp.asarray(step, jnp.int32)
    carried = None if masks is None else self._pick_masks(masks)
    states = self._states(step, params, carried, grads, seed)
    timeline: Timeline = self.recipe.timeline
    new: dict[str, Array] = {}
    for stages, group in self._by_stages().items():
      stage = timeline.stage(stages, step, switched)
      if carried is None or timeline.due == Every(1):
        new |= computed(self.recipe.criterion, group, stage, states)
        continue
      new |= lax.cond(
        timeline.refresh(stages, step, switched, was_switched),
        lambda old, group=group, stage=stage: computed(
          self.recipe.criterion, group, stage, states
        ),
        lambda old: old,
        {k.path: k.keep(carried[k.path]) for k in group},
      )
    return tree.map_paths(lambda mask, _: mask, params, new)

  def final(
    self,
    params: Any,
    masks: Any,
    step: Step | int,
    switched: Flag = False,
    *,
    seed: Any = 0,
  ) -> Any:
    """The hard target masks of a model that is finished at `step`.

    A kernel in its last stage keeps its mask; for others the criterion chooses
    one at the target pattern. A recipe without sparse stages finishes dense,
    with masks that are all True.

    Args:
      params: Parameters at that step.
      masks: Masks that the model carries.
      step: Number of optimizer steps made.
      switched: STEP's flag; other recipes ignore it.
      seed: Seed of the run.

    Raises:
      ValueError: If a masked kernel is missing or has another shape.
    """
    step = jnp.asarray(step, jnp.int32)
    carried = {
      path: unpack_mask(mask, self.leaves[path].shape)
      for path, mask in self._pick_masks(masks).items()
    }
    new = self._targets(step, params, carried, seed)
    for kernel in self.kernels:
      path, stages = kernel.path, len(kernel.stages)
      arrived = self.recipe.timeline.stage(stages, step, switched) == stages
      new[path] = jnp.where(arrived, carried[path], new[path])
    return tree.map_paths(lambda mask, _: mask, params, new)

  def target(self, params: Any, *, seed: Any = 0) -> Any:
    """Masks at the target patterns, chosen from the weights alone.

    Args:
      params: Parameter tree.
      seed: Seed of the run, for masks drawn at random.
    """
    new = self._targets(jnp.int32(0), params, None, seed)
    return tree.map_paths(lambda mask, _: mask, params, new)

  def ranks(self, params: Any) -> Any:
    """The rank of every weight of a masked kernel in its group, by |w|.

    The mask of n:m is `ranks < n`, for any n (`core.rank_in_group`).

    Args:
      params: Parameter tree.

    Returns:
      A tree like `params`: integers, 0 = kept first, None at dense leaves.

    Raises:
      ValueError: If a masked kernel is missing or has another shape.
    """
    new = {}
    for path, weight in self._pick(params, "params").items():
      leaf = self.leaves[path]
      m = leaf.pattern.m
      ranks = rank_in_group(magnitude(weight), m, leaf.axis)
      new[path] = ranks.astype(jnp.uint8) if m < 256 else ranks
    return tree.map_paths(lambda ranks, _: ranks, params, new)

  def cut(self, params: Any, n: Step | int) -> Any:
    """The masks that keep the n largest |w| of every group.

    Args:
      params: Parameter tree.
      n: Number of entries to keep, an integer scalar that may be traced.

    >>> from figs_jax.core import NM
    >>> from figs_jax.recipes import create
    >>> leaves = {"w": tree.MaskedKernel((4,), NM(1, 4), 0)}
    >>> bound = create("nested", "1:4", 10).bind(leaves)
    >>> bound.cut({"w": jnp.arange(4.0)}, 2)["w"]
    Array([False, False,  True,  True], dtype=bool)
    """
    return _below(self.ranks(params), n)

  def over_points(
    self,
    body: Callable[[Any, Any, Array], tuple[Any, Any]],
    carry: Any,
    params: Any,
    step: Step | int,
    *,
    seed: Any = 0,
  ) -> tuple[Any, Any]:
    """The mean of a function over the points that a step trains.

    One loop with a traced n, so that one compilation serves all steps. In the
    dense phase all points keep everything.

    Args:
      body: Function (carry, masks, point) -> (carry, values): the masks of a
        point, structured like those of `masks`, its index in
        `recipe.points.patterns`, and values of any structure, such as those of
        `jax.value_and_grad`.
      carry: First carry, such as batch statistics; may be None.
      params: Parameter tree.
      step: Step of the run.
      seed: Seed of the run.

    Returns:
      The last carry, and the mean of the values.

    Raises:
      ValueError: If the recipe has no points, or a masked kernel is missing or
        has another shape.

    >>> from figs_jax.core import NM
    >>> from figs_jax.recipes import create
    >>> leaves = {"w": tree.MaskedKernel((4,), NM(1, 4), 0)}
    >>> bound = create("nested", "1:4", 10, patterns="1:4,4:4").bind(leaves)
    >>> params = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}
    >>> def body(carry, masks, point):
    ...   loss = lambda params: bound.effective(params, masks)["w"].sum()
    ...   return carry, jax.value_and_grad(loss)(params)
    >>> loss, grads = bound.over_points(body, None, params, step=0)[1]
    >>> float(loss)  # (1 + 2 + 3 + 4 + 4) / 2
    7.0
    """
    points = self.recipe.points
    if points is None:
      raise ValueError(
        f"recipe {self.recipe.name!r} has no points: train the masks of"
        " bound.masks, or use the recipe 'nested'"
      )
    step = jnp.asarray(step, jnp.int32)
    ranks = self.ranks(params)
    is_dense = self.recipe.timeline.stage(1, step) == 0
    counts = jnp.asarray(points.counts, jnp.int32)
    counts = jnp.where(is_dense, points.patterns[0].m, counts)

    def one(carry: Any, point: Array) -> tuple[Any, Any]:
      return body(carry, _below(ranks, counts[point]), point)

    def add(state: Any, point: Array) -> tuple[Any, None]:
      carry, total = state
      carry, values = one(carry, point)
      return (carry, jax.tree.map(jnp.add, total, values)), None

    drawn = points.draw(step, seed)
    shapes = jax.eval_shape(one, carry, drawn[0])[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # XLA's loops on a CPU take four times as long as the same passes in a row.
    unroll = jax.default_backend() == "cpu"
    (carry, total), _ = lax.scan(add, (carry, zeros), drawn, unroll=unroll)
    return carry, jax.tree.map(lambda x: x / points.passes, total)

  def scales(self, params: Any) -> Any:
    """S-STE's scale of every masked kernel, to be taken once, at the start.

    None for other recipes. Pass the result to `effective` and `finish` in any
    case.
    """
    if not self.recipe.flow.soft:
      return None
    weights = self._pick(params, "params")
    scales = {
      path: kernel_scale(weights[path], leaf.pattern, leaf.axis)
      for path, leaf in self.leaves.items()
    }
    return tree.map_paths(lambda scale, _: scale, params, scales)

  def effective(
    self, params: Any, masks: Any, leak: Any = 0.0, scales: Any = None
  ) -> Any:
    """The parameters that the forward pass sees, with the recipe's gradient.

    For models without the layers of `figs_jax.nn`: differentiate
    `loss(bound.effective(params, masks, leak))`.

    Args:
      params: Parameter tree.
      masks: Masks of the step, as `masks` returns them.
      leak: D, `recipe.at(step).leak`.
      scales: S-STE's scales, `bound.scales(initial params)`; None for other
        recipes.

    Raises:
      ValueError: If the recipe has `mvue` or is double-pruned, which act in a
        layer's product, or if a masked kernel is missing or has another shape.

    >>> from figs_jax.core import NM
    >>> from figs_jax.recipes import create
    >>> leaves = {"w": tree.MaskedKernel((4,), NM(1, 2), 0)}
    >>> bound = create("ste", "1:2", 10).bind(leaves)
    >>> params = {"w": jnp.arange(4.0), "b": jnp.ones(1)}
    >>> bound.effective(params, bound.masks(5, params))["w"]
    Array([0., 1., 0., 3.], dtype=float32)
    """
    mvue = self.recipe.flow.mvue
    if mvue is not None:
      raise ValueError(
        f"recipe {self.recipe.name!r} prunes the gradient of a layer's output"
        f" (mvue={str(mvue)!r}), which needs the layers of figs_jax.nn: create"
        " it without mvue, or call figs_jax.core.mvue in your backward pass"
      )
    if self.recipe.flow.double_pruned:
      raise ValueError(
        f"recipe {self.recipe.name!r} has a kernel of its own for the gradient"
        " of a layer's input, which needs the layers of figs_jax.nn: create it"
        " with double_pruned=False"
      )
    return _with(params, self._acting(params, masks, leak, scales))

  def finish(self, params: Any, masks: Any, scales: Any = None) -> Any:
    """The finished weights: exact zeros where masks prune.

    Args:
      params: Parameter tree.
      masks: Masks that `final` returned.
      scales: S-STE's scales; None for other recipes.
    """
    kept = self._pick_masks(masks)
    acting = self._acting(params, masks, 0.0, scales)
    # Masked again, since 0 times a scale that is not finite is NaN.
    new = {
      path: jnp.where(unpack_mask(kept[path], w.shape), w, jnp.zeros_like(w))
      for path, w in acting.items()
    }
    return _with(params, new)

  def _acting(
    self, params: Any, masks: Any, leak: Any, scales: Any
  ) -> dict[str, Array]:
    """The weights that act in the forward pass, by path."""
    weights, kept = self._pick(params, "params"), self._pick_masks(masks)
    act, new = self.recipe.flow, {}
    sizes = self._pick_scales(scales) if act.soft else {}
    for path, leaf in self.leaves.items():
      w, m = weights[path], unpack_mask(kept[path], leaf.shape)
      if act.soft:
        new[path] = _soft(w, m, sizes[path], leaf, leak)
      else:
        new[path] = flow(w, m, leak, act.grad_mode, act.decay)
    return new

  def _targets(
    self,
    step: Step,
    params: Any,
    carried: Mapping[str, Array] | None,
    seed: Any,
  ) -> dict[str, Array]:
    """Boolean masks at the target patterns, by path."""
    criterion = self.recipe.criterion
    states = self._states(step, params, carried, None, seed, final=True)
    masks: dict[str, Array] = {}
    plain = [dataclasses.replace(k, mask_storage="bool") for k in self.kernels]
    for kernels in alike(criterion, plain, states):
      select = functools.partial(selected, criterion, kernels[0])
      masks |= each(kernels, states, select)
    return masks

  def _states(
    self,
    step: Step,
    params: Any,
    carried: Mapping[str, Array] | None,
    grads: Any,
    seed: Any,
    final: bool = False,
  ) -> dict[str, KernelState]:
    """The criterion's input for each kernel, by path."""
    weights = self._pick(params, "params")
    slopes: Mapping[str, Array] = {}
    if needs_grad(self.recipe.criterion) and carried is not None and not final:
      if grads is None:
        raise ValueError(
          f"recipe {self.recipe.name!r} chooses masks by gradients: call"
          " bound.masks(..., grads=grads)"
        )
      slopes = self._pick(grads, "grads")
    carried = carried or {}
    return {
      path: KernelState(
        path, step, w, carried.get(path), slopes.get(path), seed
      )
      for path, w in weights.items()
    }

  def _by_stages(self) -> dict[int, tuple[BoundLeaf, ...]]:
    """Kernels that change stage together: those with equally many stages."""
    return {
      count: tuple(k for k in self.kernels if len(k.stages) == count)
      for count in sorted({len(k.stages) for k in self.kernels})
    }

  def _pick(
    self,
    whole: Any,
    what: str,
    kept: Mapping[str, tuple[int, ...]] | None = None,
  ) -> dict[str, Array]:
    """The masked kernels' leaves of a tree, by path, their shapes checked.

    `kept` has shapes that are allowed beside those of the kernels, by path.
    """
    arrays, kept = tree.flatten(whole), kept or {}
    for path, leaf in self.leaves.items():
      shape = None if arrays.get(path) is None else jnp.shape(arrays[path])
      if shape not in (leaf.shape, kept.get(path, leaf.shape)):
        raise ValueError(
          f"{what} at {path}: expected shape {leaf.shape}, to which the recipe"
          f" is bound, got {shape or 'nothing'}; bind it to this model's masked"
          " leaves, and vmap over a leading seed axis"
        )
    return {path: jnp.asarray(arrays[path]) for path in self.leaves}

  def _pick_masks(self, masks: Any) -> dict[str, Array]:
    """The masks of `_pick`, Boolean or as they are kept."""
    return self._pick(masks, "masks", self.mask_shapes)

  def _pick_scales(self, scales: Any) -> dict[str, Array]:
    by_path = tree.flatten(scales)
    for path in self.leaves:
      if by_path.get(path) is None:
        raise ValueError(
          f"recipe {self.recipe.name!r} rescales {path}: pass scales="
          "bound.scales(params), taken at the start of the run"
        )
    return {path: by_path[path] for path in self.leaves}


def _soft(
  w: Array, m: Array, scale: Array, leaf: MaskedKernel, leak: Any
) -> Array:
  """S-STE's weight; a stack of kernels has a stack of scales."""

  def one(w, m, scale):
    return s_ste(w, m, scale, leaf.pattern, leaf.axis, leak)

  for _ in range(jnp.ndim(scale)):
    one = jax.vmap(one)
  return one(w, m, scale)


def _below(ranks: Any, n: Step | int) -> Any:
  """The masks of n:m."""
  return jax.tree.map(lambda r: r < jnp.asarray(n).astype(r.dtype), ranks)


def _with(params: Any, new: Mapping[str, Array]) -> Any:
  """The tree with the leaves at these paths replaced; None stays."""

  def one(path, leaf):
    return new.get(tree.path_str(path), leaf)

  return jax.tree_util.tree_map_with_path(one, params)
