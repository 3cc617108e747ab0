#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2, Python 3.11): under jax_numpy_dtype_promotion=strict,
# JAX's own setting for code that must not change dtypes by accident, the bias
# correction of optax.adam (and of adamw, lamb, nadam, ...) raises
# TypePromotionError, eagerly and under jit: it raises the Python float b1 to
# the power of an int32 step count. All params and gradients are float32. sgd
# with momentum and lion work.
#
# A good engineer would expect the most used optimizer to pass the check that
# the array library under it offers, since no operand of the user is mixed.
#
# Output seen on 2026-11-30:
#   adam: TypePromotionError
#   adamw: TypePromotionError
#   lamb: TypePromotionError
#   sgd: ok
#   lion: ok
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

outcomes = {}
params = {"w": jnp.ones(3, jnp.float32)}
with jax.numpy_dtype_promotion("strict"):
  for name in ("adam", "adamw", "lamb", "sgd", "lion"):
    options = {"momentum": 0.9} if name == "sgd" else {}
    tx = getattr(optax, name)(1e-3, **options)
    state = tx.init(params)
    each = []
    for update in (tx.update, jax.jit(tx.update)):
      try:
        update(params, state, params)
        each.append("ok")
      except Exception as error:
        each.append(type(error).__name__)
    assert each[0] == each[1], each
    outcomes[name] = each[0]
for name, outcome in outcomes.items():
  print(f"{name}: {outcome}")
wrong = dict.fromkeys(("adam", "adamw", "lamb"), "TypePromotionError")
assert outcomes == wrong | {"sgd": "ok", "lion": "ok"}, "changed"
PYTHON
