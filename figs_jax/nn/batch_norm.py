"""Batch normalization, and its statistics computed anew for other weights.

In training a layer normalizes by the statistics of its batch and keeps running
ones, in evaluation it reads the running ones. They describe the weights that
they were collected with: kernels that are pruned or averaged afterwards need
their own, see `batch_statistics`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Float
from figs_jax.nn.split_merge import Tree

M = TypeVar("M", bound=nnx.Module)


class BatchNorm(nnx.BatchNorm):
  """`nnx.BatchNorm` over the last axis, computed in float32.

  It differs from the layer of Flax in three points, in which it is that of
  PyTorch: its running variance is the unbiased one, n / (n - 1) of that of the
  batch; the variance is E[(x - E[x])²], as E[x²] - E[x]² loses digits for large
  means; and running statistics keep their float32 digits if `dtype` is a
  narrower one.

  Under `jit`, the statistics of a batch that is sharded over devices are those
  of the whole batch.

  >>> norm = BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
  >>> norm(jnp.array([[1.0], [3.0]])).round(2).tolist()
  [[-1.0], [1.0]]
  >>> norm.mean[...].tolist(), norm.var[...].tolist()  # .5 * 1 + .5 * 2
  ([1.0], [1.5])
  """

  def __call__(
    self,
    x: Float[Array, "*b channels"],
    use_running_average: bool | None = None,
  ) -> Float[Array, "*b channels"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias."""
    wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    running = self.use_running_average
    if running if use_running_average is None else use_running_average:
      mean, variance = (
        jnp.expand_dims(each[...], axes) for each in (self.mean, self.var)
      )
    else:
      mean = wide.mean(axis=axes, keepdims=True)
      variance = ((wide - mean) ** 2).mean(axis=axes, keepdims=True)
      count = x.size // x.shape[-1]
      unbiased = variance * (count / max(count - 1, 1))
      for old, new in ((self.mean, mean), (self.var, unbiased)):
        new = jax.lax.stop_gradient(new).reshape(-1)
        average = self.momentum * old[...] + (1 - self.momentum) * new
        old.set_value(average)
    assert self.scale is not None and self.bias is not None
    scale, bias = (
      jnp.expand_dims(part[...].astype(jnp.float32), axes)
      for part in (self.scale, self.bias)
    )
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale
    return ((wide - mean) * factor + bias).astype(self.dtype or x.dtype)


def has_batch_norm(model: nnx.Module) -> bool:
  """Whether a model has a layer of `nnx.BatchNorm` or of a subclass.

  Args:
    model: Any NNX model, possibly abstract.

  >>> has_batch_norm(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
  True
  """
  return any(
    isinstance(layer, nnx.BatchNorm) for _, layer in nnx.iter_modules(model)
  )


def batch_statistics(
  model: nnx.Module, call: Callable[[nnx.Module], Any]
) -> Tree:
  """The statistics of one batch in every batch normalization; traceable.

  Each layer normalizes by the statistics of the batch, as in training; all else
  is in evaluation mode, so that nothing is dropped.

  Args:
    model: Any NNX model; it is not changed.
    call: Function that calls a model on a batch. Its result is ignored.

  Returns:
    Statistics by path as nested dicts, as `nn.split` gives them within `rest`;
    a variance as the layer counts it, biased or not.

  >>> norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
  >>> batch_statistics(norm, lambda net: net(jnp.array([[1.0], [3.0]])))
  {'mean': Array([2.], dtype=float32), 'var': Array([1.], dtype=float32)}
  """
  model = nnx.clone(model)
  model.eval()
  layers = [
    (path, layer)
    for path, layer in nnx.iter_modules(model)
    if isinstance(layer, nnx.BatchNorm)
  ]
  for _, layer in layers:
    # New statistics are (1 - momentum) times those of the batch.
    layer.use_running_average, layer.momentum = False, 0.0
  call(model)
  statistics: Tree = {}
  for path, layer in layers:
    node = functools.reduce(
      lambda tree, key: tree.setdefault(key, {}), path, statistics
    )
    node |= {"mean": layer.mean[...], "var": layer.var[...]}
  return statistics


def with_statistics(rest: Tree, statistics: Tree) -> Tree:
  """`rest` of `nn.split` with these statistics in place of its own.

  >>> with_statistics({"norm": {"mean": 0, "var": 1}}, {"norm": {"mean": 2}})
  {'norm': {'mean': 2, 'var': 1}}
  """
  return rest | {
    name: with_statistics(rest[name], each) if isinstance(each, dict) else each
    for name, each in statistics.items()
  }


def statistics_in(rest: Tree, like: Tree) -> Tree:
  """The part of `rest` at the paths of some statistics.

  >>> statistics_in({"a": {"mean": 1, "key": 2}}, {"a": {"mean": 0}})
  {'a': {'mean': 1}}
  """
  return {
    name: statistics_in(rest[name], each)
    if isinstance(each, dict)
    else rest[name]
    for name, each in like.items()
  }


def recalibrate_batch_norm(model: M, batches: Iterable[Any]) -> M:
  """The model with batch statistics of its present weights.

  They are the means over the batches of the statistics of each. Use it after
  kernels were pruned or averaged; permuted channels take their statistics with
  them.

  Args:
    model: Any NNX model. Masked kernels act as in their forward pass.
    batches: Inputs of the model, at least one batch, all of one shape. A tuple
      holds several arguments.

  Returns:
    The model; without batch normalization, unchanged.

  Raises:
    ValueError: If `batches` is empty.

  >>> norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
  >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
  >>> recalibrate_batch_norm(norm, batches).mean[...].tolist()
  [4.0]
  """
  if not has_batch_norm(model):
    return model
  graphdef, state = nnx.split(model)

  @jax.jit
  def of_batch(state: Any, batch: Any) -> Tree:
    inputs = batch if isinstance(batch, tuple) else (batch,)
    return batch_statistics(
      nnx.merge(graphdef, state), lambda net: net(*inputs)
    )

  mean = mean_over_batches(of_batch(state, batch) for batch in batches)
  model = nnx.clone(model)
  for path, layer in nnx.iter_modules(model):
    if isinstance(layer, nnx.BatchNorm):
      new = functools.reduce(lambda tree, key: tree[key], path, mean)
      layer.mean.set_value(new["mean"])
      layer.var.set_value(new["var"])
  return model


def mean_over_batches(statistics: Iterable[Any]) -> Any:
  """The mean of some pytrees, at least one.

  Raises:
    ValueError: If there are none.

  >>> mean_over_batches([{"mean": jnp.ones(1)}, {"mean": 2 * jnp.ones(1)}])
  {'mean': Array([1.5], dtype=float32)}
  """
  total, count = None, 0
  for each in statistics:
    total = each if total is None else jax.tree.map(jnp.add, total, each)
    count += 1
  if total is None:
    raise ValueError(
      "Expected at least one batch to compute batch statistics from, got none"
    )
  return jax.tree.map(lambda x: x / count, total)
