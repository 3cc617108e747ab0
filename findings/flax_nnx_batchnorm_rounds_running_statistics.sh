#!/usr/bin/env bash
# flax 0.12.8 (jax 0.10.2, Python 3.11): nnx.BatchNorm(dtype=bfloat16) keeps its
# running mean and variance in float32 and normalizes with float32 statistics in
# training, but in evaluation it rounds both to bfloat16 before it subtracts. A
# channel whose mean is large beside its deviation is then shifted: the batch
# (256, 258) has mean 257 and deviation 1, is (-1, 1) in training and (0, 2) in
# evaluation with exactly these statistics, since bfloat16 has no 257.
#
# A good engineer would expect one batch with one set of statistics to be
# normalized alike in both modes: Linen's BatchNorm(dtype=bfloat16) does so.
#
# Output seen on 2026-11-30:
#   running mean 257.0, variance 1.0
#   nnx:   training [-1.0, 1.0], evaluation [0.0, 2.0]
#   linen: training [-1.0, 1.0], evaluation [-1.0, 1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from flax import linen, nnx

x = jnp.array([[256.0], [258.0]], jnp.bfloat16)  # both are exact in bfloat16
options = {"momentum": 0.0, "epsilon": 0.0, "dtype": jnp.bfloat16}


def numbers(y):
  return y.astype(jnp.float32).ravel().tolist()


norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0), **options)
ours = [numbers(norm(x, use_running_average=mode)) for mode in (False, True)]
print(f"running mean {norm.mean[0]}, variance {norm.var[0]}")
assert (norm.mean[0], norm.var[0]) == (257.0, 1.0), "changed"

norm = linen.BatchNorm(**options)
state = norm.init(jax.random.key(0), x, use_running_average=True)
trained, new = norm.apply(
  state, x, use_running_average=False, mutable=["batch_stats"]
)
evaluated = norm.apply({**state, **new}, x, use_running_average=True)
theirs = [numbers(trained), numbers(evaluated)]
for name, (training, evaluation) in (("nnx:  ", ours), ("linen:", theirs)):
  print(f"{name} training {training}, evaluation {evaluation}")
assert ours == [[-1.0, 1.0], [0.0, 2.0]], "the behaviour has changed"
assert theirs == [[-1.0, 1.0], [-1.0, 1.0]], "the behaviour has changed"
PYTHON
