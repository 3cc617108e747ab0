#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2, Python 3.11): contrib.schedule_free weights each point
# of its average by the square of the learning rate, but reads the schedule one
# step later than the base optimizer: its count begins at 1, that of the base at
# 0. Under a warm-up with rates 0, 1/2, 1 and a gradient of 1, SGD leads from
# z = 0 to 0 and to -1/2. Their average has weights (1/2)^2 and 1^2, not 0 and
# (1/2)^2: it is -0.4, and the first step, which moves nothing, counts a fifth.
#
# A good engineer would expect one schedule, given to both optimizers as the
# documentation shows, to have one value in one step: the average is -0.5.
#
# Output seen on 2026-11-30:
#   z after two steps: -0.5
#   sum of the weights: 1.25; of the squares of the rates: 0.25
#   average: -0.4; weighted by the squares of the rates: -0.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax
from optax import contrib

rate = optax.warmup_constant_schedule(0.0, 1.0, warmup_steps=2)
rates = [float(rate(step)) for step in range(2)]
tx = contrib.schedule_free(optax.sgd(rate), rate)
params = jnp.zeros(())
state = tx.init(params)
z = []
for _ in rates:
  updates, state = tx.update(jnp.ones(()), state, params)
  params = optax.apply_updates(params, updates)
  z.append(float(state.z))
average = float(contrib.schedule_free_eval_params(state, params))
total = float(state.weight_sum)
weights = [each**2 for each in rates]
expected = sum(w * point for w, point in zip(weights, z)) / sum(weights)
print(f"z after two steps: {z[1]}")
print(
  f"sum of the weights: {total}; of the squares of the rates: {sum(weights)}"
)
print(
  f"average: {average:.3g}; weighted by the squares of the rates: {expected}"
)
assert rates == [0, 0.5] and z == [0, -0.5] and expected == -0.5
assert total == 1.25 and abs(average + 0.4) < 1e-6, "the behaviour has changed"
PYTHON
