#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2, Python 3.11): MultiSteps.update takes extra arguments
# and passes them to its inner optimizer, but what its gradient_transformation()
# returns is a plain GradientTransformation. optax.chain therefore calls it
# without the extra arguments of update(), and says nothing: an inner transform
# with an optional extra argument sees its default instead.
#
# A good engineer would expect the wrapper to keep the kind of its member, as
# optax.chain and optax.masked do.
#
# Output seen on 2026-11-30:
#   MultiSteps.update:          inner saw value=3
#   chain(gradient_transformation()): inner saw value=None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax

seen = []


def update(updates, state, params=None, *, value=None, **extra):
  seen.append(value)
  return updates, state


inner = optax.GradientTransformationExtraArgs(
  lambda params: optax.EmptyState(), update
)
params = {"w": jnp.ones(2)}
steps = optax.MultiSteps(inner, every_k_schedule=1)
steps.update(params, steps.init(params), params, value=3)
direct = seen[-1]
chained = optax.chain(steps.gradient_transformation())
chained.update(params, chained.init(params), params, value=3)
print(f"MultiSteps.update:          inner saw value={direct}")
print(f"chain(gradient_transformation()): inner saw value={seen[-1]}")
assert direct == 3 and seen[-1] is None, "the behaviour has changed"
PYTHON
