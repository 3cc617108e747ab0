#!/usr/bin/env bash
# flax 0.12.8 (jax 0.10.2, optax 0.2.8, Python 3.11): the gain g of
# nnx.WeightNorm, whose point is to train the length of each weight vector apart
# from its direction, is kept as a dict of plain arrays. It is no nnx.Param, so
# nnx.state(model, nnx.Param) lacks it, and nnx.Optimizer(wrt=nnx.Param), the
# form of the documentation, never changes it: without a message, the norm of
# every column stays 1.
#
# A good engineer would expect the two halves of weight normalization to be
# parameters, as they are in PyTorch's and in Linen's.
#
# Output seen on 2026-11-30:
#   parameters: layer_instance/bias, layer_instance/kernel
#   gain after 20 steps: [1.0, 1.0, 1.0, 1.0]; the bias moved: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax
from flax import nnx

rngs = nnx.Rngs(0)
model = nnx.WeightNorm(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)
params = nnx.to_flat_state(nnx.state(model, nnx.Param))
names = sorted("/".join(path) for path, _ in params)
optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
x = jax.random.normal(jax.random.key(1), (32, 8))


def loss(model):
  # The best function is ten times as steep as a column of length 1.
  return jnp.mean((model(x) - 10 * x[:, :4] - 1) ** 2)


for _ in range(20):
  optimizer.update(model, nnx.grad(loss)(model))
(gain,) = jax.tree.leaves(model.scales)
moved = bool((model.layer_instance.bias[...] != 0).any())
print(f"parameters: {', '.join(names)}")
print(f"gain after 20 steps: {gain.tolist()}; the bias moved: {moved}")
assert names == ["layer_instance/bias", "layer_instance/kernel"], "changed"
assert gain.tolist() == [1.0] * 4 and moved, "the behaviour has changed"
PYTHON
