"""The learning-rate schedule, and the optimizer that a recipe completes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from figs_jax import recipes
from figs_jax.train.schema import warmup_steps

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
  """Clipping, then the recipe's own transforms, then AdamW."""
  options = config.optimizer
  clip = optax.clip_by_global_norm(options.clip) if options.clip else None
  return recipe.adamw(
    learning_rate(config),
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    weight_decay=options.weight_decay,
    mask=decayed,
    before=clip,
  )


def decayed(params: Any) -> Any:
  """True for every parameter that weight decay acts on: all but vectors.

  >>> decayed({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
  {'head': {'bias': False, 'kernel': True}}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: path[-1].key not in _VECTORS, params
  )
