"""From a configuration to the things that training needs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import config_dict

from figs_jax import models, nn, recipes
from figs_jax.core.types import Array
from figs_jax.models import pretrained
from figs_jax.train import seeds as study
from figs_jax.train.config import given, recipe_of, validate
from figs_jax.train.state import TrainState
from figs_jax.train.tasks import Task, task_of


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A validated configuration and what it builds; no array exists yet."""

  config: config_dict.ConfigDict
  recipe: recipes.Recipe
  tx: optax.GradientTransformation
  task: Task

  @property
  def seeds(self) -> list[int]:
    """The seeds of the run; empty for a run without a seed axis."""
    return [self.config.seed + i for i in range(self.config.seeds)]

  def model(self, seed: int | Array, weights: Any = None) -> nnx.Module:
    """A new model, sparsified if the recipe is sparse.

    Args:
      seed: of its initialisation.
      weights: parameters by path that replace the new ones, as `train.initial`
        gives them; masks are those of the weights.
    """
    config = self.config
    model = models.create(
      config.family,
      config.variant,
      rngs=nnx.Rngs(jax.random.key(seed)),
      **self.task.model_options,
      **given(config.model),
    )
    if weights is not None:
      model = pretrained.fill(model, weights)
    if not self.recipe.sparse:
      return model
    return nn.sparsify(model, config.pattern)

  def lone_state(self, seed: int | Array, weights: Any = None) -> TrainState:
    """The state of one seed at step 0; traceable in seed and weights."""
    config = self.config
    return TrainState.create(
      self.model(seed, weights),
      self.recipe,
      self.tx,
      loss=self.task.loss,
      seed=seed,
      ema_decay=config.ema_decay,
      accumulate=config.accumulate,
      diagnose_every=config.diagnose_every,
    )

  def state(self, weights: Any = None) -> TrainState:
    """The state of the run at step 0, of all seeds if there are several."""
    make = functools.partial(self.lone_state, weights=weights)
    if self.seeds:
      return study.create(make, self.seeds)
    return make(self.config.seed)

  @functools.cached_property
  def abstract_state(self) -> Any:
    """Shapes and dtypes of `state()`, without memory."""
    return jax.eval_shape(self.state)


def build(config: config_dict.ConfigDict) -> Experiment:
  """Checks a configuration and builds everything but arrays.

  Raises:
    ValueError: (mostly `ConfigError`) one line saying which field is wrong.
  """
  validate(config)
  task = task_of(config)
  recipe = recipe_of(config)
  experiment = Experiment(
    config=config,
    recipe=recipe,
    tx=optimizer(config, recipe),
    task=task,
  )
  _ = experiment.abstract_state  # raises here what model and rules refuse
  return experiment


def learning_rate(config: config_dict.ConfigDict) -> optax.Schedule:
  """Linear warm-up from 0 to the learning rate, then `schedule`.

  | schedule | after w warm-up steps, of T steps in all            |
  |----------|-----------------------------------------------------|
  | cosine   | rate * (1 + cos(pi (t - w) / (T - w))) / 2          |
  | linear   | rate * (T - t) / (T - w)                            |
  | rsqrt    | rate * sqrt(w / t), w at least 1                    |
  | constant | rate                                                |

  So Transformer's lr / sqrt(max(t, w)) (arXiv 1706.03762) is "rsqrt" with a
  learning rate of lr / sqrt(w).
  """
  peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
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
  """Of the steps since the warm-up."""
  first = float(max(warmup, 1))

  def schedule(count: Any) -> Any:
    step = jnp.asarray(count, jnp.float32) + warmup
    return peak * jnp.sqrt(first / jnp.maximum(step, first))

  return schedule


def optimizer(
  config: config_dict.ConfigDict, recipe: recipes.Recipe
) -> optax.GradientTransformation:
  """Clip, then what the recipe adds, then AdamW (no decay of vectors)."""
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


# By name: in a scanned model a vector of every block is one matrix.
_VECTORS = ("bias", "scale", "logit_scale")


def decayed(params: Any) -> Any:
  """True for every parameter that weight decay acts on: those but vectors.

  >>> decayed({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
  {'head': {'bias': False, 'kernel': True}}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: path[-1].key not in _VECTORS, params
  )
