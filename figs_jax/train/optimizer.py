"""The learning-rate schedule, and the optimizer that a recipe completes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict
from optax import contrib

from figs_jax import recipes
from figs_jax.core import optimizer_fields
from figs_jax.optim import mask_moments
from figs_jax.recipes.optimizer_requirements import (
  LazyAdapters,
  MaskedMoments,
  MaskedUpdates,
  PrunedDecay,
  StepAdam,
)
from figs_jax.train.schema import ConfigError, warmup_steps
from figs_jax.train.trained_part import training_only

# Matched by name, since a scanned model stacks the vectors of its blocks into
# a matrix.
_VECTORS = ("bias", "scale", "logit_scale")


def learning_rate(config: config_dict.ConfigDict) -> optax.Schedule:
  """Linear warm-up from 0 to the peak, then `config.optimizer.schedule`.

  | schedule | at step t >= w, after w warm-up steps out of T      |
  |----------|-----------------------------------------------------|
  | cosine   | peak * (1 + cos(pi (t - w) / (T - w))) / 2          |
  | linear   | peak * (T - t) / (T - w)                            |
  | rsqrt    | peak * sqrt(w / t), with w at least 1               |
  | constant | peak                                                |

  The Transformer's lr / sqrt(max(t, w)) (arXiv 1706.03762) is "rsqrt" with a
  peak of lr / sqrt(w).

  Args:
    config: Configuration of a run.

  Returns:
    Function from the number of steps done to the learning rate.

  >>> from figs_jax.train.config import default_config
  >>> config = default_config("dense")
  >>> config.total_steps, config.optimizer.warmup_steps = 8, 4
  >>> config.optimizer.learning_rate = 1.0
  >>> [round(float(learning_rate(config)(t)), 3) for t in (0, 2, 4, 6, 8)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  peak = config.optimizer.learning_rate
  warmup = warmup_steps(config.optimizer.warmup_steps, config.total_steps)
  rest = config.total_steps - warmup
  after = {
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
    "rsqrt": lambda: _inverse_root(peak, warmup),
    "constant": lambda: optax.constant_schedule(peak),
  }[config.optimizer.schedule]()
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def _inverse_root(peak: float, warmup: int) -> optax.Schedule:
  """The rsqrt schedule, counted from the end of the warm-up."""
  first = float(max(warmup, 1))

  def schedule(count: Any) -> Any:
    step = jnp.asarray(count, jnp.float32) + warmup
    return peak * jnp.sqrt(first / jnp.maximum(step, first))

  return schedule


def make_optimizer(
  config: config_dict.ConfigDict, recipe: recipes.Recipe
) -> optax.GradientTransformation:
  """Clipping, then the recipe's own transforms, then the optimizer.

  Args:
    config: Configuration of a run.
    recipe: Its recipe.

  Raises:
    ConfigError: If the optimizer lacks what the recipe needs.

  >>> from figs_jax.train.config import default_config
  >>> config = default_config("step")
  >>> config.optimizer.name = "lion"
  >>> make_optimizer(config, recipes.create("step", "2:4", 100))
  Traceback (most recent call last):
    ...
  figs_jax.train.schema.ConfigError: --config.optimizer.name: expected adamw,\
 which has the second moment of each weight that recipe 'step' freezes, got\
 'lion'
  """
  fields = config.optimizer
  check_together(fields, recipe)
  rate = learning_rate(config)
  tx = _BUILDERS[fields.name](
    recipe, rate, fields.weight_decay, optimizer_fields.options(fields)
  )
  clip = optax.clip_by_global_norm(fields.clip) if fields.clip else None
  tx = recipe.transform(tx, before=clip, learning_rate=rate)
  return training_only(tx, config.train_only)


def check_together(
  fields: config_dict.ConfigDict, recipe: recipes.Recipe
) -> None:
  """Checks that an optimizer has what a recipe needs.

  Args:
    fields: `config.optimizer`.
    recipe: Recipe to train with.

  Raises:
    ConfigError: If STEP has no second moment per weight to freeze, a recipe
      that clears moments has factored ones, or one that changes updates at
      their end has a schedule-free optimizer.
  """
  needs = recipe.optimizer_requirements
  is_step = any(isinstance(each, StepAdam) for each in needs)
  if is_step and fields.name != "adamw":
    raise ConfigError(
      "--config.optimizer.name: expected adamw, which has the second moment of"
      f" each weight that recipe {recipe.name!r} freezes, got {fields.name!r}"
    )
  if fields.name == "schedule_free":
    _check_free(recipe)
  factored = optimizer_fields.options(fields).get("factored")
  if factored and any(isinstance(each, MaskedMoments) for each in needs):
    raise ConfigError(
      f"--config.optimizer.factored: expected False for recipe {recipe.name!r},"
      " which clears the moments of pruned weights, got True"
    )


def _check_free(recipe: recipes.Recipe) -> None:
  """Refuses what moves y alone: x would be computed from it and z."""
  for each in recipe.optimizer_requirements:
    if isinstance(each, LazyAdapters):
      raise ConfigError(
        "--config.recipe.rank: expected 0 with schedule_free, whose average"
        f" would move adapters before their first step, in recipe"
        f" {recipe.name!r}"
      )
    if isinstance(each, PrunedDecay) and each.mode == "decoupled":
      raise ConfigError(
        "--config.recipe.mode: expected into_grad with schedule_free, whose"
        " steps are those of z, got decoupled"
      )


def _adamw(recipe, rate, decay, own):
  return optax.chain(
    recipe.scale_by_adam(**own),
    optax.add_decayed_weights(decay, decayed),
    optax.scale_by_learning_rate(rate),
  )


def _sgd(recipe, rate, decay, own):
  del recipe
  return optax.chain(  # not decoupled: decay * w goes through the momentum
    optax.add_decayed_weights(decay, decayed),
    optax.sgd(rate, own["momentum"] or None, own["nesterov"]),
  )


def _lion(recipe, rate, decay, own):
  del recipe
  return optax.lion(rate, **own, weight_decay=decay, mask=decayed)


def _adafactor(recipe, rate, decay, own):
  del recipe
  options = own | {
    name: own[name] or None for name in ("momentum", "clipping_threshold")
  }
  return optax.adafactor(
    rate,
    **options,
    # optax adds it after the learning rate, which the others multiply it by.
    weight_decay_rate=lambda count: decay * rate(count),
    weight_decay_mask=decayed,
  )


def _muon(recipe, rate, decay, own):
  del recipe
  direction = contrib.muon(
    -1.0,  # optax flips the sign
    ns_steps=own["ns_steps"],
    beta=own["momentum"],
    eps=own["eps"],
    nesterov=own["nesterov"],
    adam_b1=own["b1"],
    adam_b2=own["b2"],
    muon_weight_dimension_numbers=orthogonalized,
    consistent_rms=own["consistent_rms"] or None,
  )
  return optax.chain(
    direction,
    optax.add_decayed_weights(decay, decayed),
    optax.scale_by_learning_rate(rate),
  )


def _schedule_free(recipe, rate, decay, own):
  second = optax.scale_by_rms(
    decay=own["b2"], eps=own["eps"], eps_in_sqrt=False, bias_correction=True
  )
  base = optax.chain(
    second,
    optax.add_decayed_weights(decay, decayed),
    optax.scale_by_learning_rate(rate),
  )
  # optax counts the weights of the average from step 1, all else from step 0.
  weights = lambda count: rate(count - 1)  # noqa: E731
  tx = contrib.schedule_free(base, weights, own["b1"], own["weight_lr_power"])
  needs = recipe.optimizer_requirements
  if any(isinstance(each, MaskedUpdates) for each in needs):
    # Where y is set to 0, z is too, and with it the average.
    return mask_moments(tx, "zero")
  return tx


_BUILDERS = {
  "adamw": _adamw,
  "sgd": _sgd,
  "lion": _lion,
  "adafactor": _adafactor,
  "muon": _muon,
  "schedule_free": _schedule_free,
}


def orthogonalized(params: Any) -> Any:
  """The axes of each kernel that Muon orthogonalizes, None at other leaves.

  They are the last two, inputs and outputs; the kernels of scanned blocks have
  a leading axis, over which each is orthogonalized by itself. Four axes are
  those of a convolution, whose first three are inputs. Embeddings, biases and
  scales have Adam.

  >>> orthogonalized({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
  {'bias': None, 'kernel': MuonDimensionNumbers(reduction_axis=(-2,),\
 output_axis=(-1,))}
  """

  def one(path, leaf):
    if path[-1].key != "kernel" or leaf.ndim < 2:
      return None
    inputs = (-4, -3, -2) if leaf.ndim == 4 else (-2,)
    return contrib.MuonDimensionNumbers(inputs, (-1,))

  return jax.tree_util.tree_map_with_path(one, params)


def decayed(params: Any) -> Any:
  """True for every parameter that weight decay acts on: all but vectors.

  >>> decayed({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
  {'head': {'bias': False, 'kernel': True}}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: path[-1].key not in _VECTORS, params
  )
