#!/usr/bin/env bash
# jax 0.10.2 (jaxlib 0.10.2, Python 3.11, CPU): jax.checkpoint around each of 16
# blocks that are written out one after the other costs the second forward pass,
# and the compiled gradient needs as much memory as without. Around the body of
# a scan of the same blocks it takes memory to a quarter.
#
# A good engineer would expect the stored activations to go in both cases, or, if
# the compiler merges the two forward passes, neither cost nor gain. So a plan
# for a large model that is compiled for the CPU must scan its blocks.
#
# Output seen on 2026-11-30 (MiB of temporaries, products in the program):
#   written out: 104 MiB, 95 products   with checkpoint: 104 MiB, 127 products
#   scanned: 179 MiB   with checkpoint: 43 MiB
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

weights = jax.ShapeDtypeStruct((16, 2, 256, 256), jnp.float32)
inputs = jax.ShapeDtypeStruct((2048, 256), jnp.float32)


def block(x, w):
  return x + jnp.tanh(jnp.tanh(x @ w[0]) @ w[1])


def written_out(block, weights, x):
  for w in weights:
    x = block(x, w)
  return (x**2).sum()


def scanned(block, weights, x):
  return (jax.lax.scan(lambda x, w: (block(x, w), None), x, weights)[0] ** 2).sum()


def compiled(network, block):
  gradient = jax.grad(lambda weights, x: network(block, weights, x))
  done = jax.jit(gradient).lower(weights, inputs).compile()
  mib = done.memory_analysis().temp_size_in_bytes / 2**20
  return mib, done.as_text().count(" dot(")


kept, products = compiled(written_out, block)
again, more = compiled(written_out, jax.checkpoint(block))
print(f"written out: {kept:.0f} MiB, {products} products  "
      f" with checkpoint: {again:.0f} MiB, {more} products")
scan, _ = compiled(scanned, block)
less, _ = compiled(scanned, jax.checkpoint(block))
print(f"scanned: {scan:.0f} MiB   with checkpoint: {less:.0f} MiB")
assert more >= products + 30 and again >= 0.98 * kept, "the behaviour has changed"
assert less < 0.3 * scan, "the behaviour has changed"
PYTHON
