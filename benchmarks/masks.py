"""N:M masks against the two usual ways to make them, in copies.

Times `where(mask(|w|), w, 0)`, the masked weight of one training step, for
* ours: `figs_jax.nm_mask`,
* top_k: `lax.top_k` inside each group (qwix, praxis),
* argsort: `argsort(argsort(|w|)) < n` (jaxpruner),
on groups along axis -2 (a `[in, out]` kernel) and -1, and prints each as a
multiple of `w * 0.5` timed in the same rounds: the minimum of the rounds, so
that other work on the machine matters little.

The floor is one read and one write of the kernel, 8 bytes per float32 entry
over the memory bandwidth, which is what the copy does: 4096 x 4096 is 134 MB,
13 ms at 10 GB/s. Nothing here asserts a time.

  python benchmarks/masks.py --size 384x1536 --dtype bfloat16
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core import NM, nm_mask

PATTERNS = "2:4,1:4,1:8,1:16,4:16,8:32,8:64,1:128"
FIELDS = "axis pattern | copy ns/entry | ours top_k argsort, in copies"


def grouped(w, pattern, axis):
  """|w| with the group last, and the way back."""
  turned = jnp.moveaxis(jnp.abs(w), axis, -1)
  groups = turned.reshape(*turned.shape[:-1], -1, pattern.m)
  return groups, lambda m: jnp.moveaxis(m.reshape(turned.shape), -1, axis)


def top_k_mask(w, pattern, axis):
  groups, back = grouped(w, pattern, axis)
  _, kept = lax.top_k(groups, pattern.n)
  return back(jnp.any(jax.nn.one_hot(kept, pattern.m, dtype=bool), -2))


def argsort_mask(w, pattern, axis):
  groups, back = grouped(w, pattern, axis)
  rank = jnp.argsort(jnp.argsort(-groups, -1, stable=True), -1)
  return back(rank < pattern.n)


def our_mask(w, pattern, axis):
  return nm_mask(jnp.abs(w), pattern, axis)


def masked(make, pattern, axis):
  def run(w):
    return jnp.where(make(w, pattern, axis), w, jnp.zeros((), w.dtype))

  return run


def seconds(functions, w, rounds, patience):
  """The fastest of the rounds; a slow function gets fewer of them."""
  functions = [jax.jit(f) for f in functions]
  for f in functions:
    f(w).block_until_ready()
  best, spent = [math.inf] * len(functions), [0.0] * len(functions)
  for _ in range(rounds):
    for i, f in enumerate(functions):
      if spent[i] < patience:
        start = time.perf_counter()
        f(w).block_until_ready()
        took = time.perf_counter() - start
        best[i], spent[i] = min(best[i], took), spent[i] + took
  return best


def main():
  parser = argparse.ArgumentParser(description="N:M masks, timed in copies.")
  parser.add_argument("--size", default="4096x4096", help="rows x columns")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--patterns", default=PATTERNS, help="n:m,n:m,...")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument(
    "--patience", type=float, default=3.0, help="seconds per timed function"
  )
  args = parser.parse_args()
  shape = tuple(int(d) for d in args.size.split("x"))
  w = jax.random.normal(jax.random.key(0), shape).astype(args.dtype)
  half = jnp.asarray(0.5, w.dtype)
  makers = (our_mask, top_k_mask, argsort_mask)
  print(f"{jax.default_backend()}, jax {jax.__version__}, {args.size}", w.dtype)
  print(FIELDS)
  for text in args.patterns.split(","):
    pattern = NM.parse(text)
    for axis in (-2, -1):
      if shape[axis] % pattern.m:
        continue
      functions = [lambda w: w * half]
      functions += [masked(make, pattern, axis) for make in makers]
      copy, *took = seconds(functions, w, args.rounds, args.patience)
      ratios = " ".join(f"{t / copy:7.2f}" for t in took)
      print(
        f"{axis:4} {text:>7} | {copy / w.size * 1e9:6.2f} | {ratios}",
        flush=True,
      )


if __name__ == "__main__":
  main()
