"""Pruning of a layer's output gradient before the weight gradient.

The weight gradient of a layer is a product over tokens of its input with dy,
the gradient of its output. If dy is pruned to N:M along the tokens, at random
and without bias (`core.mvue`, arXiv 2203.10991), that product is sparse and
correct on average. The gradients of input and bias use dy itself.

Therefore a layer runs twice: once without a gradient for the kernel, and once
only for the gradient of the kernel. Under jit nothing is computed twice, since
the first output is not used. Nor need it be the same: SLoPe's has a kernel of
its own, from which the gradient of the input comes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core._mvue import mvue
from figs_jax.core.pattern import NM
from figs_jax.core.types import Array, Float

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")


class NeuralGradient(nnx.Module):
  """Prunes the gradient of its second argument at random.

  Like Dropout, every call takes a new key from the stream, which `reseed`
  restarts. In evaluation mode (`model.eval()`) nothing is drawn or pruned.

  Attributes:
    pattern: Pattern along the tokens (static).
    rngs: Random stream.
    deterministic: Whether pruning is off (static).

  Args:
    pattern: Pattern along the tokens.
    key: Key of the stream, or one key per layer of a stack.
  """

  def __init__(self, pattern: NM, key: Array):
    self.pattern = pattern
    self.rngs = nnx.RngStream(key, tag="mvue")
    self.deterministic = False

  def __call__(
    self,
    out: Float[Array, "*shape"],
    weight_out: Float[Array, "*shape"],
    tokens: tuple[int, ...],
  ) -> Float[Array, "*shape"]:
    """Returns `weight_out`, whose gradient is mvue(dy), and that of `out` dy.

    Args:
      out: Output of the layer, constant in the kernel.
      weight_out: Same output, constant in everything but the kernel.
      tokens: Axes of the groups, flattened in order.
    """
    return _fork(self.pattern, tokens, self.rngs(), out, weight_out)

  def set_view(self, deterministic: bool | None = None, **kwargs) -> dict:
    """Lets `nnx.view` switch the mode; see `nnx.Dropout.set_view`."""
    if deterministic is not None:
      self.deterministic = deterministic
    return kwargs


@jax.custom_vjp
def forked(
  out: Float[Array, "*shape"], weight_out: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """`weight_out`, whose gradient is dy, as that of `out`.

  Args:
    out: Output whose gradient reaches the input of the layer.
    weight_out: Output whose gradient reaches the kernel.

  >>> grads = jax.grad(lambda a, b: forked(3 * a, 2 * b), (0, 1))(1.0, 1.0)
  >>> [float(each) for each in grads]
  [3.0, 2.0]
  """
  del out
  return weight_out


forked.defvjp(
  lambda out, weight_out: (weight_out, None), lambda _, dy: (dy, dy)
)


def constant_layer(layer: M) -> M:
  """A copy of the layer with its own variables and no gradient."""
  graphdef, state = nnx.split(layer)
  return nnx.merge(graphdef, constant(state))


def constant(tree: T) -> T:
  """The tree with `stop_gradient` on every array."""
  return jax.tree.map(
    lambda x: (
      jax.lax.stop_gradient(x) if isinstance(x, (Array, np.ndarray)) else x
    ),
    tree,
  )


def pruned_tokens(
  key: Array,
  gradient: Float[Array, "*shape"],
  pattern: NM,
  tokens: tuple[int, ...],
) -> Float[Array, "*shape"]:
  """mvue along the flattened token axes, padded with zeros to whole groups.

  >>> dy = jnp.ones((3, 1, 2))
  >>> out = pruned_tokens(jax.random.key(0), dy, NM(1, 3), (0, 1))
  >>> out.sum((0, 1))
  Array([3., 3.], dtype=float32)
  """
  front = tuple(range(len(tokens)))
  moved = jnp.moveaxis(gradient, tokens, front)
  count = math.prod(moved.shape[: len(tokens)])
  flat = moved.reshape(count, *moved.shape[len(tokens) :])
  padding = [(0, -count % pattern.m)] + [(0, 0)] * (flat.ndim - 1)
  drawn = mvue(key, jnp.pad(flat, padding), pattern, 0)[:count]
  return jnp.moveaxis(drawn.reshape(moved.shape), front, tokens)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fork(pattern, tokens, key, out, weight_out):
  del pattern, tokens, key, out
  return weight_out


def _fork_fwd(pattern, tokens, key, out, weight_out):
  return _fork(pattern, tokens, key, out, weight_out), key


def _fork_bwd(pattern, tokens, key, dy):
  return None, dy, pruned_tokens(key, dy, pattern, tokens)


_fork.defvjp(_fork_fwd, _fork_bwd)
