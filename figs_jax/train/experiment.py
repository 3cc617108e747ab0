"""From a configuration to the things that training needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import config_dict

from figs_jax import models, nn, recipes
from figs_jax.core.tree import flatten
from figs_jax.core.types import Array
from figs_jax.models import own_model
from figs_jax.train import schema, seeds
from figs_jax.train._run_once import run_once
from figs_jax.train.config import (
  ConfigError,
  given,
  recipe_of,
  with_defaults,
)
from figs_jax.train.initial_values import check_finite
from figs_jax.train.losses import Distill
from figs_jax.train.optimizer import make_optimizer
from figs_jax.train.sharding import check_seed_axis, state_shardings
from figs_jax.train.state import TrainState
from figs_jax.train.tasks import Task, task_of


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A validated configuration and what it builds; no array exists yet."""

  config: config_dict.ConfigDict
  recipe: recipes.Recipe
  tx: optax.GradientTransformation
  task: Task
  distill: Distill | None = None  # the loss of a run with a teacher

  @property
  def seeds(self) -> list[int]:
    """The seeds of the run; empty for a run without a seed axis."""
    return [self.config.seed + i for i in range(self.config.seeds)]

  @property
  def batch_axis(self) -> Literal[0] | None:
    """Axis of the seeds in batches: 0 if each has its own, else None."""
    return 0 if self.seeds and self.config.data.order == "own" else None

  def model(self, seed: int | Array, weights: Any = None) -> nnx.Module:
    """A new model, sparsified if the recipe is sparse.

    Args:
      seed: Seed for initialization.
      weights: Parameters by path that replace the new ones, as
        `figs_jax.train.workdir.initial_weights` returns them; masks are
        recomputed from them.
    """
    model = self._dense_model(seed)
    if weights is not None:
      from figs_jax.models.own_weights import fill_own

      model = fill_own(model, weights)
    if rules := self.config.activations:
      try:
        words = own_model.own_words(self.abstract_dense, rules)
        model = nn.prune_inputs(model, rules, words=words)
      except ValueError as error:
        raise ConfigError(f"--config.activations: {error}") from error
    if not self.recipe.sparse:
      return model
    model = self._sparsified(model)
    if not (rank := self.recipe.adapter_rank):
      return model
    try:
      return nn.with_adapters(model, rank, jax.random.key(seed))
    except ValueError as error:
      raise ConfigError(f"--config.recipe.rank: {error}") from error

  def _sparsified(self, model: nnx.Module) -> nnx.Module:
    if self.config.family not in models.REGISTERED:
      return nn.sparsify(model, self.config.pattern)
    try:
      return nn.sparsify(model, self.config.pattern, words=self._words)
    except ValueError as error:
      raise ConfigError(
        f"--config.pattern: {error} The word hidden stands for every kernel but"
        " the first and the last"
      ) from error

  def _dense_model(self, seed: int | Array) -> nnx.Module:
    config = self.config
    try:
      return models.create(
        config.family,
        config.variant,
        rngs=nnx.Rngs(jax.random.key(seed)),
        **self._model_options(),
      )
    except ValueError as error:
      own = config.family in models.REGISTERED
      fields = "" if own else "config.model, config.variant or config.data: "
      raise ConfigError(f"{fields}{error}") from error

  @functools.cached_property
  def dtype(self) -> str:
    """Dtype of the computation; of a class without the option, of its logits.

    Raises:
      ConfigError: If a class of one's own does not map images to logits.
    """
    named = self.config.model.get("dtype")
    own = models.REGISTERED.get(self.config.family)
    if own is None:
      return named
    classes = self.task.model_options["num_classes"]
    try:
      logits = own.dtype(self.abstract_dense, classes)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    return named or logits

  @functools.cached_property
  def abstract_dense(self) -> nnx.Module:
    """The model without masks, as shapes."""
    return nnx.eval_shape(functools.partial(self._dense_model, 0))

  @functools.cached_property
  def _words(self) -> dict[str, str]:
    return own_model.own_words(self.abstract_dense, self.recipe.pattern)

  def _model_options(self) -> dict[str, Any]:
    """Options of the model, from the data and the configuration."""
    options, own = self.task.model_options, given(self.config.model)
    channels = options.get("in_channels")
    if own.get("in_channels", channels) != channels:
      raise ConfigError(
        f"--config.model.in_channels: expected {channels}, the channels of"
        f" {self.config.data.name!r}, got {own['in_channels']}"
      )
    return options | own

  def lone_state(self, seed: int | Array, weights: Any = None) -> TrainState:
    """The state of one seed at step 0; traceable in seed and weights."""
    config, dtype = self.config, self.config.param_dtype
    return TrainState.create(
      self.model(seed, weights),
      self.recipe,
      self.tx,
      loss=self.distill or self.task.loss,
      seed=seed,
      ema_decay=config.ema_decay,
      grad_accum_steps=config.grad_accum_steps,
      diagnose_every=config.diagnose_every,
      param_dtype=None if dtype == "float32" else dtype,
      mask_storage=config.mask_storage,
    )

  def state(self, weights: Any = None) -> TrainState:
    """The state at step 0, with a leading seed axis if there are seeds."""
    make = functools.partial(self.lone_state, weights=weights)
    if self.seeds:
      return seeds.create_states(make, self.seeds)
    return make(self.config.seed)

  def placed_state(self, shardings: Any, weights: Any = None) -> TrainState:
    """`state()` on devices, one sharding per leaf, created where it lives.

    Raises:
      ValueError: If a parameter is not finite.
    """
    if weights is not None:
      place = self.weight_placer(shardings)
      weights = {path: place(path, weight) for path, weight in weights.items()}
      state = jax.jit(self.state, out_shardings=shardings)(weights)
    else:
      # As it was traced for `abstract_state`: building a model takes a while.
      leaves = run_once(self._traced.jaxpr, jax.tree.leaves(shardings))
      tree = jax.tree.structure(self.abstract_state)
      state = jax.tree.unflatten(tree, leaves)
    check_finite(state.params)
    return state

  def weight_placer(
    self, shardings: Any
  ) -> Callable[[str, np.ndarray | jax.Array], jax.Array]:
    """A function that puts an initial weight where its parameter lies.

    It takes the path of the parameter and an array, the same for all seeds, and
    puts each part on its device; an array on devices is returned. Variables
    that are not parameters are whole on every device.

    Args:
      shardings: Shardings of the state.
    """
    places = flatten(shardings.params)

    def placed(path: str, weight: np.ndarray | jax.Array) -> jax.Array:
      if isinstance(weight, jax.Array):
        return weight
      place = places.get(path, shardings.step)
      if self.seeds:
        place = seeds.lone_shardings(place)
      return jax.make_array_from_callback(
        weight.shape, place, lambda index: weight[index]
      )

    return placed

  @property
  def abstract_state(self) -> Any:
    """Shapes and dtypes of `state()`, without memory."""
    return self._traced.out_info

  def shardings(self, mesh: Mesh | AbstractMesh) -> Any:
    """The shardings of the state on a mesh; see `state_shardings`.

    Raises:
      ValueError: If `state_shardings` or `check_seed_axis` raises it.
    """
    check_seed_axis(len(self.seeds), mesh)
    state = self.abstract_state
    return state_shardings(state, mesh, state.bound, bool(self.seeds))

  def abstract_on(self, shardings: Any) -> Any:
    """`abstract_state` with one sharding per leaf, to be restored there."""
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      self.abstract_state,
      shardings,
    )

  @functools.cached_property
  def _traced(self) -> jax.stages.Traced:
    return jax.jit(self.state).trace()


def build(config: config_dict.ConfigDict, data: Any = None) -> Experiment:
  """Checks a configuration and builds everything but arrays.

  Args:
    config: Configuration of a run; that of the experiment is a copy, completed
      by defaults.
    data: Data of a program, as in `figs_jax.train.loop.train`.

  Raises:
    ValueError: If a field is wrong (mostly a `ConfigError`); the message is one
      line that names the field.
  """
  schema.check(config)
  config = with_defaults(config)
  task = task_of(config, data)
  recipe = recipe_of(config)
  experiment = Experiment(
    config=config,
    recipe=recipe,
    tx=make_optimizer(config, recipe),
    task=task,
  )
  _ = (
    experiment.dtype,
    experiment.abstract_state,
  )  # raises here what model and rules refuse
  return experiment
