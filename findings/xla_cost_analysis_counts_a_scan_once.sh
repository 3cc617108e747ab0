#!/usr/bin/env bash
# jax 0.10.2 (jaxlib 0.10.2, Python 3.11, CPU): compiled.cost_analysis() of a scan
# counts its body once, whatever the number of steps, and so does that of a loop.
# The same layers written out are counted one by one. A transformer whose blocks
# are scanned seems to cost as much as one block, and a model FLOPs utilisation
# made from it is too low by the depth.
#
# A good engineer would expect equal FLOPs from equal arithmetic: the number of
# steps is a constant in the program.
#
# Output seen on 2026-11-30:
#   12 products written out: 393216   12 scanned: 32770   1 product: 32768
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

x = jnp.ones((4, 64))
weights = jnp.ones((12, 64, 64))


def written_out(x, weights):
  for w in weights:
    x = x @ w
  return x


def scanned(x, weights):
  return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]


def flops(function, weights):
  compiled = jax.jit(function).lower(x, weights).compile()
  return int(compiled.cost_analysis()["flops"])


all_12, loop, one = (
  flops(written_out, weights), flops(scanned, weights),
  flops(written_out, weights[:1]),
)
print(f"12 products written out: {all_12}   12 scanned: {loop}   1 product: {one}")
assert all_12 == 12 * one, "the behaviour has changed"
assert one <= loop < 2 * one, "the behaviour has changed"
PYTHON
