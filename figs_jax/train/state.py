"""The training state as pure arrays, and one step of training.

The model is split once into a static graph and plain dictionaries. Every step
merges them inside the trace, so that jit, grad, vmap and a mesh only see
arrays. Masks in the state are always those of the state's own step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax import nn
from figs_jax.core._flow import Flow
from figs_jax.core.diagnostics import Layers, layer_table
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.core.tree import map_paths
from figs_jax.core.types import Array
from figs_jax.data.batch_checks import check_arrays, traced_for
from figs_jax.optim import pass_masks
from figs_jax.recipes import BoundRecipe, Recipe
from figs_jax.train.initial_values import check_finite, check_leaves
from figs_jax.train.losses import Mean, check_loss, check_rows, cross_entropy
from figs_jax.train.passes import cast_like, mean_gradients, value_fn_of, wide
from figs_jax.train.point_statistics import (
  Paths,
  at_point,
  statistics_of,
  with_axis,
)

Loss = Callable[
  [nnx.Module, Any, Array], tuple[Array | Mean, Mapping[str, Array | Mean]]
]


def _static() -> Any:
  return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Arrays of a run (pytree leaves) and its static parts.

  Attributes:
    step: Number of optimizer steps done, int32 scalar.
    seed: Seed, uint32 scalar; dropout's key is fold_in(seed, step).
    params: Nested dict of parameters.
    masks: Nested dict of Boolean masks, None at dense leaves.
    opt_state: State of the optimizer, which sees gradients and parameters in
      float32 (or wider).
    rest: Other state of the model (batch statistics, random streams). Batch
      statistics have a leading axis of points if the recipe has points.
    ema: Averaged parameters in float32 (or wider), or None.
    graphdef, bound, tx, loss: Static objects.
    statistics: Paths of batch statistics that have an axis of points; static.
    ema_decay, grad_accum_steps, diagnose_every: Static options, see `create`.
  """

  step: Any  # leaves may be shapes or axes, so no narrower type
  seed: Any
  params: Any
  masks: Any
  opt_state: Any
  rest: Any
  ema: Any
  graphdef: Any = _static()
  bound: BoundRecipe = _static()
  tx: optax.GradientTransformationExtraArgs = _static()
  loss: Loss = _static()
  statistics: Paths = _static()
  ema_decay: float = _static()
  grad_accum_steps: int = _static()
  diagnose_every: int = _static()

  @classmethod
  def create(
    cls,
    model: nnx.Module,
    recipe: Recipe,
    tx: optax.GradientTransformation | optax.MultiSteps,
    *,
    loss: Loss = cross_entropy,
    seed: int | Array = 0,
    ema_decay: float = 0.0,
    grad_accum_steps: int = 1,
    diagnose_every: int = 0,
  ) -> TrainState:
    """A state at step 0; the model is copied and stays usable.

    Args:
      model: Sparsified model; training mode is set here.
      recipe: Recipe that decides masks, leak and gradient mode.
      tx: Optimizer from `recipe.transform(...)`, also inside of optax's
        wrappers. Besides `masks` its update gets `value`, `grad` and
        `value_fn`.
      loss: Function (model, batch, key) -> (loss, {name: metric}), each a
        scalar or a `figs_jax.train.losses.Mean`; `grad_accum_steps` decides
        which.
      seed: Seed for dropout and every other draw inside the step.
      ema_decay: Decay of the averaged parameters; 0 disables averaging.
      grad_accum_steps: Micro-batches per optimizer step; must divide the batch.
        They give the loss, metrics and gradients of the whole batch if the loss
        returns a `Mean`; of scalars the mean over micro-batches is taken, which
        is the same only if every micro-batch has the same weight. Dropout and
        mixup draw anew, and batch statistics move, in each micro-batch.
      diagnose_every: Steps between mask and gradient statistics; 0 disables
        them.

    Raises:
      ValueError: If `loss` takes other arguments, `tx` lacks a transform that
        the recipe needs, the recipe is sparse and no layer of the model is, a
        variable of the model has no entries or no name of its own, or a
        parameter is not finite (which is not checked inside a trace).

    >>> import figs_jax as figs, optax
    >>> from flax import nnx
    >>> model = figs.sparsify(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), "1:4")
    >>> recipe = figs.recipes.create("ste", "1:4", total_steps=10)
    >>> tx = recipe.transform(optax.sgd(.1))
    >>> figs.TrainState.create(model, recipe, tx).masks["kernel"].shape
    (8, 4)
    """
    check_loss(loss)
    if recipe.points is not None and recipe.points.distill:
      check_rows(loss, recipe.name)
    model = nn.with_flow(model, recipe.flow)
    model.train()
    leaves = nn.masked_leaves(model)
    if recipe.sparse and not leaves:
      raise ValueError(
        f"recipe {recipe.name!r}: expected a model with masked layers; call"
        " figs_jax.sparsify(model, rules) first, or use the recipe 'dense'"
      )
    bound = recipe.bind(leaves)
    tx = pass_masks(tx)
    graphdef, params, _, rest = nn.split(model)
    check_leaves(params, rest)
    check_finite(params)
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    statistics = () if recipe.points is None else statistics_of(model)
    if recipe.points is not None:
      rest = with_axis(rest, statistics, len(recipe.points.patterns))
    # Copied, since some optimizers keep the params, or one array twice; with a
    # dtype, since a weak one would be compiled for again after the first step.
    opt_state = jax.tree.map(
      lambda x: jnp.array(x, jnp.result_type(x)), tx.init(wide(params))
    )
    recipe.check(opt_state)
    return cls(
      step=jnp.zeros((), jnp.int32),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      masks=_first_masks(bound, params, seed),
      opt_state=opt_state,
      rest=rest,
      ema=jax.tree.map(jnp.copy, wide(params)) if ema_decay else None,
      graphdef=graphdef,
      bound=bound,
      tx=tx,
      loss=loss,
      statistics=statistics,
      ema_decay=ema_decay,
      grad_accum_steps=grad_accum_steps,
      diagnose_every=diagnose_every,
    )

  @property
  def recipe(self) -> Recipe:
    """The recipe that the masks follow."""
    return self.bound.recipe

  def finished(
    self, *, ema: bool = False, point: NM | str | None = None
  ) -> nnx.Module:
    """The model with hard N:M zeros, in evaluation mode.

    Masks in their last stage are kept; others are computed from the weights at
    the target pattern. So are the masks of averaged weights, unless the recipe
    chooses masks by more than weights.

    Args:
      ema: Whether to take the averaged weights.
      point: Pattern to cut every masked kernel to, by |w|, in place of the
        target. A model of the recipe `nested` is trained for several.

    Raises:
      ValueError: If averaged weights are missing, or the point does not fit
        (see `check_point`).
    """
    if point is None:
      return evaluation_model(self, *finish(self, ema=ema))
    nm = check_point(self, point)
    index = point_index(self, nm)
    model = evaluation_model(self, *finish(self, ema=ema, n=nm.n), index)
    rules = ((re.escape(path), nm) for path in self.bound.leaves)
    return nn.sparsify(model, Rules(tuple(rules)))


def check_point(state: TrainState, point: NM | str) -> NM:
  """The pattern of a point that the kernels of a state can be cut to.

  Raises:
    ValueError: If no kernel is masked, one has another m, the recipe rescales
      its weights (S-STE), or lacks batch statistics of the point.
  """
  nm, recipe = NM.parse(point), state.recipe
  if not state.bound.kernels:
    raise ValueError(f"point {nm}: expected a model with masked kernels")
  for path, leaf in state.bound.leaves.items():
    if leaf.pattern.m != nm.m:
      raise ValueError(
        f"point {nm}: expected the m of {path}, which is {leaf.pattern}; one"
        " point cuts all kernels"
      )
  if recipe.flow.soft:
    raise ValueError(
      f"point {nm}: recipe {recipe.name!r} rescales weights for its own"
      " pattern, so they cannot be cut to another"
    )
  points = recipe.points
  if points and state.statistics and nm not in points.patterns:
    known = ", ".join(map(str, points.patterns))
    raise ValueError(
      f"point {nm}: expected one of {known}, which have batch statistics"
    )
  return nm


def point_index(state: TrainState, point: NM | None) -> int:
  """The index of a point among the batch statistics; 0 if there are none."""
  points = state.recipe.points
  if points is None or point is None or not state.statistics:
    return 0
  return points.patterns.index(point)


def _first_masks(bound: BoundRecipe, params: Any, seed: Any) -> Any:
  """The masks of step 0; those of a dense phase need no selection."""
  timeline = bound.recipe.timeline
  if timeline.switch is None and not timeline.dense_end:
    return bound.masks(0, params, seed=seed)
  kept = {kernel.path: kernel.all_kept() for kernel in bound.kernels}
  return map_paths(lambda mask, _: mask, params, kept)


def finish(
  state: TrainState, *, ema: bool = False, n: int | Array | None = None
) -> tuple[Any, Any]:
  """(params, masks), finished, with pruned entries exactly 0; traceable.

  Args:
    state: State without a seed axis.
    ema: Whether to take the averaged weights.
    n: Number of the largest |w| to keep of each group, in place of the target
      pattern.
  """
  if ema and state.ema is None:
    raise ValueError(
      "expected averaged weights, got a state without; train with"
      " config.ema_decay > 0"
    )
  bound, params = state.bound, state.params
  if ema:
    params = cast_like(state.ema, params)
  if n is not None:
    masks = bound.cut(params, n)
  elif ema and not state.recipe.is_stateful:
    masks = bound.target(params, seed=state.seed)
  else:
    switched = state.recipe.switched(state.opt_state)
    masks = bound.final(
      params, state.masks, state.step, switched, seed=state.seed
    )
  return bound.finish(params, masks, nn.scales(state.rest, masks)), masks


def evaluation_model(
  state: TrainState, params: Any, masks: Any, point: int | Array = 0
) -> nnx.Module:
  """The evaluation model of parameters and masks from `finish`; traceable.

  Args:
    state: State without a seed axis.
    params, masks: What `finish` returned.
    point: Index of the point whose batch statistics to take, `point_index`.
  """
  zero = jnp.zeros((), jnp.float32)
  rest = at_point(state.rest, state.statistics, point)
  model = nn.merge(state.graphdef, params, masks, zero, rest)
  model = nn.with_flow(model, Flow())  # `finish` has applied S-STE
  model.eval()
  return model


def with_fresh_masks(state: TrainState) -> TrainState:
  """The state with masks recomputed from its step and weights."""
  switched = state.recipe.switched(state.opt_state)
  masks = state.bound.masks(
    state.step, state.params, None, switched, seed=state.seed
  )
  return dataclasses.replace(state, masks=masks)


def update(
  state: TrainState, batch: Any, constants: Any = None
) -> tuple[TrainState, dict[str, Any]]:
  """One step without jit, for your own jit, vmap, scan or mesh.

  Args:
    state: State from `TrainState.create`.
    batch: Pytree of arrays, as the state's loss expects it.
    constants: Arrays for a loss that has `constants`, as that of `distill`: an
      argument of a compiled step is not part of its program. Defaults to those
      of the loss.
  """
  if constants is None:
    return _update(state, batch)
  loss: Any = state.loss
  bound = dataclasses.replace(state, loss=loss.with_constants(constants))
  new, metrics = _update(bound, batch)
  return dataclasses.replace(new, loss=loss), metrics


def _update(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
  recipe, bound = state.recipe, state.bound
  switched = recipe.switched(state.opt_state)
  moment = recipe.at(state.step, switched)
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  grads, loss, metrics, rest = mean_gradients(state, batch, moment.leak, key)
  # In float32: as float16, eps = 1e-8 is 0, and moments stick in 16 bits.
  updates, opt_state = state.tx.update(
    wide(grads),
    state.opt_state,
    wide(state.params),
    masks=state.masks,
    value=loss,
    grad=wide(grads),
    value_fn=value_fn_of(state, batch, moment.leak, key),
  )
  params = optax.apply_updates(state.params, updates)
  masks = bound.masks(
    state.step + 1,
    params,
    state.masks,
    switched=recipe.switched(opt_state),
    was_switched=switched,
    grads=grads,
    seed=state.seed,
  )
  metrics = {
    "loss": loss,
    "leak": moment.leak,
    "stage": moment.stage,
    **metrics,
  }
  if state.diagnose_every:
    due = (state.step + 1) % state.diagnose_every == 0
    metrics["layers"] = layers_if(due, masks, params, grads, state.masks)
  ema = state.ema
  if state.ema_decay:
    ema = optax.incremental_update(wide(params), ema, 1 - state.ema_decay)
  new = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    masks=masks,
    opt_state=opt_state,
    rest=rest,
    ema=ema,
  )
  return new, metrics


def gradients(state: TrainState, batch: Any, key: Array) -> Any:
  """Gradient of the loss of a batch at the state's weights; traceable.

  It is what `update` hands to the optimizer: under the masks, leak and gradient
  mode of the state's step, over all micro-batches, before clipping.

  Args:
    state: State without a seed axis.
    batch: Pytree of arrays, as the state's loss expects it.
    key: Key of dropout and every other draw; `update` takes
      fold_in(key(seed), step).

  >>> import optax
  >>> from figs_jax import recipes
  >>> recipe = recipes.create("ste", "1:2", total_steps=10, dense=0.0)
  >>> layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
  >>> layer.kernel[...] = jnp.array([[1.0], [2.0]])
  >>> state = TrainState.create(
  ...   nn.sparsify(layer, recipe.pattern), recipe, optax.sgd(0.1),
  ...   loss=lambda model, x, key: (jnp.mean(model(x)), {}))
  >>> grads = gradients(state, jnp.array([[3.0, 5.0]]), jax.random.key(0))
  >>> grads["kernel"].tolist()
  [[3.0], [5.0]]
  """
  leak = state.recipe.at(
    state.step, state.recipe.switched(state.opt_state)
  ).leak
  return mean_gradients(state, batch, leak, key)[0]


def layers_if(due: Array, *args: Any) -> Layers:
  """`figs_jax.core.diagnostics.layer_table(*args)` if `due`, else zeros.

  One compilation serves both, and zeros cost nothing.
  """
  shapes = jax.eval_shape(layer_table, *args)
  return jax.lax.cond(
    due,
    layer_table,
    lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    *args,
  )


_compiled_step = jax.jit(partial(update), donate_argnums=0)


def train_step(
  state: TrainState, batch: Any
) -> tuple[TrainState, dict[str, Any]]:
  """One compiled step. The old state's buffers are given to the new one.

  Args:
    state: State from `TrainState.create`; its buffers are donated.
    batch: Pytree of arrays, as the state's loss expects it.

  Returns:
    The next state, and the metrics: loss, leak, stage, those of the loss, and
    `layers` on diagnosed steps.

  Raises:
    ValueError: If the batch or what the loss returns is not as expected. The
      values of a batch are looked at only when the step is compiled.

  >>> import optax
  >>> from figs_jax import recipes
  >>> recipe = recipes.create("ste", "2:4", total_steps=10, dense=0.0)
  >>> dense = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  >>> state = TrainState.create(
  ...   nn.sparsify(dense, recipe.pattern), recipe, optax.sgd(0.1),
  ...   loss=lambda model, x, key: (jnp.mean(model(x) ** 2), {}))
  >>> state, metrics = train_step(state, jnp.ones((8, 4)))
  >>> int(state.step), sorted(metrics)
  (1, ['leak', 'loss', 'stage'])
  """
  try:
    with traced_for(batch, state.loss):
      constants = getattr(state.loss, "constants", None)
      return _compiled_step(state, batch, constants)
  except TypeError:
    check_arrays(batch)
    raise
