#!/usr/bin/env bash
# jax 0.10.2 (jaxlib 0.10.2, Python 3.11, CPU): x / y with a float32 scalar y of
# 2**127 is 0, and 1.76 if y is an array of x's shape with that value in every
# entry. XLA turns a division by a broadcast value into a product with its
# reciprocal, here 2**-127, a denormal number, which is flushed to zero.
#
# A good engineer would expect the same quotient from a scalar and from an array
# of that scalar, but for the last bit; both are ordinary numbers here.
#
# Output seen on 2026-11-30:
#   numpy: 1.76   by an array: 1.76   by a scalar: 0.0   by a row: 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

divide = jax.jit(lambda x, y: x / y)
x, y = np.full((8, 10), 3e38, np.float32), np.float32(2.0**127)
exact = float(x[0, 0] / y)
by = {
  "an array": jnp.full((8, 10), y),
  "a scalar": jnp.asarray(y),
  "a row": jnp.full((1, 10), y),
}
got = {name: float(divide(x, value)[0, 0]) for name, value in by.items()}
print(
  f"numpy: {exact:.2f}   "
  + "   ".join(f"by {name}: {value:.3g}" for name, value in got.items())
)
assert abs(got["an array"] - exact) < 1e-6, "the behaviour has changed"
assert got["a scalar"] == got["a row"] == 0, "the behaviour has changed"
PYTHON
