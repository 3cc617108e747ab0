#!/usr/bin/env bash
# jax 0.10.2 (CPU, Python 3.11): np.asarray of a CPU array is a view without a
# copy. While such a view is alive, an argument that is donated (donate_argnums)
# is not consumed: the call succeeds, the array is not deleted, is readable, and
# a new buffer is allocated for the result. Without the view, the same call
# deletes it. So whether donated state may be read again, and whether a step
# needs its memory once or twice, depends on a NumPy array elsewhere in the
# program, such as one kept by a logger or by a checkpoint that is being written.
#
# A good engineer would expect the donation to be refused with a warning, as it
# is where shapes do not match, or the array to count as deleted all the same.
#
# Output seen on 2026-11-30:
#   without a view: deleted True
#   with a view:    deleted False, 0 warnings
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import jax
import jax.numpy as jnp
import numpy as np

step = jax.jit(lambda x: x + 1, donate_argnums=0)
alone = jnp.arange(4.0)
step(alone)
print(f"without a view: deleted {alone.is_deleted()}")
viewed = jnp.arange(4.0)
view = np.asarray(viewed)
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  after = step(viewed)
print(
  f"with a view:    deleted {viewed.is_deleted()}, {len(caught)} warnings"
)
assert alone.is_deleted(), "the behaviour has changed"
assert not viewed.is_deleted() and not caught, "the behaviour has changed"
assert view.tolist() == viewed.tolist() == [0.0, 1.0, 2.0, 3.0]
assert after.tolist() == [1.0, 2.0, 3.0, 4.0]
PYTHON
