"""Several seeds at once: the same step over a leading seed axis, or in turn.

Every leaf of the state gains that axis but `step`, which stays a scalar: a
`cond` on it stays a branch, while a batched one would run both sides. The axis
`seed` of a mesh splits the seeds over devices, each of which runs its own.

>>> import figs_jax as figs, optax
>>> from flax import nnx
>>> def make(seed):
...   model = nnx.Linear(8, 4, rngs=nnx.Rngs(jax.random.key(seed)))
...   recipe = figs.recipes.create("dense", "1:4", total_steps=10)
...   return figs.TrainState.create(model, recipe, optax.sgd(.1), seed=seed)
>>> state = create_states(make, [3, 4])
>>> batch = {"image": jnp.ones((2, 8)), "label": jnp.array([0, 1])}
>>> state, metrics = jax.jit(step_seeds)(state, batch)
>>> metrics["loss"].shape, int(state.step)
((2,), 1)
>>> [int(each.seed) for each in apart(state)], int(take(state, 1).seed)
([3, 4], 4)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
  AbstractMesh,
  Mesh,
  NamedSharding,
  PartitionSpec,
  Sharding,
)

from figs_jax.core.types import Array
from figs_jax.nn.logical_axes import SEED_AXIS
from figs_jax.train.state import TrainState, update
from figs_jax.train.state import with_fresh_masks as fresh_masks


def axes(state: TrainState, seeds: int | None = 0) -> TrainState:
  """`in_axes` of a state for vmap: `seeds` everywhere, None at the step.

  Args:
    state: State of several seeds.
    seeds: Axis of the seeds; None if all share the state.
  """
  return dataclasses.replace(jax.tree.map(lambda _: seeds, state), step=None)


def create_states(make: Callable[[Array], TrainState], seeds: Sequence[int]):
  """One state of all seeds.

  Args:
    make: Function from a seed, a traced uint32 scalar, to its state.
    seeds: The seeds.

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


def over_seeds(
  fn: Callable[..., Any],
  in_axes: tuple[Any, ...],
  out_axes: Any = 0,
  mesh: Mesh | AbstractMesh | None = None,
) -> Callable[..., Any]:
  """A function of one seed as a function of all; traceable.

  Over the axis `seed` of a mesh, each device runs the seeds whose states it
  holds, and none waits for others: a loop that one seed leaves early, as in a
  draw of mixup, ends there. A device's only seed runs without a seed axis, as
  in a run of that seed alone.

  Args:
    fn: Function whose first argument is a `TrainState`.
    in_axes: 0 or None for each argument as in `jax.vmap`, but `axes(state)` for
      a state.
    out_axes: The same for the results.
    mesh: Mesh of the arrays, whose other axes are left to the compiler.
      Defaults to devices that hold all seeds.
  """
  if mesh is None or mesh.shape[SEED_AXIS] == 1:
    return jax.vmap(fn, in_axes, out_axes)

  def of_device(*args: Any) -> Any:
    if args[0].seed.shape[0] > 1:
      return jax.vmap(fn, in_axes, out_axes)(*args)
    pairs = zip(args, in_axes)
    return _with_axis(fn(*(_only(arg, axes) for arg, axes in pairs)))

  def specs(tree: Any) -> Any:
    split = {None: PartitionSpec(), 0: PartitionSpec(SEED_AXIS)}
    return jax.tree.map(split.get, tree, is_leaf=lambda axis: axis is None)

  return jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=specs(in_axes),
    out_specs=specs(out_axes),
    axis_names={SEED_AXIS},
    check_vma=False,
  )


def _only(arg: Any, in_axes: Any) -> Any:
  """An argument of the only seed, without its axis."""
  if isinstance(arg, TrainState):
    return take(arg, 0)
  return arg if in_axes is None else jax.tree.map(lambda leaf: leaf[0], arg)


def _with_axis(out: Any) -> Any:
  """Results with a seed axis; the step of a state stays without."""

  def each(part: Any) -> Any:
    wide = jax.tree.map(lambda leaf: leaf[None], part)
    if isinstance(part, TrainState):
      return dataclasses.replace(wide, step=part.step)
    return wide

  return jax.tree.map(each, out, is_leaf=lambda x: isinstance(x, TrainState))


def step_seeds(
  state: TrainState,
  batch: Any,
  constants: Any = None,
  *,
  batch_axis: Literal[0] | None = None,
  mesh: Mesh | AbstractMesh | None = None,
) -> tuple[TrainState, dict[str, Any]]:
  """`train.state.update` of every seed, together; metrics gain the axis.

  Args:
    state: State from `create_states`.
    batch: Batch of all seeds.
    constants: Arrays of the loss that all seeds share, see `update`.
    batch_axis: Axis of the seeds in the batch: 0 if each seed has its own
      batch, None if all share one.
    mesh: Mesh whose axis `seed` splits the seeds, see `over_seeds`.

  Raises:
    ValueError: If `batch_axis` is 0 and the batch has another number of seeds.
  """
  lone, seeds = axes(state), state.seed.shape[0]
  if batch_axis == 0:
    _check_axis(batch, seeds)
  step = over_seeds(update, (lone, batch_axis, None), (lone, 0), mesh)
  return step(state, batch, constants)


@dataclasses.dataclass(frozen=True)
class InTurn:
  """A step of every seed, one after the other: each gives the bits of its run.

  Faster than `step_seeds` on few CPU cores. Do not jit it: a loop over seeds
  inside of one program is up to five times slower, since it moves their states.

  Attributes:
    step: Compiled step of one seed.
    batch_axis: Axis of the seeds in the batch, see `step_seeds`.
  """

  step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
  batch_axis: Literal[0] | None = None

  def __call__(
    self, states: Sequence[TrainState], batch: Any
  ) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """The next states and the metrics, of each seed.

    Args:
      states: States of the seeds, as from `apart`.
      batch: Batch of all seeds.

    Raises:
      ValueError: If the batch has another number of seeds.
    """
    batches = [batch] * len(states)
    if self.batch_axis == 0:
      _check_axis(batch, len(states))
      batches = [
        jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(states))
      ]
    pairs = [self.step(*pair) for pair in zip(states, batches)]
    return [state for state, _ in pairs], [metrics for _, metrics in pairs]


def _check_axis(batch: Any, seeds: int) -> None:
  counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if counts - {(seeds,)}:
    raise ValueError(
      f"batch: expected a leading axis of {seeds} seeds, got leading sizes"
      f" {sorted(counts)}; use batch_axis=None for a batch that all share"
    )


def apart(state: TrainState) -> list[TrainState]:
  """The states of the seeds, each with arrays of its own to donate.

  Args:
    state: State from `create_states`.
  """
  seeds = state.seed.shape[0]
  each = dataclasses.replace(state, step=jnp.full(seeds, state.step))
  return [
    jax.tree.map(lambda leaf, i=i: _entry(_lone(leaf.sharding))(leaf, i), each)
    for i in range(seeds)
  ]


def together(states: Sequence[TrainState], shardings: Any) -> TrainState:
  """The inverse of `apart`.

  Args:
    states: States of the seeds.
    shardings: Shardings of the result, as a `TrainState`.
  """
  stacked = jax.tree.map(
    lambda sharding, *leaves: _stack(sharding)(leaves), shardings, *states
  )
  return dataclasses.replace(stacked, step=jnp.copy(states[0].step))


def lone_shardings(shardings: Any) -> Any:
  """Shardings of the state of one seed, from those of all seeds.

  Args:
    shardings: Pytree of shardings, whose first axis is that of the seeds.
  """
  return jax.tree.map(_lone, shardings)


def _lone(sharding: Sharding) -> Sharding:
  if not isinstance(sharding, NamedSharding):
    return sharding
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.cache
def _entry(sharding: Sharding) -> Callable[[Array, int], Array]:
  take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return jax.jit(take, out_shardings=sharding)


@functools.cache
def _stack(sharding: Sharding) -> Callable[[Sequence[Array]], Array]:
  return jax.jit(jnp.stack, out_shardings=sharding)


def with_fresh_masks(
  state: TrainState, mesh: Mesh | AbstractMesh | None = None
) -> TrainState:
  """`train.state.with_fresh_masks` of every seed.

  Args:
    state: State from `create_states`.
    mesh: Mesh whose axis `seed` splits the seeds, see `over_seeds`.
  """
  lone = axes(state)
  return over_seeds(fresh_masks, (lone,), lone, mesh)(state)


def take(state: TrainState, seed: int) -> TrainState:
  """The state of one seed.

  Args:
    state: State from `create_states`.
    seed: Index on the seed axis.
  """
  seeds = state.seed.shape[0]
  each = dataclasses.replace(state, step=jnp.full(seeds, state.step))
  return jax.tree.map(lambda leaf: leaf[seed], each)


def singles(state: TrainState) -> Iterator[TrainState]:
  """The state of each seed in turn; that of a run without a seed axis alone.

  Args:
    state: State of a run.
  """
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
