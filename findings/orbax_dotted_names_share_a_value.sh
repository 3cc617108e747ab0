#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (jax 0.10.2, Python 3.11): a pytree with a key that
# contains a dot, {"a.b": x, "a": {"b": y}}, is saved without a word, but both
# leaves share one place in the checkpoint: both are restored with one value.
#
# A good engineer would expect either two values or an error at the save.
#
# Output seen on 2026-11-30:
#   saved    a.b=1.0 a/b=2.0
#   restored one value for both leaves
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoint" 2>/dev/null \
  <<'PYTHON'
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

tree = {"a.b": jnp.float32(1), "a": {"b": jnp.float32(2)}}
print(f"saved    a.b={float(tree['a.b'])} a/b={float(tree['a']['b'])}")
with ocp.StandardCheckpointer() as checkpointer:
  checkpointer.save(sys.argv[1], tree)
  checkpointer.wait_until_finished()
  back = checkpointer.restore(sys.argv[1], tree)
values = float(back["a.b"]), float(back["a"]["b"])
assert values[0] == values[1], f"the behaviour has changed: {values}"
print("restored one value for both leaves")
PYTHON
