#!/usr/bin/env bash
# jax 0.10.2 (jaxlib 0.10.2, Python 3.11, CPU): of a denormal float32, x != 0 is
# False (XLA flushes denormal numbers) and a test of its bits is True. Their
# logical or is True op by op, and False under jit: compiled together, the or of
# the two is simplified to x != 0 as if nothing were flushed, and then flushed.
#
# A good engineer would expect the or of a False and a True to be True, and a
# pure function to give the same Boolean with and without jit.
#
# Output seen on 2026-11-30:
#   x != 0: False   bits != 0: True
#   or, op by op: True   or, under jit: False
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
from jax import lax

x = np.full(8, 1e-40, np.float32)


def plain(x):
  return x != 0


def bits(x):
  return (lax.bitcast_convert_type(x, jnp.uint32) & 0x7FFFFFFF) != 0


def either(x):
  return plain(x) | bits(x)


alone = [bool(jax.jit(test)(x).all()) for test in (plain, bits)]
eager, jitted = bool(either(jnp.asarray(x)).all()), bool(jax.jit(either)(x).all())
print(f"x != 0: {alone[0]}   bits != 0: {alone[1]}")
print(f"or, op by op: {eager}   or, under jit: {jitted}")
assert alone == [False, True], "the behaviour has changed"
assert eager and not jitted, "the behaviour has changed"
PYTHON
