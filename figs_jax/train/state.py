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
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.pattern import NM
from figs_jax.core.precision import cast, cast_like, wide
from figs_jax.core.rules import EVERY, Rules
from figs_jax.core.types import Array
from figs_jax.data.batch_checks import check_arrays, traced_for
from figs_jax.nn.batch_norm import statistics_in
from figs_jax.nn.point_statistics import (
  Paths,
  at_point,
  statistics_of,
  with_axis,
  with_point,
)
from figs_jax.nn.recomputed import refuse_writes
from figs_jax.optim import keep_masters, masters_of, pass_masks
from figs_jax.recipes import BoundRecipe, Recipe
from figs_jax.train._finish import (
  averaged_statistics,
  check_point,
  evaluation_model,
  finish,
  point_index,
)
from figs_jax.train.initial_values import check_finite, check_leaves
from figs_jax.train.losses import (
  Mean,
  as_mean,
  check_loss,
  check_result,
  check_rows,
  cross_entropy,
  kl_divergence,
)
from figs_jax.train.mask_health import layers_if

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
    masks: Nested dict of masks, None at dense leaves: Boolean, or packed, which
      `core.unpack_masks(masks, params)` undoes.
    opt_state: State of the optimizer, which sees gradients and parameters in
      float32 (or wider); with `param_dtype`, it holds the masters.
    rest: Other state of the model (batch statistics, random streams). Batch
      statistics have a leading axis of points if the recipe has points.
    ema: Averaged parameters in float32 (or wider), or None.
    ema_statistics: Averaged batch statistics, as nested dicts; empty without
      averaging or statistics.
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
  ema_statistics: Any
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
    param_dtype: Any = None,
    mask_storage: str = "bool",
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
      ema_decay: Decay of the averaged parameters and batch statistics; 0
        disables averaging.
      grad_accum_steps: Micro-batches per optimizer step; must divide the batch.
        They give the loss, metrics and gradients of the whole batch if the loss
        returns a `Mean`; of scalars the mean over micro-batches is taken, which
        is the same only if every micro-batch has the same weight. Dropout and
        mixup draw anew, and batch statistics move, in each micro-batch.
      diagnose_every: Steps between mask and gradient statistics; 0 disables
        them.
      param_dtype: Dtype of `params`, as "bfloat16", whose values in the model
        become the masters (`figs_jax.optim.keep_masters`). Defaults to the
        dtypes of the model, without masters.
      mask_storage: How masks are kept, see `recipe.bind`.

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
    if recipe.adapter_rank and not nn.has_adapters(model):
      raise ValueError(
        f"recipe {recipe.name!r}: expected a model with adapters; call"
        " figs_jax.sparsify(model, recipe), or set rank=0"
      )
    bound = recipe.bind(leaves, mask_storage)
    tx = pass_masks(tx)
    tx = tx if param_dtype is None else keep_masters(tx)
    graphdef, params, _, rest = nn.split(model)
    check_leaves(params, rest)
    check_finite(params)
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    statistics: Paths = ()
    if recipe.points is not None:
      statistics = statistics_of(model)
      rest = with_axis(rest, statistics, len(recipe.points.patterns))
    averaged = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    averaged = statistics_in(rest, averaged) if ema_decay else {}
    # Copied, since some optimizers keep the params, or one array twice; with a
    # dtype, since a weak one would be compiled for again after the first step.
    opt_state = jax.tree.map(
      lambda x: jnp.array(x, jnp.result_type(x)), tx.init(wide(params))
    )
    recipe.check(opt_state)
    weights = params
    if param_dtype is not None:
      params = cast(params, param_dtype)
    return cls(
      step=jnp.zeros((), jnp.int32),
      seed=jnp.asarray(seed, jnp.uint32),
      params=params,
      masks=bound.first_masks(weights, seed=seed),
      opt_state=opt_state,
      rest=rest,
      ema=jax.tree.map(jnp.copy, wide(weights)) if ema_decay else None,
      ema_statistics=jax.tree.map(jnp.copy, averaged),
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

  @property
  def weights(self) -> Any:
    """What the optimizer moves and masks are chosen by: masters or `params`."""
    return masters_of(self.opt_state, self.params)

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
    source = averaged_statistics(self) if ema else self
    if point is None:
      model = evaluation_model(source, *finish(self, ema=ema))
      if self.recipe.ends_dense:
        return nn.sparsify(model, Rules(((EVERY, None),)))
      return model
    nm = check_point(self, point)
    index = point_index(self, nm)
    model = evaluation_model(source, *finish(self, ema=ema, n=nm.n), index)
    # In a group, so that a path of one word is a regex.
    rules = ((f"({re.escape(path)})", nm) for path in self.bound.leaves)
    return nn.sparsify(model, Rules(tuple(rules)))


def with_fresh_masks(state: TrainState) -> TrainState:
  """The state with masks recomputed from its step and weights."""
  switched = state.recipe.switched(state.opt_state)
  masks = state.bound.masks(
    state.step, state.weights, None, switched, seed=state.seed
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

  >>> from figs_jax import recipes
  >>> recipe = recipes.create("dense", "1:4", total_steps=10)
  >>> net = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
  >>> state = TrainState.create(net, recipe, optax.sgd(0.1))
  >>> batch = {"image": jnp.ones((2, 8)), "label": jnp.array([0, 1])}
  >>> int(jax.jit(update)(state, batch)[0].step)
  1
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
  grads, loss, metrics, rest = _mean_gradients(state, batch, moment.leak, key)
  layers: dict[str, Any] = {}
  due: Any = False
  if state.diagnose_every:
    due = (state.step + 1) % state.diagnose_every == 0
    layers = layers_if(due, state.masks, grads=grads)
    # Now, so that gradients need not outlive the optimizer's step.
    grads, layers = jax.lax.optimization_barrier((grads, layers))
  # In float32: as float16, eps = 1e-8 is 0, and moments stick in 16 bits.
  updates, opt_state = state.tx.update(
    wide(grads),
    state.opt_state,
    wide(state.params),
    masks=unpack_masks(state.masks, state.params),
    value=loss,
    grad=wide(grads),
    value_fn=_value_fn(state, batch, moment.leak, key),
  )
  params = optax.apply_updates(state.params, updates)
  weights = masters_of(opt_state, params)
  params = cast_like(weights, params)  # an update may round on its way there
  masks = bound.masks(
    state.step + 1,
    weights,
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
    new_layers = layers_if(due, masks, params, old=state.masks)
    metrics["layers"] = {k: layers[k] | new_layers[k] for k in layers}
  ema, ema_statistics = state.ema, state.ema_statistics
  if state.ema_decay:
    ema = optax.incremental_update(wide(weights), ema, 1 - state.ema_decay)
    ema_statistics = jax.tree.map(
      lambda new, old: (
        old + (1 - state.ema_decay) * (new - old)
        if jnp.issubdtype(old.dtype, jnp.inexact)
        else new
      ),
      statistics_in(rest, ema_statistics),
      ema_statistics,
    )
  new = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    masks=masks,
    opt_state=opt_state,
    rest=rest,
    ema=ema,
    ema_statistics=ema_statistics,
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
  return _mean_gradients(state, batch, leak, key)[0]


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


def _value_fn(
  state: Any, batch: Any, leak: Array, key: Array
) -> Callable[..., Array]:
  """The step's loss as a function of the params, for line searches."""
  rest, points = state.rest, state.recipe.points

  def value_fn(params, masks=state.masks):  # optax passes masks= where it can
    params = jax.tree.map(lambda x, y: x.astype(y.dtype), params, state.params)
    loss_of = _loss_of(state, leak)
    if points is None:
      return loss_of(params, masks, rest, batch, key)[0]

    def one(teacher, masks, point):
      own = at_point(rest, state.statistics, point)
      soft = None if teacher is None else (teacher, point)
      loss, (_, _, teacher) = loss_of(params, masks, own, batch, key, soft)
      return teacher, loss

    return state.bound.over_points(
      one,
      _first_teacher(state, leak, rest, batch, key),
      state.weights,
      state.step,
      seed=state.seed,
    )[1]

  return value_fn


def _mean_gradients(
  state: Any, batch: Any, leak: Array, key: Array
) -> tuple[Any, Array, Any, Any]:
  """(gradients, loss, metrics, rest) of a batch, over its micro-batches."""
  one_grad = jax.grad(_loss_of(state, leak), has_aux=True)

  def grad(params, rest, batch, key):
    """(gradients, (means, rest)), the mean over points if there are any."""
    if state.recipe.points is None:
      grads, (means, rest, _) = one_grad(params, state.masks, rest, batch, key)
      return grads, (means, rest)

    def one(carry, masks, point):
      rest, teacher = carry
      own = at_point(rest, state.statistics, point)
      soft = None if teacher is None else (teacher, point)
      grads, (means, new, teacher) = one_grad(
        params, masks, own, batch, key, soft
      )
      rest = with_point(rest, state.statistics, point, new)
      return (rest, teacher), (wide(grads), wide(means))

    teacher = _first_teacher(state, leak, rest, batch, key)
    (rest, _), (grads, means) = state.bound.over_points(
      one, (rest, teacher), state.weights, state.step, seed=state.seed
    )
    return grads, (means, rest)

  count = state.grad_accum_steps
  if count == 1:
    grads, (means, rest) = grad(state.params, state.rest, batch, key)
    return cast_like(grads, state.weights), *_values(means), rest

  sizes = {(*jnp.shape(leaf), 1)[0] for leaf in jax.tree.leaves(batch)}
  if any(size % count for size in sizes):
    raise ValueError(
      f"expected a batch size that grad_accum_steps={count} divides, got"
      f" {', '.join(map(str, sorted(sizes)))}"
    )
  # Strided, so that each device splits its own share of the batch.
  micro = jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
  )
  keys = jax.random.split(key, count)

  def body(rest, xs):
    """Sums of a micro-batch with weight w: w times its mean gradient, means."""
    grads, (means, rest) = grad(state.params, rest, *xs)
    means = wide(means)
    weight = means[0].weight
    grads = jax.tree.map(lambda g: g * weight.astype(g.dtype), wide(grads))
    return rest, (grads, means)

  first = jax.tree.map(lambda x: x[0], (micro, keys))
  shapes = jax.eval_shape(body, state.rest, first)[1]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(carry, xs):
    rest, total = carry
    rest, one = body(rest, xs)
    return (rest, jax.tree.map(jnp.add, total, one)), None

  (rest, (grads, means)), _ = jax.lax.scan(
    add, (state.rest, zeros), (micro, keys)
  )
  grads = jax.tree.map(lambda g: Mean(g, means[0].weight).value, grads)
  return cast_like(grads, state.weights), *_values(means), rest


def _loss_of(state: Any, leak: Array) -> Callable[..., Any]:
  """(params, masks, rest, batch, key, soft) -> loss, (means, rest, logits).

  `soft` is None, or (logits of the densest point, index of the point): all
  other points then follow these logits in place of the labels.
  """

  def loss_of(params, masks, rest, batch, key, soft=None):
    streams, key = jax.random.split(key)
    model = nn.merge(
      state.graphdef, params, masks, leak, nn.reseed(rest, streams)
    )
    refuse_writes(model)
    logits = None
    if soft is None:
      result = state.loss(model, batch, key)
    else:
      result, logits = _followed(state, model, batch, key, *soft)
    check_result(result)
    loss, metrics = result
    means = jax.tree.map(as_mean, (loss, metrics), is_leaf=_is_mean)
    return means[0].value, (means, nn.split(model)[3], logits)

  return loss_of


def _followed(
  state: Any, model: Any, batch: Any, key: Array, teacher: Array, point: Array
) -> tuple[Any, Array]:
  """The loss of a point with the densest one as its teacher, and new logits.

  The densest comes first: its logits replace the teacher's.
  """
  rows = state.loss.rows(model, batch, key)
  own = jax.lax.stop_gradient(rows.logits)
  is_densest = point == len(state.recipe.points.patterns) - 1
  soft = kl_divergence(teacher, rows.logits)
  losses = jnp.where(is_densest, rows.losses.astype(soft.dtype), soft)
  result = rows._replace(losses=losses).means()
  return result, jnp.where(is_densest, own, teacher)


def _first_teacher(
  state: Any, leak: Array, rest: Any, batch: Any, key: Array
) -> Array | None:
  """Logits of the batch's shape, before any pass; None without distillation."""
  if not state.recipe.points.distill:
    return None

  def logits(rest):
    own = at_point(rest, state.statistics, 0)
    model = nn.merge(state.graphdef, state.params, state.masks, leak, own)
    return state.loss.rows(model, batch, key).logits

  shape = jax.eval_shape(logits, nn.reseed(rest, key))
  return jnp.zeros(shape.shape, shape.dtype)


def _is_mean(value: Any) -> bool:
  return isinstance(value, Mean)


def _values(means: Any) -> Any:
  return jax.tree.map(lambda mean: mean.value, means, is_leaf=_is_mean)
