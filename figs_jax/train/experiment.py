"""From a configuration to the things that training needs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax
from flax import nnx
from ml_collections import config_dict

from figs_jax import data, models, nn, recipes
from figs_jax.core.types import Array
from figs_jax.train import study
from figs_jax.train.config import given, recipe_of, validate
from figs_jax.train.losses import MixedCrossEntropy
from figs_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A validated configuration and what it builds; no array exists yet."""

  config: config_dict.ConfigDict
  recipe: recipes.Recipe
  tx: optax.GradientTransformation
  loss: MixedCrossEntropy
  num_classes: int
  channels: int

  @property
  def seeds(self) -> list[int]:
    """The seeds of the run; empty for a run without a seed axis."""
    return [self.config.seed + i for i in range(self.config.seeds)]

  def model(self, seed: int | Array) -> nnx.Module:
    """A new model, sparsified if the recipe is sparse."""
    config = self.config
    model = models.create(
      config.family,
      config.variant,
      num_classes=self.num_classes,
      image_size=config.data.image_size,
      in_channels=self.channels,
      rngs=nnx.Rngs(jax.random.key(seed)),
      **given(config.model),
    )
    if not self.recipe.sparse:
      return model
    return nn.sparsify(model, config.pattern)

  def lone_state(self, seed: int | Array) -> TrainState:
    """The state of one seed at step 0; traceable in the seed."""
    config = self.config
    return TrainState.create(
      self.model(seed),
      self.recipe,
      self.tx,
      loss=self.loss,
      seed=seed,
      ema_decay=config.ema_decay,
      accumulate=config.accumulate,
      diagnose_every=config.diagnose_every,
    )

  def state(self) -> TrainState:
    """The state of the run at step 0, of all seeds if there are several."""
    if self.seeds:
      return study.create(self.lone_state, self.seeds)
    return self.lone_state(self.config.seed)

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
  info = data.describe(config.data.name, data_dir=config.data.data_dir)
  recipe = recipe_of(config)
  experiment = Experiment(
    config=config,
    recipe=recipe,
    tx=optimizer(config, recipe),
    loss=MixedCrossEntropy(
      info.num_classes, config.mixup, config.label_smoothing
    ),
    num_classes=info.num_classes,
    channels=info.image_shape[-1],
  )
  _ = experiment.abstract_state  # raises here what model and rules refuse
  return experiment


def learning_rate(config: config_dict.ConfigDict) -> optax.Schedule:
  """Linear warm-up, then a cosine to 0 at the last step."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.optimizer.learning_rate,
    warmup_steps=config.optimizer.warmup_steps,
    decay_steps=config.total_steps,
  )


def optimizer(
  config: config_dict.ConfigDict, recipe: recipes.Recipe
) -> optax.GradientTransformation:
  """Clip, then what the recipe adds, then AdamW (no decay of vectors)."""
  options = config.optimizer
  schedule = learning_rate(config)
  adamw = optax.adamw(
    schedule,
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    weight_decay=options.weight_decay,
    mask=functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1),
  )
  clip = optax.clip_by_global_norm(options.clip) if options.clip else None
  return recipe.transform(adamw, before=clip, learning_rate=schedule)
