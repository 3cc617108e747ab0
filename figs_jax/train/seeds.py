"""Several seeds at once: the same step over a leading seed axis.

Every leaf of the state gains that axis but `step`, which stays a scalar: a
`cond` on it stays a branch, while a batched one would run both sides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.types import Array
from figs_jax.train.state import TrainState, update
from figs_jax.train.state import with_fresh_masks as fresh_masks

Mode = Literal["vmap", "map"]


def axes(state: TrainState, seeds: int | None = 0) -> TrainState:
  """`in_axes` of a state for vmap: `seeds` everywhere, None at the step."""
  return dataclasses.replace(jax.tree.map(lambda _: seeds, state), step=None)


def create_states(make: Callable[[Array], TrainState], seeds: Sequence[int]):
  """One state of all seeds; `make(seed)` must be traceable.

  >>> import figs_jax as figs, optax
  >>> from flax import nnx
  >>> def make(seed):
  ...   model = nnx.Linear(8, 4, rngs=nnx.Rngs(jax.random.key(seed)))
  ...   recipe = figs.recipes.create("dense", "1:4", total_steps=10)
  ...   return figs.TrainState.create(model, recipe, optax.sgd(.1), seed=seed)
  >>> state = create_states(make, [0, 1, 2])
  >>> state.params["kernel"].shape, state.step.shape
  ((3, 8, 4), ())
  """
  stacked = jax.vmap(make)(jnp.asarray(seeds, jnp.uint32))
  return dataclasses.replace(stacked, step=stacked.step[0])


def step_seeds(
  state: TrainState,
  batch: Any,
  *,
  batch_axis: Literal[0] | None = None,
  mode: Mode = "vmap",
) -> tuple[TrainState, dict[str, Any]]:
  """`train.state.update` of every seed; metrics gain the axis.

  Args:
    state: State from `create_states`.
    batch: Batch of all seeds.
    batch_axis: Axis of the seeds in the batch: 0 if each seed has its own
      batch, None if all share one.
    mode: "vmap" runs the seeds together, "map" one after the other inside the
      same compiled step, which is faster on few CPU cores. The results agree.

  Raises:
    ValueError: If `batch_axis` is 0 and the batch has another number of seeds.
  """
  lone, seeds = axes(state), state.seed.shape[0]
  if batch_axis == 0:
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if counts - {(seeds,)}:
      raise ValueError(
        f"batch: expected a leading axis of {seeds} seeds, got leading sizes"
        f" {sorted(counts)}; use batch_axis=None for a batch that all share"
      )
  if mode == "vmap":
    step = jax.vmap(update, (lone, batch_axis), (lone, 0))
    return step(state, batch)

  each = dataclasses.replace(state, step=jnp.full(seeds, state.step))
  if batch_axis == 0:
    new, metrics = jax.lax.map(lambda pair: update(*pair), (each, batch))
  else:
    new, metrics = jax.lax.map(lambda lone: update(lone, batch), each)
  return dataclasses.replace(new, step=new.step[0]), metrics


def with_fresh_masks(state: TrainState) -> TrainState:
  """`train.state.with_fresh_masks` of every seed."""
  lone = axes(state)
  return jax.vmap(fresh_masks, in_axes=(lone,), out_axes=lone)(state)


def take(state: TrainState, seed: int) -> TrainState:
  """The state of one seed, by its index on the seed axis."""
  seeds = state.seed.shape[0]
  each = dataclasses.replace(state, step=jnp.full(seeds, state.step))
  return jax.tree.map(lambda leaf: leaf[seed], each)


def singles(state: TrainState) -> Iterator[TrainState]:
  """The state of each seed in turn; that of a run without a seed axis alone."""
  if not state.seed.shape:
    yield state
  else:
    yield from (take(state, seed) for seed in range(len(state.seed)))


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard error (sample deviation / sqrt n) of finite values.

  Diverged seeds (NaN) are left out; the error of fewer than two is NaN.

  >>> mean_and_se([1.0, 2.0, 3.0])
  (2.0, 0.5773502691896258)
  """
  finite = np.asarray([v for v in values if math.isfinite(v)], np.float64)
  if not len(finite):
    return math.nan, math.nan
  if len(finite) == 1:
    return float(finite[0]), math.nan
  return float(finite.mean()), float(finite.std(ddof=1) / len(finite) ** 0.5)
