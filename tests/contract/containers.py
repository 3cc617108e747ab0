"""A little network in four containers: its weights as a tree, and its output.

    x [8, 32] -> tanh(x W1 + b1) -> h W2 + b2 [8, 4]

Weights are named fc1, b1, fc2, b2 and lie [in, out], whatever a container does
with them.
"""

from typing import Any

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx

SIZES = {"fc1": (32, 8), "b1": (8,), "fc2": (8, 4), "b2": (4,)}


class Plain:
  """Nested dictionaries, a None among them; computes exactly as Linen does."""

  paths = {"fc1": "fc1/kernel", "fc2": "fc2/kernel"}
  axis = -2

  def pack(self, w):
    return {
      "fc1": {"kernel": w["fc1"], "bias": w["b1"]},
      "fc2": {"kernel": w["fc2"], "bias": w["b2"]},
      "none": None,
    }

  def unpack(self, tree):
    return {
      "fc1": tree["fc1"]["kernel"], "b1": tree["fc1"]["bias"],
      "fc2": tree["fc2"]["kernel"], "b2": tree["fc2"]["bias"],
    }  # fmt: skip

  def apply(self, params, x):
    w = self.unpack(params)
    h = jnp.tanh(x @ w["fc1"] + w["b1"].reshape(1, -1))
    return h @ w["fc2"] + w["b2"].reshape(1, -1)


class Linen(Plain):
  """The variables of a Linen module."""

  paths = {"fc1": "params/fc1/kernel", "fc2": "params/fc2/kernel"}

  class Net(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
      x = jnp.tanh(flax.linen.Dense(8, name="fc1")(x))
      return flax.linen.Dense(4, name="fc2")(x)

  def pack(self, w):
    tree = super().pack(w)
    del tree["none"]
    return {"params": tree}

  def unpack(self, tree):
    return super().unpack(tree["params"])

  def apply(self, params, x):
    return self.Net().apply(params, x)


class Equinox:
  """The arrays of an Equinox module; its kernels lie [out, in]."""

  paths = {"fc1": "fc1/weight", "fc2": "fc2/weight"}
  axis = -1

  class Net(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    activation: Any

    def __call__(self, x):
      return self.fc2(self.activation(self.fc1(x)))

  def __init__(self):
    keys = jax.random.split(jax.random.key(0))
    layers = eqx.nn.Linear(32, 8, key=keys[0]), eqx.nn.Linear(8, 4, key=keys[1])
    self.net = self.Net(*layers, jnp.tanh)
    _, self.static = eqx.partition(self.net, eqx.is_inexact_array)

  def pack(self, w):
    leaves = (w["fc1"].T, w["b1"], w["fc2"].T, w["b2"])
    net = eqx.tree_at(
      lambda n: (n.fc1.weight, n.fc1.bias, n.fc2.weight, n.fc2.bias),
      self.net,
      leaves,
    )
    return eqx.partition(net, eqx.is_inexact_array)[0]

  def unpack(self, tree):
    up = lambda a: jnp.swapaxes(a, -1, -2)  # noqa: E731
    return {
      "fc1": up(tree.fc1.weight), "b1": tree.fc1.bias,
      "fc2": up(tree.fc2.weight), "b2": tree.fc2.bias,
    }  # fmt: skip

  def apply(self, params, x):
    return jax.vmap(eqx.combine(params, self.static))(x)


class Net(nnx.Module):
  """The NNX module; it is sparsified and goes through `TrainState`."""

  def __init__(self, w):
    def given(name):
      return lambda *_: jnp.asarray(w[name])

    rngs = nnx.Rngs(0)
    self.fc1 = nnx.Linear(
      32, 8, kernel_init=given("fc1"), bias_init=given("b1"), rngs=rngs
    )
    self.fc2 = nnx.Linear(
      8, 4, kernel_init=given("fc2"), bias_init=given("b2"), rngs=rngs
    )

  def __call__(self, x):
    return self.fc2(jnp.tanh(self.fc1(x)))


CONTAINERS = {"plain": Plain, "linen": Linen, "equinox": Equinox}
